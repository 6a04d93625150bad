"""The scan: visiting the sites of an autoregressive distribution in an order in which all they depend on is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.distributions import Distribution

Visit = Callable[..., Tensor]  # visit(sites, conditional) -> values at those sites


@dataclass(frozen=True)
class Pixels:
    """The sites of one step over an image: one channel, n pixels. `x[pixels.index]` is [B, n].

    `step` is the step's number: with `arranged = p.schedule().arrange(x)`, `arranged[step][:, channel]` is the same as
    `x[pixels.index]` without an indexing at each step.
    """

    step: int
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


def greedy(sites: object, conditional: Distribution) -> Tensor:
    """A visit that takes the most likely value of each site."""
    return conditional.mode
