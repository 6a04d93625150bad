"""Flow priors over vectors: autoregressive affine steps, the paper's, and neural splines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Normal

from vlae.distributions.latent import Prior, PriorModule
from vlae.distributions.normal import log_normal
from vlae.errors import VlaeError, require_positive
from vlae.nn.masked import spread_degrees
from vlae.noise import randn


class FlowPrior(Prior):
    """The distribution of z = f(eps), eps ~ N(0, I), for autoregressive steps that map z to eps in parallel.

    log p(z) = log N(eps; 0, I) + log |det d eps / d z| (Chen et al. 2017, section 3.2), eps = f^-1(z) in one pass;
    sampling goes through the dimensions one by one.
    """

    def __init__(self, steps: Sequence[nn.Module], dimensions: int, like: Tensor, scannable: bool):
        self.steps, self.scannable = steps, scannable
        super().__init__((dimensions,), like)

    def _to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., D] -> eps [..., D] and each dimension's share of the log-determinant [..., D]."""
        total = torch.zeros_like(z)
        for step in self.steps:
            transform = step()
            # A single dimension has nothing to depend on: zuko then makes an element-wise transform.
            univariate = transform.meta(z).base if hasattr(transform, "meta") else transform.base
            z, share = univariate.call_and_ladj(z)
            total = total + share
        return z, total

    def noise_of(self, z: Tensor) -> Tensor:
        """eps = f^-1(z), [..., D]."""
        return self._to_noise(z)[0]

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> Tensor:
        """z = f(eps), [..., D]: as many passes of a step as there are dimensions, of a coupling two."""
        for step in reversed(self.steps):
            noise = step().inv(noise)
        return noise

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """Each dimension's log N(eps_i) + its share of the log-determinant, nats, [..., D]; sums to `log_prob`."""
        eps, share = self._to_noise(z)
        return log_normal(eps) + share

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, D]: f of noise that is scaled by the temperature."""
        return self.from_noise(temperature * randn(sample_shape, None, self.event_shape, generator, self.like))

    def conditionals(self, z: Tensor) -> Normal:
        """p(z_i | z_<i) for all i at once, [..., D]: element i does not depend on z_i or later ones.

        Affine steps in one and the same order compose to one affine map per dimension, eps_i = (z_i - mean_i) / scale_i
        with mean and scale functions of z_<i, so z_i given z_<i is normal.
        """
        if not self.scannable:
            raise VlaeError(
                "this flow reverses its order between steps, so z_i given z_<i has no closed form: "
                "train one with flow_order='same' (--model.flow_order same), such as mnist-codec, to scan and code it; "
                "sample() works for both"
            )
        eps, share = self._to_noise(z)
        scale = torch.exp(-share)
        return Normal(z - eps * scale, scale, validate_args=False)


class SplineFlow(FlowPrior):
    """A flow of monotonic rational-quadratic splines on [-5, 5], the identity beyond: not normal given z_<i."""

    def conditionals(self, z: Tensor) -> Normal:
        """Raises: a spline of a normal is not normal."""
        raise VlaeError(
            "z_i given z_<i is not normal under a spline flow: take the prior 'flow' with order='same' or "
            "'autoregressive_mixture' to scan (and code) z; sample() works for all"
        )


def check_order(order: str) -> None:
    """Refuses anything but the two orders of a flow."""
    if order not in ("reversed", "same"):
        raise VlaeError(f"flow_order must be 'reversed' or 'same'; got {order!r}")


def make_steps(
    latent_dim: int,
    steps: int,
    hidden: Sequence[int],
    order: str,
    univariate: Callable[..., Any],
    shapes: Sequence[Any],
    passes: int | None = None,
) -> nn.ModuleList:
    """zuko's masked autoregressive transforms, z to noise: `shapes` are those of the parameters of `univariate`."""
    check_order(order)
    require_positive("latent_dim", latent_dim)
    if not isinstance(steps, int) or steps < 0:
        raise VlaeError(f"the steps of a flow must be 0 or more; got {steps}")
    if hidden:
        require_positive("flow_hidden", *hidden)
    forward = torch.arange(latent_dim)
    make = partial(
        zuko.flows.MaskedAutoregressiveTransform,
        latent_dim,
        passes=passes,
        univariate=univariate,
        shapes=shapes,
        hidden_features=list(hidden),
    )
    made = [make(order=forward.flip(0) if order == "reversed" and step % 2 else forward) for step in range(steps)]
    for step in made if latent_dim > 1 else ():  # a single dimension has nothing to depend on
        step.hyper.register_forward_hook(_in_full_precision)
        spread_degrees(step.hyper, (step.order[:, None] > step.order).repeat_interleave(step.total, 0))
    return nn.ModuleList(made)


def _in_full_precision(network: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """In mixed precision the network computes in 16 bits; what the transform makes of it must not: mass would leak."""
    return output.to(inputs[0].dtype)


class AutoregressiveFlowPrior(PriorModule):
    """Makes the autoregressive flow prior of the paper from zuko's masked autoregressive transforms.

    Args:
        latent_dim: dimensions of z.
        steps: how many MADE steps; 0 leaves the standard normal.
        hidden: widths of each MADE's hidden layers.
        affine: shift and (soft-bounded) scale; False shifts only ("mean-only"), log-determinant 0.
        order: "reversed" flips the order between steps (the paper's); "same" keeps it, so that `scan` is possible.
    """

    def __init__(
        self,
        latent_dim: int,
        steps: int = 2,
        hidden: Sequence[int] = (256, 256),
        affine: bool = True,
        order: str = "reversed",
    ):
        super().__init__((latent_dim,))
        univariate, shapes = (
            (zuko.transforms.MonotonicAffineTransform, [(), ()])
            if affine
            else (zuko.transforms.AdditiveTransform, [()])
        )
        self.steps = make_steps(latent_dim, steps, hidden, order, univariate, shapes)
        self.latent_dim, self.scannable = latent_dim, order == "same" or steps <= 1

    def forward(self) -> FlowPrior:
        """The prior, a distribution with event shape [latent_dim]."""
        return FlowPrior(list(self.steps), self.latent_dim, self.like, self.scannable)


class SplineFlowPrior(PriorModule):
    """Makes a neural spline flow prior (Durkan et al. 2019, arXiv 1906.04032) from zuko's transforms.

    Args:
        latent_dim: dimensions of z.
        steps: how many spline steps.
        bins: of each spline on [-5, 5]; beyond it a spline is the identity.
        hidden: widths of each network's hidden layers.
        order: "reversed" flips the order between steps, "same" keeps it.
        coupling: one half of z given the other, so that sampling takes two passes a step; else autoregressive, which
            takes one a dimension.
    """

    def __init__(
        self,
        latent_dim: int,
        steps: int = 2,
        bins: int = 8,
        hidden: Sequence[int] = (256, 256),
        order: str = "reversed",
        coupling: bool = False,
    ):
        super().__init__((latent_dim,))
        require_positive("steps of a spline flow", steps)
        if not isinstance(bins, int) or bins < 2:
            raise VlaeError(f"a spline needs 2 bins or more; got {bins}")
        univariate, shapes = zuko.transforms.MonotonicRQSTransform, [(bins,), (bins,), (bins - 1,)]
        self.steps = make_steps(latent_dim, steps, hidden, order, univariate, shapes, 2 if coupling else None)
        self.latent_dim = latent_dim

    def forward(self) -> SplineFlow:
        """The prior, a distribution with event shape [latent_dim]."""
        return SplineFlow(list(self.steps), self.latent_dim, self.like, scannable=False)
