"""What all priors p(z) share: the distribution, and the module that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints

from vlae.distributions.scan import Dimensions, Pixels, Visit
from vlae.errors import VlaeError

Index = tuple[Any, ...]  # of some values of z [B, *shape]


class Prior(Distribution):
    """A distribution over latents z with event shape `shape` and no batch. `like` gives dtype and device.

    A subclass says what `log_prob_per_dimension`, `noise_of`, `from_noise` and `sample` are; one whose z_i given z_<i
    has a closed form also says so in `conditionals`, and can then be scanned.
    """

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, shape: Sequence[int], like: Tensor):
        self.like = like
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """Each dimension's share of log p(z) in nats, [..., *shape]; sums to `log_prob`."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, [...]."""
        return self.log_prob_per_dimension(z).flatten(-len(self.event_shape)).sum(-1)

    def noise_of(self, z: Tensor) -> Tensor:
        """The standard normal noise that z stands for, [..., *shape]: independent N(0, 1) where z ~ p(z)."""
        raise NotImplementedError

    def from_noise(self, noise: Tensor) -> Tensor:
        """z that standard normal noise [..., *shape] stands for: the inverse of `noise_of`, without gradients."""
        raise NotImplementedError

    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, *shape]; the temperature scales the noise."""
        raise NotImplementedError

    def conditionals(self, z: Tensor) -> Distribution:
        """p(z_i | z_<i) for all i at once, [..., *shape]: element i does not depend on z_i or later ones."""
        raise VlaeError(f"{type(self).__name__} has no closed form of z_i given z_<i: use log_prob() and sample()")

    @torch.no_grad()
    def scan(self, visit: Visit, count: int) -> Tensor:
        """One value at a time, in the order of memory: [count, *shape] of what `visit(sites, conditional)` returns."""
        z = self.like.new_zeros(count, *self.event_shape)
        for number in range(self.event_shape.numel()):
            every = self.conditionals(z)
            sites, index = self._site(number)
            z[index] = visit(sites, self._at(every, index))
        return z

    def _site(self, number: int) -> tuple[Dimensions | Pixels, Index]:
        """A value's site, by its number in the order of memory, and what indexes z [B, *shape] there: [B, 1]."""
        if len(self.event_shape) == 1:
            return Dimensions(torch.tensor([number])), (slice(None), slice(number, number + 1))
        channel, row, column = (int(i) for i in torch.unravel_index(torch.tensor(number), self.event_shape))
        pixels = Pixels(number, channel, torch.tensor([row]), torch.tensor([column]))
        return pixels, pixels.index

    def _at(self, every: Distribution, index: Index) -> Distribution:
        """Some of the conditionals [B, *shape], [B, n]."""
        assert isinstance(every, Normal)
        return Normal(every.loc[index], every.scale[index], validate_args=False)


class PriorModule(nn.Module):
    """Makes a prior when called: without arguments or, if it `needs_encoder`, with the function from images to q(z|x).

    Attributes:
        latent_shape: of z.
        like: a scalar with the module's dtype and device.
    """

    needs_encoder: ClassVar[bool] = False
    like: Tensor

    def __init__(self, latent_shape: Sequence[int]):
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self.register_buffer("like", torch.zeros(()), persistent=False)
