"""The PixelCNN alone, without a latent code: the R = 0 end of every rate-distortion plot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.posteriors import DiagonalGaussian
from vlae.distributions.priors import StandardNormal, StandardNormalPrior
from vlae.errors import VlaeError, require_positive
from vlae.models.base import LatentVariableModel, check_sizes, likelihood_for
from vlae.models.decoders import trunk
from vlae.nn.dropout import apply_dropout
from vlae.nn.weightnorm import apply_weight_norm, data_dependent_init
from vlae.noise import Generators


class PixelCNN(LatentVariableModel):
    """An autoregressive model of the pixels (van den Oord et al. 2016, arXiv 1606.05328), with no z to help it.

    What its window can't see, it does not know: with a small one it gets the texture and misses the object. To
    everything else it is a latent-variable model whose z has no dimensions: the rate is exactly 0, the bound is
    log p(x), and every "reconstruction" is the same greedy image.

    Args:
        image_shape: (C, H, W), any size.
        decoder_layers: layers after the type-A input convolution.
        kernel_size: odd; the window reaches (decoder_layers + 1) * (kernel_size // 2) pixels.
        stacks: "two" (gated, no blind spot), "slanted" (the same with a window that leans), "plain" (single stack),
            "row_lstm" (PixelRNN) or "attention" (a local Transformer).
        likelihood: "bernoulli", "categorical", "logistic_mixture" (PixelCNN++) or a density; as of `VAE`.
        likelihood_options: `levels` of a categorical or a mixture, its `components`; `sigma` of a Gaussian.
        channels: maps of each layer.
        pointwise_blocks: 1x1 residual blocks between the masked layers (plain stack).
        tied: the plain stack's type-B convolutions share their weights.
        trunk_options: `memory` of a row LSTM, `heads` of a Transformer.
        dropout: the share of maps in every residual branch that are left out at each training step.
        weight_norm: weight normalisation, set from the first batch by `initialise`.

    Example:
        >>> import torch
        >>> model = PixelCNN(image_shape=(1, 8, 8), decoder_layers=1)
        >>> bound = model.elbo(torch.zeros(3, 1, 8, 8))
        >>> bound.rate
        tensor([0., 0., 0.])
        >>> model.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        decoder_layers: int = 3,
        kernel_size: int = 3,
        stacks: str = "two",
        likelihood: str = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        channels: int = 32,
        pointwise_blocks: int = 0,
        tied: bool = False,
        trunk_options: dict[str, Any] | None = None,
        dropout: float = 0.0,
        weight_norm: bool = False,
    ):
        super().__init__()
        self.image_shape = check_sizes(image_shape, latent_dim=1)  # of a z that there is not
        require_positive("channels", channels)
        self.latent_shape = (0,)
        self.likelihood = likelihood_for(self.image_shape, likelihood, likelihood_options, autoregressive=True)
        self.prior_module = StandardNormalPrior(0)
        self.decoder = trunk(
            stacks,
            trunk_options,
            pointwise_blocks,
            tied,
            image_channels=self.image_shape[0],
            parameters=self.likelihood.parameters_per_value,
            layers=decoder_layers,
            kernel_size=kernel_size,
            channels=channels,
            image_height=self.image_shape[1],
        )
        apply_dropout(self.decoder, dropout)
        self.weight_norm = weight_norm
        if weight_norm:
            apply_weight_norm(self.decoder)

    def distribution(self, batch: int, temperature: float = 1.0) -> Autoregressive:
        """p(x), `batch` times over: log_prob of images [batch, C, H, W], and as many samples."""
        return self.decode(next(self.parameters()).new_zeros(batch, 0), temperature)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of images x [B, C, H, W] in nats, [B]: exact, no bound."""
        self.check(x)
        return self.distribution(len(x)).log_prob(x)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x) over no dimensions, for images x [B, C, H, W]."""
        nothing = x.new_zeros(len(x), 0)
        return DiagonalGaussian(nothing, nothing)

    def decode(self, z: Tensor, temperature: float = 1.0) -> Autoregressive:
        """p(x), once for each row of z [B, 0]."""
        self.check_latents(z)
        no_maps = z.new_zeros(len(z), 0, *self.image_shape[1:])
        return Autoregressive(self.decoder, self.likelihood, no_maps, self.image_shape, temperature)

    def prior(self) -> StandardNormal:
        """p(z) over no dimensions."""
        return self.prior_module()

    def networks(self) -> list[nn.Module]:
        """The PixelCNN."""
        return [self.decoder]

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Sets weight-normalised layers from one batch of images x [B, C, H, W]."""
        if self.weight_norm:
            data_dependent_init(self, lambda: self.elbo(x, context=context))

    def importance_weights(
        self,
        x: Tensor,
        samples: int,
        generator: Generators = None,
        chunk: int | None = None,
        context: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """log p(x), [samples, B]: without z all samples weigh the same, so that one pass is enough."""
        if samples < 1:
            raise VlaeError(f"samples must be at least 1; got {samples}")
        self.check_context(context, len(x))
        yield self.log_prob(x).expand(samples, -1)
