"""The importance-weighted NLL over a data set, in nats: of so many images as one asks for, kept in a file if asked to.

Of some of the images alone, the NLL of the whole set is told more closely by their *gap*, -ELBO less NLL, than by their
NLL: images differ by tens of nats in both, and by a few tenths in the gap. See `Likelihoods.of_all`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor

from vlae import processes
from vlae.errors import VlaeError
from vlae.evaluation.kept import KeptLikelihoods
from vlae.evaluation.passes import (
    Batch,
    Parts,
    bits_per_value,
    chosen_images,
    digest,
    fixed_order,
    keyed_generators,
    places_of,
    standard_error,
)
from vlae.models.base import LatentVariableModel

# How many numbers of noise are drawn at once for the NLL: 64 MiB in float32, of which a few copies are held.
NOISE = 2**24

AT_ONCE = 4  # pieces of each process, of at most 16 images, between two writes to the file that keeps them

Count = Callable[[str, int], None]


class LogMeanExp:
    """Streaming log (1/K) sum_k w_k and the effective sample size, [B], from chunks of log w_k [k, B]; float64."""

    def __init__(self) -> None:
        self.count = 0
        self.log_sum: Tensor | None = None
        self.log_squares: Tensor | None = None

    def add(self, log_weights: Tensor) -> None:
        """Adds a chunk [k, B]."""
        weights = log_weights.double().cpu()
        first, second = weights.logsumexp(0), (2 * weights).logsumexp(0)
        self.log_sum = first if self.log_sum is None else torch.logaddexp(self.log_sum, first)
        self.log_squares = second if self.log_squares is None else torch.logaddexp(self.log_squares, second)
        self.count += len(weights)

    @property
    def value(self) -> Tensor:
        """log (1/K) sum_k w_k, nats, [B]."""
        assert self.log_sum is not None
        return self.log_sum - math.log(self.count)

    @property
    def effective_samples(self) -> Tensor:
        """(sum w)^2 / sum w^2, between 1 and K, [B]."""
        assert self.log_sum is not None and self.log_squares is not None
        return (2 * self.log_sum - self.log_squares).exp()


@dataclass(frozen=True)
class Likelihoods:
    """What importance sampling says of images, in the order of their positions; nats, float64.

    Attributes:
        samples: the numbers of samples K, rising.
        positions: of the images, [N].
        rows: which images of a pass they are, from 0, [N]; the positions themselves, where those count from 0.
        elbo: mean of log w_k over all samples, [N]: the lower bound, with little chance left in it.
        nll: -log (1/K) sum_k w_k at each K, [len(samples), N].
        ess: effective sample sizes, [len(samples), N].
    """

    samples: list[int]
    positions: Tensor
    rows: Tensor
    elbo: Tensor
    nll: Tensor
    ess: Tensor

    @classmethod
    def of_images(cls, samples: list[int], images: Mapping[int, Sequence[float]], places: Sequence[int]) -> Self:
        """Of each image's numbers by its position: the ELBO, every NLL, every effective sample size.

        `places` are the positions of all images, in the order of a pass.
        """
        rows = [row for row, place in enumerate(places) if place in images]
        positions = [places[row] for row in rows]
        table = torch.tensor([list(images[position]) for position in positions], dtype=torch.float64).T
        nll, ess = table[1:].chunk(2)
        return cls(samples, torch.tensor(positions), torch.tensor(rows), table[0], nll, ess)

    def of_all(self, negative_elbos: Tensor) -> tuple[float, float] | None:
        """The NLL at the largest K of all images, by difference, in nats, and its standard error.

        -ELBO of all, less the mean gap of these. The error is that of the mean of all these images, not of the
        population behind them: of the choice of images (as if out of endlessly many: too large where most are chosen),
        and of the one z that each -ELBO is measured with. None where there is nothing to tell it by: one image alone,
        or K = 1.

        Args:
            negative_elbos: -ELBO of all images with one z each, nats, [total], of which these are a random choice.
        """
        count, total = len(self.positions), len(negative_elbos)
        if count < 2 or self.samples[-1] < 2:
            return None
        gap = -self.elbo - self.nll[-1]
        # What one z adds to the bound of an image; its variance need not be that of log w, where the rate is analytic.
        noise = negative_elbos[self.rows] + self.elbo
        error = math.sqrt(gap.var().item() / count + (noise**2).mean().item() / total)
        return negative_elbos.mean().item() - gap.mean().item(), error

    def of_all_by(self, every: Likelihoods) -> tuple[float, float] | None:
        """As `of_all`, more closely: from the NLL of all images at fewer samples, in place of -ELBO.

        What more samples take from an image's NLL differs less from one image to another than the whole gap does. The
        error is of the choice of images, and of the samples that `every` is measured with (by the delta method: the
        variance of log (1/K) sum_k w_k is about 1 / ESS - 1 / K).

        Args:
            every: all images, at one K, smaller than the largest here and measured here too.
        """
        (fewer,) = every.samples
        if len(self.positions) < 2 or fewer not in self.samples[:-1]:
            return None
        gap = self.nll[self.samples.index(fewer)] - self.nll[-1]
        noise = (1 / every.ess[0] - 1 / fewer).mean().item() / len(every.positions)
        return every.nll[0].mean().item() - gap.mean().item(), math.sqrt(gap.var().item() / len(gap) + noise)


@torch.no_grad()
def evaluate_nll(
    model: LatentVariableModel,
    batches: Callable[[], Iterable[Batch]],
    samples: int | Sequence[int],
    images: int | None = None,
    seed: int = 0,
    chunk: int = 128,
    progress: Count = lambda stage, images: None,
) -> list[dict[str, Any]]:
    """The importance-weighted NLL over a data set, of each number of samples K in rising order.

    Returns:
        For each K a dictionary: `samples` (K), `nll` in nats per image, `error` (its standard error), `ess` (the mean
        effective sample size) and `bits_per_dim` (None for densities).
    """
    return nll_rows(likelihoods(model, batches, samples, images, seed, chunk, progress), bits_per_value(model))


def nll_rows(measured: Likelihoods, per_value: float | None) -> list[dict[str, Any]]:
    """The rows of `evaluate_nll`; nats times `per_value` are bits per sub-pixel."""
    return [
        {
            "samples": count,
            "nll": nll.mean().item(),
            "error": standard_error(nll) if len(nll) > 1 else None,
            "ess": ess.mean().item(),
            "bits_per_dim": None if per_value is None else nll.mean().item() * per_value,
        }
        for count, nll, ess in zip(measured.samples, measured.nll, measured.ess, strict=True)
    ]


@torch.no_grad()
def importance_nll(
    model: LatentVariableModel,
    batches: Iterable[Batch],
    samples: int | Sequence[int],
    seed: int = 0,
    chunk: int = 128,
    progress: Count = lambda stage, images: None,
) -> tuple[Tensor, Tensor]:
    """-log p(x) by importance sampling of all images of a pass: nats and effective sample sizes, [N] each.

    Of several K, [len(K), N] each, in rising order of K. The samples are drawn once, the most there are; a smaller
    K takes the first K of them. Several connected processes share the work, as in `evaluate`.
    """
    passed = list(batches)
    found = likelihoods(model, lambda: passed, samples, seed=seed, chunk=chunk, progress=progress)
    return (found.nll[0], found.ess[0]) if isinstance(samples, int) else (found.nll, found.ess)


@torch.no_grad()
def likelihoods(
    model: LatentVariableModel,
    batches: Callable[[], Iterable[Batch]],
    samples: int | Sequence[int],
    images: int | None = None,
    seed: int = 0,
    chunk: int = 128,
    progress: Count = lambda stage, images: None,
    kept: KeptLikelihoods | None = None,
) -> Likelihoods:
    """-log p(x) by importance sampling, image by image.

    Args:
        model: in eval mode inside.
        batches: gives a fresh pass over the data, see `evaluate`.
        samples: K, or several. The samples are drawn once, the most there are; a smaller K takes the first K of them.
        images: how many: the first so many of `fixed_order`. None: all.
        seed: of the noise, which is keyed by image.
        chunk: images decoded at a time.
        progress: told "nll" and how many images are done.
        kept: where images are kept as they are done: those that it has are not measured again.
    """
    if images is not None and images < 1:
        raise VlaeError(f"the number of images must be 1 or more; got {images}")
    counts = sample_counts(samples)
    places = places_of(batches())
    if not places:
        raise VlaeError("the data set is empty: there is nothing to evaluate")
    chosen = {places[row] for row in fixed_order(len(places))[:images]}
    # All processes have to agree on what is left to do; the first one has the file.
    there = processes.of_first(lambda: kept.open(digest(batches()), counts, seed) if kept else {})
    found = {position: numbers for position, numbers in there.items() if position in chosen}
    progress("nll", len(found))
    # Few images at a time: all their noise is drawn at once.
    few = min(16, max(1, NOISE // (counts[-1] * max(1, model.latent_size))))
    pieces = chosen_images(batches(), chosen - found.keys(), few)
    with model.evaluating():
        while block := list(islice(pieces, AT_ONCE * processes.count())):
            new = measured_together(model, block, counts, seed, chunk, progress)
            if kept:
                processes.of_first(partial(kept.add, new))
            found |= new
    return Likelihoods.of_images(counts, found, places)


def measured_together(
    model: LatentVariableModel, pieces: Sequence[Parts], counts: list[int], seed: int, chunk: int, progress: Count
) -> dict[int, list[float]]:
    """The numbers of images by their positions, see `Likelihoods.of_images`; every process measures some pieces."""

    def own() -> Iterator[dict[int, list[float]]]:
        for number, (x, positions, context) in enumerate(pieces):
            if processes.mine(number):
                generators = keyed_generators(positions, seed, stream=1)
                weights = list(model.log_weights(x, counts[-1], generators, chunk, context))
                value, ess = at_each(weights, counts)
                elbo = torch.cat(weights).double().cpu().mean(0)
                yield dict(zip(positions, torch.cat([elbo[None], -value, ess]).T.tolist(), strict=True))
            progress("nll", len(x))

    every = processes.in_turn(lambda: list(own()))
    return {position: numbers for piece in every for position, numbers in piece.items()}


def at_each(log_weights: Iterable[Tensor], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """log (1/K) sum_k w_k and effective sample sizes at the first K weights, for every K in rising order.

    Both [len(counts), B], of chunks of log w_k [k, B] that add up to the last K.
    """
    estimate, pending = LogMeanExp(), list(counts)
    values, sizes = [], []
    for part in log_weights:
        while pending and pending[0] <= estimate.count + len(part):
            missing = pending.pop(0) - estimate.count
            estimate.add(part[:missing])
            part = part[missing:]
            values.append(estimate.value)
            sizes.append(estimate.effective_samples)
        if len(part):
            estimate.add(part)
    return torch.stack(values), torch.stack(sizes)


def sample_counts(samples: int | Sequence[int]) -> list[int]:
    """The numbers of importance samples K that are asked for, each once, in rising order; refuses K < 1."""
    given = [samples] if isinstance(samples, int) else list(samples)
    try:
        counts = sorted({operator.index(count) for count in given if not isinstance(count, bool)})
    except TypeError:
        counts = []
    if not counts or counts[0] < 1 or any(isinstance(count, bool) for count in given):
        raise VlaeError(f"the numbers of importance samples must be integers of 1 or more; got {samples}")
    return counts
