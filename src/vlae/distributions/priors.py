"""Priors p(z): standard normal, and the autoregressive flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints

from vlae.distributions.noise import randn
from vlae.distributions.scan import Dimensions, Visit
from vlae.errors import VlaeError, require_positive


class StandardNormal(Distribution):
    """N(0, I) over z with event shape `shape`. `like` gives dtype and device."""

    arg_constraints: dict = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, shape: Sequence[int], like: Tensor):
        self.like = like
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

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
        return -0.5 * z**2 - 0.5 * math.log(2 * math.pi)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, [...]."""
        return self.log_prob_per_dimension(z).flatten(-len(self.event_shape)).sum(-1)

    def noise_of(self, z: Tensor) -> Tensor:
        """The standard normal noise that z stands for: z itself."""
        return z

    def conditionals(self, z: Tensor) -> Normal:
        """p(z_i | z_<i) for all i at once, [..., D]: none depends on any other."""
        return Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False)

    def scan(self, visit: Visit, count: int) -> Tensor:
        """All dimensions in one step: [count, *shape] made of what `visit(sites, conditional)` returns."""
        (dimensions,) = self.event_shape
        return visit(Dimensions(torch.arange(dimensions)), self.conditionals(self.like.new_zeros(count, dimensions)))


class FlowPrior(Distribution):
    """The distribution of z = f(eps), eps ~ N(0, I), for autoregressive steps that map z to eps in parallel.

    log p(z) = log N(eps; 0, I) + log |det d eps / d z| (Chen et al. 2017, section 3.2), eps = f^-1(z) in one pass;
    sampling goes through the dimensions one by one.
    """

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, steps: Sequence[nn.Module], dimensions: int, like: Tensor, scannable: bool):
        self.steps, self.like, self.scannable = steps, like, scannable
        super().__init__(torch.Size(), torch.Size([dimensions]), validate_args=False)

    def _to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., D] -> eps [..., D] and each dimension's share of the log-determinant [..., D]."""
        share = torch.zeros_like(z)
        for step in self.steps:
            transform = step()
            # A single dimension has nothing to depend on: zuko then makes an element-wise transform.
            univariate = transform.meta(z).base if hasattr(transform, "meta") else transform.base
            share = share + univariate.log_abs_det_jacobian(z, None)
            z = univariate(z)
        return z, share

    def noise_of(self, z: Tensor) -> Tensor:
        """eps = f^-1(z), [..., D]."""
        return self._to_noise(z)[0]

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """Each dimension's log N(eps_i) + its share of the log-determinant, nats, [..., D]; sums to `log_prob`."""
        eps, share = self._to_noise(z)
        return -0.5 * eps**2 - 0.5 * math.log(2 * math.pi) + share

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, [...]."""
        return self.log_prob_per_dimension(z).sum(-1)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, D]: f of noise that is scaled by the temperature."""
        z = temperature * randn(sample_shape, None, self.event_shape, generator, self.like)
        for step in reversed(self.steps):
            z = step().inv(z)
        return z

    def conditionals(self, z: Tensor) -> Normal:
        """p(z_i | z_<i) for all i at once, [..., D]: element i does not depend on z_i or later ones.

        Affine steps in one and the same order compose to one affine map per dimension, eps_i = (z_i - mean_i) / scale_i
        with mean and scale functions of z_<i, so z_i given z_<i is normal.
        """
        if not self.scannable:
            raise VlaeError(
                "this flow reverses its order between steps, so z_i given z_<i has no closed form: "
                "build the model with flow_order='same' to scan (and code) it; sample() works for both"
            )
        eps, share = self._to_noise(z)
        scale = torch.exp(-share)
        return Normal(z - eps * scale, scale, validate_args=False)

    @torch.no_grad()
    def scan(self, visit: Visit, count: int) -> Tensor:
        """One dimension at a time: [count, D] made of what `visit(sites, conditional)` returns."""
        z = self.like.new_zeros(count, *self.event_shape)
        for i in range(z.shape[-1]):
            every = self.conditionals(z)
            site = slice(i, i + 1)
            conditional = Normal(every.loc[:, site], every.scale[:, site], validate_args=False)
            z[:, site] = visit(Dimensions(torch.tensor([i])), conditional)
        return z


class StandardNormalPrior(nn.Module):
    """Makes the standard normal over z. Called without arguments."""

    like: Tensor

    def __init__(self, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> StandardNormal:
        """The prior, a distribution with event shape [latent_dim]."""
        return StandardNormal((self.latent_dim,), self.like)


class AutoregressiveFlowPrior(nn.Module):
    """Makes the autoregressive flow prior of the paper from zuko's masked autoregressive transforms.

    Args:
        latent_dim: dimensions of z.
        steps: how many MADE steps.
        hidden: widths of each MADE's hidden layers.
        affine: shift and (soft-bounded) scale; False shifts only ("mean-only"), log-determinant 0.
        order: "reversed" flips the order between steps (the paper's); "same" keeps it, so that `scan` is possible.
    """

    like: Tensor

    def __init__(
        self,
        latent_dim: int,
        steps: int,
        hidden: Sequence[int] = (256, 256),
        affine: bool = True,
        order: str = "reversed",
    ):
        super().__init__()
        if order not in ("reversed", "same"):
            raise VlaeError(f"flow_order must be 'reversed' or 'same'; got {order!r}")
        require_positive("latent_dim", latent_dim)
        if hidden:
            require_positive("flow_hidden", *hidden)
        if affine:
            univariate, shapes = zuko.transforms.MonotonicAffineTransform, [(), ()]
        else:
            univariate, shapes = zuko.transforms.AdditiveTransform, [()]
        forward = torch.arange(latent_dim)
        make = partial(
            zuko.flows.MaskedAutoregressiveTransform,
            latent_dim,
            univariate=univariate,
            shapes=shapes,
            hidden_features=list(hidden),
        )
        self.steps = nn.ModuleList(
            make(order=forward.flip(0) if order == "reversed" and step % 2 else forward) for step in range(steps)
        )
        self.latent_dim, self.scannable = latent_dim, order == "same" or steps == 1
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> FlowPrior:
        """The prior, a distribution with event shape [latent_dim]."""
        return FlowPrior(list(self.steps), self.latent_dim, self.like, self.scannable)
