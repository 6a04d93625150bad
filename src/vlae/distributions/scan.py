"""The scan: visiting the sites of an autoregressive distribution in an order in which all they depend on is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from vlae.errors import VlaeError

Visit = Callable[..., Tensor]  # visit(sites, conditional) -> values at those sites


@dataclass(frozen=True)
class Pixels:
    """The sites of one step over an image: one channel, n pixels. `x[pixels.index]` is [B, n]."""

    channel: int
    rows: Tensor
    columns: Tensor

    @property
    def index(self) -> tuple[slice, int, Tensor, Tensor]:
        """Indexes a tensor [B, C, H, W] at these sites, giving [B, n]."""
        return (slice(None), self.channel, self.rows, self.columns)


@dataclass(frozen=True)
class Dimensions:
    """The sites of one step over a latent vector: `z[..., dimensions.index]` is [n, number of sites]."""

    index: Tensor


def wavefront(height: int, width: int, slope: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns of the pixels of each step, pixel (i, j) at step j + slope * i.

    A slope of `width` or more is the raster order, one pixel a step; a smaller one takes
    width + (height - 1) * slope steps.

    Example:
        >>> [list(zip(i.tolist(), j.tolist())) for i, j in wavefront(2, 2, slope=1)]
        [[(0, 0)], [(0, 1), (1, 0)], [(1, 1)]]
    """
    slope = min(slope, width)
    for step in range(width + (height - 1) * slope):
        rows = torch.arange(max(0, -(-(step - width + 1) // slope)), min(height, step // slope + 1))
        yield rows, step - slope * rows


def slope_of(method: str, width: int, slope: int) -> int:
    """The slope that a named order stands for: "wavefront" (as flat as the field allows) or "raster"."""
    if method == "wavefront":
        return slope
    if method == "raster":
        return width
    raise VlaeError(f"method must be 'wavefront' or 'raster'; got {method!r}")


def greedy(sites: object, conditional: Distribution) -> Tensor:
    """A visit that takes the most likely value of each site."""
    return conditional.mode
