"""Hierarchies of latents z = (z_1, ..., z_L), z_1 nearest to the image: prior and posterior, both from the top down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints, kl_divergence

from vlae.distributions.scan import Visit
from vlae.errors import VlaeError
from vlae.noise import Generators, randn


def descend(levels: int, choose: Callable[[int, Tensor | None], Tensor]) -> tuple[Tensor, ...]:
    """z from the top level down to z_1: `choose(level, above)` gives one level, counted from 0, from the one above."""
    z: list[Tensor] = []
    for level in reversed(range(levels)):
        z.insert(0, choose(level, z[0] if z else None))
    return tuple(z)


def precision_weighted(message: Normal, prior: Normal) -> Normal:
    """The normalised product of two normal densities: precisions add up, and weigh the means (Sønderby et al. 2016).

    Example:
        >>> merged = precision_weighted(Normal(torch.tensor(3.0), torch.tensor(1.0)), Normal(0.0, 2**0.5))
        >>> merged.mean, merged.variance
        (tensor(2.), tensor(0.6667))
    """
    share = 1 / (1 + (message.scale / prior.scale) ** 2)  # the message's precision of the sum of both
    mean = prior.loc + share * (message.loc - prior.loc)
    return Normal(mean, message.scale * share.sqrt(), validate_args=False)


class Hierarchy(Distribution):
    """What prior and posterior share: a density that is a product of normal ones, each level's given the one above.

    Samples are tuples of tensors, one per level. The event shape is that of all levels in one row, [total].

    Args:
        dims: the size of each level, z_1 first.
        batch: the batch shape.
    """

    arg_constraints: dict = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, dims: Sequence[int], batch: Sequence[int]):
        self.dims = tuple(dims)
        super().__init__(torch.Size(batch), torch.Size([sum(self.dims)]), validate_args=False)

    def conditional(self, level: int, above: Tensor | None) -> Normal:
        """The density of a level, counted from 0, given the one above [..., d_(l+1)]; the top level has None there."""
        raise NotImplementedError

    def conditionals(self, z: Sequence[Tensor]) -> tuple[Normal, ...]:
        """Of each level given the one above it in z, a tuple of [..., d_l]; each broadcasts to its level of z."""
        if len(z) != len(self.dims):
            raise VlaeError(f"expected a tuple of {len(self.dims)} tensors, one per level of z; got {len(z)}")
        return tuple(self.conditional(level, above) for level, above in enumerate([*z[1:], None]))

    def log_prob_per_dimension(self, z: Sequence[Tensor]) -> Tensor:
        """Each dimension's share of the log-density in nats, all levels in one row, [..., total]."""
        return torch.cat([p.log_prob(level) for p, level in zip(self.conditionals(z), z, strict=True)], -1)

    def log_prob(self, z: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """The log-density of all levels together in nats, [...]."""
        return self.log_prob_per_dimension(z).sum(-1)

    def _from_noise(self, noise: Tensor) -> tuple[Tensor, ...]:
        """z from standard normal noise [..., total]: that of all levels is drawn at once."""
        parts = noise.split(self.dims, -1)

        def choose(level: int, above: Tensor | None) -> Tensor:
            p = self.conditional(level, above)
            return p.loc + p.scale * parts[level]

        return descend(len(self.dims), choose)


class LadderPrior(Hierarchy):
    """p(z) = N(z_L; 0, I) prod_l p(z_l | z_(l+1)).

    Args:
        below: (level, z_(l+1)) -> p(z_l | z_(l+1)); levels are counted from 0.
        dims: the size of each level, z_1 first.
        like: gives dtype and device.
    """

    def __init__(self, below: Callable[[int, Tensor], Normal], dims: Sequence[int], like: Tensor):
        self.below, self.like = below, like
        super().__init__(dims, ())

    def conditional(self, level: int, above: Tensor | None) -> Normal:
        """p(z_l | z_(l+1)), [..., d_l]; of the top level N(0, I), [d_L]."""
        if above is not None:
            return self.below(level, above)
        zeros = self.like.new_zeros(self.dims[level])
        return Normal(zeros, torch.ones_like(zeros), validate_args=False)

    def rsample(  # type: ignore[override]
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, ...]:
        """A tuple of [*sample_shape, d_l]; the temperature scales the noise of every level."""
        return self._from_noise(temperature * randn(sample_shape, None, self.event_shape, generator, self.like))

    def sample(  # type: ignore[override]
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, ...]:
        """As `rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator, temperature)

    def scan(self, visit: Visit, count: int) -> NoReturn:
        """Raises: a scan makes one tensor, and z is a tuple of them."""
        raise VlaeError("the prior of a ladder is drawn level by level, not scanned: use sample() or from_noise()")

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> tuple[Tensor, ...]:
        """z of standard normal noise, all levels in one row, [..., total]: the inverse of `noise_of`."""
        return self._from_noise(noise)

    def noise_of(self, z: Sequence[Tensor]) -> Tensor:
        """The standard normal noise that z stands for, all levels in one row, [..., total]."""
        pairs = zip(self.conditionals(z), z, strict=True)
        return torch.cat([(level - p.loc) / p.scale for p, level in pairs], -1)


class LadderPosterior(Hierarchy):
    """q(z|x) = q(z_L | x) prod_l q(z_l | x, z_(l+1)), from the top down as the prior, one per image.

    The images' messages m_l(x) come up in a deterministic pass. The top level's is q itself; below it q is the
    precision-weighted product of message and prior, m_l(x) p(z_l | z_(l+1)) (Sønderby et al. 2016, arXiv 1602.02282).

    Args:
        prior: p(z), with the same levels.
        messages: of each level, z_1 first, [B, d_l].
        merged: False leaves the prior out: q(z_l | x) is the message, and given x the levels are independent.
    """

    def __init__(self, prior: LadderPrior, messages: Sequence[Normal], merged: bool = True):
        self.prior, self.messages, self.merged = prior, tuple(messages), merged
        super().__init__(prior.dims, messages[0].loc.shape[:1])

    def conditional(self, level: int, above: Tensor | None) -> Normal:
        """q(z_l | x, z_(l+1)), [..., B, d_l]."""
        message = self.messages[level]
        if above is None or not self.merged:
            return message
        return precision_weighted(message, self.prior.conditional(level, above))

    @property
    def mean(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """A tuple of [B, d_l]: of each level the mean given the mean of the level above."""
        return descend(len(self.dims), lambda level, above: self.conditional(level, above).loc)

    def rsample(  # type: ignore[override]
        self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None
    ) -> tuple[Tensor, ...]:
        """Reparametrised samples, a tuple of [*sample_shape, B, d_l]; `generator` may be one per image."""
        like = self.messages[0].loc
        return self._from_noise(randn(sample_shape, len(like), self.event_shape, generator, like))

    def sample(  # type: ignore[override]
        self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None
    ) -> tuple[Tensor, ...]:
        """As `rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)


def rates_of_levels(q: LadderPosterior, z: Sequence[Tensor], analytic: bool = True) -> tuple[Tensor, ...]:
    """KL(q(z_l | x, z_(l+1)) || p(z_l | z_(l+1))) of each level in nats, a tuple of [..., B, d_l].

    Against the prior from the level above, not N(0, I): summed over the levels and averaged over z ~ q(z|x) this is
    KL(q(z|x) || p(z)). In closed form given the sampled levels above, unless `analytic=False`: then the estimate
    log q - log p at z.
    """
    pairs = zip(q.conditionals(z), q.prior.conditionals(z), z, strict=True)
    if analytic:
        return tuple(kl_divergence(posterior, prior).expand_as(level) for posterior, prior, level in pairs)
    return tuple(posterior.log_prob(level) - prior.log_prob(level) for posterior, prior, level in pairs)
