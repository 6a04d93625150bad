"""Element-wise distributions over the values of sub-pixels: the base, and those over levels 0, 1/(levels-1), ..., 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from vlae.errors import VlaeError
from vlae.noise import Generators, rand


class Pixelwise(Distribution):
    """An element-wise distribution that can be sampled from given uniforms: the base of all others.

    `has_mean` is False where there is no mean in closed form: then `mean` raises, and `mode` is what to show.
    """

    has_mean: bool = True
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
        return (self.logits.log_softmax(-1) + self.of_components(value)).logsumexp(-1)

    def of_components(self, value: Tensor) -> Tensor:
        """log p(value | component) in nats, [..., K]: each logistic's share of the value's bin."""
        last = self.levels - 1
        level = (value * last).round()[..., None]
        lowest, highest = level <= 0, level >= last
        precisions = (-self.log_scales).exp()
        a = (2 / last * (level - 0.5) - 1 - self.means) * precisions
        b = (2 / last * (level + 0.5) - 1 - self.means) * precisions
        width = (-torch.expm1(-2 / last * precisions)).log()
        return (
            F.logsigmoid(b).masked_fill(highest, 0)
            + F.logsigmoid(-a).masked_fill(lowest, 0)
            + width.masked_fill(lowest | highest, 0)
        )


class PixelChannelMixture(Pixelwise):
    r"""Pixels whose channels are drawn one after another: PixelCNN++'s mixture of logistics over whole colours.

    A pixel has one mixture over all of its C channels (Salimans et al. 2017, arXiv 1701.05517, section 2.2). Given the
    component k, channel c is a discretised logistic (`PixelLogisticMixture`) around

    .. math:: m_{kc} + \sum_{j < c} \gamma_{kcj} y_j

    where y_j in [-1, 1] is the value of channel j. So the colours depend on each other through the component and
    through the means, and still p(x) = prod over c of p(x_c | x_1 ... x_{c-1}) with each factor a mixture of logistics
    again, whose weights are those of the components given the channels before it. That makes the total mass exactly 1.

    Batch shape [..., C, H, W]; `log_prob` gives each channel's share, log p(x_c | earlier channels).

    Args:
        logits: of the components, one mixture per pixel, [..., H, W, K].
        means: on the scale of [-1, 1], [..., C, H, W, K].
        log_scales: natural logarithms of the scales, [..., C, H, W, K].
        coefficients: gamma, [..., C, H, W, C - 1, K]; channel c uses the first c of the C - 1.
        levels: how many values, 2 or more.
    """

    has_mean = False

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor, levels: int):
        self.logits, self.means, self.log_scales, self.coefficients = logits, means, log_scales, coefficients
        self.levels = levels
        super().__init__(means.shape[:-1])

    @property
    def log_masses(self) -> Tensor:
        """There is no table for all sub-pixels at once: raises with advice."""
        raise VlaeError(
            "with channel_means the levels of a colour have no masses before the colours before it are known: "
            "use log_prob, or choose channel_means=False"
        )

    @property
    def mean(self) -> Tensor:
        """Colours that depend on each other through rounded values have no closed-form mean: raises with advice."""
        raise VlaeError(
            "a logistic mixture with channel_means has no closed-form mean: "
            "use .mode (greedy, deterministic) or average samples"
        )

    @property
    def mode(self) -> Tensor:
        """The greedy image: each channel's most likely value given the channels before it."""
        return self.scan(lambda channel, conditional: conditional.mode)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x_c | earlier channels) in nats, for whole images [..., C, H, W]; their sum over c is a pixel's."""
        *earlier, _ = self._centred(value).unbind(-3)
        each = [self._means(channel, earlier[:channel]) for channel in range(len(earlier) + 1)]
        means, logits = torch.stack(torch.broadcast_tensors(*each), -4), self.logits.unsqueeze(-4)
        components = PixelLogisticMixture(logits, means, self.log_scales, self.levels).of_components(value)
        nothing, others = torch.zeros_like(components.narrow(-4, 0, 1)), components.narrow(-4, 0, len(earlier))
        weights = logits + torch.cat([nothing, others.cumsum(-4)], -4)  # of the components, given the channels before
        return (weights.log_softmax(-1) + components).logsumexp(-1)

    def icdf(self, value: Tensor) -> Tensor:
        """One channel after another, each by its own uniform in `value` [..., C, H, W]."""
        return self.scan(lambda channel, conditional: conditional.icdf(value.select(-3, channel)))

    def sample(self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None) -> Tensor:
        """[*sample_shape, ..., C, H, W] by the inverse CDF of uniforms."""
        return self.icdf(rand(sample_shape, None, self.batch_shape, generator, self.means))

    def scan(self, visit: Callable[[int, PixelLogisticMixture], Tensor]) -> Tensor:
        """Visits the channels in order: `visit(channel, conditional)` returns its values [..., H, W]; the image."""
        logits = self.logits
        values: list[Tensor] = []
        centred: list[Tensor] = []
        for channel in range(self.batch_shape[-3]):
            means = self._means(channel, centred)
            conditional = PixelLogisticMixture(logits, means, self.log_scales.select(-4, channel), self.levels)
            values.append(visit(channel, conditional))
            centred.append(self._centred(values[-1]))
            logits = logits + conditional.of_components(values[-1])
        return torch.stack(values, -3)

    def _centred(self, value: Tensor) -> Tensor:
        """Values on the scale of [-1, 1], at exact levels, so that the mass does not depend on an image's rounding."""
        last = self.levels - 1
        return (value * last).round() * (2 / last) - 1

    def _means(self, channel: int, earlier: Sequence[Tensor]) -> Tensor:
        """The means of a channel [..., H, W, K], given the centred values [..., H, W] of those before it."""
        means, coefficients = self.means.select(-4, channel), self.coefficients.select(-5, channel)
        for number, value in enumerate(earlier):
            means = means + coefficients[..., number, :] * value[..., None]
        return means


def _values(levels: int, like: Tensor) -> Tensor:
    """The values of all levels, [levels], 0 to 1, with the dtype and device of `like`."""
    return torch.arange(levels, dtype=like.dtype, device=like.device) / (levels - 1)
