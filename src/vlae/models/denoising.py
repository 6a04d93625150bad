"""The denoising autoencoder: the baseline that has no density of z."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlae.distributions.fitted import FittedGaussian, FullGaussian
from vlae.distributions.likelihoods import Factorised
from vlae.distributions.pointmass import PointMass
from vlae.errors import VlaeError, is_number
from vlae.models.base import Bound, check_sizes, likelihood_for
from vlae.models.decoders import ARCHITECTURES
from vlae.models.textbook import Textbook
from vlae.nn.spectralnorm import apply_spectral_norm
from vlae.noise import Generators, rand, randn
from vlae.processes import whole

# The least and the most noise of each corruption; an end that is not itself allowed is said in words.
CORRUPTIONS = {
    "bernoulli_flip": (0.0, 0.5, "the probability that a sub-pixel is flipped, from 0 to 0.5"),
    "gaussian": (0.0, sys.float_info.max, "the standard deviation of the noise, finite and 0 or more"),
    "masking": (0.0, 1.0, "the probability that a sub-pixel is set to 0, from 0 to 1"),
}


class DAEOutput(NamedTuple):
    """What `model(x)` gives: images like the input, what the encoder saw (corrupted in train mode), and z [B, D]."""

    reconstruction: Tensor
    corrupted: Tensor
    z: Tensor


class DAELoss(NamedTuple):
    """What `compute_loss` gives: scalars in nats per image, averaged over the batch; the two are the same."""

    loss: Tensor
    reconstruction_loss: Tensor


class DenoisingAutoencoder(Textbook):
    """The denoising autoencoder (Vincent et al. 2008): z = f(corrupted x), trained by -log p(x|z) of the clean x.

    It is no generative model: z has no density, so there is a distortion but neither rate nor bound, and `has_bound` is
    False. That samples can be set beside those of others, `prior()` is a Gaussian fitted to the codes of the latest
    training batches, those that the decoder learned from: ad hoc (Ghosh et al. 2020, arXiv 1903.12436).

    In eval mode nothing is corrupted. In train mode the noise is PyTorch's global one, which training seeds for each
    step, unless a generator is given. With architecture "conv" the running statistics of batch normalisation are those
    of corrupted images, while eval mode shows clean ones; "resnet" and "mlp" have none.

    Args:
        image_shape: (C, H, W), any size.
        latent_dim: dimensions of z.
        architecture: "mlp", "conv" or "resnet", of the encoder and its mirror, the decoder.
        likelihood: binary pixels: "bernoulli"; levels or densities: as of `VAE`.
        likelihood_options: see `vlae.distributions.make_likelihood`.
        widths: hidden units (mlp) or maps (conv, resnet) per stage; None takes the architecture's default.
        corruption: "bernoulli_flip" (x becomes 1 - x), "gaussian" (noise is added, unclipped) or "masking" (x becomes
            0), each sub-pixel on its own.
        noise: the probability of that, or the standard deviation.
        decay: of the fitted Gaussian: how slowly it forgets earlier batches.
        spectral_norm: spectral normalisation of the decoder.

    Example:
        >>> model = DenoisingAutoencoder(image_shape=(1, 8, 8), latent_dim=4, architecture="mlp")
        >>> model.encode(torch.zeros(3, 1, 8, 8)).mean.shape
        torch.Size([3, 4])
        >>> model.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """

    has_bound = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int = 32,
        architecture: str = "conv",
        likelihood: str = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        widths: list[int] | None = None,
        corruption: str = "bernoulli_flip",
        noise: float = 0.2,
        decay: float = 0.99,
        spectral_norm: bool = False,
    ):
        super().__init__()
        self.image_shape = check_sizes(image_shape, latent_dim)
        if architecture not in ARCHITECTURES:
            raise VlaeError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        if corruption not in CORRUPTIONS:
            raise VlaeError(f"unknown corruption {corruption!r}: choose one of {', '.join(CORRUPTIONS)}")
        least, most, meaning = CORRUPTIONS[corruption]
        if not (is_number(noise) and least <= noise <= most):
            raise VlaeError(f"noise of the corruption {corruption!r} is {meaning}; got {noise!r}")
        self.corruption, self.noise = corruption, noise
        self.likelihood = likelihood_for(self.image_shape, likelihood, likelihood_options)
        self.latent_shape = (latent_dim,)
        encoder, decoder, default_widths = ARCHITECTURES[architecture]
        widths = list(default_widths) if widths is None else widths
        channels, height, width = self.image_shape
        self.encoder = encoder(self.image_shape, latent_dim, widths)
        self.decoder = decoder(latent_dim, (channels * self.likelihood.parameters_per_value, height, width), widths)
        if spectral_norm:
            apply_spectral_norm(self.decoder)
        self.prior_module = FittedGaussian(latent_dim, decay)

    def corrupt(self, x: Tensor, generator: Generators = None) -> Tensor:
        """Images x [B, C, H, W] with noise, whatever the mode."""
        if self.corruption == "gaussian":
            return x + self.noise * randn((), len(x), self.image_shape, generator, x)
        hit = rand((), len(x), self.image_shape, generator, x) < self.noise
        return torch.where(hit, 1 - x if self.corruption == "bernoulli_flip" else torch.zeros_like(x), x)

    def encode(self, x: Tensor) -> PointMass:
        """z = f(x) of images x [B, C, H, W] as they are: mean and rsample() [B, latent_dim]."""
        return PointMass(self.encoder(x).to(x.dtype))

    def decode(self, z: Tensor, temperature: float = 1.0) -> Factorised:
        """p(x|z) for z [B, latent_dim]."""
        self.check_latents(z)
        parameters = self.decoder(z).to(z.dtype)
        return Factorised(self.likelihood, parameters.unflatten(1, (self.image_shape[0], -1)), temperature)

    def prior(self) -> FullGaussian:
        """A Gaussian fitted to the training codes, to draw z from; no part of any bound."""
        return self.prior_module()

    def networks(self) -> list[nn.Module]:
        """Encoder and decoder."""
        return [self.encoder, self.decoder]

    def autoencode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """What the encoder sees of images x [B, C, H, W], corrupted in train mode, and its z [B, latent_dim].

        Where the model is trained, the codes are shown to the Gaussian.
        """
        seen = self.corrupt(x, generator) if self.training else x
        z = self.encode(seen).mean
        if self.training and torch.is_grad_enabled():
            self.prior_module.update(whole(z.detach()))
        return seen, z

    def elbo(
        self,
        x: Tensor,
        analytic: bool = True,
        generator: Generators = None,
        context: Tensor | None = None,
    ) -> Bound:
        """The distortion of images x [B, C, H, W]. The rate is 0 for want of one, so the sum of the two is no bound.

        In train mode z is that of the corrupted images, with noise from `generator`.
        """
        self.check(x)
        self.check_context(context, len(x))
        _, z = self.autoencode(x, generator)
        distortion = -self.decode(z).log_prob(x)
        return Bound(distortion, torch.zeros_like(distortion), torch.zeros_like(z), z)

    def importance_weights(
        self,
        x: Tensor,
        samples: int,
        generator: Generators = None,
        chunk: int | None = None,
        context: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """There is no density of z to weigh by: raises."""
        raise VlaeError(f"a {type(self).__name__} has no density of z, so its samples have no importance weights")

    def forward(self, x: Tensor, context: Tensor | None = None) -> DAEOutput:
        """x [B, C, H, W], or flattened -> the reconstruction in x's shape, what the encoder saw, and z."""
        images = self.images(x)
        self.check(images)
        self.check_context(context, len(images))
        seen, z = self.autoencode(images)
        reconstruction = self.decode(z).reconstruction
        return DAEOutput(reconstruction.reshape(x.shape), seen.reshape(x.shape), z)

    def compute_loss(  # type: ignore[override]
        self, x: Tensor, beta: float | None = None, context: Tensor | None = None
    ) -> DAELoss:
        """The distortion in nats per image, averaged over the batch; `beta` has no rate to weigh and must be None."""
        if beta is not None:
            raise VlaeError(f"a {type(self).__name__} has no rate for beta to weigh: leave it out; got {beta}")
        distortion = self.elbo(self.images(x), context=context).distortion.mean()
        return DAELoss(distortion, distortion)
