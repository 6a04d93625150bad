"""Likelihoods p(x|z): what the numbers that a decoder puts out mean for each sub-pixel.

A likelihood is a small module: called with parameters [..., P] it gives an element-wise distribution [...] over values
in [0, 1] (`vlae.distributions.pixelwise`, `densities`, `charbonnier`), and `check` refuses images that it gives no mass
to. `Factorised` and `vlae.distributions.autoregressive.Autoregressive` make distributions over whole images of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vlae.distributions.bounded import soft_bounded_log
from vlae.distributions.charbonnier import PixelCharbonnier
from vlae.distributions.densities import (
    PixelContinuousBernoulli,
    PixelGaussian,
    PixelLaplace,
    PixelOptimalGaussian,
)
from vlae.distributions.making import make
from vlae.distributions.pixelwise import (
    PixelBernoulli,
    PixelCategorical,
    PixelChannelMixture,
    PixelLogisticMixture,
    Pixelwise,
)
from vlae.errors import VlaeError, require_positive
from vlae.noise import Generators, rand

START, LEAST = 0.3, 1e-3  # of scales: where they start, about, and their soft bound below


class Likelihood(nn.Module):
    """The base of likelihoods.

    `parameters_per_value` numbers are needed per sub-pixel; `levels` is how many values there are, None if continuous.
    """

    parameters_per_value: int = 1
    levels: int | None = None

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> Pixelwise:
        """parameters [..., P] -> element-wise distribution [...]; a temperature under 1 sharpens it."""
        raise NotImplementedError

    def of_images(self, parameters: Tensor, temperature: float = 1.0) -> Pixelwise:
        """parameters [B, C, H, W, P] of whole images -> [B, C, H, W]; here an image's sub-pixels may share something.

        What a factorised decoder asks for; the log_prob of the sub-pixels adds up to that of the image.
        """
        return self(parameters, temperature)

    @property
    def pools_batch(self) -> bool:
        """Whether an image's log-probability depends on the other images of the batch, as some do in training."""
        return False

    def unobserved(self) -> AbstractContextManager[None]:
        """For passes that training makes besides the bound's: inside, only gradients are learned from."""
        return nullcontext()

    def check(self, x: Tensor) -> None:
        """Refuses images that hold anything but this likelihood's values."""
        scale = self.levels - 1 if self.levels else 1
        tolerance = max(1e-3, 2 * scale * torch.finfo(x.dtype).eps)  # 16 bits are at the end of float32's precision
        # One reduction each: NaN fails every comparison, so a NaN is refused too.
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise VlaeError(f"images must hold values in [0, 1] and no NaN; got {_range(x)}")
        if self.levels and bool(((x * scale - (x * scale).round()).abs() > tolerance).any()):
            raise VlaeError(
                f"this likelihood has {self.levels} levels, multiples of 1/{scale}, and the images hold other values: "
                + (
                    "binarise them (binarize='dynamic'), or for grey pixels choose likelihood='continuous_bernoulli'"
                    if self.levels == 2
                    else "choose levels to fit the data"
                )
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
    under one level and far beyond the range.

    With `channel_means` the colours of a pixel share one mixture, and each one's mean depends linearly on the colours
    before it (`PixelChannelMixture`, PixelCNN++): so a factorised decoder too models how colours go together, at little
    cost. It then has no closed-form mean, only `.mode` (greedy), and the codec can't take it. An autoregressive decoder
    has no use for it and is refused: in its head all parameters of a channel depend on the ones before it.

    Args:
        levels: how many values, 2 or more.
        components: logistics per sub-pixel, 1 or more.
        channel_means: one mixture per pixel with means that depend on earlier channels, for factorised decoders.
        channels: C of the images; matters with `channel_means` alone.
    """

    levels: int

    def __init__(self, levels: int = 256, components: int = 5, channel_means: bool = False, channels: int = 3):
        super().__init__()
        if not isinstance(channel_means, bool):
            raise VlaeError(f"channel_means must be true or false; got {channel_means!r}")
        require_positive("the components of a logistic mixture", components)
        require_positive("the channels of a logistic mixture", channels)
        self.levels, self.components = _two_or_more(levels), components
        self.channel_means, self.channels = channel_means, channels
        self.parameters_per_value = (3 + (channels - 1 if channel_means else 0)) * components

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelLogisticMixture:
        """parameters [..., 3 * components]: logits, means, log-scales.

        The temperature divides the logits and multiplies the scales.
        """
        if self.channel_means:
            raise VlaeError(
                "channel_means is for factorised decoders; an autoregressive one makes all parameters of a channel "
                "depend on those before it: set channel_means=False"
            )
        logits, means, s = parameters.chunk(3, -1)
        return PixelLogisticMixture(logits / temperature, means, self._log_scales(s, temperature), self.levels)

    def of_images(self, parameters: Tensor, temperature: float = 1.0) -> PixelLogisticMixture | PixelChannelMixture:
        """parameters [B, C, H, W, P]; with `channel_means` P = (3 + C - 1) * components.

        These are logits, means, log-scales, and for each earlier channel the coefficients' inverse hyperbolic tangents;
        the first channel's logits are the pixel's, the other channels' go unused, and so do coefficients of later ones.
        """
        if not self.channel_means:
            return self(parameters, temperature)
        if parameters.shape[-4] != self.channels:
            raise VlaeError(
                f"the likelihood's channel_means are for channels={self.channels} and the images have "
                f"{parameters.shape[-4]}: set channels={parameters.shape[-4]} in the likelihood's options"
            )
        sizes = [self.components] * 3 + [(self.channels - 1) * self.components]
        logits, means, s, raw = parameters.split(sizes, -1)
        coefficients = raw.tanh().reshape(*raw.shape[:-1], self.channels - 1, self.components)
        log_scales = self._log_scales(s, temperature)
        return PixelChannelMixture(logits.select(-4, 0) / temperature, means, log_scales, coefficients, self.levels)

    def _log_scales(self, s: Tensor, temperature: float) -> Tensor:
        return soft_bounded_log(s) + math.log(0.1 * temperature)


class ContinuousBernoulli(Likelihood):
    """Grey pixels in [0, 1]: the proper density that "binary cross-entropy of grey pixels" leaves unnormalised."""

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelContinuousBernoulli:
        """parameters [..., 1]: the logit, which the temperature divides."""
        return PixelContinuousBernoulli(parameters.squeeze(-1) / temperature)


class LocationScale(Likelihood):
    """The base of densities around sigmoid(parameters) whose scale is fixed, learned or one per sub-pixel.

    A learned scale is exp(soft_bounded_log(s)): never under 1e-3, a quarter of one of 256 levels, nor over 1e3, and
    about 0.3 at the start; for all pixels s is one parameter, per pixel the decoder puts it out. The lower bound
    matters: a density of pixels that are always the same, like the black border of MNIST, has no upper bound itself.

    Args:
        name: of the option.
        scale: a positive number, None (learned, one for all pixels) or "pixel".
        others: words that a subclass takes in place of "pixel".
    """

    def __init__(self, name: str, scale: float | str | None, *others: str):
        super().__init__()
        self.name, self.scale = name, scale
        if scale is None:
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(math.log(START))))
        elif scale not in ("pixel", *others) and not _is_positive(scale):
            words = " or ".join(repr(word) for word in ("pixel", *others))
            raise VlaeError(f"{name} must be a positive number, None (learned) or {words}; got {scale!r}")
        self.parameters_per_value = 2 if scale == "pixel" else 1

    def location_and_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """parameters [..., P]: the logit of the location, and with "pixel" s -> location and scale, [...]."""
        location = parameters[..., 0].sigmoid()
        scale = self.one_scale()
        if scale is None:
            return location, soft_bounded_log(parameters[..., 1] + math.log(START)).exp()
        return location, scale.to(location)

    def one_scale(self) -> Tensor | None:
        """The scale of all pixels, fixed or learned, a scalar; None where the decoder puts one out for each."""
        if self.scale == "pixel":
            return None
        if self.scale is None:
            return soft_bounded_log(getattr(self, f"log_{self.name}")).exp()
        return self.known_scale()

    def known_scale(self) -> Tensor:
        """The scale that neither a parameter nor the decoder gives."""
        return torch.tensor(self.scale, dtype=torch.float64)


class Gaussian(LocationScale):
    """A normal density around sigmoid(parameters).

    sigma="optimal" is the sigma-VAE (Rybkin et al. 2020, arXiv 2006.13202), sigma^2 the mean squared error, which needs
    neither tuning nor learning. In training mode `log_prob` uses the error of the very values it is given, all of a
    batch together, with gradients, so that the distortion of D sub-pixels is D log sigma and a constant. That is no
    density yet, for it knows the values beforehand. So every such call with gradients enabled also enters the error
    into an exponential average over batches (decay 0.99, bias-corrected, in buffers that are saved with the model), and
    in eval mode, and for draws, sigma^2 is that average, frozen: a proper density, whatever else is in the batch.
    Before any training sigma is 0.3. A least variance of 1e-6 is added to either error: sigma is never under 1e-3.

    Args:
        sigma: a positive number, None (learned, one for all pixels), "pixel" (the decoder puts it out) or "optimal".
    """

    def __init__(self, sigma: float | str | None = None):
        super().__init__("sigma", sigma, "optimal")
        self._observing = True
        if sigma == "optimal":
            self.register_buffer("error_sum", torch.tensor(0.0))  # of mean squared errors, weighted by age
            self.register_buffer("error_weight", torch.tensor(0.0))  # the sum of those weights

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelGaussian:
        """parameters [..., P]: the logit of the mean, and with "pixel" s; the temperature multiplies sigma."""
        mean, sigma = self.location_and_scale(parameters)
        if self.pools_batch:
            return PixelOptimalGaussian(mean, sigma * temperature, LEAST, temperature, self._observe)
        return PixelGaussian(mean, sigma * temperature)

    def known_scale(self) -> Tensor:
        """The fixed sigma, or that of the errors seen in training."""
        if self.scale != "optimal":
            return super().known_scale()
        error, weight = self.get_buffer("error_sum"), self.get_buffer("error_weight")
        return torch.where(weight > 0, error / weight + LEAST**2, START**2).sqrt()

    @property
    def pools_batch(self) -> bool:
        """Optimal sigma in training is that of the batch."""
        return self.training and self.scale == "optimal"

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Errors inside do not enter the average."""
        self._observing, before = False, self._observing
        try:
            yield
        finally:
            self._observing = before

    def _observe(self, error: Tensor, decay: float = 0.99) -> None:
        """Enters a batch's error into the average; an error that is not finite is left out."""
        if not self._observing:
            return
        for name, value in (("error_sum", error), ("error_weight", torch.ones_like(error))):
            buffer = self.get_buffer(name)
            buffer.copy_(torch.where(error.isfinite(), buffer.lerp(value.to(buffer), 1 - decay), buffer))


class Laplace(LocationScale):
    """A Laplace density around sigmoid(parameters): the L1 loss, sharper than a Gaussian where errors are rare.

    Args:
        scale: a positive number, None (learned, one for all pixels) or "pixel" (the decoder puts it out too).
    """

    def __init__(self, scale: float | str | None = None):
        super().__init__("scale", scale)

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelLaplace:
        """parameters [..., P]: the logit of the location, and with "pixel" s; the temperature multiplies the scale."""
        location, scale = self.location_and_scale(parameters)
        return PixelLaplace(location, scale * temperature)


class Charbonnier(LocationScale):
    """The density of the Charbonnier penalty, sqrt(error^2 + eps^2) / scale, around sigmoid(parameters).

    Args:
        scale: a positive number, None (learned, one for all pixels) or "pixel" (the decoder puts it out too).
        eps: errors well under it are penalised quadratically, those beyond it linearly.
    """

    def __init__(self, scale: float | str | None = None, eps: float = 1e-3):
        super().__init__("scale", scale)
        if not _is_positive(eps) or eps < 1e-6:
            raise VlaeError(
                f"eps must be a number of at least 1e-6; got {eps!r}: choose the likelihood laplace for none"
            )
        self.eps = eps

    def forward(self, parameters: Tensor, temperature: float = 1.0) -> PixelCharbonnier:
        """parameters [..., P]: the logit of the location, and with "pixel" s; the temperature multiplies the scale."""
        location, scale = self.location_and_scale(parameters)
        return PixelCharbonnier(location, scale * temperature, self.eps)


class Factorised(Distribution):
    """A product over all sub-pixels given z, or over all pixels (`channel_means`): batch shape [B], event [C, H, W].

    Args:
        likelihood: what the parameters mean.
        parameters: [B, C, P, H, W].
        temperature: of each sub-pixel's distribution.
    """

    arg_constraints: dict = {}

    def __init__(self, likelihood: Likelihood, parameters: Tensor, temperature: float = 1.0):
        self.likelihood = likelihood
        self.pixels = likelihood.of_images(parameters.movedim(2, -1), temperature)
        self.parameters = parameters
        shape = self.pixels.batch_shape
        super().__init__(shape[:1], shape[1:], validate_args=False)

    @property
    def has_mean(self) -> bool:
        """Whether there is a mean in closed form; else `mean` raises with advice, and `mode` is what to show."""
        return self.pixels.has_mean

    @property
    def mean(self) -> Tensor:
        """The expected image, [B, C, H, W]."""
        return self.pixels.mean

    @property
    def mode(self) -> Tensor:
        """The most likely image, [B, C, H, W]."""
        return self.pixels.mode

    @property
    def reconstruction(self) -> Tensor:
        """The one image to show, [B, C, H, W]: the mean where it has a closed form, else the mode."""
        return self.mean if self.has_mean else self.mode

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
            uniforms = rand(sample_shape, self.batch_shape[0], self.event_shape, generator, self.parameters)
        elif uniforms.shape != (*sample_shape, *self.batch_shape, *self.event_shape):
            expected = [*sample_shape, *self.batch_shape, *self.event_shape]
            raise VlaeError(f"uniforms must be one per sub-pixel, {expected}; got {list(uniforms.shape)}")
        return self.pixels.icdf(uniforms)

    def complete(
        self,
        known: Tensor,
        mask: Tensor,
        generator: Generators = None,
        uniforms: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Keeps the given pixels and samples the others: images [B, C, H, W], and log p(known | z) in nats, [B].

        Given z the pixels say nothing of each other, so this is exact: a sample of p(unknown | known, z).

        Args:
            known: images [B, C, H, W] in [0, 1] that hold the given pixels; what is under unknown ones is ignored.
            mask: bool, True where a pixel is given, of any shape that broadcasts to [B, C, H, W].
            generator: noise for the unknown pixels.
            uniforms: or the noise itself, as in `sample`.
        """
        known, mask = given_pixels(known, mask, (*self.batch_shape, *self.event_shape))
        known = known.to(self.parameters.dtype)
        self.likelihood.check(known)
        if isinstance(self.pixels, PixelChannelMixture) and bool((mask != mask[:, :1]).any()):
            raise VlaeError("with channel_means a pixel's colours are drawn together: give all of them or none")
        drawn = self.sample(generator=generator, uniforms=uniforms)
        log_known = torch.where(mask, self.pixels.log_prob(known), 0).flatten(1).sum(1)
        return torch.where(mask, known, drawn), log_known


def given_pixels(known: Tensor, mask: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What `complete` is given, checked: images with zeros under the unknown pixels, and the mask in their shape.

    Raises:
        VlaeError: a mask that is not bool or does not broadcast to the images, images of another shape.
    """
    if mask.dtype != torch.bool:
        raise VlaeError(f"mask must be bool, True where a pixel is given; got {mask.dtype}")
    try:
        mask = mask.to(known.device).expand(shape)
    except RuntimeError:
        raise VlaeError(f"mask must broadcast to the images {list(shape)}; got {list(mask.shape)}") from None
    if known.shape != shape:
        raise VlaeError(f"known must be images of shape {list(shape)}; got {list(known.shape)}")
    return torch.where(mask, known, torch.zeros_like(known)), mask


def make_likelihood(name: str, **options: Any) -> Likelihood:
    """The likelihood of that name; refuses options that it does not take.

    Levels, whose nats can be compared and coded:

    - "bernoulli": binary pixels.
    - "categorical": a logit for each of `levels` (256).
    - "logistic_mixture": a mixture of `components` (5) discretised logistics over `levels` (256); with
      `channel_means=True` and `channels` (3), of whole colours.

    Densities of images in [0, 1]:

    - "continuous_bernoulli": on [0, 1].
    - "gaussian": `sigma` a number, None (learned, one for all), "pixel" (by the decoder) or "optimal" (from the error).
    - "laplace": `scale` a number, None or "pixel".
    - "charbonnier": the same, with the tip rounded over `eps` (0.001).

    Example:
        >>> make_likelihood("gaussian", sigma="pixel").parameters_per_value
        2
    """
    kinds: dict[str, type[Likelihood]] = {
        "bernoulli": Bernoulli,
        "categorical": Categorical,
        "logistic_mixture": LogisticMixture,
        "continuous_bernoulli": ContinuousBernoulli,
        "gaussian": Gaussian,
        "laplace": Laplace,
        "charbonnier": Charbonnier,
    }
    return make("likelihood", name, kinds, (), options)


def _two_or_more(levels: int) -> int:
    if not isinstance(levels, int) or levels < 2:
        raise VlaeError(f"a discrete likelihood needs levels to be 2 or more; got {levels}")
    return levels


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < math.inf


def _range(x: Tensor) -> str:
    if not bool(torch.isfinite(x).all()):
        return "NaN or infinity"
    return f"values from {x.min().item():.4g} to {x.max().item():.4g}"
