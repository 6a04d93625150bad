"""Element-wise densities of sub-pixels; their nats are nats of a density, not comparable with those of levels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import constraints

from vlae import processes
from vlae.distributions.pixelwise import Pixelwise

# log(sinh(t / 2) / (t / 2)) = sum over n of B_2n / (2n (2n)!) t^2n. Under |t| = 1 what is left out is below 1e-17.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798)
_LOG_SINHC = [number / (2 * n * math.factorial(2 * n)) for n, number in enumerate(_BERNOULLI, start=1)]


class PixelContinuousBernoulli(Pixelwise):
    r"""The continuous Bernoulli on [0, 1] (Loaiza-Ganem and Cunningham 2019, arXiv 1907.06845).

    With logit l, the density is lambda^x (1 - lambda)^(1 - x) / Z with lambda = sigmoid(l), which is

    .. math:: p(x) = \exp(l (x - 1/2)) \, \frac{l / 2}{\sinh(l / 2)}.

    At l = 0, the uniform density, the last factor is 0 / 0; the Taylor series of its logarithm is used where |l| < 1,
    so that values and gradients keep all digits there. The mean is not sigmoid(l).
    """

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(logits.shape)

    @property
    def mean(self) -> Tensor:
        """The expected value, 1 / (1 - exp(-l)) - 1 / l, and 1/2 at l = 0."""
        small, size, clear = self._sizes()
        series = torch.zeros_like(small)
        for n, coefficient in reversed(list(enumerate(_LOG_SINHC, start=1))):
            series = series * small**2 + 2 * n * coefficient
        under_half = 1 / size + (-size).exp() / torch.expm1(-size)  # the mean at -|l|
        return torch.where(clear, torch.where(self.logits > 0, 1 - under_half, under_half), 0.5 + small * series)

    @property
    def mode(self) -> Tensor:
        """1 where l > 0 and 0 where l < 0; at l = 0 every value is as likely, and it is 1/2."""
        return (self.logits.sign() + 1) / 2

    def log_prob(self, value: Tensor) -> Tensor:
        """log density in nats."""
        small, size, clear = self._sizes()
        series = torch.zeros_like(small)
        for coefficient in reversed(_LOG_SINHC):
            series = (series + coefficient) * small**2
        log_sinhc = size / 2 + (-torch.expm1(-size)).log() - size.log()
        return self.logits * (value - 0.5) - torch.where(clear, log_sinhc, series)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile, log(1 + u (exp(l) - 1)) / l."""
        size = self.logits.abs().clamp_min(torch.finfo(self.logits.dtype).eps)  # there it is the uniform in all digits
        # By symmetry for -|l|, of which nothing overflows: from the mass under the quantile, or the mass above it.
        under, above = torch.where(self.logits > 0, 1 - value, value), torch.where(self.logits > 0, value, 1 - value)
        change = under * torch.expm1(-size)
        log = torch.where(change > -0.5, torch.log1p(change), torch.logaddexp(above.log(), under.log() - size))
        quantile = (-log / size).clamp(0, 1)
        return torch.where(self.logits > 0, 1 - quantile, quantile)

    def _sizes(self) -> tuple[Tensor, Tensor, Tensor]:
        """l for the series, |l| for the formulas, each harmless where the other is used, and where that is."""
        clear = self.logits.abs() >= 1
        return self.logits.masked_fill(clear, 0), self.logits.masked_fill(~clear, 1).abs(), clear


class PixelGaussian(Pixelwise):
    """A normal density with mean and sigma."""

    support = constraints.real

    def __init__(self, loc: Tensor, sigma: Tensor):
        self.loc, self.sigma = loc, sigma
        super().__init__(loc.shape)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mean."""
        return self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        """log density in nats."""
        return -0.5 * ((value - self.loc) / self.sigma) ** 2 - self.sigma.log() - 0.5 * math.log(2 * math.pi)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile; uniforms of exactly 0 are taken as the smallest positive step."""
        return self.loc + self.sigma * ndtri(inside(value))


class PixelOptimalGaussian(PixelGaussian):
    """A Gaussian whose sigma fits the values at hand: sigma-VAE in training (Rybkin et al. 2020, arXiv 2006.13202).

    `log_prob` takes sigma^2 = least^2 + the mean squared error over all of `value` (in training, of the
    batch of all processes), with gradients, which for N values
    adds up to -N log sigma and a constant (far above the least sigma). Draws use the `sigma` given.

    Args:
        loc: mean.
        sigma: for draws.
        least: the smallest sigma.
        temperature: multiplies the sigma of `log_prob`.
        observe: is told the mean squared error, detached, whenever `log_prob` is called with gradients enabled.
    """

    def __init__(self, loc: Tensor, sigma: Tensor, least: float, temperature: float, observe: Callable[[Tensor], None]):
        self.least, self.temperature, self.observe = least, temperature, observe
        super().__init__(loc, sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        """log density in nats under the sigma of these very values: they depend on each other."""
        squares = (value - self.loc) ** 2
        if processes.connected():  # the sigma of the whole batch
            images = processes.total(len(squares))
            error = processes.summed(squares.sum()) / (images * squares[0].numel())
        else:
            error = squares.mean()
        if torch.is_grad_enabled():
            self.observe(error.detach())
        return PixelGaussian(self.loc, (error + self.least**2).sqrt() * self.temperature).log_prob(value)


class PixelLaplace(Pixelwise):
    """A Laplace density, exp(-|x - loc| / scale) / (2 scale): what an L1 loss should have been."""

    support = constraints.real

    def __init__(self, loc: Tensor, scale: Tensor):
        self.loc, self.scale = loc, scale
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
        return -(value - self.loc).abs() / self.scale - (2 * self.scale).log()

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile; uniforms of exactly 0 are taken as the smallest positive step."""
        u = inside(value)
        return self.loc + self.scale * (0.5 - u).sign() * (2 * torch.minimum(u, 1 - u)).log()


def ndtri(value: Tensor) -> Tensor:
    """The standard normal quantile, in 16 bits too, for which PyTorch has none on the CPU."""
    wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return torch.special.ndtri(wide).to(value.dtype)


def inside(value: Tensor) -> Tensor:
    """Uniforms in [0, 1), kept from 0 by the smallest step of their kind: half their precision."""
    tiny = torch.finfo(value.dtype).eps / 2
    return value.clamp(tiny, 1 - tiny)
