"""Likelihoods p(x|z): what the numbers that a decoder puts out mean for each sub-pixel.

A likelihood is a small module: called with parameters [..., P] it gives an element-wise distribution [...] over values
in [0, 1], and `check` refuses images that it gives no mass to. `Factorised` and
`vlae.distributions.autoregressive.Autoregressive` make distributions over whole images of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from vlae.distributions.noise import Generators, rand
from vlae.distributions.posteriors import soft_bounded_log
from vlae.errors import VlaeError, require_positive


class Pixelwise(Distribution):
    """An element-wise distribution that can be sampled from given uniforms: the base of those below."""

    arg_constraints: dict = {}
    support: constraints.Constraint = constraints.unit_interval

    def __init__(self, shape: torch.Size):
        super().__init__(shape, validate_args=False)

    @property
    def log_masses(self) -> Tensor:
        """log p of every level in increasing order, nats, [..., levels]; a density raises."""
        raise VlaeError("a density has no levels: ask for log_prob, or choose a discrete likelihood")

    def icdf(self, value: Tensor) -> Tensor:
        """The value at which the cumulative distribution passes `value` in [0, 1), shape by shape."""
        raise NotImplementedError

    def sample(self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None) -> Tensor:
        """[*sample_shape, ...] by the inverse CDF of uniforms."""
        like = self.mean
        return self.icdf(rand(sample_shape, None, self.batch_shape, generator, like))


class PixelBernoulli(Pixelwise):
    """Values 0 and 1, p(1) = sigmoid(logits)."""

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(logits.shape)

    @property
    def log_masses(self) -> Tensor:
        """log p(0) and log p(1) in nats, [..., 2]."""
        return F.logsigmoid(torch.stack([-self.logits, self.logits], -1))

    @property
    def mean(self) -> Tensor:
        """p(1)."""
        return torch.sigmoid(self.logits)

    @property
    def mode(self) -> Tensor:
        """1 where p(1) > 1/2."""
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats."""
        return -F.binary_cross_entropy_with_logits(self.logits, value.expand_as(self.logits), reduction="none")

    def icdf(self, value: Tensor) -> Tensor:
        """1 where the uniform is under p(1)."""
        return (value < self.mean).to(self.logits.dtype)


class PixelLevels(Pixelwise):
    """The base of distributions over `levels` values 0, 1/(levels-1), ..., 1: all that follows from `log_masses`."""

    def __init__(self, shape: torch.Size, levels: int):
        self.levels = levels
        super().__init__(shape)

    @property
    def mean(self) -> Tensor:
        """The expected value."""
        masses = self.log_masses.exp()
        return (masses * _values(self.levels, masses)).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The most likely value."""
        log_masses = self.log_masses
        return log_masses.argmax(-1).to(log_masses.dtype) / (self.levels - 1)

    def icdf(self, value: Tensor) -> Tensor:
        """The level whose cumulative interval holds the uniform."""
        below = self.log_masses.exp().cumsum(-1)[..., :-1]  # the last level takes the rest, whatever the rounding
        return (value[..., None] >= below).sum(-1).to(below.dtype) / (self.levels - 1)


class PixelCategorical(PixelLevels):
    """Each level has a logit of its own: logits [..., levels]."""

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1])

    @property
    def log_masses(self) -> Tensor:
        """log p of every level in nats, [..., levels]."""
        return self.logits.log_softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats."""
        level = (value * (self.levels - 1)).round().long().expand(self.batch_shape)
        return self.log_masses.gather(-1, level[..., None]).squeeze(-1)


class PixelLogisticMixture(PixelLevels):
    r"""A mixture of logistics, discretised (Salimans et al. 2017, arXiv 1701.05517, equation 2).

    On the scale of [-1, 1], level k has the bin from e_k to e_{k+1}, of width w = 2 / (levels - 1) and with its value
    in the middle; the bins at the ends take the tails, so that the mass is 1. With a = (e_k - mean) / scale and
    b = (e_{k+1} - mean) / scale, a component gives it

    .. math:: \sigma(b) - \sigma(a) = \sigma(b) \, \sigma(-a) \, (1 - e^{-w / scale}),

    without the last two factors in the lowest bin, and the first and the last in the highest. As sums of logarithms
    or as products, nothing cancels, however far the value is from the mean.

    Args:
        logits: of the components, [..., K].
        means: of the components, on the scale of [-1, 1], [..., K].
        log_scales: natural logarithms of the logistics' scales, on the same scale, [..., K].
        levels: how many values, 2 or more.
    """

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor, levels: int):
        self.logits, self.means, self.log_scales = logits, means, log_scales
        super().__init__(logits.shape[:-1], levels)

    @property
    def log_masses(self) -> Tensor:
        """log p of every level in nats, [..., levels]; what underflows counts as the smallest normal number (-87 nats).

        As a product of numbers in (0, 1], still without cancellation: six times faster than logarithms of all factors,
        which matters where an image is decoded. One component at a time, to spare memory.
        """
        last = self.levels - 1
        edges = 2 / last * torch.arange(0.5, last, dtype=self.means.dtype, device=self.means.device) - 1
        components = (self.logits.softmax(-1), self.means, (-self.log_scales).exp())
        masses = torch.zeros((), dtype=self.means.dtype, device=self.means.device)
        for weight, mean, precision in zip(*(each.split(1, -1) for each in components), strict=True):
            t = (edges - mean) * precision
            below, above = t.sigmoid(), (-t).sigmoid()
            inner = below[..., 1:] * above[..., :-1] * -torch.expm1(-2 / last * precision)
            masses = masses + weight * torch.cat([below[..., :1], inner, above[..., -1:]], -1)
        return masses.clamp_min(torch.finfo(masses.dtype).tiny).log()

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats; `value` may be any shape that broadcasts."""
        last = self.levels - 1
        level = (value * last).round()[..., None]
        lowest, highest = level <= 0, level >= last
        precisions = (-self.log_scales).exp()
        a = (2 / last * (level - 0.5) - 1 - self.means) * precisions
        b = (2 / last * (level + 0.5) - 1 - self.means) * precisions
        width = (-torch.expm1(-2 / last * precisions)).log()
        of_components = (
            F.logsigmoid(b).masked_fill(highest, 0)
            + F.logsigmoid(-a).masked_fill(lowest, 0)
            + width.masked_fill(lowest | highest, 0)
        )
        return (self.logits.log_softmax(-1) + of_components).logsumexp(-1)


class PixelGaussian(Pixelwise):
    """A normal density with mean and sigma; continuous, so that its nats are nats of a density."""

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
        tiny = torch.finfo(value.dtype).eps / 2
        return self.loc + self.sigma * torch.special.ndtri(value.clamp(tiny, 1 - tiny))


class Likelihood(nn.Module):
    """The base of likelihoods.

    `parameters_per_value` numbers are needed per sub-pixel; `levels` is how many values there are, None if continuous.
    """

    parameters_per_value: int = 1
    levels: int | None = None

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> Pixelwise:
        """parameters [..., P] -> element-wise distribution [...]; a temperature under 1 sharpens it."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Refuses images that hold anything but this likelihood's values."""
        scale = self.levels - 1 if self.levels else 1
        # One reduction each: NaN fails every comparison, so a NaN is refused too.
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise VlaeError(f"images must hold values in [0, 1] and no NaN; got {_range(x)}")
        if self.levels and bool(((x * scale - (x * scale).round()).abs() > 1e-3).any()):
            raise VlaeError(
                f"this likelihood has {self.levels} levels, multiples of 1/{scale}, and the images hold other values: "
                + ("binarise them (binarize='dynamic')" if self.levels == 2 else "choose levels to fit the data")
            )


class Bernoulli(Likelihood):
    """Binary pixels."""

    levels = 2

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelBernoulli:
        """parameters [..., 1]: the logit of 1."""
        logits = parameters.squeeze(-1)
        return PixelBernoulli(logits if temperature == 1 else logits / temperature)


class Categorical(Likelihood):
    """Any number of levels, each with a logit of its own."""

    def __init__(self, levels: int = 256):
        super().__init__()
        self.levels = self.parameters_per_value = _two_or_more(levels)

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelCategorical:
        """parameters [..., levels]: logits."""
        return PixelCategorical(parameters / temperature)


class LogisticMixture(Likelihood):
    """Any number of levels, ordered ones: a discretised mixture of logistics (`PixelLogisticMixture`, PixelCNN++).

    Near levels share what is learned, with 3 numbers per component for any number of levels. Parameters of 0 give a
    logistic of scale 0.1 around mid grey; the scales are soft-bounded to a thousandth and a thousandfold of that, far
    under one level and far beyond the range. PixelCNN++'s linear dependence of the means on a pixel's earlier channels
    is left out: `vlae.nn.pixelcnn.ChannelHead` makes all parameters of a channel depend on them.

    Args:
        levels: how many values, 2 or more.
        components: logistics per sub-pixel, 1 or more.
    """

    levels: int

    def __init__(self, levels: int = 256, components: int = 5):
        super().__init__()
        require_positive("the components of a logistic mixture", components)
        self.levels = _two_or_more(levels)
        self.parameters_per_value = 3 * components

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelLogisticMixture:
        """parameters [..., 3 * components]: logits, means, log-scales.

        The temperature divides the logits and multiplies the scales.
        """
        logits, means, s = parameters.chunk(3, -1)
        log_scales = soft_bounded_log(s) + math.log(0.1 * temperature)
        return PixelLogisticMixture(logits / temperature, means, log_scales, self.levels)


class Gaussian(Likelihood):
    """A normal density around sigmoid(parameters); `sigma=None` learns one sigma for all pixels (soft-bounded)."""

    def __init__(self, sigma: float | None = None):
        super().__init__()
        if sigma is not None and not sigma > 0:
            raise VlaeError(f"sigma must be positive, or None to learn it; got {sigma}")
        self.fixed_sigma = sigma
        if sigma is None:
            self.log_sigma = nn.Parameter(torch.tensor(math.log(0.3)))

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelGaussian:
        """parameters [..., 1]: the logit of the mean."""
        mean = torch.sigmoid(parameters.squeeze(-1))
        if self.fixed_sigma is not None:
            sigma = torch.as_tensor(self.fixed_sigma, dtype=mean.dtype, device=mean.device)
        else:
            sigma = soft_bounded_log(self.log_sigma).exp().to(mean.dtype)
        return PixelGaussian(mean, sigma * temperature)


class Factorised(Distribution):
    """A product over all sub-pixels given z: batch shape [B], event shape [C, H, W].

    Args:
        likelihood: what the parameters mean.
        parameters: [B, C, P, H, W].
        temperature: of each sub-pixel's distribution.
    """

    arg_constraints: dict = {}

    def __init__(self, likelihood: Likelihood, parameters: Tensor, temperature: float = 1.0):
        self.likelihood = likelihood
        self.pixels = likelihood(parameters.movedim(2, -1), temperature)
        shape = self.pixels.batch_shape
        super().__init__(shape[:1], shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The expected image, [B, C, H, W]."""
        return self.pixels.mean

    @property
    def mode(self) -> Tensor:
        """The most likely image, [B, C, H, W]."""
        return self.pixels.mode

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z) in nats per image, [B]."""
        return self.pixels.log_prob(x).flatten(1).sum(1)

    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: Generators = None,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """[*sample_shape, B, C, H, W], by the inverse CDF of `uniforms` (drawn from `generator` if not given)."""
        if uniforms is None:
            like = self.pixels.mean
            uniforms = rand(sample_shape, like.shape[0], self.event_shape, generator, like)
        elif uniforms.shape != (*sample_shape, *self.batch_shape, *self.event_shape):
            expected = [*sample_shape, *self.batch_shape, *self.event_shape]
            raise VlaeError(f"uniforms must be one per sub-pixel, {expected}; got {list(uniforms.shape)}")
        return self.pixels.icdf(uniforms)


def make_likelihood(name: str, **options: Any) -> Likelihood:
    """The likelihood of that name (see `kinds` below); refuses options that it does not take."""
    kinds: dict[str, type[Likelihood]] = {
        "bernoulli": Bernoulli,
        "categorical": Categorical,
        "logistic_mixture": LogisticMixture,
        "gaussian": Gaussian,
    }
    if name not in kinds:
        raise VlaeError(f"unknown likelihood {name!r}: choose one of {', '.join(kinds)}")
    try:
        return kinds[name](**options)
    except TypeError as error:
        raise VlaeError(f"likelihood_options do not fit the likelihood {name!r}: {error}") from None


def _values(levels: int, like: Tensor) -> Tensor:
    """The values of all levels, [levels], 0 to 1, with the dtype and device of `like`."""
    return torch.arange(levels, dtype=like.dtype, device=like.device) / (levels - 1)


def _two_or_more(levels: int) -> int:
    if not isinstance(levels, int) or levels < 2:
        raise VlaeError(f"a discrete likelihood needs levels to be 2 or more; got {levels}")
    return levels


def _range(x: Tensor) -> str:
    if not bool(torch.isfinite(x).all()):
        return "NaN or infinity"
    return f"values from {x.min().item():.4g} to {x.max().item():.4g}"
