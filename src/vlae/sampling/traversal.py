"""Traversals: one dimension of a code moves through the prior's quantiles while the others stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlae.distributions.delta import AR1
from vlae.distributions.ladder import LadderPosterior, rates_of_levels
from vlae.distributions.normal import StandardNormal
from vlae.distributions.posteriors import rate_per_dimension
from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.latents import Latents, each
from vlae.sampling.decoding import from_noise_rows, noise_rows, of_row, one_row, require_continuous


@torch.no_grad()
def dimension_rates(model: LatentVariableModel, x: Tensor, context: Tensor | None = None, seed: int = 0) -> Tensor:
    """The rate of each latent dimension in nats per image, averaged over images x [N, C, H, W]: [D].

    Maps in the order of memory, a ladder's levels in one row, z_1 first. Under a flow prior it is the share of the
    dimension whose noise has the same number. Where it has no closed form it is estimated at one z ~ q(z|x) per image.

    Raises:
        VlaeError: the model has no z, or no density of z.
    """
    if not model.latent_size:
        raise VlaeError(f"a {type(model).__name__} has no z, so there are no dimensions to choose from")
    if not model.has_bound:
        raise VlaeError(f"a {type(model).__name__} has no rate to choose dimensions by: name them (--dims 0 1 2)")
    model.check(x)
    told = given(model.check_context(context, len(x)))
    with model.evaluating():
        q = model.encode(x, **told)
        z = q.rsample(generator=[torch.Generator().manual_seed(seed + index) for index in range(len(x))])
        return shares(q, model.prior(**told), z).flatten(1).mean(0)


def shares(q: Any, prior: Any, z: Any) -> Tensor:
    """Each dimension's share of the rate of codes z ~ q [N, *latent_shape] in nats, shaped like z; nothing is decoded.

    As `Bound.rate_per_dimension`; a ladder's levels in one row, [N, D].
    """
    if isinstance(q, LadderPosterior):
        return torch.cat(rates_of_levels(q, z), -1)
    return rate_per_dimension(q, prior, z)


def informative_dimensions(
    model: LatentVariableModel, x: Tensor, count: int, context: Tensor | None = None
) -> list[int]:
    """The `count` dimensions of z with the largest rate on images x [N, C, H, W], the largest first (all if fewer).

    Counted as in `dimension_rates`.
    """
    if count < 1:
        raise VlaeError(f"count must be at least 1; got {count}")
    order = torch.argsort(dimension_rates(model, x, context), descending=True, stable=True)
    return [int(dimension) for dimension in order[:count]]


@torch.no_grad()
def prior_quantiles(
    model: LatentVariableModel,
    dimensions: Sequence[int],
    probabilities: Sequence[float],
    draws: int = 4096,
    seed: int = 0,
    context: Tensor | None = None,
) -> Tensor:
    """Quantiles of single dimensions of z under the prior, each by itself: [len(dimensions), len(probabilities)].

    Exact where each dimension is standard normal, else from `draws` samples of the prior.

    Args:
        model: with a continuous code.
        dimensions: numbers of dimensions as in `dimension_rates`.
        probabilities: between 0 and 1.
        draws: samples that the quantiles are of.
        seed: of the samples.
        context: of conditional models whose prior depends on it.
    """
    require_continuous(model, "a traversal")
    check_dimensions(model, dimensions)
    normal = normal_quantiles(probabilities)
    with model.evaluating():
        prior = model.prior(**given(context))
        like = next(model.parameters())
        if isinstance(prior, StandardNormal | AR1):
            return normal.to(like).expand(len(dimensions), -1)
        z = one_row(prior.sample((draws,), generator=torch.Generator().manual_seed(seed)))
        at = torch.tensor(list(probabilities), dtype=torch.float64, device=z.device)
        return z[:, list(dimensions)].double().quantile(at, dim=0).t().to(like)


def normal_quantiles(probabilities: Sequence[float]) -> Tensor:
    """Quantiles of the standard normal, which each dimension of the prior's noise has: float64, [V]."""
    if not probabilities or any(not 0 < p < 1 for p in probabilities):
        got = ", ".join(map(str, probabilities)) or "none"
        raise VlaeError(f"quantiles have probabilities between 0 and 1; got {got}")
    return torch.special.ndtri(torch.tensor(list(probabilities), dtype=torch.float64))


def traverse(z: Latents, dimension: int, values: Tensor) -> Latents:
    """Copies of one code z [*latent_shape], in which one dimension takes the values [V]: [V, *latent_shape].

    Dimensions are counted as in `dimension_rates`. A ladder's code is a tuple of [d_l].
    """
    many = each(lambda level: level.unsqueeze(0), z)
    rows = one_row(many).repeat(len(values), 1)
    if not 0 <= dimension < rows.shape[1]:
        raise VlaeError(f"z has dimensions 0 to {rows.shape[1] - 1}; got {dimension}")
    rows[:, dimension] = torch.as_tensor(values).to(rows)
    return of_row(rows, many)


def traverse_noise(
    model: LatentVariableModel, z: Latents, dimension: int, values: Tensor, context: Tensor | None = None
) -> Latents:
    """As `traverse`, but one dimension of the prior's noise eps takes the values, and z = f(eps): [V, *latent_shape].

    The other dimensions of the noise stay, so that every z is as plausible under the prior as noise of those values;
    dimensions of z that depend on the one that moves follow it. A ladder's upper levels can be seen in no other way.
    """
    require_continuous(model, "a traversal")
    noise = noise_rows(model, each(lambda level: level.unsqueeze(0), z), context)[0]
    moved = traverse(noise, dimension, values)
    assert isinstance(moved, Tensor)
    return from_noise_rows(model, moved, context)


def check_dimensions(model: LatentVariableModel, dimensions: Sequence[int]) -> None:
    """Refuses dimensions that z has not."""
    for dimension in dimensions:
        if not 0 <= dimension < model.latent_size:
            raise VlaeError(f"z has dimensions 0 to {model.latent_size - 1}; got {dimension}")
