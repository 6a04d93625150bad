"""The posterior of a deterministic encoder: all mass at one z per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from vlae.noise import Generators


class PointMass(Distribution):
    """q(z|x) that is certain of its z: batch shape [B], event shape `latent_shape`.

    `log_prob` is the logarithm of the mass: 0 at the value and -infinity elsewhere. For codes, which are integers, it
    counts in a bound like any other; for continuous z the mass is no density, and there is no bound to be had.

    Args:
        value: [B, *latent_shape], integers or not.
        dtype: of the log-probabilities; needed where the values are integers.

    Example:
        >>> q = PointMass(torch.tensor([[3, 1], [0, 2]]), torch.float32)
        >>> q.log_prob(torch.tensor([[3, 1], [0, 0]]))
        tensor([0., -inf])
    """

    arg_constraints: dict = {}
    has_rsample = True

    def __init__(self, value: Tensor, dtype: torch.dtype | None = None):
        self.value, self.dtype = value, dtype or value.dtype
        super().__init__(value.shape[:1], value.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The value, [B, *latent_shape]."""
        return self.value

    @property
    def mode(self) -> Tensor:
        """The value, [B, *latent_shape]."""
        return self.value

    def rsample(self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None) -> Tensor:
        """The value as often as asked for, [*sample_shape, B, *latent_shape]; no noise is drawn."""
        return self.value.expand(*sample_shape, *self.value.shape)

    def sample(self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None) -> Tensor:
        """As `rsample`, without gradients."""
        return self.rsample(sample_shape, generator).detach()

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """0 where z has the value and -infinity elsewhere, [..., B, *latent_shape]."""
        same = z == self.value
        return torch.zeros_like(same, dtype=self.dtype).masked_fill(~same, -torch.inf)

    def log_prob(self, z: Tensor) -> Tensor:
        """0 where all of z is the value, -infinity elsewhere, [..., B]."""
        return self.log_prob_per_dimension(z).flatten(-len(self.event_shape)).sum(-1)
