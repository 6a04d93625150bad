"""Latent codes are a tensor [B, ...] or, in hierarchical models, a tuple of them; these few functions serve both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Latents = Tensor | tuple[Tensor, ...]


def each(function: Callable[..., Tensor], z: Latents, *others: Latents) -> Latents:
    """The function of every tensor of z, and of those in their places in other codes of its kind."""
    if isinstance(z, tuple):
        return tuple(function(*tensors) for tensors in zip(z, *others, strict=True))
    return function(z, *others)


def joined(parts: Sequence[Latents]) -> Latents:
    """Codes of several batches as those of one, along the first dimension."""
    first = parts[0]
    if isinstance(first, tuple):
        return tuple(torch.cat(list(tensors)) for tensors in zip(*parts, strict=True))
    return torch.cat([part for part in parts if isinstance(part, Tensor)])


def some(z: Latents, start: int, stop: int) -> Latents:
    """z[start:stop] along the first dimension."""
    return each(lambda tensor: tensor[start:stop], z)
