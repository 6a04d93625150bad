"""The rate, cut in two: what z says of the image, and how far the codes of all images together are from the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlae.distributions.posteriors import DiagonalGaussian, IAFPosterior
from vlae.errors import VlaeError
from vlae.evaluation.passes import Batch, first_images, keyed_generators, standard_error
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.latents import Latents, each, joined, some

STREAM = 2  # of the noise; the bound and the importance weights have others
SATURATED = 0.1  # the share of images at the ceiling from which on the estimate says little of its true value


@dataclass(frozen=True)
class Information:
    r"""E[KL(q(z|x) || p(z))] = I_q(x; z) + KL(q(z) || p(z)), in nats (Hoffman and Johnson 2016, "ELBO surgery").

    Here q(z) = 1/N sum_j q(z|x_j) is the aggregated posterior of the N images themselves, and

    .. math:: I_q(x; z) = E[\log q(z|x) - \log q(z)], \quad KL(q(z) || p(z)) = E[\log q(z) - \log p(z)]

    over the N images and one z ~ q(z|x) of each. Since q(z) holds a share of 1/N of each image's own posterior, the
    first is at most log N: that many nats are enough to tell N images apart, and no more can be asked of them. Each
    image's own share, log q(z|x) - log q(z), has this ceiling, so that the mean is held down well before it is there:
    `saturated` is the share of images within 1 nat of it, and above `SATURATED` the estimate is to be distrusted. Where
    that is so, the codes tell most of these N images apart; the true value, over all images there are, may be any
    larger, and the marginal KL is then too large by what the mutual information is short of, for their sum, the rate,
    is not limited.

    The errors are standard errors over images, for the q(z) of these images: they do not tell of the ceiling.

    Attributes:
        mutual_information: I_q(x; z), from 0 (but for noise) to `ceiling`; `mutual_information_error` its error.
        marginal_kl: KL(q(z) || p(z)); `marginal_kl_error` its error.
        rate: the sum of the two, which is the Monte Carlo estimate of the rate from the same z.
        ceiling: log N, the most that the mutual information can be.
        images: N.
        saturated: the share of images whose own log q(z|x) - log q(z) is within 1 nat of the ceiling, 0 to 1.
    """

    mutual_information: float
    mutual_information_error: float
    marginal_kl: float
    marginal_kl_error: float
    rate: float
    ceiling: float
    images: int
    saturated: float


@torch.no_grad()
def information(
    model: LatentVariableModel,
    batches: Callable[[], Iterable[Batch]],
    images: int = 2000,
    seed: int = 0,
    chunk: int = 2**15,
    progress: Callable[[str, int], None] = lambda stage, images: None,
) -> Information:
    """Mutual information and marginal KL among the first `images` images, from all pairs of a code and a posterior.

    It takes N^2 densities: matrix products for Gaussian posteriors, counts for discrete codes, and for an IAF posterior
    the inversion of its flow at every pair, which is slow: choose few images. All sums are in float64. The result does
    not depend on the batch size, as noise is keyed by image.

    A conditional model's posterior of an image is the one given the image's own context. The mutual information is then
    what z says of image and context together, and the marginal KL is that of all contexts' codes together: priors are
    the same for every context.

    Args:
        model: used in eval mode; left in the mode it was in.
        batches: gives a pass over the data, as of `evaluate`.
        images: N; all there are, where they are fewer.
        seed: of the noise.
        chunk: pairs at a time: memory, not the result.
        progress: called with "information" and the number of images whose posteriors have been compared with all codes.

    Raises:
        VlaeError: z has no density (`has_bound` is False), or there are no images.
    """
    if not model.has_bound:
        raise VlaeError(f"a {type(model).__name__} has no density of z, so there is no mutual information to measure")
    if chunk < 1:
        raise VlaeError(f"chunk must be 1 or more; got {chunk}")
    posteriors, codes, own_parts, prior_parts = [], [], [], []
    with model.evaluating():
        for x, positions, context in first_images(batches(), images):
            model.check(x)
            told = given(model.check_context(context, len(x)))
            q = model.encode(x, **told)
            z = q.rsample(generator=keyed_generators(positions, seed, STREAM))
            posteriors.append(q)
            codes.append(z)
            own_parts.append(own_log_density(q, z))
            prior_parts.append(model.prior(**told).log_prob(z).double().cpu())
        if not codes:
            raise VlaeError("the data set is empty: there is nothing to evaluate")
        own, prior, z = torch.cat(own_parts), torch.cat(prior_parts), joined(codes)
        if model.discrete and isinstance(z, Tensor):
            aggregated = aggregated_mass(z)
            progress("information", len(own))
        else:
            aggregated = aggregated_log_density(posteriors, z, own, chunk, progress)
    gain, excess = own - aggregated, aggregated - prior
    ceiling = math.log(len(own))
    mutual_information = min(gain.mean().item(), ceiling)  # the mean of N values of log N may be rounded up
    marginal_kl = excess.mean().item()
    return Information(
        mutual_information=mutual_information,
        mutual_information_error=standard_error(gain),
        marginal_kl=marginal_kl,
        marginal_kl_error=standard_error(excess),
        rate=mutual_information + marginal_kl,
        ceiling=ceiling,
        images=len(own),
        saturated=(gain > ceiling - 1).double().mean().item(),
    )


def aggregated_log_density(
    posteriors: Iterable[Any],
    z: Latents,
    own: Tensor,
    chunk: int,
    progress: Callable[[str, int], None] = lambda stage, images: None,
) -> Tensor:
    """log q(z_i) = log 1/N sum_j q(z_i|x_j) in nats, float64 [N].

    Args:
        posteriors: q(z|x_j) in batches, N in all.
        z: one code of each, [N, ...].
        own: log q(z_i|x_i), [N]: taken as it is, so that log q(z_i) >= own_i - log N whatever is rounded elsewhere.
        chunk: pairs at a time.
        progress: called after each batch of posteriors.
    """
    total, start, index = own.clone(), 0, torch.arange(len(own))
    for q in posteriors:
        log_densities, count = pair_log_densities(q), q.batch_shape[0]
        columns = index[start : start + count]
        size = max(1, chunk // count)
        for first in range(0, len(own), size):
            rows = index[first : first + size]
            others = log_densities(some(z, first, first + size)).double().cpu()
            others.masked_fill_(rows[:, None] == columns, -torch.inf)
            total[rows] = torch.logaddexp(total[rows], others.logsumexp(1))
        start += count
        progress("information", count)
    return total - math.log(len(own))


def aggregated_mass(codes: Tensor) -> Tensor:
    """log q(z_i) in nats, float64 [N], of codes [N, ...] that their posteriors are certain of: how many are the same.

    Example:
        >>> aggregated_mass(torch.tensor([[3, 1], [0, 2], [3, 1], [3, 1]])).exp().tolist()
        [0.75, 0.25, 0.75, 0.75]
    """
    _, kinds, counts = codes.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    return (counts[kinds].double() / len(codes)).log().cpu()


def own_log_density(q: Any, z: Latents) -> Tensor:
    """log q(z_i|x_i) in nats, float64 [B], of the codes z that were just drawn from q."""
    if isinstance(q, DiagonalGaussian) and isinstance(z, Tensor):
        q, z = DiagonalGaussian(q.mean.double(), q.log_stddev.double()), z.double()
    return q.log_prob(z).double().cpu()


def pair_log_densities(q: Any) -> Callable[[Latents], Tensor]:
    """The function from codes z [I, ...] to log q(z_i|x_j) in nats, [I, J], for the J images of q.

    In float64 for Gaussians, in the networks' own precision for other posteriors.
    """
    if isinstance(q, DiagonalGaussian):
        return gaussian_log_densities(q)
    # A flow's steps read code and context side by side, so that every code has to be there for every context.
    copies = q.batch_shape[0] if isinstance(q, IAFPosterior) else 1

    def log_densities(z: Latents) -> Tensor:
        return q.log_prob(each(lambda level: level[:, None].expand(-1, copies, *level.shape[1:]), z))

    return log_densities


def gaussian_log_densities(q: DiagonalGaussian) -> Callable[[Latents], Tensor]:
    r"""`pair_log_densities` as a matrix product in float64: with precisions r, all sums over the D dimensions of z,

    .. math:: -\tfrac12 \sum r z^2 + \sum r \mu z - \tfrac12 \sum (r \mu^2 - \log r) - \tfrac D2 \log 2 \pi.

    Means and codes are centred first, so that the terms are no larger than they need be. What is rounded is about 1e-16
    of the largest of them: less than 1e-7 nats for deviations of 1/1000 at means of 5.
    """
    mean, log_stddev = q.mean.flatten(1).double(), q.log_stddev.flatten(1).double()
    centre = mean.mean(0)
    mean, precision = mean - centre, (-2 * log_stddev).exp()
    weights = torch.cat([-0.5 * precision, precision * mean], 1).T
    normaliser = log_stddev.sum(1) + 0.5 * math.log(2 * math.pi) * mean.shape[1]
    constant = -0.5 * (precision * mean.square()).sum(1) - normaliser

    def log_densities(z: Latents) -> Tensor:
        assert isinstance(z, Tensor)
        centred = z.flatten(1).double() - centre
        return torch.addmm(constant, torch.cat([centred.square(), centred], 1), weights)

    return log_densities
