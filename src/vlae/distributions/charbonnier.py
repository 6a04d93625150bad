"""The Charbonnier penalty as a proper density: the symmetric hyperbolic distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import constraints

from vlae.distributions.densities import inside
from vlae.distributions.pixelwise import Pixelwise

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_NEWTON_STEPS = 6


class PixelCharbonnier(Pixelwise):
    r"""The density proportional to exp(-sqrt((x - loc)^2 + eps^2) / scale) (hyperbolic; Barndorff-Nielsen 1977).

    The Charbonnier penalty is quadratic well within eps and linear beyond it, so this is a Laplace density whose tip is
    rounded, on all real numbers. Its normaliser is 2 eps K_1(eps / scale), with K_1 a modified Bessel function.

    Args:
        loc: mean and mode.
        scale: the length over which the tails lose a nat.
        eps: the width of the rounded tip.
    """

    support = constraints.real

    def __init__(self, loc: Tensor, scale: Tensor, eps: float):
        self.loc, self.scale, self.eps = loc, scale, eps
        super().__init__(loc.shape)

    @property
    def mean(self) -> Tensor:
        """The location."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The location."""
        return self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        """log density in nats."""
        distance = value - self.loc
        penalty = distance**2 / (torch.hypot(distance, torch.full_like(distance, self.eps)) + self.eps)  # less eps
        return -penalty / self.scale - log_k1e(self.eps / self.scale) - torch.full_like(penalty, 2 * self.eps).log()

    @torch.no_grad()
    def cdf(self, value: Tensor) -> Tensor:
        """The mass under `value`, by quadrature in float64, to 1e-12 of the smaller tail; without gradients."""
        distance = (value.double() - self.loc.double()) / self.eps
        tail = log_tail(distance.abs(), self.eps / self.scale.double())[0].exp()
        return torch.where(distance < 0, tail, 1 - tail).to(value.dtype)

    @torch.no_grad()
    def icdf(self, value: Tensor) -> Tensor:
        """The quantile, to 1e-12 of the tail's mass in float64; uniforms of 0 are taken as the smallest positive step.

        Newton's method on the logarithm of the tail's mass S, which is concave in the distance r. Since
        S(r) <= exp(-penalty(r) / scale) / 2, the start, where the right side is the given mass, lies beyond the root,
        and from there every step stays beyond it and comes closer. Without gradients.
        """
        u = inside(value).double()
        sharpness = self.eps / self.scale.double()
        log_mass = torch.minimum(u, 1 - u).log()
        penalty = -(log_mass + np.log(2)) / sharpness
        distance = (penalty * (penalty + 2)).sqrt()
        for _ in range(_NEWTON_STEPS):
            log_survival, over_density = log_tail(distance, sharpness)
            distance = (distance + over_density * (log_survival - log_mass)).clamp_min(0)
        return self.loc + ((u - 0.5).sign() * distance * self.eps).to(self.loc.dtype)


def log_tail(distance: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    r"""The tail's mass S beyond a distance >= 0, both in units of eps: log S, and S over the density there.

    With r = sinh(s) the penalty is cosh(s) - 1, and with q = eps / scale

    .. math:: S(r) / p(r) = \int_0^\infty \cosh(s + y) \, e^{-q (\cosh(s + y) - \cosh s)} dy
              = \frac{1}{q} + \int_0^\infty e^{-(s + y)} \, e^{-q (\cosh(s + y) - \cosh s)} dy,

    where the integral that is left is smooth, bounded by 1 and of weight q against the Laplace tail's 1 / q: 32 nodes
    of Gauss and Legendre, up to where the exponent is -40, give 14 digits for every q. log S(0) = log 1/2 fixes the
    normaliser without Bessel functions: the two agree.
    """
    penalty = distance**2 / (torch.hypot(distance, torch.ones_like(distance)) + 1)
    ratio = _tail_over_density(penalty, sharpness)
    at_zero = _tail_over_density(torch.zeros_like(sharpness), sharpness)
    return (ratio / at_zero / 2).log() - sharpness * penalty, ratio


def _tail_over_density(penalty: Tensor, sharpness: Tensor) -> Tensor:
    start = 2 * torch.asinh((penalty / 2).sqrt())
    length = 2 * torch.asinh(((penalty + 40 / sharpness) / 2).sqrt()) - start
    integral = torch.zeros_like(length)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):  # one by one, to spare memory
        y = length * ((node + 1) / 2)
        exponent = -2 * sharpness * torch.sinh(start + y / 2) * torch.sinh(y / 2)
        integral = integral + weight / 2 * (exponent - start - y).exp()
    return 1 / sharpness + length * integral


def log_k1e(q: Tensor) -> Tensor:
    """log(exp(q) K_1(q)) for q > 0, with derivatives of every order: PyTorch's Bessel functions have none."""
    return _LogK1e.apply(q)


class _LogK1e(Function):
    """K_1' = -K_0 - K_1 / q, so the derivative is 1 - 1 / q - K_0 / K_1."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        ctx.save_for_backward(q)
        return torch.special.scaled_modified_bessel_k1(q).log()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (q,) = ctx.saved_tensors
        return gradient * (1 - 1 / q - _Ratio.apply(q))


class _Ratio(Function):
    """R = K_0 / K_1, whose derivative is R^2 + R / q - 1."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        ctx.save_for_backward(q)
        return torch.special.scaled_modified_bessel_k0(q) / torch.special.scaled_modified_bessel_k1(q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (q,) = ctx.saved_tensors
        ratio = _Ratio.apply(q)
        return gradient * (ratio**2 + ratio / q - 1)
