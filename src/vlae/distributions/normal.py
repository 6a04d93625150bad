"""The standard normal prior."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Normal

from vlae.distributions.latent import Prior, PriorModule
from vlae.distributions.scan import Dimensions, Pixels, Visit
from vlae.noise import randn


def log_normal(eps: Tensor) -> Tensor:
    """log N(eps; 0, 1) in nats, element by element."""
    return -0.5 * eps**2 - 0.5 * math.log(2 * math.pi)


class StandardNormal(Prior):
    """N(0, I) over z with event shape `shape`. `like` gives dtype and device."""

    has_rsample = True

    @property
    def mean(self) -> Tensor:
        """Zeros, [*shape]."""
        return self.like.new_zeros(self.event_shape)

    def rsample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, *shape], scaled by the temperature."""
        return temperature * randn(sample_shape, None, self.event_shape, generator, self.like)

    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """As `rsample`: there are no parameters to take gradients for."""
        return self.rsample(sample_shape, generator, temperature)

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """log p(z_i) in nats, [..., *shape]."""
        return log_normal(z)

    def noise_of(self, z: Tensor) -> Tensor:
        """The standard normal noise that z stands for: z itself."""
        return z

    def from_noise(self, noise: Tensor) -> Tensor:
        """The noise itself."""
        return noise

    def conditionals(self, z: Tensor) -> Normal:
        """p(z_i | z_<i) for all i at once, [..., *shape]: none depends on any other."""
        return Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False)

    def scan(self, visit: Visit, count: int) -> Tensor:
        """All dimensions in one step, of maps one step per channel: [count, *shape] of what `visit` returns."""
        every = self.conditionals(self.like.new_zeros(count, *self.event_shape))
        if len(self.event_shape) == 1:
            return visit(Dimensions(torch.arange(self.event_shape[0])), every)
        channels, height, width = self.event_shape
        rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
        whole = Normal(every.loc[:, 0].flatten(1), every.scale[:, 0].flatten(1), validate_args=False)
        values = [visit(Pixels(0, channel, rows, columns), whole) for channel in range(channels)]
        return torch.stack(values, 1).unflatten(-1, (height, width))


class StandardNormalPrior(PriorModule):
    """Makes the standard normal over z, a vector of `latent_shape` dimensions or an array of that shape."""

    def __init__(self, latent_shape: int | Sequence[int]):
        super().__init__((latent_shape,) if isinstance(latent_shape, int) else latent_shape)

    def forward(self) -> StandardNormal:
        """The prior, a distribution with event shape `latent_shape`."""
        return StandardNormal(self.latent_shape, self.like)
