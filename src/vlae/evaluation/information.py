"""Where the rate goes: bits per latent dimension, and active units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlae.models.base import LatentVariableModel
from vlae.models.context import given

BITS = 1 / math.log(2)  # nats times this are bits
ACTIVE_VARIANCE = 0.01


def noise_means(model: LatentVariableModel, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The posterior means of images x [B, C, H, W] as the prior's noise, shaped like `Bound.rate_per_dimension`."""
    told = given(context)
    return model.prior(**told).noise_of(model.encode(x, **told).mean)


class LatentStatistics:
    """Streaming statistics of the code over a data set: rate per dimension and the variance of the posterior means.

    Where the prior is a flow, the means are those of the noise eps = f^-1(mean), whose dimensions are independent.
    """

    def __init__(self) -> None:
        self.count = 0
        self.rate = self.mean = self.squares = torch.zeros(())

    def add(self, rate_per_dimension: Tensor, noise_means: Tensor) -> None:
        """Adds a batch: both [B, *latent_shape]."""
        rates, means = rate_per_dimension.double().cpu(), noise_means.double().cpu()
        self.rate = self.rate + rates.sum(0)
        # Chan's update: sums of squared deviations add up without cancellation.
        n, m = self.count, len(means)
        batch_mean = means.mean(0)
        delta = batch_mean - self.mean
        self.squares = self.squares + ((means - batch_mean) ** 2).sum(0) + delta**2 * (n * m / (n + m))
        self.mean = self.mean + delta * (m / (n + m))
        self.count += m

    @property
    def bits_per_dimension(self) -> Tensor:
        """Mean rate of each latent dimension in bits, [*latent_shape]; sums to the rate."""
        return self.rate / self.count * BITS

    @property
    def active_units(self) -> int:
        """Dimensions whose posterior mean varies over the data by more than 0.01 (Burda et al. 2016, section 5.2)."""
        return int((self.squares / max(self.count - 1, 1) > ACTIVE_VARIANCE).sum())
