"""The VAE with a factorised decoder, also conditional, and the Variational Lossy Autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.likelihoods import Factorised
from vlae.distributions.posteriors import make_posterior
from vlae.distributions.priors import VampPrior, make_prior
from vlae.errors import VlaeError, require_not_negative, require_positive
from vlae.models.base import LatentVariableModel, Scorer, check_sizes, likelihood_for
from vlae.models.context import Condition, ContextPlane
from vlae.models.decoders import ARCHITECTURES, AutoregressiveDecoder, ResNetDecoder, trunk
from vlae.models.encoders import ImageShape, ResNetEncoder, running_averages_kept, sizes_of
from vlae.models.textbook import Textbook
from vlae.nn import inference
from vlae.nn.dropout import apply_dropout
from vlae.nn.spectralnorm import apply_spectral_norm
from vlae.nn.weightnorm import apply_weight_norm, data_dependent_init

PARAMETERS = 2**22  # of pixels' distributions at a time from a compiled decoder: what is made of them is as large


class SingleLevelModel(LatentVariableModel):
    """A model with one code z, a vector or maps, whose posterior, prior and context are chosen by name."""

    encoder: nn.Module
    usual_flow_steps = 0  # the default of flow_steps, which may stand beside a prior without such steps

    def _set_latent(
        self,
        latent_shape: tuple[int, ...],
        posterior: str,
        posterior_options: dict[str, Any] | None,
        prior: str,
        prior_options: dict[str, Any] | None,
        flow: dict[str, Any],
    ) -> None:
        """Makes posterior and prior. `flow` holds the arguments flow_steps, ... of the prior "flow"."""
        self.latent_shape = latent_shape
        self.posterior_module = make_posterior(posterior, latent_shape, **(posterior_options or {}))
        if flow["steps"] < 0:
            raise VlaeError(f"flow_steps must be 0 (standard normal prior) or more; got {flow['steps']}")
        if flow["order"] not in ("reversed", "same"):
            raise VlaeError(f"flow_order must be 'reversed' or 'same'; got {flow['order']!r}")
        options = dict(prior_options or {})
        if prior != "flow" and flow["steps"] not in (0, self.usual_flow_steps):
            raise VlaeError(
                f"flow_steps={flow['steps']} are steps of the prior 'flow', and this one is {prior!r}: set flow_steps "
                "to 0, and give what this prior takes in prior_options"
            )
        if prior == "flow" and not options.get("steps", flow["steps"]):
            prior = "normal"
            options.pop("steps", None)
            if options:
                raise VlaeError(
                    f"prior_options {', '.join(options)} are given and there is no prior to take them: set flow_steps, "
                    "or choose a prior"
                )
        elif prior == "flow" and len(latent_shape) == 3:
            prior, options = "map_flow", {**{key: flow[key] for key in ("steps", "order", "affine")}, **options}
        elif prior == "flow":
            options = {**flow, **options}
        elif prior == "vamp":
            if "image_shape" in options:
                raise VlaeError("pseudo-inputs have the model's image_shape: leave image_shape out of prior_options")
            options["image_shape"] = self.image_shape
            if posterior != "gaussian":
                raise VlaeError(
                    f"a VampPrior mixes Gaussian posteriors: choose posterior 'gaussian', not {posterior!r}"
                )
            if "mean_norm" in (posterior_options or {}):
                raise VlaeError(
                    "mean_norm normalises over a batch, and a VampPrior's pseudo-inputs are none: leave one"
                )
        self.prior_module = make_prior(prior, latent_shape, **options)

    def _set_condition(self, classes: int, attributes: int, context_features: int) -> tuple[int, ImageShape]:
        """Makes the condition, if there is one; how many numbers it adds to z, and the encoder's image shape."""
        channels, height, width = self.image_shape
        if not classes and not attributes:
            return 0, self.image_shape
        if self.prior_module.needs_encoder:
            raise VlaeError("a VampPrior's pseudo-inputs have no context: choose another prior for a conditional model")
        self.condition = Condition(classes, attributes, context_features)
        self.context_plane = ContextPlane(context_features, height, width)
        return context_features, (channels + 1, height, width)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Any:
        """q(z|x) of images x [B, C, H, W]: a Gaussian, or an inverse autoregressive flow."""
        if self.condition is not None:
            x = self.context_plane(x, self.condition(self.check_context(context, len(x))))
        return self.posterior_module(self.encoder(x).to(x.dtype))

    def prior(self, context: Tensor | None = None) -> Any:
        """p(z), which no context changes."""
        if not self.prior_module.needs_encoder:
            return self.prior_module()
        with running_averages_kept(self.encoder):  # they are for images, which pseudo-inputs are not
            return self.prior_module(self.encode)

    def latents_with_context(self, z: Tensor, context: Tensor | None) -> Tensor:
        """What the decoder reads: z, and in conditional models the embedding of the context beside it."""
        self.check_latents(z)
        if self.condition is None:
            self.check_context(context, len(z))
            return z
        embedding = self.condition(self.check_context(context, len(z))).to(z.dtype)
        if z.ndim == 4:
            embedding = embedding[:, :, None, None].expand(-1, -1, *z.shape[2:])
        return torch.cat([z, embedding], 1)

    def inference_parameters(self) -> list[nn.Parameter]:
        """The encoder's and the posterior's; a VampPrior shares them."""
        plane = [] if self.condition is None else list(self.context_plane.parameters())
        return [*self.encoder.parameters(), *self.posterior_module.parameters(), *plane]

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Standardises attributes by one batch's; a VampPrior's pseudo-inputs start at its images."""
        if self.condition is not None and context is not None:
            self.condition.initialise(self.condition.check(context, len(x)))
        self.initialise_prior(x)

    def initialise_prior(self, x: Tensor) -> None:
        """A VampPrior's pseudo-inputs start at images x [B, C, H, W]."""
        if isinstance(self.prior_module, VampPrior):
            self.prior_module.initialise(x)


class VAE(SingleLevelModel, Textbook):
    """The classic VAE (Kingma and Welling 2014): p(x|z) factorises over the pixels.

    Args:
        image_shape: (C, H, W), any size.
        latent_dim: dimensions of z.
        architecture: "mlp", "conv" or "resnet", of the encoder and its mirror, the decoder.
        likelihood: binary pixels: "bernoulli"; levels: "categorical", "logistic_mixture" (PixelCNN++); densities:
            "continuous_bernoulli", "gaussian", "laplace", "charbonnier".
        likelihood_options: `levels` of a categorical or a mixture, its `components` and `channel_means`; `sigma` of a
            Gaussian; see `vlae.distributions.make_likelihood`.
        widths: hidden units (mlp) or maps (conv, resnet) per stage; None takes the architecture's default.
        latent_maps: z is so many maps at the resolution after the last stage (conv, resnet), instead of a vector of
            latent_dim numbers; 0 is the vector.
        posterior: "gaussian" or "iaf" (inverse autoregressive flow).
        posterior_options: of `vlae.distributions.make_posterior`, such as `mean_norm` against collapse.
        prior: "normal", "flow" (autoregressive; over maps too), "spline", "autoregressive_mixture", "mixture", "vamp",
            "delta".
        prior_options: of `vlae.distributions.make_prior`.
        classes: how many labels the model is conditional on; 0: none.
        attributes: or how many attributes (the data set's factors).
        context_features: size of their embedding.
        spectral_norm: spectral normalisation of the decoder.
        flow_steps: autoregressive-flow steps of the prior; 0 is the standard normal.
        flow_order: "reversed" between steps, or "same". This and the next two are read by the prior "flow" alone.
        flow_affine: shift and scale, or shift only.
        flow_hidden: hidden widths of each flow step, of vectors; over maps, `prior_options` have the sizes.
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
        latent_maps: int = 0,
        posterior: str = "gaussian",
        posterior_options: dict[str, Any] | None = None,
        prior: str = "flow",
        prior_options: dict[str, Any] | None = None,
        classes: int = 0,
        attributes: int = 0,
        context_features: int = 32,
        spectral_norm: bool = False,
    ):
        super().__init__()
        self.image_shape = check_sizes(image_shape, latent_dim)
        if architecture not in ARCHITECTURES:
            raise VlaeError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        self.likelihood = likelihood_for(self.image_shape, likelihood, likelihood_options)
        encoder, decoder, default_widths = ARCHITECTURES[architecture]
        widths = list(default_widths) if widths is None else widths
        if latent_maps and architecture == "mlp":
            raise VlaeError("latent_maps need architecture 'conv' or 'resnet': an mlp has no maps")
        latent_shape = latent_shape_of(self.image_shape, latent_dim, latent_maps, widths)
        flow = {"steps": flow_steps, "hidden": flow_hidden, "affine": flow_affine, "order": flow_order}
        self._set_latent(latent_shape, posterior, posterior_options, prior, prior_options, flow)
        added, seen_shape = self._set_condition(classes, attributes, context_features)
        require_not_negative("beta", beta)
        self.beta = beta
        channels, height, width = self.image_shape
        parameters = channels * self.likelihood.parameters_per_value
        maps = {"maps": True} if latent_maps else {}
        self.encoder = encoder(seen_shape, self.posterior_module.features_needed, widths, **maps)
        self.decoder = decoder(latent_shape[0] + added, (parameters, height, width), widths, **maps)
        if spectral_norm:
            apply_spectral_norm(self.decoder)

    def decode(self, z: Tensor, temperature: float = 1.0, context: Tensor | None = None) -> Factorised:
        """p(x|z) for z [B, *latent_shape]: has `.mean` and `.mode`."""
        parameters = self.decoder(self.latents_with_context(z, context)).to(z.dtype)
        return Factorised(self.likelihood, parameters.unflatten(1, (self.image_shape[0], -1)), temperature)

    def networks(self) -> list[nn.Module]:
        """Encoder and decoder."""
        return [self.encoder, self.decoder]


class ConditionalVAE(VAE):
    """The VAE of p(x|c), c a label or a vector of attributes of each image (Sohn et al. 2015): `VAE` with c required.

    `context=` is given to every method that takes or makes images: int64 labels [B], or attributes [B, attributes].

    Args:
        image_shape: (C, H, W), any size.
        classes: how many labels there are; or
        attributes: how many attributes each image has (the data set's factors).
        **options: as of `VAE`.

    Example:
        >>> model = ConditionalVAE(image_shape=(1, 8, 8), classes=10, latent_dim=4)
        >>> model.sample(2, context=torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int = 0,
        attributes: int = 0,
        **options: Any,
    ):
        if not classes and not attributes:
            raise VlaeError("a conditional VAE needs classes (how many labels) or attributes (how many per image)")
        super().__init__(image_shape, classes=classes, attributes=attributes, **options)


def latent_shape_of(
    image_shape: ImageShape, latent_dim: int, latent_maps: int, widths: Sequence[int]
) -> tuple[int, ...]:
    """(latent_dim,), or (latent_maps, h, w) at the resolution after as many stride-2 stages as there are widths."""
    if not isinstance(latent_maps, int) or latent_maps < 0:
        raise VlaeError(f"latent_maps must be 0 (z is a vector) or how many maps z has; got {latent_maps}")
    return (latent_maps, *sizes_of(image_shape, widths)[-1]) if latent_maps else (latent_dim,)


class VLAE(SingleLevelModel):
    """The Variational Lossy Autoencoder (Chen et al. 2017, arXiv 1611.02731).

    A ResNet encoder, an autoregressive-flow prior, and a PixelCNN decoder whose receptive field is restricted, so that
    what it can't see has to go through z. (Not the Variational *Ladder* Autoencoder, which shares the acronym.)

    Args:
        image_shape: (C, H, W), any size.
        latent_dim: dimensions of z.
        decoder_layers: PixelCNN layers after the type-A input convolution.
        kernel_size: of the PixelCNN, odd; the window reaches (decoder_layers + 1) * (kernel_size // 2) pixels.
        flow_steps: autoregressive-flow steps of the prior; 0 is the standard normal.
        flow_order: "reversed" between steps (the paper's), or "same" (the prior can then be scanned and coded). This
            and the next two are read by the prior "flow" alone.
        flow_affine: shift and scale, or shift only ("mean-only", the paper's).
        flow_hidden: hidden widths of each flow step, of vectors; over maps, `prior_options` have the sizes.
        stacks: the decoder: a PixelCNN, "two" (gated, no blind spot), "slanted" (the same with a window that leans, so
            that sampling takes W + 2 (H - 1) steps at any depth) or "plain" (the paper's single stack); or "row_lstm"
            (PixelRNN), or "attention" (a local Transformer).
        trunk_options: of the decoder: `memory` of a row LSTM, `heads` of a Transformer.
        likelihood: "bernoulli", "categorical", "logistic_mixture" (PixelCNN++) or a density; as of `VAE`.
        likelihood_options: `levels` of a categorical or a mixture, its `components`; `sigma` of a Gaussian.
        latent_maps: z is so many maps at the resolution after the last stage, instead of a vector of latent_dim
            numbers; 0 is the vector.
        posterior: "gaussian" or "iaf" (inverse autoregressive flow).
        posterior_options: of `vlae.distributions.make_posterior`, such as `mean_norm` against collapse.
        prior: "normal", "flow" (autoregressive; over maps too), "spline", "autoregressive_mixture", "mixture", "vamp",
            "delta".
        prior_options: of `vlae.distributions.make_prior`.
        classes: how many labels the model is conditional on; 0: none.
        attributes: or how many attributes (the data set's factors).
        context_features: size of their embedding.
        channels: maps of the PixelCNN.
        context_channels: maps at full resolution that z is decoded to.
        conditioning: "bias" (z enters every PixelCNN layer) or "input" (concatenated with x, the paper's).
        encoder_widths: maps of the encoder's stride-2 stages; the mirror decodes z.
        encoder_hidden: units of the fully connected layer next to z.
        pointwise_blocks: 1x1 residual blocks between the masked layers (plain stack).
        tied: the plain stack's type-B convolutions share their weights.
        weight_norm: weight normalisation of encoder and decoder, set from the first batch by `initialise`.
        dropout: the share of maps in every residual branch, of encoder and decoder, that are left out at each training
            step: for small data sets.

    Example:
        >>> model = VLAE(image_shape=(1, 8, 8), latent_dim=4, encoder_widths=[8], decoder_layers=1)
        >>> model.decoder.receptive_field.mask.int()
        tensor([[1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1],
                [1, 1, 0, 0, 0]], dtype=torch.int32)
        >>> model.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """

    usual_flow_steps = 2

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
        dropout: float = 0.0,
        trunk_options: dict[str, Any] | None = None,
        latent_maps: int = 0,
        posterior: str = "gaussian",
        posterior_options: dict[str, Any] | None = None,
        prior: str = "flow",
        prior_options: dict[str, Any] | None = None,
        classes: int = 0,
        attributes: int = 0,
        context_features: int = 32,
    ):
        super().__init__()
        self.image_shape = check_sizes(image_shape, latent_dim)
        self.likelihood = likelihood_for(self.image_shape, likelihood, likelihood_options, autoregressive=True)
        latent_shape = latent_shape_of(self.image_shape, latent_dim, latent_maps, encoder_widths)
        flow = {"steps": flow_steps, "hidden": flow_hidden, "affine": flow_affine, "order": flow_order}
        self._set_latent(latent_shape, posterior, posterior_options, prior, prior_options, flow)
        added, seen_shape = self._set_condition(classes, attributes, context_features)
        require_positive("context_channels", context_channels)
        require_positive("encoder_hidden", encoder_hidden)
        image_channels, height, width = self.image_shape
        pixels = trunk(
            stacks,
            trunk_options,
            pointwise_blocks,
            tied,
            image_channels=image_channels,
            parameters=self.likelihood.parameters_per_value,
            layers=decoder_layers,
            kernel_size=kernel_size,
            channels=channels,
            context_channels=context_channels,
            conditioning=conditioning,
            image_height=height,
        )
        size: dict[str, Any] = {"widths": encoder_widths, "hidden": encoder_hidden, "maps": bool(latent_maps)}
        self.encoder = ResNetEncoder(seen_shape, self.posterior_module.features_needed, **size)
        features = ResNetDecoder(latent_shape[0] + added, (context_channels, height, width), **size)
        self.decoder = AutoregressiveDecoder(features, pixels)
        for network in self.networks():
            apply_dropout(network, dropout)
        self.weight_norm = weight_norm
        if weight_norm:
            apply_weight_norm(self.encoder)
            apply_weight_norm(self.decoder)
        self._built = inference.structure(self.decoder)

    def decode(self, z: Tensor, temperature: float = 1.0, context: Tensor | None = None) -> Autoregressive:
        """p(x|z) for z [B, *latent_shape]: has `.mode` and `scan()`, but no closed-form mean."""
        maps = self.decoder(self.latents_with_context(z, context))
        return Autoregressive(self.decoder.pixels, self.likelihood, maps, self.image_shape, temperature)

    def log_prob_of_one(self, x: Tensor, z: Any, context: Tensor | None = None) -> Tensor:
        """log p(x|z_k) of one image x [1, C, H, W] under many z [K, *latent_shape], nats, [K]."""
        if not self._has_shortcuts:
            return super().log_prob_of_one(x, z, context)
        maps = self.decoder.evaluate(self.latents_with_context(z, context))
        return Autoregressive(self.decoder.pixels, self.likelihood, maps, self.image_shape).log_prob(x)

    def scorer(self, chunk: int) -> Scorer:
        """As `log_prob_of_one`, compiled where it can be: then it chooses itself how many z it decodes at a time.

        A subclass with another `log_prob_of_one` has to have another one of this, too.
        """
        fused = self.decoder.fused(next(self.parameters())) if self._has_shortcuts else None
        if fused is None:
            return super().scorer(chunk)
        size = max(1, PARAMETERS // (math.prod(self.image_shape) * self.likelihood.parameters_per_value))

        def score(x: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
            parameters, parts = fused(x), []
            for part in self.latents_with_context(z, context).split(size):
                pixels = self.likelihood(parameters(part), 1.0)
                parts.append(pixels.log_prob(x.expand(len(part), *self.image_shape)).flatten(1).sum(1))
            return torch.cat(parts)

        return score

    @property
    def _has_shortcuts(self) -> bool:
        """Whether `decode` is what the two above compute without it: no subclass's, and of the networks made here."""
        return type(self).decode is VLAE.decode and inference.is_as_built(self.decoder, self._built)

    def networks(self) -> list[nn.Module]:
        """Encoder, the maps that z is decoded to, and the PixelCNN."""
        return [self.encoder, self.decoder.features, self.decoder.pixels]

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Sets attributes' scales, and weight-normalised layers, from one batch of images x [B, C, H, W]."""
        super().initialise(x, context)
        if self.weight_norm:
            data_dependent_init(self, lambda: self.elbo(x, context=context))
