"""What all latent-variable models share: the bound, the importance-weighted likelihood, samples and reconstructions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.likelihoods import Factorised, Likelihood
from vlae.distributions.noise import Generators
from vlae.distributions.posteriors import DiagonalGaussian, rate_per_dimension
from vlae.distributions.priors import FlowPrior, StandardNormal
from vlae.errors import VlaeError
from vlae.models.encoders import ImageShape
from vlae.models.saving import Savable


@dataclass(frozen=True)
class Bound:
    """The two terms of the evidence lower bound, in nats per image, shape [B]; never clipped.

    Attributes:
        distortion: -log p(x|z), z ~ q(z|x).
        rate: KL(q(z|x) || p(z)), analytic or its one-sample estimate log q(z|x) - log p(z), which may be negative.
        rate_per_dimension: the share of each latent dimension, [B, *latent_shape]; sums to the rate.
        z: the sample, [B, *latent_shape].
    """

    distortion: Tensor
    rate: Tensor
    rate_per_dimension: Tensor
    z: Tensor

    @property
    def elbo(self) -> Tensor:
        """-(distortion + rate), a lower bound on log p(x), nats, [B]."""
        return -(self.distortion + self.rate)


class LatentVariableModel(Savable):
    """A model of images with a latent code: subclasses say how to `encode`, `decode` and what the `prior` is.

    Attributes:
        image_shape: (C, H, W).
        latent_shape: the shape of z without the batch.
        likelihood: what the decoder's numbers mean.
    """

    image_shape: ImageShape
    latent_shape: tuple[int, ...]
    likelihood: Likelihood

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x) for images x [B, C, H, W] in [0, 1]."""
        raise NotImplementedError

    def decode(self, z: Tensor, temperature: float = 1.0) -> Factorised | Autoregressive:
        """p(x|z) for z [B, *latent_shape]; the temperature sharpens (< 1) each sub-pixel's distribution."""
        raise NotImplementedError

    def prior(self) -> StandardNormal | FlowPrior:
        """p(z)."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """The modules that hold nearly all the arithmetic, each called as a whole: what is worth compiling."""
        raise NotImplementedError

    def initialise(self, x: Tensor) -> None:
        """Sets what depends on data from one batch of images x [B, C, H, W], before training; most need nothing."""

    def elbo(self, x: Tensor, analytic: bool = True, generator: Generators = None) -> Bound:
        """The bound on log p(x) of images x [B, C, H, W], with one z per image.

        Args:
            x: images in [0, 1], at the likelihood's levels.
            analytic: the rate in closed form where it exists; False takes the Monte Carlo estimate everywhere.
            generator: noise for z, one generator or one per image.
        """
        self.check(x)
        q, prior = self.encode(x), self.prior()
        z = q.rsample(generator=generator)
        rates = rate_per_dimension(q, prior, z, analytic)
        return Bound(-self.decode(z).log_prob(x), rates.flatten(1).sum(1), rates, z)

    @torch.no_grad()
    def log_weights(self, x: Tensor, samples: int, generator: Generators = None, chunk: int = 128) -> Iterator[Tensor]:
        """log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x), z_k ~ q(z|x), in chunks [k, B] that add up to `samples`.

        The encoder runs once; about `chunk` images are decoded at a time. The noise is drawn at once, so that the
        weights do not depend on the chunk.
        """
        if samples < 1:
            raise VlaeError(f"samples must be at least 1; got {samples}")
        self.check(x)
        q, prior = self.encode(x), self.prior()
        for z in q.rsample((samples,), generator).split(max(1, chunk // max(1, len(x)))):
            decoded = self.decode(z.flatten(0, 1)).log_prob(x.repeat(len(z), 1, 1, 1)).unflatten(0, z.shape[:2])
            yield decoded + prior.log_prob(z) - q.log_prob(z)

    def log_likelihood(self, x: Tensor, samples: int = 1000, generator: Generators = None, chunk: int = 128) -> Tensor:
        """Importance-weighted lower bound on log p(x), log (1/K) sum_k w_k, in nats, [B] (Burda et al. 2016).

        The model is in eval mode inside, whatever mode it is in.

        Args:
            x: images [B, C, H, W].
            samples: K; the bound is tight as K grows.
            generator: noise for z, one generator or one per image.
            chunk: how many images to decode at a time: memory, not the result.
        """
        total: Tensor | None = None
        with self.evaluating():
            for weights in self.log_weights(x, samples, generator, chunk):
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
    ) -> Tensor:
        """Images x ~ p(x|z), z ~ p(z): [count, C, H, W] in [0, 1].

        Args:
            count: how many.
            temperature: scales the prior's noise.
            pixel_temperature: sharpens each sub-pixel's distribution.
            generator: the source of all noise.
        """
        if count < 1:
            raise VlaeError(f"count must be at least 1; got {count}")
        if temperature < 0 or not pixel_temperature > 0:
            raise VlaeError(
                f"temperatures must be positive; got {temperature} (prior) and {pixel_temperature} (pixels)"
            )
        with self.evaluating():
            z = self.prior().sample((count,), generator=generator, temperature=temperature)
            return self.decode(z, pixel_temperature).sample(generator=generator).clamp(0, 1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Deterministic reconstructions [B, C, H, W]: the posterior mean, decoded to the mean image or greedily."""
        self.check(x)
        with self.evaluating():
            decoded = self.decode(self.encode(x).mean)
            return decoded.mean if isinstance(decoded, Factorised) else decoded.mode

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
        self.likelihood.check(x)

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
            advice = "set model.likelihood=bernoulli"
        elif expected == 2:
            advice = "set data.binarize=dynamic"
        else:
            advice = f"set model.likelihood_options.levels={levels}"
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


def check_sizes(image_shape: Sequence[int], latent_dim: int) -> ImageShape:
    """The image shape as a tuple; refuses shapes and latent sizes that no model can have."""
    if not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise VlaeError(f"image_shape must be three positive integers (C, H, W); got {image_shape}")
    if any(not isinstance(n, int) or n < 1 for n in image_shape):
        raise VlaeError(f"image_shape must be three positive integers (C, H, W); got {tuple(image_shape)}")
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise VlaeError(f"latent_dim must be at least 1; got {latent_dim} (a model without z is a plain PixelCNN)")
    return (image_shape[0], image_shape[1], image_shape[2])
