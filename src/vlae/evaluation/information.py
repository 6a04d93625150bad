"""Where the rate goes: bits per latent dimension, and active units or the codes in use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlae.models.base import LatentVariableModel
from vlae.models.context import given

BITS = 1 / math.log(2)  # nats times this are bits
ACTIVE_VARIANCE = 0.01


def noise_means(model: LatentVariableModel, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The posterior means of images x [B, C, H, W] as the prior's noise, shaped like `Bound.rate_per_dimension`.

    Discrete codes stand for no noise and are given as they are, int64.
    """
    told = given(context)
    means = model.encode(x, **told).mean
    if isinstance(means, Tensor) and not means.is_floating_point():
        return means
    return model.prior(**told).noise_of(means)


class LatentStatistics:
    """Streaming statistics of the code over a data set: rate per dimension and the variance of the posterior means.

    Where the prior is a flow, the means are those of the noise eps = f^-1(mean), whose dimensions are independent.
    Where they are integers, the numbers of discrete codes, whose variance says nothing, it is counted how often each
    code occurs instead.

    Example:
        >>> statistics = LatentStatistics()
        >>> statistics.add(torch.zeros(2, 2), torch.tensor([[0, 7], [7, 0]]))
        >>> statistics.active_units, statistics.codes_in_use, round(statistics.perplexity, 6)
        (None, 2, 2.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.rate = self.mean = self.squares = torch.zeros(())
        self.occurrences: Tensor | None = None  # of each code, as far as the highest number that came up

    def add(self, rate_per_dimension: Tensor, noise_means: Tensor) -> None:
        """Adds a batch: both [B, *latent_shape]."""
        n, m = self.count, len(noise_means)
        self.rate = self.rate + rate_per_dimension.double().cpu().sum(0)
        self.count += m
        if not noise_means.is_floating_point():
            self._count_codes(noise_means.cpu())
            return
        means = noise_means.double().cpu()
        # Chan's update: sums of squared deviations add up without cancellation.
        batch_mean = means.mean(0)
        delta = batch_mean - self.mean
        self.squares = self.squares + ((means - batch_mean) ** 2).sum(0) + delta**2 * (n * m / (n + m))
        self.mean = self.mean + delta * (m / (n + m))

    def _count_codes(self, codes: Tensor) -> None:
        before = codes.new_zeros(0) if self.occurrences is None else self.occurrences
        self.occurrences = torch.bincount(codes.flatten(), minlength=len(before))
        self.occurrences[: len(before)] += before

    @property
    def bits_per_dimension(self) -> Tensor:
        """Mean rate of each latent dimension in bits, [*latent_shape]; sums to the rate."""
        return self.rate / self.count * BITS

    @property
    def active_units(self) -> int | None:
        """Dimensions whose posterior mean varies over the data by more than 0.01 (Burda et al. 2016, section 5.2).

        None for discrete codes.
        """
        if self.occurrences is not None:
            return None
        return int((self.squares / max(self.count - 1, 1) > ACTIVE_VARIANCE).sum())

    @property
    def codes_in_use(self) -> int | None:
        """How many different codes occur, anywhere in any image; None where the code is not discrete."""
        return None if self.occurrences is None else int(self.occurrences.count_nonzero())

    @property
    def perplexity(self) -> float | None:
        """How many codes are used in effect: exp of the entropy of their shares; None where the code is not discrete.

        From 1 to the number in use, and that where all are used equally often.
        """
        if self.occurrences is None:
            return None
        shares = self.occurrences.double() / self.occurrences.sum().clamp(min=1)
        return torch.special.entr(shares).sum().exp().item()
