"""What all latent-variable models share: the bound, the importance-weighted likelihood, samples and reconstructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import Any, Self

import torch
from torch import Tensor, nn

from vlae import processes
from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.likelihoods import Factorised, Likelihood, make_likelihood
from vlae.distributions.posteriors import rate_per_dimension
from vlae.errors import VlaeError
from vlae.models.context import Condition, given
from vlae.models.encoders import ImageShape
from vlae.models.latents import Latents, each, some
from vlae.models.saving import Savable
from vlae.noise import Generators

Scorer = Callable[..., Tensor]  # (x, z, context) -> log p(x|z_k), see `LatentVariableModel.log_prob_of_one`
MANY = 32  # samples of an image that are worth computing what depends on it alone by itself


@dataclass(frozen=True)
class Bound:
    """The two terms of the evidence lower bound, in nats per image, shape [B]; never clipped.

    Attributes:
        distortion: -log p(x|z), z ~ q(z|x).
        rate: KL(q(z|x) || p(z)), analytic or its one-sample estimate log q(z|x) - log p(z), which may be negative.
        rate_per_dimension: the share of each latent dimension, [B, *latent_shape] (a ladder's levels in one row);
            sums to the rate.
        z: the sample, [B, *latent_shape].
        penalty: what training adds to the loss besides, [B], such as a codebook's commitment; no part of the bound.
    """

    distortion: Tensor
    rate: Tensor
    rate_per_dimension: Tensor
    z: Latents
    penalty: Tensor | None = None

    @property
    def elbo(self) -> Tensor:
        """-(distortion + rate), a lower bound on log p(x), nats, [B]."""
        return -(self.distortion + self.rate)

    def whole(self) -> Self:
        """The bound of the whole batch, where several processes train on rows of it; z remains that of the own rows."""
        if not processes.connected():
            return self
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "z"}
        return replace(self, **{name: processes.whole(x) for name, x in values.items() if x is not None})


class LatentVariableModel(Savable):
    """A model of images with a latent code: subclasses say how to `encode`, `decode` and what the `prior` is.

    Attributes:
        image_shape: (C, H, W).
        latent_shape: the shape of z without the batch; a ladder has one for each level.
        likelihood: what the decoder's numbers mean.
        condition: what a conditional model is told about each image; None where it is told nothing. Conditional models
            take `context=` in `encode`, `decode`, `prior`, and in all methods below that take images or make them.
        discrete: whether z is discrete codes, which no gradient passes through.
        has_bound: False for autoencoders without a density of z, whose distortion alone means something.
    """

    image_shape: ImageShape
    latent_shape: tuple[Any, ...]
    likelihood: Likelihood
    condition: Condition | None
    discrete: bool = False
    has_bound: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.condition = None  # here, since a class attribute would hide the module of that name

    def encode(self, x: Tensor) -> Any:
        """q(z|x) for images x [B, C, H, W] in [0, 1]: rsample() [B, *latent_shape], log_prob(z) [B], mean."""
        raise NotImplementedError

    def decode(self, z: Any, temperature: float = 1.0) -> Factorised | Autoregressive:
        """p(x|z) for z [B, *latent_shape]; the temperature sharpens (< 1) each sub-pixel's distribution."""
        raise NotImplementedError

    def prior(self) -> Any:
        """p(z): log_prob(z) [B], sample((n,), generator=, temperature=) [n, *latent_shape]."""
        raise NotImplementedError

    def inference_parameters(self) -> list[nn.Parameter]:
        """The parameters of q(z|x), as against those of p(x, z): what lagging inference trains more often."""
        encoder: Any = getattr(self, "encoder", None)
        return [] if encoder is None else list(encoder.parameters())

    def networks(self) -> list[nn.Module]:
        """The modules that hold nearly all the arithmetic, each called as a whole: what is worth compiling."""
        raise NotImplementedError

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Sets what depends on data from one batch of images x [B, C, H, W], before training; most need nothing."""

    def initialise_prior(self, x: Tensor) -> None:
        """The part of `initialise` that is the prior's, which may begin anew beside other weights that do not."""

    def elbo(
        self,
        x: Tensor,
        analytic: bool = True,
        generator: Generators = None,
        context: Tensor | None = None,
    ) -> Bound:
        """The bound on log p(x) of images x [B, C, H, W], with one z per image.

        Args:
            x: images in [0, 1], at the likelihood's levels.
            analytic: the rate in closed form where it exists; False takes the Monte Carlo estimate everywhere.
            generator: noise for z, one generator or one per image.
            context: labels or attributes, of conditional models: the bound is then on log p(x|context).
        """
        self.check(x)
        told = given(self.check_context(context, len(x)))
        q, prior = self.encode(x, **told), self.prior(**told)
        z = q.rsample(generator=generator)
        rates = rate_per_dimension(q, prior, z, analytic)
        return Bound(-self.decode(z, **told).log_prob(x), rates.flatten(1).sum(1), rates, z)

    def importance_weights(
        self,
        x: Tensor,
        samples: int,
        generator: Generators = None,
        chunk: int | None = None,
        context: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x), z_k ~ q(z|x), in chunks [k, B] that add up to `samples`.

        With gradients through the samples. The encoder runs once; about `chunk` images are decoded at a time (None:
        all). The noise is drawn at once, so that the weights do not depend on the chunk. Without gradients many samples
        under an autoregressive decoder go image by image, and come in one chunk.
        """
        if samples < 1:
            raise VlaeError(f"samples must be at least 1; got {samples}")
        self.check(x)
        context = self.check_context(context, len(x))
        q, prior = self.encode(x, **given(context)), self.prior(**given(context))
        z = q.rsample((samples,), generator)
        log_q = q.log_prob(z)  # of all samples at once: a posterior need not invert what it has just drawn
        if self.autoregressive and samples >= MANY and len(x) and not torch.is_grad_enabled():
            yield self._log_joint(x, z, prior, context, chunk or samples) - log_q
            return
        size = samples if chunk is None else max(1, chunk // max(1, len(x)))
        for start in range(0, samples, size):
            stop = min(start + size, samples)
            part = some(z, start, stop)
            told = given(None if context is None else context.repeat(stop - start, *[1] * (context.ndim - 1)))
            decoded = self.decode(each(lambda t: t.flatten(0, 1), part), **told)
            log_p = decoded.log_prob(x.repeat(stop - start, 1, 1, 1)).unflatten(0, (stop - start, len(x)))
            yield log_p + prior.log_prob(part) - log_q[start:stop]

    def log_prob_of_one(self, x: Tensor, z: Any, context: Tensor | None = None) -> Tensor:
        """log p(x|z_k) of one image x [1, C, H, W] under many z, K of them, nats, [K]; context of as many."""
        return self.decode(z, **given(context)).log_prob(x)

    def scorer(self, chunk: int) -> Scorer:
        """`log_prob_of_one` for many images and any number of z, of weights that do not change meanwhile.

        It decodes about `chunk` z at a time; some models have one that is faster and takes what memory it likes.
        """
        return in_chunks(self.log_prob_of_one, chunk)

    def _log_joint(self, x: Tensor, z: Tensor, prior: Any, context: Tensor | None, chunk: int) -> Tensor:
        """log p(x|z_k) + log p(z_k) for images x [B, C, H, W] and z [K, B, *latent_shape], nats, [K, B].

        Image by image: what depends on the image alone is computed once for all of its z.
        """
        columns, score = [], self.scorer(chunk)
        for index in range(len(x)):
            own = z[:, index]
            told = None if context is None else context[[index]].expand(len(own), *context.shape[1:])
            columns.append(score(x[[index]], own, told) + prior.log_prob(own))
        return torch.stack(columns, dim=1)

    @torch.no_grad()  # of a generator, while it runs: not in the caller, between two of its items
    def log_weights(
        self,
        x: Tensor,
        samples: int,
        generator: Generators = None,
        chunk: int = 128,
        context: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """`importance_weights` without gradients, about `chunk` images at a time."""
        yield from self.importance_weights(x, samples, generator, chunk, context)

    def log_likelihood(
        self,
        x: Tensor,
        samples: int = 1000,
        generator: Generators = None,
        chunk: int = 128,
        context: Tensor | None = None,
    ) -> Tensor:
        """Importance-weighted lower bound on log p(x), log (1/K) sum_k w_k, in nats, [B] (Burda et al. 2016).

        The model is in eval mode inside, whatever mode it is in.

        Args:
            x: images [B, C, H, W].
            samples: K; the bound is tight as K grows.
            generator: noise for z, one generator or one per image.
            chunk: how many images to decode at a time: memory, not the result. Compiled decoders choose themselves.
            context: labels or attributes, of conditional models.
        """
        if not self.has_bound:
            raise VlaeError(f"a {type(self).__name__} has no density of z, so there is no likelihood to bound")
        total: Tensor | None = None
        with self.evaluating():
            for weights in self.log_weights(x, samples, generator, chunk, context):
                part = weights.logsumexp(0)
                total = part if total is None else torch.logaddexp(total, part)
        assert total is not None
        return total - math.log(samples)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        temperature: float = 1.0,
        pixel_temperature: float = 1.0,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Images x ~ p(x|z), z ~ p(z): [count, C, H, W] in [0, 1].

        Args:
            count: how many.
            temperature: scales the prior's noise.
            pixel_temperature: sharpens each sub-pixel's distribution.
            generator: the source of all noise.
            context: labels or attributes, of conditional models; one of them stands for all images.
        """
        if count < 1:
            raise VlaeError(f"count must be at least 1; got {count}")
        if not temperature >= 0 or not pixel_temperature > 0:
            raise VlaeError(
                f"temperatures must be positive, the prior's may be 0; got {temperature} (prior) and "
                f"{pixel_temperature} (pixels)"
            )
        told = given(self.check_context(context, count))
        with self.evaluating():
            z = self.prior(**told).sample((count,), generator=generator, temperature=temperature)
            return self.decode(z, pixel_temperature, **told).sample(generator=generator).clamp(0, 1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Deterministic reconstructions [B, C, H, W]: the posterior mean, decoded to the mean image or greedily."""
        self.check(x)
        told = given(self.check_context(context, len(x)))
        with self.evaluating():
            return self.decode(self.encode(x, **told).mean, **told).reconstruction

    def placed(self, x: Tensor) -> Tensor:
        """x where the model's parameters are, on their device and in their precision."""
        return x.to(next(self.parameters(), x))

    def check(self, x: Tensor) -> None:
        """Refuses anything but images [B, *image_shape] with values that the likelihood gives mass to."""
        if not isinstance(x, Tensor) or x.ndim != 4 or tuple(x.shape[1:]) != tuple(self.image_shape):
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise VlaeError(f"expected images of shape [B, {', '.join(map(str, self.image_shape))}]; got {got}")
        if not x.is_floating_point():
            raise VlaeError(f"expected floating-point images in [0, 1]; got {x.dtype}: divide by the highest level")
        parameter = next(self.parameters(), x)
        if x.dtype != parameter.dtype and not torch.is_autocast_enabled(x.device.type):
            raise VlaeError(
                f"the images are {x.dtype} and the model is {parameter.dtype}: convert one of them with .to()"
            )
        if x.device != parameter.device:
            raise VlaeError(f"the images are on {x.device} and the model is on {parameter.device}: move one with .to()")
        self.likelihood.check(x)

    def check_context(self, context: Tensor | None, count: int) -> Tensor | None:
        """The context of `count` images; refuses a missing one, and any where the model takes none."""
        if self.condition is not None:
            return self.condition.check(context, count)
        if context is not None:
            raise VlaeError(f"this {type(self).__name__} takes no context: build it with classes= or attributes=")
        return None

    def context_of(self, labels: Tensor | None, factors: Tensor | None, name: str = "the data set") -> Tensor | None:
        """What of a batch's labels and factors this model is told; None where it is told nothing."""
        return None if self.condition is None else self.condition.of(labels, factors, name)

    @property
    def autoregressive(self) -> bool:
        """Whether p(x|z) is autoregressive over the pixels, so that it has no mean image but can be drawn anew."""
        return hasattr(getattr(self, "decoder", None), "receptive_field")

    @property
    def latent_size(self) -> int:
        """How many numbers z has."""
        nested = bool(self.latent_shape) and isinstance(self.latent_shape[0], tuple)
        return sum(math.prod(shape) for shape in (self.latent_shape if nested else [self.latent_shape]))

    def check_latents(self, z: Tensor) -> None:
        """Refuses anything but latents [B, *latent_shape]."""
        if not isinstance(z, Tensor) or tuple(z.shape[1:]) != tuple(self.latent_shape) or z.ndim < 2:
            got = list(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise VlaeError(f"expected latents of shape [B, {', '.join(map(str, self.latent_shape))}]; got {got}")

    def check_levels(self, levels: int, name: str) -> None:
        """Refuses data whose number of levels is not the likelihood's; `name` is the data set's."""
        expected = self.likelihood.levels
        if expected is None or levels == expected:
            return
        if levels == 2:
            advice = f"give images of {expected} levels, or train with --model.likelihood bernoulli"
        elif expected == 2:
            advice = "binarise them with --data.binarize dynamic"
        else:
            advice = f"give images of {expected} levels, or train with --model.likelihood_options.levels {levels}"
        kind = type(self.likelihood).__name__
        raise VlaeError(f"the likelihood {kind} has {expected} levels and {name} has {levels}: {advice}")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode inside, the former mode afterwards: sampling never updates or uses batch statistics."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:  # one by one: parts may have been frozen in eval mode
                module.training = training


def in_chunks(score: Scorer, chunk: int) -> Scorer:
    """The same for any number of z, `chunk` at a time."""

    def pieces(x: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        told = repeat(None) if context is None else context.split(chunk)
        return torch.cat([score(x, *part) for part in zip(z.split(chunk), told, strict=False)])

    return pieces


def likelihood_for(
    image_shape: ImageShape, name: str, options: dict[str, Any] | None, autoregressive: bool = False
) -> Likelihood:
    """`make_likelihood` for images of that shape: tells a mixture with `channel_means` how many channels there are."""
    options = dict(options or {})
    if options.get("channel_means"):
        if autoregressive:
            raise VlaeError(
                "channel_means is for factorised decoders: in an autoregressive one every parameter of a channel "
                "depends on those before it anyway; leave it out"
            )
        if options.setdefault("channels", image_shape[0]) != image_shape[0]:
            raise VlaeError(f"likelihood_options.channels is {options['channels']}, the images' is {image_shape[0]}")
    return make_likelihood(name, **options)


def check_sizes(image_shape: Sequence[int], latent_dim: int) -> ImageShape:
    """The image shape as a tuple; refuses shapes and latent sizes that no model can have."""
    if not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise VlaeError(f"image_shape must be three positive integers (C, H, W); got {image_shape}")
    if any(not isinstance(n, int) or n < 1 for n in image_shape):
        raise VlaeError(f"image_shape must be three positive integers (C, H, W); got {tuple(image_shape)}")
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise VlaeError(f"latent_dim must be at least 1; got {latent_dim} (a model without z is a plain PixelCNN)")
    return (image_shape[0], image_shape[1], image_shape[2])
