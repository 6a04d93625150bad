"""Posteriors q(z|x)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from vlae.distributions.noise import Generators, randn
from vlae.distributions.priors import FlowPrior, StandardNormal

LOG_RANGE = math.log(1e3)


def soft_bounded_log(s: Tensor) -> Tensor:
    """s / (1 + |s| / log 1000): near 0 the identity, never beyond 1/1000 and 1000 as a scale (zuko's bound)."""
    return s / (1 + s.abs() / LOG_RANGE)


class DiagonalGaussian(Distribution):
    """N(mean, diag(stddev^2)) over z, one per image: batch shape [B], event shape `latent_shape`.

    Args:
        mean: [B, *latent_shape].
        log_stddev: [B, *latent_shape], used as it is (see `soft_bounded_log`).
    """

    arg_constraints: dict = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, mean: Tensor, log_stddev: Tensor):
        self.loc, self.log_stddev = mean, log_stddev
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """[B, *latent_shape]."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mean."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """[B, *latent_shape]."""
        return self.log_stddev.exp()

    @property
    def variance(self) -> Tensor:
        """[B, *latent_shape]."""
        return (2 * self.log_stddev).exp()

    def rsample(self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None) -> Tensor:
        """Reparametrised samples [*sample_shape, B, *latent_shape]; `generator` may be one per image."""
        noise = randn(sample_shape, self.loc.shape[0], self.event_shape, generator, self.loc)
        return self.loc + self.stddev * noise

    def sample(self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None) -> Tensor:
        """As `rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """log q(z_i|x) in nats, [..., B, *latent_shape]."""
        return -0.5 * ((z - self.loc) * (-self.log_stddev).exp()) ** 2 - self.log_stddev - 0.5 * math.log(2 * math.pi)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x) in nats, [..., B]."""
        return self.log_prob_per_dimension(z).flatten(-len(self.event_shape)).sum(-1)


def kl_per_dimension(q: DiagonalGaussian) -> Tensor:
    """KL(q_i || N(0, 1)) in nats, [B, *latent_shape] (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (q.variance + q.mean**2 - 1) - q.log_stddev


@register_kl(DiagonalGaussian, StandardNormal)
def _kl_diagonal_standard(q: DiagonalGaussian, p: StandardNormal) -> Tensor:
    return kl_per_dimension(q).flatten(1).sum(1)


def rate_per_dimension(
    q: DiagonalGaussian, prior: StandardNormal | FlowPrior, z: Tensor, analytic: bool = True
) -> Tensor:
    """Each latent dimension's share of KL(q(z|x) || p(z)) in nats, [B, *latent_shape]; sums to the rate.

    In closed form against the standard normal, unless `analytic=False`; else log q(z_i|x) - log p's share at the one
    sample z [B, *latent_shape] for both terms.
    """
    if analytic and isinstance(prior, StandardNormal):
        return kl_per_dimension(q)
    return q.log_prob_per_dimension(z) - prior.log_prob_per_dimension(z)
