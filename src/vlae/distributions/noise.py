"""Noise from one generator, from one generator per image, or from PyTorch's global one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlae.errors import VlaeError

Generators = torch.Generator | Sequence[torch.Generator] | None


def randn(
    sample_shape: Sequence[int], batch: int | None, shape: Sequence[int], generator: Generators, like: Tensor
) -> Tensor:
    """Standard normal noise [*sample_shape, batch, *shape] with the dtype and device of `like`.

    With a sequence of generators, one per image, an image's noise does not depend on the images beside it. `batch=None`
    leaves the batch dimension out.
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
        full = (*sample_shape, *(() if batch is None else (batch,)), *shape)
        device = like.device if generator is None else generator.device
        return draw(full, generator=generator, device=device, dtype=like.dtype).to(like.device)
    if len(generator) != batch:
        raise VlaeError(f"one generator per image is needed: got {len(generator)} for a batch of {batch}")
    each = [draw((*sample_shape, *shape), generator=g, device=g.device, dtype=like.dtype) for g in generator]
    return torch.stack(each, dim=len(sample_shape)).to(like.device)
