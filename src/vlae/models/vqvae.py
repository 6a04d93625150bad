"""The VQ-VAE: a map of discrete codes, and a PixelCNN as their prior."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from vlae.distributions.codemaps import CodeMapPrior
from vlae.distributions.likelihoods import Factorised
from vlae.distributions.pointmass import PointMass
from vlae.errors import VlaeError, require_not_negative, require_numbers, require_positive
from vlae.models.base import Bound, check_sizes, likelihood_for
from vlae.models.decoders import ARCHITECTURES
from vlae.models.encoders import sizes_of
from vlae.models.textbook import Textbook
from vlae.nn.quantise import Codebook, CodePixelCNN, perplexity_of, straight_through
from vlae.nn.spectralnorm import apply_spectral_norm
from vlae.noise import Generators
from vlae.processes import whole

TEXTBOOK_NAMES = {"num_embeddings": "codes", "embedding_dim": "code_dim", "commitment_cost": "commitment"}


class VQVAEOutput(NamedTuple):
    """What `model(x)` gives: images like the input, the training terms besides the distortion (nats per image, averaged
    over the batch), the perplexity of the batch's codes, and the codes, int64 [B, h, w]."""

    reconstruction: Tensor
    vq_loss: Tensor
    perplexity: Tensor
    codes: Tensor


class VQVAELoss(NamedTuple):
    """What `compute_loss` gives: scalars in nats per image, averaged over the batch.

    `kl_loss` is the rate, -log p(codes), whose gradient reaches the prior alone.
    """

    loss: Tensor
    reconstruction_loss: Tensor
    kl_loss: Tensor
    vq_loss: Tensor


class VQVAE(Textbook):
    """The VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937), with its prior trained along.

    The encoder's map of vectors is rounded, place by place, to the nearest of K vectors of a codebook; z is the map of
    their numbers k. q(k|x) is certain of its k, so log p(x|k(x)) + log p(k(x)) is one term of p(x) = sum_k p(x|k) p(k):
    a true bound, whose rate is the prior's code length of k, and which no importance sample makes tighter.

    Training: the decoder's gradient passes straight through the rounding to the encoder; the encoder is held near its
    codes by `commitment` * |features - codes|^2, summed over the map like all that is given per image here; the codes
    follow the encoder by moving averages, in train mode wherever gradients are enabled; the rate's gradient reaches
    the prior alone, since the codes have none.

    Averaged weights (`trainer.ema_decay`) go together with the codebook of the moment, which is a buffer and so copied:
    it is itself an average over the encoder's recent outputs, of a time like that of the averaged weights.

    Args:
        image_shape: (C, H, W), any size.
        codes: K, how many vectors the codebook holds.
        code_dim: numbers in each.
        architecture: "conv" or "resnet", of the encoder and its mirror, the decoder.
        widths: maps of each stride-2 stage, which decide the size of the map: each halves it. None takes the
            architecture's default.
        likelihood: binary pixels: "bernoulli"; levels or densities: as of `VAE`.
        likelihood_options: see `vlae.distributions.make_likelihood`.
        commitment: the paper's beta.
        codebook: "ema" (moving averages) or "gradient" (the paper's equation 3: a term |features - codes|^2 for it).
        decay: of the moving averages.
        revival: a code used less than this share of the average is put anew onto a vector of the batch; 0: never.
        prior_layers: of the PixelCNN over codes, after the input convolution.
        prior_channels: its maps.
        prior_kernel_size: odd.
        prior_stacks: "two", "slanted", "plain", "row_lstm" or "attention", as of `PixelCNN`.
        beta: multiplies the rate in `compute_loss` alone: how fast the prior learns.
        spectral_norm: spectral normalisation of the decoder.

    Example:
        >>> model = VQVAE(image_shape=(1, 8, 8), codes=16, code_dim=4, widths=[8], prior_layers=1)
        >>> model.encode(torch.zeros(3, 1, 8, 8)).mean.shape
        torch.Size([3, 4, 4])
        >>> model.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """

    like: Tensor

    discrete = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        codes: int = 64,
        code_dim: int = 16,
        architecture: str = "conv",
        widths: list[int] | None = None,
        likelihood: str = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        commitment: float = 0.25,
        codebook: str = "ema",
        decay: float = 0.99,
        revival: float = 0.05,
        prior_layers: int = 3,
        prior_channels: int = 32,
        prior_kernel_size: int = 3,
        prior_stacks: str = "two",
        beta: float = 1.0,
        spectral_norm: bool = False,
    ):
        super().__init__()
        self.image_shape = check_sizes(image_shape, latent_dim=1)
        if architecture not in ("conv", "resnet"):
            raise VlaeError(f"the architecture of a VQ-VAE must be 'conv' or 'resnet'; got {architecture!r}")
        require_not_negative("commitment", commitment)
        require_not_negative("beta", beta)
        require_numbers("VQVAE", decay=decay, revival=revival)
        require_positive("prior_channels", prior_channels)
        self.commitment, self.beta = commitment, beta
        self.likelihood = likelihood_for(self.image_shape, likelihood, likelihood_options)
        encoder, decoder, default_widths = ARCHITECTURES[architecture]
        widths = list(default_widths) if widths is None else widths
        self.latent_shape = sizes_of(self.image_shape, widths)[-1]
        self.codebook = Codebook(codes, code_dim, codebook, decay, revival)
        channels, height, width = self.image_shape
        parameters = channels * self.likelihood.parameters_per_value
        maps: dict[str, Any] = {"maps": True}
        self.encoder = encoder(self.image_shape, code_dim, widths, **maps)
        self.decoder = decoder(code_dim, (parameters, height, width), widths, **maps)
        if spectral_norm:
            apply_spectral_norm(self.decoder)
        self.prior_network = CodePixelCNN(
            codes,
            prior_stacks,
            prior_channels,
            layers=prior_layers,
            kernel_size=prior_kernel_size,
            image_height=self.latent_shape[0],
        )
        self.register_buffer("like", torch.zeros(()), persistent=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds the model from a textbook's names: num_embeddings, embedding_dim, commitment_cost, hidden_dims,
        in_channels, image_size; and any of its own arguments.

        Example:
            >>> settings = {"in_channels": 1, "num_embeddings": 32, "embedding_dim": 8, "hidden_dims": [8, 16]}
            >>> model = VQVAE.from_config(settings)
            >>> model(torch.zeros(2, 1, 28, 28)).codes.shape
            torch.Size([2, 7, 7])
        """
        if twice := [(name, own) for name, own in TEXTBOOK_NAMES.items() if name in config and own in config]:
            raise VlaeError(f"give {twice[0][0]} or {twice[0][1]}, not both: they are the same")
        renamed = {TEXTBOOK_NAMES.get(name, name): value for name, value in config.items()}
        return super().from_config({"architecture": "conv", **renamed})

    def features(self, x: Tensor) -> Tensor:
        """What is to be rounded: the encoder's vectors of images x [B, C, H, W], [B, h, w, code_dim]."""
        return self.encoder(x).to(x.dtype).movedim(1, -1)

    def encode(self, x: Tensor) -> PointMass:
        """q(k|x) of images x [B, C, H, W], certain of its codes: rsample() int64 [B, h, w]."""
        return PointMass(self.codebook.nearest(self.features(x)), x.dtype)

    def decode(self, z: Tensor, temperature: float = 1.0) -> Factorised:
        """p(x|k) for codes, int64 [B, h, w]."""
        self.check_latents(z)
        return self._decode_vectors(self.codebook(z), temperature)

    def _decode_vectors(self, vectors: Tensor, temperature: float = 1.0) -> Factorised:
        parameters = self.decoder(vectors.movedim(-1, 1)).to(vectors.dtype)
        return Factorised(self.likelihood, parameters.unflatten(1, (self.image_shape[0], -1)), temperature)

    def prior(self) -> CodeMapPrior:
        """p(k) over maps of codes, int64 [..., h, w], by the PixelCNN."""
        return CodeMapPrior(self.prior_network, len(self.codebook.vectors), self.latent_shape, self.like)

    def networks(self) -> list[nn.Module]:
        """Encoder, decoder, and the prior's PixelCNN."""
        return [self.encoder, self.decoder, self.prior_network]

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Puts the codes onto the encoder's outputs for one batch; where it is left out, the first training batch's."""
        self.check(x)
        self.codebook.start(self.features(x))

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images x [B, C, H, W] to codes, int64 [B, h, w], their vectors [B, h, w, code_dim] with straight-through
        gradients, and the penalty in nats, [B]. Moves the codebook where the model is trained."""
        features = self.features(x)
        learning = self.training and torch.is_grad_enabled() and not self.codebook.still
        if learning and not self.codebook.started:
            self.codebook.start(whole(features.detach()))
        codes = self.codebook.nearest(features)
        chosen = self.codebook(codes)
        penalty = self.commitment * squares(features - chosen.detach())
        if self.codebook.learning == "gradient":
            penalty = penalty + squares(features.detach() - chosen)
        vectors = straight_through(chosen, features)
        if learning:
            self.codebook.update(whole(features.detach()), whole(codes))
        return codes, vectors, penalty

    def elbo(
        self,
        x: Tensor,
        analytic: bool = True,
        generator: Generators = None,
        context: Tensor | None = None,
    ) -> Bound:
        """The bound on log p(x) of images x [B, C, H, W]: there is one code map, so nothing is drawn.

        The penalty holds the commitment, and with codebook="gradient" the codebook's term.
        """
        self.check(x)
        self.check_context(context, len(x))
        codes, vectors, penalty = self.quantise(x)
        rates = -self.prior().log_prob_per_dimension(codes)  # log q is 0
        return Bound(-self._decode_vectors(vectors).log_prob(x), rates.flatten(1).sum(1), rates, codes, penalty)

    def importance_weights(
        self,
        x: Tensor,
        samples: int,
        generator: Generators = None,
        chunk: int | None = None,
        context: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """log p(x, k(x)), [samples, B]: all samples are the same codes, so that one pass is enough."""
        if samples < 1:
            raise VlaeError(f"samples must be at least 1; got {samples}")
        yield self.elbo(x, context=context).elbo.expand(samples, -1)

    @torch.no_grad()
    def perplexity(self, x: Tensor) -> Tensor:
        """How many codes images x [B, C, H, W] use, in effect: exp of the entropy of their frequencies, 1 to K, [].

        Over all places of all images together; near 1 the codebook has collapsed.
        """
        self.check(x)
        with self.evaluating():
            return perplexity_of(self.encode(x).mean, len(self.codebook.vectors))

    def check_latents(self, z: Tensor) -> None:
        """Refuses anything but codes, integers [B, h, w] from 0 to K - 1."""
        super().check_latents(z)
        last = len(self.codebook.vectors) - 1
        if z.dtype != torch.int64 or (z.numel() and not 0 <= int(z.min()) <= int(z.max()) <= last):
            got = z.dtype if z.dtype != torch.int64 else f"{int(z.min())} to {int(z.max())}"
            raise VlaeError(f"expected codes, int64 from 0 to {last}; got {got}")

    def forward(self, x: Tensor, context: Tensor | None = None) -> VQVAEOutput:
        """x [B, C, H, W], or flattened -> the reconstruction in x's shape, vq_loss, perplexity and codes."""
        images = self.images(x)
        self.check(images)
        self.check_context(context, len(images))
        codes, vectors, penalty = self.quantise(images)
        reconstruction = self._decode_vectors(vectors).reconstruction
        perplexity = perplexity_of(codes, len(self.codebook.vectors))
        return VQVAEOutput(reconstruction.reshape(x.shape), penalty.mean(), perplexity, codes)

    def compute_loss(  # type: ignore[override]
        self, x: Tensor, beta: float | None = None, context: Tensor | None = None
    ) -> VQVAELoss:
        """distortion + beta * rate + penalty, nats per image averaged over the batch; `beta=None` takes the model's."""
        bound = self.elbo(self.images(x), context=context)
        assert bound.penalty is not None
        distortion, rate, penalty = bound.distortion.mean(), bound.rate.mean(), bound.penalty.mean()
        loss = distortion + (self.beta if beta is None else beta) * rate + penalty
        return VQVAELoss(loss, distortion, rate, penalty)


def squares(difference: Tensor) -> Tensor:
    """The squared length of each image's [B, ...], [B]."""
    return difference.square().flatten(1).sum(1)
