"""The codes of a data set's images, and what each of their dimensions costs: what pictures of the code are made of.

All codes are in one row, [N, D]: maps are flattened, and the levels of a ladder stand side by side, z_1 first. They are
given in one of two spaces: "latent" is z itself, "noise" the standard normal noise eps that z stands for under the
prior, z = f(eps), in which the prior of a flow is N(0, I).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vlae.data import ImageDataset
from vlae.distributions.delta import AR1
from vlae.distributions.normal import StandardNormal
from vlae.distributions.posteriors import GaussianHead
from vlae.errors import VlaeError
from vlae.evaluation.information import BITS
from vlae.evaluation.passes import batches_of, keyed_generators
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.vqvae import VQVAE
from vlae.sampling.traversal import shares

SPACES = ("latent", "noise")


@torch.no_grad()
def code_means(
    model: LatentVariableModel, dataset: ImageDataset, space: str = "latent", batch_size: int = 250
) -> Tensor:
    """The mean of q(z|x) of every image, float64 [N, D].

    Of a VQ-VAE the vectors of its codes, which the decoder reads: the numbers of codes are in no order.
    """
    check_code(model, space)
    rows = []
    with model.evaluating():
        for x, _, context in batches_of(model, dataset, batch_size):
            means = model.encode(x, **given(context)).mean
            if isinstance(model, VQVAE):
                rows.append(flattened(model.codebook(means)))
            else:
                rows.append(_in_space(model.prior(**given(context)), means, space))
    return torch.cat(rows)


@torch.no_grad()
def code_draws(
    model: LatentVariableModel, dataset: ImageDataset, space: str = "latent", seed: int = 0, batch_size: int = 250
) -> Tensor:
    """One z ~ q(z|x) for every image, float64 [N, D]: together they are draws from the aggregate posterior.

    Noise is keyed by image: the result does not depend on the batch size.
    """
    check_code(model, space)
    if model.discrete:
        raise VlaeError(f"the codes of a {type(model).__name__} are numbers in no order, and have no density to draw")
    rows = []
    with model.evaluating():
        for x, positions, context in batches_of(model, dataset, batch_size):
            z = model.encode(x, **given(context)).rsample(generator=keyed_generators(positions, seed))
            rows.append(_in_space(model.prior(**given(context)), z, space))
    return torch.cat(rows)


@torch.no_grad()
def prior_draws(model: LatentVariableModel, count: int, space: str = "latent", seed: int = 0) -> Tensor:
    """As many z ~ p(z), float64 [count, D]."""
    check_code(model, space)
    with model.evaluating():
        prior = model.prior()
        return _in_space(prior, prior.sample((count,), generator=torch.Generator().manual_seed(seed)), space)


@torch.no_grad()
def code_bits(
    model: LatentVariableModel, dataset: ImageDataset, draws: int = 1, seed: int = 0, batch_size: int = 250
) -> Tensor:
    """What every image spends on each dimension of z, bits, float64 [N, D]; sums to the rate of the image.

    In closed form where there is one. Elsewhere, as under a flow, a share is an estimate from samples of z, which may
    fall below 0; the mean of several `draws` is nearer to what it estimates.

    Args:
        model: with a bound.
        dataset: images of its shape and levels.
        draws: samples of z per image.
        seed: of their noise, keyed by image: the result does not depend on the batch size.
        batch_size: memory, not the result.
    """
    check_code(model)
    check_bound(model)
    if draws < 1:
        raise VlaeError(f"draws must be at least 1; got {draws}")
    rows = []
    with model.evaluating():
        for x, positions, context in batches_of(model, dataset, batch_size):
            q, prior = model.encode(x, **given(context)), model.prior(**given(context))
            generators = keyed_generators(positions, seed)
            rates = [shares(q, prior, q.rsample(generator=generators)) for _ in range(draws)]
            rows.append(torch.stack([rate.flatten(1).double().cpu() for rate in rates]).mean(0))
    return torch.cat(rows) * BITS


def flattened(z: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Codes of any form, [B, ...] or a tuple of them, as one row each, float64 [B, D].

    Example:
        >>> flattened((torch.zeros(2, 3), torch.zeros(2, 4, 1, 5))).shape
        torch.Size([2, 23])
    """
    return torch.cat([t.flatten(1) for t in (z if isinstance(z, tuple) else (z,))], 1).double().cpu()


def _in_space(prior: Any, z: Any, space: str) -> Tensor:
    return flattened(prior.noise_of(z) if space == "noise" else z)


def has_closed_rate(model: LatentVariableModel) -> bool:
    """Whether the shares of `code_bits` are exact, so that none is below 0 and more draws change nothing."""
    if model.discrete:
        return True
    gaussian = isinstance(getattr(model, "posterior_module", None), GaussianHead)
    return gaussian and isinstance(model.prior(), StandardNormal | AR1)


def has_normal_marginals(model: LatentVariableModel, space: str = "latent") -> bool:
    """Whether each dimension of z is N(0, 1) under the prior: of the noise always, of z under these priors."""
    return space == "noise" or isinstance(model.prior(), StandardNormal | AR1)


def dimension_names(model: LatentVariableModel, space: str = "latent") -> list[str]:
    """A name for each dimension: "z_17" of a vector, "z[3, 1, 0]" of maps, "z_2[5]" of the second level of a ladder.

    Of noise it is ε, of the codes of a VQ-VAE k.
    """
    letter = "k" if model.discrete else "ε" if space == "noise" else "z"
    shape: Sequence[Any] = model.latent_shape
    if shape and isinstance(shape[0], tuple):
        return [f"{letter}_{level}[{i}]" for level, (size,) in enumerate(shape, 1) for i in range(size)]
    if len(shape) == 1:
        return [f"{letter}_{i}" for i in range(shape[0])]
    return [f"{letter}[{', '.join(map(str, place))}]" for place in itertools.product(*map(range, shape))]


def with_bits(name: str, bits: Tensor | None, dimension: int) -> str:
    """A dimension's name with its mean rate among bits [N, D], where there are any.

    Example:
        >>> with_bits("z_0", torch.tensor([[2.0], [2.2]]), 0)
        'z_0 (2.1 bits)'
    """
    return name if bits is None else f"{name} ({bits[:, dimension].mean():.1f} bits)"


def check_code(model: LatentVariableModel, space: str = "latent") -> None:
    """Refuses a model without a code, and a space that it does not have."""
    if space not in SPACES:
        raise VlaeError(f"the space must be one of {' and '.join(SPACES)}; got {space!r}")
    if not model.latent_size:
        raise VlaeError(f"a {type(model).__name__} has no latent code: choose a model with one")
    if space == "noise" and model.discrete:
        raise VlaeError(f"the codes of a {type(model).__name__} stand for no noise: take the space latent")


def check_bound(model: LatentVariableModel) -> None:
    """Refuses a model without a density of z, and so without a rate."""
    if not model.has_bound:
        raise VlaeError(f"a {type(model).__name__} has no density of z, and so no rate to draw")


def check_dimensions(dimensions: Sequence[int], size: int) -> list[int]:
    """Those dimensions; refuses what a code of `size` dimensions does not have, and one that comes twice."""
    if wrong := [d for d in dimensions if not 0 <= d < size]:
        raise VlaeError(f"there is no dimension {wrong[0]}: the code has {size}, from 0 to {size - 1}")
    if len(set(dimensions)) < len(dimensions):
        raise VlaeError(f"a dimension comes twice in {', '.join(map(str, dimensions))}")
    return list(dimensions)


def largest(bits: Tensor, count: int) -> list[int]:
    """The dimensions of the largest mean rate among those of bits [N, D], largest first.

    Example:
        >>> largest(torch.tensor([[0.1, 2.0, 0.5], [0.1, 2.0, 0.7]]), 2)
        [1, 2]
    """
    return cast(list[int], bits.mean(0).sort(descending=True, stable=True).indices[:count].tolist())
