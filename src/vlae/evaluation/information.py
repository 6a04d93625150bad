"""Where the rate goes: bits per latent dimension, and active units or the codes in use."""

from __future__ import annotations

import math
from typing import Self

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


def bits_of_groups(model: LatentVariableModel, bits: Tensor) -> dict[str, float]:
    """The rate of each group of latent dimensions in bits, by name: levels of a ladder, channels of latent maps.

    Args:
        model: which one; a vector z is one group, whose rate is the whole, and discrete codes have none.
        bits: of each dimension, shaped like `Bound.rate_per_dimension` without the batch.

    Example:
        >>> from vlae import LadderVAE
        >>> model = LadderVAE((1, 8, 8), latent_dims=(2, 1), hidden=4)
        >>> bits_of_groups(model, torch.tensor([1.0, 2.0, 0.5]))
        {'level_1': 3.0, 'level_2': 0.5}
    """
    shape = model.latent_shape
    if shape and isinstance(shape[0], tuple):
        parts = bits.split([math.prod(level) for level in shape])
        return {f"level_{number}": part.sum().item() for number, part in enumerate(parts, 1)}
    if len(shape) == 3:
        return {f"channel_{number}": part.sum().item() for number, part in enumerate(bits, 1)}
    return {}


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
        self.merge(self.of(rate_per_dimension, noise_means))

    @classmethod
    def of(cls, rate_per_dimension: Tensor, noise_means: Tensor) -> Self:
        """The statistics of one batch: both [B, *latent_shape]."""
        batch = cls()
        batch.rate, batch.count = rate_per_dimension.double().cpu().sum(0), len(noise_means)
        if noise_means.is_floating_point():
            means = noise_means.double().cpu()
            batch.mean = means.mean(0)
            batch.squares = ((means - batch.mean) ** 2).sum(0)
        else:
            batch.occurrences = torch.bincount(noise_means.cpu().flatten())
        return batch

    def merge(self, other: LatentStatistics) -> None:
        """Adds the statistics of other images."""
        n, m = self.count, other.count
        self.rate = self.rate + other.rate
        self.count += m
        if other.occurrences is not None:
            mine = other.occurrences.new_zeros(0) if self.occurrences is None else self.occurrences
            longer, shorter = sorted((mine, other.occurrences), key=len, reverse=True)
            self.occurrences = longer.clone()
            self.occurrences[: len(shorter)] += shorter
            return
        # Chan's update: sums of squared deviations add up without cancellation.
        delta = other.mean - self.mean
        self.squares = self.squares + other.squares + delta**2 * (n * m / (n + m))
        self.mean = self.mean + delta * (m / (n + m))

    @property
    def bits_per_dimension(self) -> Tensor:
        """Mean rate of each latent dimension in bits, [*latent_shape]; sums to the rate."""
        return self.rate / self.count * BITS

    @property
    def active_units(self) -> int | None:
        """Dimensions whose posterior mean varies over the data by more than 0.01 (Burda et al. 2016, section 5.2).

        None for discrete codes, and for a single image, over which nothing varies.
        """
        if self.occurrences is not None or self.count < 2:
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
