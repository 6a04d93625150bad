"""The importance-weighted NLL over a data set, in nats: of so many images as one asks for, kept in a file if asked to.

Of some of the images alone, the NLL of the whole set is told more closely by their *gap*, -ELBO less NLL, than by their
NLL: images differ by tens of nats in both, and by a few tenths in the gap. See `Likelihoods.of_all`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from vlae import processes
from vlae.errors import VlaeError
from vlae.evaluation.kept import KeptLikelihoods
from vlae.evaluation.passes import (
    Batch,
    bits_per_value,
    chosen_images,
    fixed_order,
    keyed_generators,
    length,
    standard_error,
)
from vlae.models.base import LatentVariableModel

# How many numbers of noise are drawn at once for the NLL: 64 MiB in float32, of which a few copies are held.
NOISE = 2**24

KEPT_AT_ONCE = 64  # images between two writes to a file that keeps them

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
        positions: of the images in the data set, [N].
        elbo: mean of log w_k over all samples, [N]: the lower bound, with little chance left in it.
        variance: of log w_k, [N].
        nll: -log (1/K) sum_k w_k at each K, [len(samples), N].
        ess: effective sample sizes, [len(samples), N].
    """

    samples: list[int]
    positions: Tensor
    elbo: Tensor
    variance: Tensor
    nll: Tensor
    ess: Tensor

    @classmethod
    def of_rows(cls, samples: list[int], rows: Sequence[Sequence[float]]) -> Self:
        """Rows of an image each: position, elbo, variance, every NLL, every effective sample size."""
        table = torch.tensor(sorted(rows), dtype=torch.float64).T
        nll, ess = table[3:].chunk(2)
        return cls(samples, table[0].long(), table[1], table[2], nll, ess)

    def of_all(self, negative_elbo: float, total: int) -> tuple[float, float]:
        """The NLL at most samples of all `total` images, by difference, in nats, and its standard error.

        -ELBO of all, less the mean gap of these. The error is that of the mean of these `total` images, not of the
        population behind them: of the choice of images, and of the one z that each -ELBO is measured with.

        Args:
            negative_elbo: -ELBO of all images, one z each, nats.
            total: how many images there are, of which these are a random choice.
        """
        gap = -self.elbo - self.nll[-1]
        choice = standard_error(gap) ** 2 * (1 - len(gap) / total)
        return negative_elbo - gap.mean().item(), math.sqrt(choice + self.variance.mean().item() / total)


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
            "error": standard_error(nll),
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
    counts = sample_counts(samples)
    rows = measured_rows(model, batches, None, counts, seed, chunk, progress)
    if not rows:
        raise VlaeError("the data set is empty: there is nothing to evaluate")
    found = Likelihoods.of_rows(counts, rows)
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
    counts, total = sample_counts(samples), length(batches())
    if not total:
        raise VlaeError("the data set is empty: there is nothing to evaluate")
    order = fixed_order(total)[:images]
    # All processes have to agree on what is left to do; the first one has the file.
    rows = dict(processes.of_first(lambda: kept.read(total, counts, seed) if kept else {}))
    rows = {position: row for position, row in rows.items() if position in set(order)}
    todo = [position for position in order if position not in rows]
    progress("nll", len(rows))
    size = KEPT_AT_ONCE * processes.count() if kept else max(1, len(todo))
    with model.evaluating():
        for start in range(0, len(todo), size):
            block = measured_rows(model, batches(), set(todo[start : start + size]), counts, seed, chunk, progress)
            if kept and processes.first():
                kept.add(block)
            rows |= {int(row[0]): row for row in block}
    return Likelihoods.of_rows(counts, list(rows.values()))


def measured_rows(
    model: LatentVariableModel,
    batches: Iterable[Batch],
    chosen: set[int] | None,
    counts: list[int],
    seed: int,
    chunk: int,
    progress: Count,
) -> list[list[float]]:
    """Rows for `Likelihoods.of_rows` of the chosen images of a pass, by all processes together."""
    # Few images at a time: all their noise is drawn at once.
    few = min(16, max(1, NOISE // (counts[-1] * max(1, model.latent_size))))

    def measured() -> Iterator[list[list[float]]]:
        for number, (x, positions, context) in enumerate(chosen_images(batches, chosen, few)):
            if processes.mine(number):
                generators = keyed_generators(positions, seed, stream=1)
                weights = list(model.log_weights(x, counts[-1], generators, chunk, context))
                value, ess = at_each(weights, counts)
                every = torch.cat(weights).double().cpu()
                variance = every.var(0) if len(every) > 1 else torch.zeros(len(x), dtype=torch.float64)
                place = torch.tensor(list(positions), dtype=torch.float64)
                yield torch.cat([place[None], every.mean(0)[None], variance[None], -value, ess]).T.tolist()
            progress("nll", len(x))

    return [row for piece in processes.in_turn(lambda: list(measured())) for row in piece]


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
