"""The autoregressive prior over maps of codes, of a VQ-VAE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.latent import Prior
from vlae.distributions.likelihoods import Categorical
from vlae.errors import VlaeError


class CodeMapPrior(Prior):
    """p(k) over maps of integer codes k [..., h, w] in 0, ..., K - 1: a product of each code given those before it.

    To the PixelCNN a map is an image [1, h, w] of the levels k / (K - 1), so sampling goes along its wavefront.

    Args:
        network: the PixelCNN, from such images and maps without channels to K logits per code; has a `receptive_field`.
        codes: K.
        shape: (h, w).
        like: gives dtype and device.
    """

    support = constraints.nonnegative_integer  # type: ignore[assignment]

    def __init__(self, network: nn.Module, codes: int, shape: Sequence[int], like: Tensor):
        self.network, self.codes = network, codes
        super().__init__(shape, like)

    def of_images(self, count: int, temperature: float = 1.0) -> Autoregressive:
        """The same distribution over images of levels, `count` times."""
        no_maps = self.like.new_zeros(count, 0, *self.event_shape)
        return Autoregressive(self.network, Categorical(self.codes), no_maps, (1, *self.event_shape), temperature)

    def conditionals(self, z: Tensor) -> Distribution:
        """Raises: to be scanned, codes have to be levels."""
        raise VlaeError("codes are scanned as an image of levels: take of_images(count).scan(visit); or use sample()")

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """log p(k_i | earlier codes) in nats, [..., h, w]; sums to `log_prob`."""
        x = z.reshape(-1, 1, *self.event_shape).to(self.like.dtype) / (self.codes - 1)
        return self.of_images(len(x)).conditionals(x).log_prob(x).view(z.shape)

    def noise_of(self, z: Tensor) -> Tensor:
        """The codes as numbers, [..., h, w], for code that asks every prior: they stand for no Gaussian noise."""
        return z.to(self.like.dtype)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Raises: no noise stands for codes."""
        raise VlaeError("z is a map of discrete codes, which no Gaussian noise stands for: sample() draws them")

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Codes, int64 [*sample_shape, h, w]; the temperature divides the logits, and 0 takes the likeliest codes."""
        if temperature < 0:
            raise VlaeError(f"the temperature must be 0 or more; got {temperature}")
        p = self.of_images(math.prod(sample_shape), temperature or 1.0)
        x = p.sample(generator=generator) if temperature else p.mode
        return (x * (self.codes - 1)).round().long().view(*sample_shape, *self.event_shape)
