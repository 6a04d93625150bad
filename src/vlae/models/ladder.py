"""The ladder VAE: a hierarchy of latents, inferred and generated from the top down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from vlae.distributions.bounded import soft_bounded_log
from vlae.distributions.ladder import LadderPosterior, LadderPrior, rates_of_levels
from vlae.distributions.latent import PriorModule
from vlae.distributions.likelihoods import Factorised
from vlae.errors import VlaeError, require_not_negative, require_positive
from vlae.models.base import Bound, check_sizes, likelihood_for
from vlae.models.decoders import ARCHITECTURES
from vlae.models.textbook import Textbook
from vlae.nn.spectralnorm import apply_spectral_norm
from vlae.noise import Generators


@dataclass(frozen=True)
class LadderBound(Bound):
    """A bound whose rate is also given level by level.

    Attributes:
        rate_per_level: KL(q(z_l | x, z_(l+1)) || p(z_l | z_(l+1))) in nats, [B, L], z_1 first; sums to the rate.
    """

    rate_per_level: Tensor = field(kw_only=True)


class LadderOutput(NamedTuple):
    """What `model(x)` gives: images like the input, a sample of z, and of each level mean and log-variance of
    q(z_l | x, z_(l+1)), given the sampled level above; tuples of [B, d_l]."""

    reconstruction: Tensor
    mu: tuple[Tensor, ...]
    log_var: tuple[Tensor, ...]
    z: tuple[Tensor, ...]


def normal_of(features: Tensor) -> Normal:
    """[..., 2 d] to normal densities [..., d]: means beside soft-bounded log-deviations."""
    mean, s = features.chunk(2, -1)
    return Normal(mean, soft_bounded_log(s).exp(), validate_args=False)


class BottomUp(nn.Module):
    """The deterministic pass from the image to the top: of each level the message's numbers.

    Every layer on the way up is normalised over the batch, which the paper found crucial for the use of upper levels.
    The way down is not, unlike the paper's: p(z) must not depend on what else is in a batch.

    Args:
        image: the network that reads the image, [B, C, H, W] -> [B, hidden].
        dims: the size of each level.
        hidden: units of each level's perceptron.
    """

    def __init__(self, image: nn.Module, dims: Sequence[int], hidden: int):
        super().__init__()

        def normalised(layer: nn.Module) -> nn.Sequential:
            return nn.Sequential(layer, nn.ELU(), nn.BatchNorm1d(hidden))

        def two_layers() -> nn.Sequential:
            return nn.Sequential(*(normalised(nn.Linear(hidden, hidden)) for _ in range(2)))

        self.levels = nn.ModuleList([normalised(image), *(two_layers() for _ in dims[1:])])
        self.heads = nn.ModuleList([nn.Linear(hidden, 2 * size) for size in dims])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [B, C, H, W] in [0, 1] -> a tuple of [B, 2 d_l], z_1 first."""
        if self.training and len(x) < 2:
            raise VlaeError(f"a ladder normalises over the batch in training: give 2 images or more; got {len(x)}")
        messages, features = [], x
        for level, head in zip(self.levels, self.heads, strict=True):
            features = level(features)
            messages.append(head(features))
        return tuple(messages)


class LadderPriorModule(PriorModule):
    """Makes p(z) = N(z_L; 0, I) prod_l p(z_l | z_(l+1)), with a two-layer perceptron per level but the top one.

    Args:
        dims: the size of each level, z_1 first.
        hidden: units of each perceptron.
    """

    def __init__(self, dims: Sequence[int], hidden: int):
        super().__init__([(size,) for size in dims])  # type: ignore[misc]
        self.dims = tuple(dims)

        def step(above: int, size: int) -> nn.Sequential:
            layers = [nn.Linear(above, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU()]
            return nn.Sequential(*layers, nn.Linear(hidden, 2 * size))

        self.steps = nn.ModuleList([step(above, size) for size, above in pairwise(dims)])

    def below(self, level: int, above: Tensor) -> Normal:
        """p(z_l | z_(l+1)) for z_(l+1) [..., d_(l+1)]; levels are counted from 0."""
        return normal_of(self.steps[level](above).to(above.dtype))

    def forward(self) -> LadderPrior:
        """The prior, whose samples are tuples."""
        return LadderPrior(self.below, self.dims, self.like)


class LadderVAE(Textbook):
    """The ladder VAE (Sønderby et al. 2016, arXiv 1602.02282): z = (z_1, ..., z_L), and p(x|z) = p(x|z_1) factorises.

    Codes are tuples of tensors [B, d_l], z_1 nearest to the image first. The rate of each level is the divergence of
    q(z_l | x, z_(l+1)) from the prior p(z_l | z_(l+1)) of the level above. Train it with a beta that rises from 0 to 1,
    the paper's warm-up: else upper levels tend to die early.

    Args:
        image_shape: (C, H, W), any size.
        latent_dims: the size of each level, two or more, z_1 first.
        architecture: "mlp", "conv" or "resnet", of the network between image and z_1 and of its mirror, the decoder.
        likelihood: as of `VAE`.
        likelihood_options: as of `VAE`.
        widths: hidden units (mlp) or maps (conv, resnet) per stage; None takes the architecture's default.
        hidden: units of the perceptrons between the levels, up and down.
        posterior: "ladder" (below the top the precision-weighted product of the message from the image and the prior
            from above), or "bottom_up" (the message alone: given x the levels are independent).
        beta: used by `compute_loss` alone; the training objective has its own.
        spectral_norm: spectral normalisation of the decoder.

    Example:
        >>> model = LadderVAE(image_shape=(1, 8, 8), latent_dims=(4, 2), hidden=16)
        >>> bound = model.elbo(torch.zeros(3, 1, 8, 8))
        >>> bound.rate_per_level.shape
        torch.Size([3, 2])
        >>> [tuple(z.shape) for z in model.prior().sample((5,))]
        [(5, 4), (5, 2)]
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dims: tuple[int, ...] = (32, 16),
        architecture: str = "mlp",
        likelihood: str = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        widths: list[int] | None = None,
        hidden: int = 128,
        posterior: str = "ladder",
        beta: float = 1.0,
        spectral_norm: bool = False,
    ):
        super().__init__()
        dims = check_levels_of_latents(latent_dims)
        self.image_shape = check_sizes(image_shape, dims[0])
        if architecture not in ARCHITECTURES:
            raise VlaeError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        if posterior not in ("ladder", "bottom_up"):
            raise VlaeError(f"the posterior of a ladder must be 'ladder' or 'bottom_up'; got {posterior!r}")
        require_positive("hidden", hidden)
        require_not_negative("beta", beta)
        self.latent_shape = tuple((size,) for size in dims)
        self.likelihood = likelihood_for(self.image_shape, likelihood, likelihood_options)
        self.merged, self.beta = posterior == "ladder", beta
        image_network, mirror, default_widths = ARCHITECTURES[architecture]
        widths = list(default_widths) if widths is None else widths
        channels, height, width = self.image_shape
        parameters = channels * self.likelihood.parameters_per_value
        self.encoder = BottomUp(image_network(self.image_shape, hidden, widths), dims, hidden)
        self.prior_module = LadderPriorModule(dims, hidden)
        self.decoder = mirror(dims[0], (parameters, height, width), widths)
        if spectral_norm:
            apply_spectral_norm(self.decoder)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """As of `VAE`; the list of sizes may be called `latent_dims` or `latent_dim`."""
        settings = dict(config)
        if "latent_dim" in settings:
            if "latent_dims" in settings:
                raise VlaeError("give latent_dims or latent_dim (the size of each level), not both")
            settings["latent_dims"] = settings.pop("latent_dim")
        return super().from_config(settings)

    def encode(self, x: Tensor) -> LadderPosterior:
        """q(z|x) of images x [B, C, H, W]; samples and mean are tuples of [B, d_l]."""
        messages = [normal_of(features.to(x.dtype)) for features in self.encoder(x)]
        return LadderPosterior(self.prior(), messages, self.merged)

    def decode(self, z: tuple[Tensor, ...], temperature: float = 1.0) -> Factorised:
        """p(x|z) for a tuple z of [B, d_l], of which the image sees z_1 alone: has `.mean` and `.mode`."""
        self.check_latents(z)
        parameters = self.decoder(z[0]).to(z[0].dtype)
        return Factorised(self.likelihood, parameters.unflatten(1, (self.image_shape[0], -1)), temperature)

    def prior(self) -> LadderPrior:
        """p(z) = N(z_L; 0, I) prod_l p(z_l | z_(l+1))."""
        return cast(LadderPrior, self.prior_module())

    def networks(self) -> list[nn.Module]:
        """The way up, and the decoder."""
        return [self.encoder, self.decoder]

    def elbo(
        self,
        x: Tensor,
        analytic: bool = True,
        generator: Generators = None,
        context: Tensor | None = None,
    ) -> LadderBound:
        """The bound on log p(x) of images x [B, C, H, W], with one z per image, and its rate level by level.

        Args:
            x: images in [0, 1], at the likelihood's levels.
            analytic: each level's rate in closed form given the sampled level above; False takes log q - log p at z.
            generator: noise for z, one generator or one per image.
            context: none is taken.
        """
        self.check(x)
        self.check_context(context, len(x))
        q = self.encode(x)
        z = q.rsample(generator=generator)
        rates = rates_of_levels(q, z, analytic)
        levels = torch.stack([rate.sum(1) for rate in rates], 1)
        distortion = -self.decode(z).log_prob(x)
        return LadderBound(distortion, levels.sum(1), torch.cat(rates, 1), z, rate_per_level=levels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> LadderOutput:
        """x [B, C, H, W], or flattened -> the mean reconstruction in x's shape, mu, log_var and z of each level."""
        images = self.images(x)
        self.check(images)
        self.check_context(context, len(images))
        q = self.encode(images)
        z = q.rsample()
        levels = q.conditionals(z)
        mu, log_var = tuple(q.loc for q in levels), tuple(2 * q.scale.log() for q in levels)
        return LadderOutput(self.decode(z).reconstruction.reshape(x.shape), mu, log_var, z)

    def check_latents(self, z: Any) -> None:
        """Refuses anything but a tuple of latents [B, d_l], one per level."""
        tensors = isinstance(z, tuple) and bool(z) and all(isinstance(level, Tensor) and level.ndim for level in z)
        if not tensors or [tuple(level.shape) for level in z] != [(len(z[0]), *size) for size in self.latent_shape]:
            got = [list(level.shape) for level in z] if tensors else type(z).__name__
            expected = ", ".join(f"[B, {size}]" for (size,) in self.latent_shape)
            raise VlaeError(f"expected a tuple of latents of shapes {expected}, z_1 first; got {got}")


def check_levels_of_latents(latent_dims: Sequence[int]) -> tuple[int, ...]:
    """The sizes of the levels as a tuple; refuses anything but two positive integers or more."""
    advice = "latent_dims must be the sizes of two levels or more, positive integers, z_1 (nearest to the image) first"
    if not isinstance(latent_dims, list | tuple) or any(not isinstance(n, int) or n < 1 for n in latent_dims):
        raise VlaeError(f"{advice}; got {latent_dims}")
    if len(latent_dims) < 2:
        raise VlaeError(f"{advice}; got {list(latent_dims)}: for one level use VAE")
    return tuple(latent_dims)
