"""Posteriors q(z|x): the diagonal Gaussian, the modules that make posteriors of features, and the rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, register_kl

from vlae.distributions.bounded import soft_bounded_log
from vlae.distributions.delta import AR1, previous
from vlae.distributions.iaf import IAFHead, IAFPosterior
from vlae.distributions.latent import Prior
from vlae.distributions.making import make
from vlae.distributions.normal import StandardNormal
from vlae.errors import VlaeError, require_positive
from vlae.noise import Generators, randn

__all__ = [
    "DiagonalGaussian",
    "GaussianHead",
    "IAFHead",
    "IAFPosterior",
    "kl_per_dimension",
    "make_posterior",
    "rate_per_dimension",
    "soft_bounded_log",
]


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


class NormalisedMeans(nn.Module):
    """Batch normalisation of posterior means, of fixed scale and learned shift (Zhu et al. 2020, arXiv 2004.12585).

    Over a training batch, each dimension of the means has the variance gamma^2 and so E[mean^2] >= gamma^2: whatever
    the decoder, the rate against a standard normal is gamma^2 / 2 nats per dimension at least. In eval mode the running
    statistics stand in for the batch's.
    """

    def __init__(self, size: int, gamma: float):
        super().__init__()
        # A tiny eps: with the usual one, an encoder could sink the floor by making the means' variance small.
        self.norm = nn.BatchNorm1d(size, eps=1e-10, affine=False)
        self.shift = nn.Parameter(torch.zeros(size))
        self.gamma = gamma

    def forward(self, mean: Tensor) -> Tensor:
        """[B, *latent_shape] -> the same shape."""
        if self.training and len(mean) < 2:
            raise VlaeError("mean_norm normalises over the batch: train with batches of 2 images or more")
        return (self.gamma * self.norm(mean.flatten(1)) + self.shift).view(mean.shape)


class GaussianHead(nn.Module):
    """Makes diagonal Gaussian posteriors from an encoder's features, means beside soft-bounded log-scales.

    Args:
        latent_shape: (D,) or (C, H, W).
        hidden_features: not needed.
        mean_norm: gamma of `NormalisedMeans`; None leaves the means as they are.
        stddev_floor: a lower bound on the standard deviations, added in variance; None leaves the soft bound of 1/1000.

    Attributes:
        features_needed: numbers per image, 2 D, or of maps the number of maps, 2 C.
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        hidden_features: int,
        mean_norm: float | None = None,
        stddev_floor: float | None = None,
    ):
        super().__init__()
        require_positive("the sizes of z", *latent_shape)
        for name, value in (("mean_norm", mean_norm), ("stddev_floor", stddev_floor)):
            if value is not None and not value > 0:
                raise VlaeError(f"{name} must be positive, or None; got {value}")
        self.features_needed = 2 * latent_shape[0]
        self.stddev_floor = stddev_floor
        self.mean_norm = None if mean_norm is None else NormalisedMeans(math.prod(latent_shape), mean_norm)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """q(z|x) from features [B, 2 D] or [B, 2 C, H, W]."""
        mean, s = features.chunk(2, dim=1)
        log_stddev = soft_bounded_log(s)
        if self.stddev_floor is not None:
            floor = log_stddev.new_full((), 2 * math.log(self.stddev_floor))
            log_stddev = 0.5 * torch.logaddexp(2 * log_stddev, floor)
        return DiagonalGaussian(mean if self.mean_norm is None else self.mean_norm(mean), log_stddev)


POSTERIORS: dict[str, Callable[..., GaussianHead | IAFHead]] = {"gaussian": GaussianHead, "iaf": IAFHead}


def make_posterior(
    name: str, latent_shape: Sequence[int], hidden_features: int = 64, **options: Any
) -> GaussianHead | IAFHead:
    """The module that makes the posterior of that name; refuses options that it does not take.

    Its `features_needed` says how many numbers per image (or maps, where z is maps) it wants from the encoder; called
    with them, [B, features_needed] or [B, features_needed, H, W], it gives q(z|x) with batch shape [B].

    Args:
        name: "gaussian" (`GaussianHead`) or "iaf" (`IAFHead`, vectors only).
        latent_shape: (D,) or (C, H, W).
        hidden_features: width of the encoder's last hidden layer, the default size of an IAF's context.
        options: those of the class.

    Example:
        >>> head = make_posterior("iaf", (4,), 16, steps=1, hidden=[8])
        >>> q = head(torch.zeros(3, head.features_needed))
        >>> q.rsample().shape, q.log_prob(q.rsample()).shape
        (torch.Size([3, 4]), torch.Size([3]))
    """
    return make("posterior", name, POSTERIORS, (tuple(latent_shape), hidden_features), options)


def kl_per_dimension(q: DiagonalGaussian) -> Tensor:
    """KL(q_i || N(0, 1)) in nats, [B, *latent_shape] (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (q.variance + q.mean**2 - 1) - q.log_stddev


def kl_ar1_per_dimension(q: DiagonalGaussian, p: AR1) -> Tensor:
    r"""E_q KL(q_t || p(z_t | z_{t-1})) in nats, [B, D]; each is 0 or more, and they sum to KL(q || AR(1)).

    .. math:: \log(\tau_t / \sigma_t) + \frac{\sigma_t^2 + \alpha^2 \sigma_{t-1}^2
        + (\mu_t - \alpha \mu_{t-1})^2}{2 \tau_t^2} - \frac12, \quad \tau_1 = 1, \tau_t^2 = 1 - \alpha^2
    """
    squares = q.variance + p.alpha**2 * previous(q.variance) + (q.mean - p.alpha * previous(q.mean)) ** 2
    return p.scale.log() - q.log_stddev + 0.5 * (squares / p.scale**2 - 1)


@register_kl(DiagonalGaussian, StandardNormal)
def _kl_diagonal_standard(q: DiagonalGaussian, p: StandardNormal) -> Tensor:
    return kl_per_dimension(q).flatten(1).sum(1)


@register_kl(DiagonalGaussian, AR1)
def _kl_diagonal_ar1(q: DiagonalGaussian, p: AR1) -> Tensor:
    return kl_ar1_per_dimension(q, p).sum(1)


def rate_per_dimension(q: DiagonalGaussian | IAFPosterior, prior: Prior, z: Tensor, analytic: bool = True) -> Tensor:
    """Each latent dimension's share of KL(q(z|x) || p(z)) in nats, [B, *latent_shape]; sums to the rate.

    In closed form for a Gaussian against the standard normal and the AR(1) prior, unless `analytic=False`; else log q's
    share - log p's share at the one sample z [B, *latent_shape] for both terms. z must be q's latest sample, the very
    tensor, for an IAF posterior to know log q without inverting its flow.
    """
    if analytic and isinstance(q, DiagonalGaussian):
        if isinstance(prior, StandardNormal):
            return kl_per_dimension(q)
        if isinstance(prior, AR1):
            return kl_ar1_per_dimension(q, prior)
    return q.log_prob_per_dimension(z) - prior.log_prob_per_dimension(z)
