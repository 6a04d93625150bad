"""The prior of the delta-VAE: no factorised posterior comes closer to it than a chosen rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from vlae.distributions.latent import Prior, PriorModule
from vlae.distributions.normal import log_normal
from vlae.errors import VlaeError, require_positive
from vlae.noise import randn

LARGEST_ALPHA = 1 - 1e-9


def minimum_rate(alpha: float, dimensions: int) -> float:
    r"""min over all factorised Gaussians q of KL(q || AR(1)), nats (Razavi et al. 2019, arXiv 1901.03416).

    .. math:: \tfrac12 \left[ (D - 2) \log(1 + \alpha^2) - \log(1 - \alpha^2) \right],

    0 for a single dimension. It is reached at mean 0 with variances 1 / precision_ii.

    Example:
        >>> round(minimum_rate(0.95, 64), 2)
        21.1
    """
    if dimensions < 2:
        return 0.0
    return 0.5 * ((dimensions - 2) * math.log1p(alpha**2) - math.log1p(-(alpha**2)))


class AR1(Prior):
    """z_1 ~ N(0, 1), z_t = alpha z_{t-1} + sqrt(1 - alpha^2) noise: each z_t is standard normal, neighbours depend."""

    def __init__(self, alpha: float, dimensions: int, like: Tensor):
        super().__init__((dimensions,), like)
        self.alpha = alpha

    @property
    def scale(self) -> Tensor:
        """The standard deviation of z_t given z_{t-1}, [D]: 1, then sqrt(1 - alpha^2)."""
        scale = self.like.new_full(self.event_shape, math.sqrt((1 - self.alpha) * (1 + self.alpha)))
        scale[0] = 1
        return scale

    @property
    def minimum_rate(self) -> float:
        """The rate in nats that every factorised Gaussian posterior has at least."""
        return minimum_rate(self.alpha, self.event_shape[0])

    def conditionals(self, z: Tensor) -> Normal:
        """p(z_t | z_{t-1}) for all t at once, [..., D]."""
        return Normal(self.alpha * previous(z), self.scale.expand(z.shape), validate_args=False)

    def noise_of(self, z: Tensor) -> Tensor:
        """(z_t - alpha z_{t-1}) / scale_t, [..., D]."""
        return (z - self.alpha * previous(z)) / self.scale

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> Tensor:
        """z_t = alpha z_{t-1} + scale_t noise_t, [..., D]."""
        first, *steps = (self.scale * noise).unbind(-1)
        z = [first]
        for step in steps:
            z.append(self.alpha * z[-1] + step)
        return torch.stack(z, -1)

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """log p(z_t | z_{t-1}) in nats, [..., D]; sums to `log_prob`."""
        return log_normal(self.noise_of(z)) - self.scale.log()

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, D]."""
        return self.from_noise(temperature * randn(sample_shape, None, self.event_shape, generator, self.like))


def previous(z: Tensor) -> Tensor:
    """z_{t-1} in the place of z_t, 0 before the first, [..., D]."""
    return F.pad(z[..., :-1], (1, 0))


class DeltaPrior(PriorModule):
    """Makes the AR(1) prior of the delta-VAE, over the dimensions of a vector. It has no parameters to learn.

    Args:
        latent_dim: dimensions of z.
        alpha: in [0, 1), how much of z_{t-1} remains in z_t; 0.95 if neither is given.
        rate: or the committed rate in nats, from which alpha follows.
    """

    def __init__(self, latent_dim: int, alpha: float | None = None, rate: float | None = None):
        super().__init__((latent_dim,))
        require_positive("latent_dim", latent_dim)
        if alpha is not None and rate is not None:
            raise VlaeError("give alpha or rate of the delta prior, not both: each follows from the other")
        if alpha is None and rate is None:
            alpha = 0.95
        if rate is not None:
            most = minimum_rate(LARGEST_ALPHA, latent_dim)
            if not 0 <= rate <= most or latent_dim == 1:
                raise VlaeError(
                    f"a delta prior over {latent_dim} dimensions can commit to a rate of 0 to {most:.3g} nats "
                    f"(2 dimensions at least); got {rate}"
                )
            alpha = brentq(lambda a: minimum_rate(a, latent_dim) - rate, 0, LARGEST_ALPHA, xtol=1e-14)
        if alpha is None or not 0 <= alpha < 1:
            raise VlaeError(f"alpha of the delta prior must be at least 0 and less than 1; got {alpha}")
        self.alpha = float(alpha)

    @property
    def minimum_rate(self) -> float:
        """The rate in nats that every factorised Gaussian posterior has at least."""
        return minimum_rate(self.alpha, self.latent_shape[0])

    def extra_repr(self) -> str:
        """For the model's repr."""
        return f"alpha={self.alpha:.6g}, minimum_rate={self.minimum_rate:.4g} nats"

    def forward(self) -> AR1:
        """The prior, a distribution with event shape [latent_dim]."""
        return AR1(self.alpha, self.latent_shape[0], self.like)
