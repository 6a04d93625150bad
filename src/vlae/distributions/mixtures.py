"""Priors that are mixtures of Gaussians: of learned ones, of the encoder's, or one for each z_i given those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal
from torch.nn import functional as F

from vlae import processes
from vlae.distributions.bounded import soft_bounded_log
from vlae.distributions.latent import Index, Prior, PriorModule
from vlae.distributions.normal import log_normal
from vlae.distributions.scan import Dimensions
from vlae.errors import VlaeError, require_positive
from vlae.nn.masked import MADE
from vlae.noise import rand, randn


class NormalMixture(MixtureSameFamily):
    """Element-wise mixtures of K normals over single numbers: batch shape [...].

    Args:
        logits: of the components, [..., K].
        means: [..., K].
        log_scales: natural logarithms of the standard deviations, [..., K].
    """

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor):
        self.log_weights, self.means, self.log_scales = logits.log_softmax(-1), means, log_scales
        super().__init__(
            Categorical(logits=logits, validate_args=False),
            Normal(means, log_scales.exp(), validate_args=False),
            validate_args=False,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """log density in nats, [...]."""
        t = (value[..., None] - self.means) * (-self.log_scales).exp()
        return (self.log_weights + log_normal(t) - self.log_scales).logsumexp(-1)

    @property
    def mode(self) -> Tensor:
        """Raises: it has no closed form."""
        raise VlaeError("the mode of a mixture of normals has no closed form: take its mean, or draw from it")

    def noise_of(self, value: Tensor) -> Tensor:
        """The standard normal quantile of the value's cumulative probability, [...]: N(0, 1) where the value is drawn.

        From the nearer tail, in logarithms; beyond the smallest positive number (13 in float32) it saturates.
        """
        t = (value[..., None] - self.means) * (-self.log_scales).exp()
        below = (self.log_weights + torch.special.log_ndtr(t)).logsumexp(-1)
        above = (self.log_weights + torch.special.log_ndtr(-t)).logsumexp(-1)
        tail = torch.special.ndtri(torch.minimum(below, above).exp().clamp_min(torch.finfo(t.dtype).tiny))
        return torch.where(below < above, tail, -tail)

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> Tensor:
        """The values that standard normal noise stands for, [...]: the inverse of `noise_of`, and as exact.

        By bisection, once for each bit, between the least and the greatest of the components' own values.
        """
        quantiles = self.means + self.log_scales.exp() * noise[..., None]
        low, high = quantiles.amin(-1), quantiles.amax(-1)
        for _ in range(8 * noise.element_size()):
            middle = low + (high - low) / 2
            below = self.noise_of(middle) < noise
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low + (high - low) / 2

    def draw(self, uniforms: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Values [...]: the component that the uniforms in [0, 1) fall in, plus its scaled and tempered noise."""
        below = self.log_weights.exp().cumsum(-1)[..., :-1]  # the last component takes the rest, whatever the rounding
        component = (uniforms[..., None] >= below).sum(-1, keepdim=True)
        mean, log_scale = (each.gather(-1, component).squeeze(-1) for each in (self.means, self.log_scales))
        return mean + temperature * log_scale.exp() * noise

    def at(self, index: Index) -> NormalMixture:
        """The mixtures of some elements."""
        return NormalMixture(*(each[index] for each in (self.log_weights, self.means, self.log_scales)))


class ChainOfMixtures(Prior):
    """A prior whose z_i given z_<i is a mixture of normals, by whatever route: all that follows from `conditionals`.

    The noise of z is that of the Rosenblatt transform, eps_i = Phi^-1(P(Z_i <= z_i | z_<i)).
    """

    def conditionals(self, z: Tensor) -> NormalMixture:
        """p(z_i | z_<i) for all i at once, [..., *shape]: element i does not depend on z_i or later ones."""
        raise NotImplementedError

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """log p(z_i | z_<i) in nats, [..., *shape]; sums to `log_prob`."""
        return self.conditionals(z).log_prob(z)

    def noise_of(self, z: Tensor) -> Tensor:
        """The standard normal noise that z stands for, [..., *shape]."""
        return self.conditionals(z).noise_of(z)

    def from_noise(self, noise: Tensor) -> Tensor:
        """z that standard normal noise stands for, [..., *shape], one dimension after the other."""
        flat = noise.reshape(-1, *self.event_shape)
        z = self.scan(lambda sites, conditional: conditional.from_noise(flat[:, sites.index]), len(flat))
        return z.view(noise.shape)

    def _at(self, every: Distribution, index: Index) -> NormalMixture:
        assert isinstance(every, NormalMixture)
        return every.at(index)


class GaussianMixture(ChainOfMixtures):
    r"""sum_k w_k N(z; mean_k, diag(scale_k^2)) over z of any shape.

    Its conditionals are mixtures of the same components, :math:`p(z_i | z_{<i}) = \sum_k r_k(z_{<i}) N_k(z_i)`, with
    weights :math:`r_k \propto w_k \prod_{j < i} N_k(z_j)`. Maps are taken in the order of memory.

    Args:
        logits: of the components, [K].
        means: [K, *shape].
        log_scales: natural logarithms of the standard deviations, [K, *shape].
    """

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor):
        super().__init__(means.shape[1:], means)
        self.log_weights = logits.log_softmax(-1)
        self.means, self.log_scales = means.flatten(1).t(), log_scales.flatten(1).t()  # [D, K]

    def _of_components(self, z: Tensor) -> Tensor:
        """log N_k(z_i), [..., D, K]."""
        t = (z.flatten(-len(self.event_shape))[..., None] - self.means) * (-self.log_scales).exp()
        return log_normal(t) - self.log_scales

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, [...]."""
        return (self.log_weights + self._of_components(z).sum(-2)).logsumexp(-1)

    def conditionals(self, z: Tensor) -> NormalMixture:
        """p(z_i | z_<i) for all i at once, [..., *shape]."""
        before = F.pad(self._of_components(z)[..., :-1, :].cumsum(-2), (0, 0, 1, 0))
        parameters = self.log_weights + before, self.means, self.log_scales
        return NormalMixture(*(each.expand_as(before).unflatten(-2, self.event_shape) for each in parameters))

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> Tensor:
        """z that standard normal noise stands for, [..., *shape], one value after the other."""
        eps = noise.flatten(-len(self.event_shape))
        log_weights, z = self.log_weights.expand(*eps.shape[:-1], -1), []
        for means, log_scales, one in zip(self.means, self.log_scales, eps.unbind(-1), strict=True):
            z.append(NormalMixture(log_weights, means, log_scales).from_noise(one))
            t = (z[-1][..., None] - means) * (-log_scales).exp()
            log_weights = log_weights + log_normal(t) - log_scales
        return torch.stack(z, -1).view(noise.shape)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, *shape]; the temperature scales the noise of the component, not its weight."""
        below = self.log_weights.exp().cumsum(-1)[:-1]
        component = (rand(sample_shape, None, (1,), generator, self.like) >= below).sum(-1)
        mean, scale = self.means.t()[component], self.log_scales.exp().t()[component]
        noise = randn(sample_shape, None, mean.shape[-1:], generator, self.like)
        return (mean + temperature * scale * noise).unflatten(-1, self.event_shape)


class AutoregressiveMixture(ChainOfMixtures):
    """prod_i p(z_i | z_<i), each a mixture of K normals whose parameters a MADE computes from z_<i.

    Args:
        made: maps z [..., D] to [..., D * 3 K]: logits, means and log-scales (soft-bounded here) of each dimension.
        like: gives dtype and device.
    """

    def __init__(self, made: MADE, like: Tensor):
        self.made = made
        super().__init__((made.inputs,), like)

    def conditionals(self, z: Tensor) -> NormalMixture:
        """p(z_i | z_<i) for all i at once, [..., D]: one pass."""
        logits, means, s = self.made(z).to(z.dtype).unflatten(-1, (self.made.inputs, -1)).chunk(3, -1)
        return NormalMixture(logits, means, soft_bounded_log(s))

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, D], one dimension after the other; the temperature scales the noise of the components."""
        count = torch.Size(sample_shape).numel()
        uniforms = rand((count,), None, self.event_shape, generator, self.like)
        noise = randn((count,), None, self.event_shape, generator, self.like)

        def visit(sites: Dimensions, conditional: NormalMixture) -> Tensor:
            return conditional.draw(uniforms[:, sites.index], noise[:, sites.index], temperature)

        return self.scan(visit, count).view(*sample_shape, *self.event_shape)


class MixturePrior(PriorModule):
    """Makes a mixture of K Gaussians with learned means, scales (soft-bounded) and weights.

    Args:
        latent_shape: of z, a vector or maps.
        components: K.
    """

    def __init__(self, latent_shape: Sequence[int], components: int = 16):
        super().__init__(latent_shape)
        require_positive("the components of a mixture prior", components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, *latent_shape))
        self.log_scales = nn.Parameter(torch.zeros(components, *latent_shape))

    def forward(self) -> GaussianMixture:
        """The prior, a distribution with event shape `latent_shape`."""
        return GaussianMixture(self.logits, self.means, soft_bounded_log(self.log_scales))


class VampPrior(PriorModule):
    """Makes the VampPrior, (1/K) sum_k q(z | u_k) (Tomczak and Welling 2018, arXiv 1705.07120).

    The pseudo-inputs u_k are learned images in [0, 1], as sigmoids of free numbers. Called with `encode`.

    Args:
        latent_shape: of z, a vector or maps.
        image_shape: (C, H, W), of the pseudo-inputs.
        components: K; all of them go through the encoder whenever the prior is asked for.
        learned_weights: weights of the components instead of 1/K.
    """

    needs_encoder: ClassVar[bool] = True

    def __init__(
        self,
        latent_shape: Sequence[int],
        image_shape: Sequence[int],
        components: int = 64,
        learned_weights: bool = False,
    ):
        super().__init__(latent_shape)
        require_positive("the components of a VampPrior", components)
        self.raw = nn.Parameter(torch.randn(components, *image_shape))
        self.logits = nn.Parameter(torch.zeros(components), requires_grad=learned_weights)

    @property
    def pseudo_inputs(self) -> Tensor:
        """[K, C, H, W] in [0, 1]."""
        return self.raw.sigmoid()

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Starts from images x [B, C, H, W] in [0, 1]; where there are too few of them the others stay random.

        Two pseudo-inputs from one image would get the same gradients, and so stay the same.
        """
        x = x.to(self.raw)[: len(self.raw)]
        self.raw[: len(x)].copy_(
            x.clamp(0.02, 0.98).logit()
        )  # a sigmoid never reaches 0 and 1, and its gradient dies near them

    def forward(self, encode: Callable[[Tensor], Distribution]) -> GaussianMixture:
        """The prior, given the function from images [K, C, H, W] to their diagonal Gaussian posteriors."""
        with processes.batch_of(None):  # every process has all of them
            q = encode(self.pseudo_inputs)
        if not hasattr(q, "log_stddev"):
            raise VlaeError(
                f"a VampPrior mixes Gaussian posteriors, not {type(q).__name__}: choose posterior 'gaussian'"
            )
        return GaussianMixture(self.logits, q.mean, q.log_stddev)


class AutoregressiveMixturePrior(PriorModule):
    """Makes an autoregressive mixture of Gaussians: exact conditionals in one order, so that it can be scanned.

    Args:
        latent_dim: dimensions of z.
        components: normals per dimension.
        hidden: widths of the MADE's hidden layers.
    """

    def __init__(self, latent_dim: int, components: int = 5, hidden: Sequence[int] = (256, 256)):
        super().__init__((latent_dim,))
        require_positive("latent_dim", latent_dim)
        require_positive("the components of an autoregressive mixture", components)
        self.made = MADE(latent_dim, list(hidden), 3 * components * latent_dim)
        bias = self.made.constant if self.made.network is None else self.made.network[-1].bias
        with torch.no_grad():  # means apart from the start: equal components get equal gradients and stay equal
            apart = torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1)
            bias.view(latent_dim, 3, components)[:, 1] += apart

    def forward(self) -> AutoregressiveMixture:
        """The prior, a distribution with event shape [latent_dim]."""
        return AutoregressiveMixture(self.made, self.like)
