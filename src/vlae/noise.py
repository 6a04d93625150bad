"""Noise from one generator, from one generator per image, or from PyTorch's global one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlae import processes
from vlae.errors import VlaeError

Generators = torch.Generator | Sequence[torch.Generator] | None


def randn(
    sample_shape: Sequence[int], batch: int | None, shape: Sequence[int], generator: Generators, like: Tensor
) -> Tensor:
    """Standard normal noise [*sample_shape, batch, *shape] with the dtype and device of `like`.

    With a sequence of generators, one per image, an image's noise does not depend on the images beside it. `batch=None`
    leaves the batch dimension out. Without a generator the noise of an image is that of its place in the batch, which
    may be shared by several processes (`vlae.processes`).
    """
    return _draw(torch.randn, sample_shape, batch, shape, generator, like)


def rand(
    sample_shape: Sequence[int], batch: int | None, shape: Sequence[int], generator: Generators, like: Tensor
) -> Tensor:
    """Uniform noise in [0, 1), otherwise as `randn`."""
    return _draw(torch.rand, sample_shape, batch, shape, generator, like)


def _draw(
    draw: Callable[..., Tensor],
    sample_shape: Sequence[int],
    batch: int | None,
    shape: Sequence[int],
    generator: Generators,
    like: Tensor,
) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        shared = generator is None and batch is not None  # then the whole batch's is drawn, and the own rows are taken
        size = () if batch is None else (processes.total(batch) if shared else batch,)
        device = like.device if generator is None else generator.device
        drawn = draw((*sample_shape, *size, *shape), generator=generator, device=device, dtype=like.dtype)
        return (processes.own(drawn, len(sample_shape)) if shared else drawn).to(like.device)
    if len(generator) != batch:
        raise VlaeError(f"one generator per image is needed: got {len(generator)} for a batch of {batch}")
    each = [draw((*sample_shape, *shape), generator=g, device=g.device, dtype=like.dtype) for g in generator]
    return torch.stack(each, dim=len(sample_shape)).to(like.device)
