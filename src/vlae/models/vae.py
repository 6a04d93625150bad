"""The VAE with a factorised decoder, and the Variational Lossy Autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.likelihoods import Factorised, make_likelihood
from vlae.distributions.posteriors import DiagonalGaussian, soft_bounded_log
from vlae.distributions.priors import AutoregressiveFlowPrior, FlowPrior, StandardNormal, StandardNormalPrior
from vlae.errors import VlaeError, require_positive
from vlae.models.base import LatentVariableModel, check_sizes
from vlae.models.decoders import ARCHITECTURES, AutoregressiveDecoder, ResNetDecoder
from vlae.models.encoders import ResNetEncoder
from vlae.nn.pixelcnn import make_trunk
from vlae.nn.weightnorm import apply_weight_norm, data_dependent_init


class VAEOutput(NamedTuple):
    """What `VAE.forward` gives: images like the input, and the posterior's mean, log-variance and a sample [B, D]."""

    reconstruction: Tensor
    mu: Tensor
    log_var: Tensor
    z: Tensor


class VAELoss(NamedTuple):
    """What `VAE.compute_loss` gives: scalars in nats per image, averaged over the batch."""

    loss: Tensor
    reconstruction_loss: Tensor
    kl_loss: Tensor


class VectorLatentModel(LatentVariableModel):
    """A model with a vector z, a diagonal Gaussian posterior, and a standard normal or autoregressive flow prior."""

    encoder: nn.Module
    prior_module: Callable[[], StandardNormal | FlowPrior]

    def _set_latent(
        self, latent_dim: int, flow_steps: int, flow_order: str, flow_affine: bool, flow_hidden: Sequence[int]
    ) -> None:
        if flow_steps < 0:
            raise VlaeError(f"flow_steps must be 0 (standard normal prior) or more; got {flow_steps}")
        if flow_order not in ("reversed", "same"):
            raise VlaeError(f"flow_order must be 'reversed' or 'same'; got {flow_order!r}")
        self.latent_shape = (latent_dim,)
        self.prior_module = (
            AutoregressiveFlowPrior(latent_dim, flow_steps, flow_hidden, flow_affine, flow_order)
            if flow_steps
            else StandardNormalPrior(latent_dim)
        )

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x), one diagonal Gaussian per image x [B, C, H, W]."""
        mean, s = self.encoder(x).to(x.dtype).chunk(2, dim=1)
        return DiagonalGaussian(mean, soft_bounded_log(s))

    def prior(self) -> StandardNormal | FlowPrior:
        """p(z): standard normal, or the autoregressive flow."""
        return self.prior_module()


class VAE(VectorLatentModel):
    """The classic VAE (Kingma and Welling 2014): p(x|z) factorises over the pixels.

    Args:
        image_shape: (C, H, W), any size.
        latent_dim: dimensions of z.
        architecture: "mlp", "conv" or "resnet", of the encoder and its mirror, the decoder.
        likelihood: "bernoulli" (binary pixels), "categorical", "logistic_mixture" (PixelCNN++) or "gaussian" (density).
        likelihood_options: `levels` of a categorical or a mixture, its `components`; `sigma` of a Gaussian (or None:
            learned).
        widths: hidden units (mlp) or maps (conv, resnet) per stage; None takes the architecture's default.
        flow_steps: autoregressive-flow steps of the prior; 0 is the standard normal.
        flow_order: "reversed" between steps, or "same".
        flow_affine: shift and scale, or shift only.
        flow_hidden: hidden widths of each flow step.
        beta: used by `compute_loss` alone; the training objective has its own.

    Example:
        >>> model = VAE(image_shape=(1, 8, 8), latent_dim=4, architecture="mlp")
        >>> import torch
        >>> bound = model.elbo(torch.zeros(3, 1, 8, 8))
        >>> bound.elbo.shape
        torch.Size([3])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int = 32,
        architecture: str = "conv",
        likelihood: str = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        widths: list[int] | None = None,
        flow_steps: int = 0,
        flow_order: str = "reversed",
        flow_affine: bool = True,
        flow_hidden: tuple[int, ...] = (256, 256),
        beta: float = 1.0,
    ):
        super().__init__()
        self.image_shape = check_sizes(image_shape, latent_dim)
        if architecture not in ARCHITECTURES:
            raise VlaeError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        self.likelihood = make_likelihood(likelihood, **(likelihood_options or {}))
        self._set_latent(latent_dim, flow_steps, flow_order, flow_affine, flow_hidden)
        self.beta = beta
        channels, height, width = self.image_shape
        encoder, decoder = ARCHITECTURES[architecture]
        options = {} if widths is None else {"widths": widths}
        parameters = channels * self.likelihood.parameters_per_value
        self.encoder = encoder(self.image_shape, 2 * latent_dim, **options)
        self.decoder = decoder(latent_dim, (parameters, height, width), **options)

    def decode(self, z: Tensor, temperature: float = 1.0) -> Factorised:
        """p(x|z) for z [B, latent_dim]: has `.mean` and `.mode`."""
        self.check_latents(z)
        parameters = self.decoder(z).to(z.dtype).unflatten(1, (self.image_shape[0], -1))
        return Factorised(self.likelihood, parameters, temperature)

    def networks(self) -> list[nn.Module]:
        """Encoder and decoder."""
        return [self.encoder, self.decoder]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VAE:
        """Builds the VAE of a textbook from its usual names.

        Keys: `architecture` ("mlp" or "conv"), `latent_dim`, `beta`, `likelihood`; for "mlp" `input_dim` (a square
        number of pixels, or any: then one row) and `hidden_dim` or `hidden_dims`; for "conv" `in_channels`,
        `hidden_dims` and `image_size` (an integer or [H, W]; 28 for one channel and 32 for more if not given).

        Example:
            >>> model = VAE.from_config({"architecture": "mlp", "input_dim": 784, "hidden_dim": 400, "latent_dim": 20})
            >>> import torch
            >>> model(torch.zeros(2, 784)).reconstruction.shape
            torch.Size([2, 784])
        """
        given = dict(config)
        architecture = given.pop("architecture", "mlp")
        options: dict[str, Any] = {
            key: given.pop(key) for key in ("latent_dim", "beta", "likelihood", "likelihood_options") if key in given
        }
        if "hidden_dim" in given and "hidden_dims" in given:
            raise VlaeError("give hidden_dim (one layer) or hidden_dims (several), not both")
        if "hidden_dim" in given:
            options["widths"] = [given.pop("hidden_dim")]
        if "hidden_dims" in given:
            options["widths"] = list(given.pop("hidden_dims"))
        if architecture == "mlp":
            pixels = given.pop("input_dim", 784)
            require_positive("input_dim", pixels)
            side = math.isqrt(pixels)
            shape = (1, side, side) if side * side == pixels else (1, 1, pixels)
        elif architecture == "conv":
            channels = given.pop("in_channels", 1)
            size = given.pop("image_size", 28 if channels == 1 else 32)
            shape = (channels, size, size) if isinstance(size, int) else (channels, *size)
        else:
            raise VlaeError(f"architecture must be 'mlp' or 'conv'; got {architecture!r}")
        if given:
            raise VlaeError(f"unknown key {next(iter(given))!r} for architecture {architecture!r}; see VAE.from_config")
        return cls(shape, architecture=architecture, **options)

    def forward(self, x: Tensor) -> VAEOutput:
        """x [B, C, H, W], or flattened [B, C * H * W] -> the mean reconstruction in x's shape, mu, log_var and z."""
        images = self._unflatten(x)
        self.check(images)
        q = self.encode(images)
        z = q.rsample()
        return VAEOutput(self.decode(z).mean.reshape(x.shape), q.mean, 2 * q.log_stddev, z)

    def _unflatten(self, x: Tensor) -> Tensor:
        """Flattened images [B, C * H * W] back to [B, C, H, W]; any other shape is left for `check` to judge."""
        flat = isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == math.prod(self.image_shape)
        return x.reshape(-1, *self.image_shape) if flat else x

    def compute_loss(self, x: Tensor, beta: float | None = None) -> VAELoss:
        """distortion + beta * rate, nats per image averaged over the batch; `beta=None` takes the model's own."""
        bound = self.elbo(self._unflatten(x))
        distortion, rate = bound.distortion.mean(), bound.rate.mean()
        return VAELoss(distortion + (self.beta if beta is None else beta) * rate, distortion, rate)


class VLAE(VectorLatentModel):
    """The Variational Lossy Autoencoder (Chen et al. 2017, arXiv 1611.02731).

    A ResNet encoder, an autoregressive-flow prior, and a PixelCNN decoder whose receptive field is restricted, so that
    what it can't see has to go through z. (Not the Variational *Ladder* Autoencoder, which shares the acronym.)

    Args:
        image_shape: (C, H, W), any size.
        latent_dim: dimensions of z.
        decoder_layers: PixelCNN layers after the type-A input convolution.
        kernel_size: of the PixelCNN, odd; the window reaches (decoder_layers + 1) * (kernel_size // 2) pixels.
        flow_steps: autoregressive-flow steps of the prior; 0 is the standard normal.
        flow_order: "reversed" between steps (the paper's), or "same" (the prior can then be scanned and coded).
        flow_affine: shift and scale, or shift only ("mean-only", the paper's).
        flow_hidden: hidden widths of each flow step.
        stacks: "two" (gated, no blind spot), "slanted" (the same with a window that leans, so that sampling takes
            W + 2 (H - 1) steps at any depth) or "plain" (the paper's single stack).
        likelihood: "bernoulli", "categorical", "logistic_mixture" (PixelCNN++) or "gaussian".
        likelihood_options: `levels` of a categorical or a mixture, its `components`; `sigma` of a Gaussian.
        channels: maps of the PixelCNN.
        context_channels: maps at full resolution that z is decoded to.
        conditioning: "bias" (z enters every PixelCNN layer) or "input" (concatenated with x, the paper's).
        encoder_widths: maps of the encoder's stride-2 stages; the mirror decodes z.
        encoder_hidden: units of the fully connected layer next to z.
        pointwise_blocks: 1x1 residual blocks between the masked layers (plain stack).
        tied: the plain stack's type-B convolutions share their weights.
        weight_norm: weight normalisation of encoder and decoder, set from the first batch by `initialise`.

    Example:
        >>> model = VLAE(image_shape=(1, 8, 8), latent_dim=4, encoder_widths=[8], decoder_layers=1)
        >>> model.decoder.receptive_field.mask.int()
        tensor([[1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1],
                [1, 1, 0, 0, 0]], dtype=torch.int32)
        >>> model.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int = 32,
        decoder_layers: int = 3,
        kernel_size: int = 3,
        flow_steps: int = 2,
        flow_order: str = "reversed",
        flow_affine: bool = True,
        flow_hidden: tuple[int, ...] = (256, 256),
        stacks: str = "two",
        likelihood: str = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        channels: int = 32,
        context_channels: int = 8,
        conditioning: str = "bias",
        encoder_widths: tuple[int, ...] = (16, 32, 32),
        encoder_hidden: int = 450,
        pointwise_blocks: int = 0,
        tied: bool = False,
        weight_norm: bool = False,
    ):
        super().__init__()
        self.image_shape = check_sizes(image_shape, latent_dim)
        self.likelihood = make_likelihood(likelihood, **(likelihood_options or {}))
        self._set_latent(latent_dim, flow_steps, flow_order, flow_affine, flow_hidden)
        require_positive("context_channels", context_channels)
        require_positive("encoder_hidden", encoder_hidden)
        image_channels, height, width = self.image_shape
        pixels = make_trunk(
            stacks,
            pointwise_blocks,
            tied,
            image_channels=image_channels,
            parameters=self.likelihood.parameters_per_value,
            layers=decoder_layers,
            kernel_size=kernel_size,
            channels=channels,
            context_channels=context_channels,
            conditioning=conditioning,
        )
        self.encoder = ResNetEncoder(self.image_shape, 2 * latent_dim, encoder_widths, encoder_hidden)
        features = ResNetDecoder(latent_dim, (context_channels, height, width), encoder_widths, encoder_hidden)
        self.decoder = AutoregressiveDecoder(features, pixels)
        self.weight_norm = weight_norm
        if weight_norm:
            apply_weight_norm(self.encoder)
            apply_weight_norm(self.decoder)

    def decode(self, z: Tensor, temperature: float = 1.0) -> Autoregressive:
        """p(x|z) for z [B, latent_dim]: has `.mode` and `scan()`, but no closed-form mean."""
        self.check_latents(z)
        return Autoregressive(self.decoder.pixels, self.likelihood, self.decoder(z), self.image_shape, temperature)

    def networks(self) -> list[nn.Module]:
        """Encoder, the maps that z is decoded to, and the PixelCNN."""
        return [self.encoder, self.decoder.features, self.decoder.pixels]

    def initialise(self, x: Tensor) -> None:
        """Sets weight-normalised layers from one batch of images x [B, C, H, W]; without weight norm, does nothing."""
        if self.weight_norm:
            data_dependent_init(self, lambda: self.elbo(x))
