"""Bounds over a data set, in nats: the ELBO's terms, the importance-weighted NLL, and whether z is used."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlae import processes
from vlae.errors import VlaeError
from vlae.evaluation.information import BITS, LatentStatistics, noise_means
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.ladder import LadderBound
from vlae.models.latents import Latents, each, joined, some
from vlae.models.vqvae import VQVAE

# Images [B, C, H, W], their positions in the data set, and for conditional models their context.
Batch = tuple[Tensor, Sequence[int]] | tuple[Tensor, Sequence[int], Tensor | None]


def keyed_generators(indices: Iterable[int], seed: int, stream: int = 0) -> list[torch.Generator]:
    """One CPU generator per image, seeded by the image's position: its noise does not depend on the batch it is in."""
    first = (seed * 1_000_003 + stream) * 100_000_007
    return [torch.Generator().manual_seed((first + int(i)) % 2**63) for i in indices]


# How many numbers of noise are drawn at once for the NLL: 64 MiB in float32, of which a few copies are held.
NOISE = 2**24


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


@dataclass
class Evaluation:
    """What `evaluate` measures. Nats per image, means over the data set, with standard errors where named.

    Attributes:
        images: how many were evaluated.
        distortion, rate: the two terms; `rate_bits` the rate in bits. The rate, and all that follows from it, is None
            where z has no density (`has_bound` is False).
        negative_elbo: distortion + rate; `negative_elbo_error` its standard error.
        shuffled_gap: nats lost in distortion where each image is decoded with another image's z.
        active_units: latent dimensions in use; None where they hold discrete codes. `latent_dim` of how many.
        bits_per_latent: mean rate of each latent dimension, bits.
        bits_per_dim: -ELBO in bits per sub-pixel; None for densities, which would need dequantised data.
        nll: importance-weighted -log p(x) at `nll_samples` samples; `nll_error` its standard error, `ess` the mean
            effective sample size. None where not asked for. `nll_images` says on how many (the first) images.
        nll_by_samples: the same at every K asked for, as `evaluate_nll` gives them; of several K, those above are the
            largest's.
        rate_per_level: of a ladder the rate of each level against the one above it, z_1 first; else empty.
        perplexity: of discrete codes how many are used in effect: exp of the entropy of how often each occurs, over all
            places of all images; `codes_in_use` how many occur at all, `codes` how many there are. Else None.
    """

    images: int
    distortion: float
    rate: float | None
    rate_bits: float | None
    negative_elbo: float | None
    negative_elbo_error: float | None
    shuffled_gap: float
    active_units: int | None
    latent_dim: int
    bits_per_latent: list[float] = field(repr=False)
    bits_per_dim: float | None = None
    nll: float | None = None
    nll_error: float | None = None
    nll_samples: int = 0
    nll_images: int = 0
    nll_bits_per_dim: float | None = None
    ess: float | None = None
    nll_by_samples: list[dict[str, Any]] = field(default_factory=list)
    rate_per_level: list[float] = field(default_factory=list)
    perplexity: float | None = None
    codes_in_use: int | None = None
    codes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def parts(batch: Batch) -> tuple[Tensor, Sequence[int], Tensor | None]:
    """Images, positions and context (None where there is none) of a batch."""
    return batch if len(batch) == 3 else (*batch, None)


def first_images(
    batches: Iterable[Batch], images: int | None, size: int | None = None
) -> Iterator[tuple[Tensor, Sequence[int], Tensor | None]]:
    """The parts of the first `images` images (None: all) of a pass, cut into pieces of at most `size` images."""
    if images is not None and images < 1:
        raise VlaeError(f"the number of images must be 1 or more; got {images}")
    remaining = math.inf if images is None else images
    for x, positions, context in map(parts, batches):
        count = int(min(len(x), remaining))
        for start in range(0, count, size or max(count, 1)):
            piece = slice(start, min(start + (size or count), count))
            yield x[piece], list(positions)[piece], None if context is None else context[piece]
        remaining -= count
        if remaining <= 0:
            return


@torch.no_grad()
def evaluate(
    model: LatentVariableModel,
    batches: Callable[[], Iterable[Batch]],
    nll_samples: int | Sequence[int] = 0,
    nll_images: int | None = None,
    seed: int = 0,
    chunk: int = 128,
    progress: Callable[[str, int], None] = lambda stage, images: None,
) -> Evaluation:
    """Evaluates a model on a data set; independent of the batch size, since all noise is keyed by image.

    Where several processes are connected (`vlae.processes`), all of them have to call it: each measures the batches
    that it is dealt, and all return what one would have, to the last bit.

    Args:
        model: used in eval mode; left in the mode it was in.
        batches: gives a fresh pass over the data: (images [B, C, H, W], positions) in order of position, and for a
            conditional model the context as a third.
        nll_samples: importance samples K per image, or several K; 0 leaves the NLL out.
        nll_images: NLL on the first so many images only; None for all.
        seed: of the noise.
        chunk: images decoded at a time for the NLL.
        progress: called with the stage's name and the number of images done.
    """
    several = [] if nll_samples in (0, [0], (0,)) or not model.has_bound else sample_counts(nll_samples)
    if nll_images is not None and nll_images < 1:
        raise VlaeError(f"nll_images must be 1 or more; got {nll_images}")
    with model.evaluating():
        measured = processes.in_turn(lambda: bounds_of(model, batches(), seed, progress))
        if not measured:
            raise VlaeError("the data set is empty: there is nothing to evaluate")
        statistics = LatentStatistics()
        for batch in measured:
            statistics.merge(batch.statistics)
        codes, levels = [batch.codes for batch in measured], [batch.levels for batch in measured]
        distortion, rate = torch.cat([b.distortion for b in measured]), torch.cat([b.rate for b in measured])
        total, count = distortion + rate, len(distortion)
        per_value = bits_per_value(model)
        every = joined(codes)
        shuffled = torch.cat(processes.in_turn(lambda: shuffled_distortions(model, batches(), every)))
        result = Evaluation(
            images=count,
            distortion=distortion.mean().item(),
            rate=rate.mean().item(),
            rate_bits=rate.mean().item() * BITS,
            negative_elbo=total.mean().item(),
            negative_elbo_error=standard_error(total),
            shuffled_gap=(shuffled - distortion).mean().item(),
            active_units=statistics.active_units,
            latent_dim=model.latent_size,
            bits_per_latent=statistics.bits_per_dimension.flatten().tolist(),
            bits_per_dim=None if per_value is None else total.mean().item() * per_value,
            rate_per_level=[]
            if levels[0] is None
            else torch.cat([x for x in levels if x is not None]).mean(0).tolist(),
            perplexity=statistics.perplexity,
            codes_in_use=statistics.codes_in_use,
            codes=len(model.codebook.vectors) if isinstance(model, VQVAE) else None,
        )
        if not model.has_bound:  # the zeros in the rate's place are none
            result.rate = result.rate_bits = result.negative_elbo = result.negative_elbo_error = None
            result.bits_per_dim, result.bits_per_latent = None, []
        if several:
            result.nll_by_samples = evaluate_nll(model, batches, several, nll_images, seed, chunk, progress)
            most = result.nll_by_samples[-1]
            result.nll, result.nll_error, result.nll_samples = most["nll"], most["error"], most["samples"]
            result.nll_images = count if nll_images is None else min(nll_images, count)
            result.nll_bits_per_dim, result.ess = most["bits_per_dim"], most["ess"]
        return result


@dataclass(frozen=True)
class BatchBounds:
    """What `evaluate` keeps of a batch: nats per image, [B], float64; its codes; and statistics of them.

    `levels` are the rates of a ladder's levels, [B, L], else None.
    """

    distortion: Tensor
    rate: Tensor
    levels: Tensor | None
    codes: Latents
    statistics: LatentStatistics


def bounds_of(
    model: LatentVariableModel, batches: Iterable[Batch], seed: int, progress: Callable[[str, int], None]
) -> list[BatchBounds]:
    """The bounds of this process's batches, without gradients."""
    measured = []
    for number, (x, positions, context) in enumerate(map(parts, batches)):
        if processes.mine(number):
            bound = model.elbo(x, generator=keyed_generators(positions, seed), context=context)
            levels = bound.rate_per_level.double().cpu() if isinstance(bound, LadderBound) else None
            statistics = LatentStatistics.of(bound.rate_per_dimension, noise_means(model, x, context))
            distortion, rate = bound.distortion.double().cpu(), bound.rate.double().cpu()
            measured.append(BatchBounds(distortion, rate, levels, bound.z, statistics))
        progress("bound", len(x))
    return measured


@torch.no_grad()
def shuffled_distortions(model: LatentVariableModel, batches: Iterable[Batch], codes: Latents) -> list[Tensor]:
    """-log p(x_i | z_(i-1)) in nats: each image decoded with the code of the image before it in the data set.

    Of this process's batches, [B] each.

    Far above the distortion where z is used; equal to it where the decoder ignores z. In a data set that is sorted the
    image before is of the same kind, and its z costs less.
    """
    shuffled, start, result = each(lambda z: z.roll(1, dims=0), codes), 0, []
    for number, (x, _, context) in enumerate(map(parts, batches)):
        if processes.mine(number):
            z = some(shuffled, start, start + len(x))
            result.append(-model.decode(z, **given(context)).log_prob(x).double().cpu())
        start += len(x)
    return result


@torch.no_grad()
def evaluate_nll(
    model: LatentVariableModel,
    batches: Callable[[], Iterable[Batch]],
    samples: int | Sequence[int],
    images: int | None = None,
    seed: int = 0,
    chunk: int = 128,
    progress: Callable[[str, int], None] = lambda stage, images: None,
) -> list[dict[str, Any]]:
    """The importance-weighted NLL over a data set, of each number of samples K in rising order.

    Returns:
        For each K a dictionary: `samples` (K), `nll` in nats per image, `error` (its standard error), `ess` (the mean
        effective sample size) and `bits_per_dim` (None for densities).
    """
    with model.evaluating():
        counts, per_value = sample_counts(samples), bits_per_value(model)
        every = importance_nll(model, batches(), counts, images, seed, chunk, progress)
    return [
        {
            "samples": count,
            "nll": nll.mean().item(),
            "error": standard_error(nll),
            "ess": ess.mean().item(),
            "bits_per_dim": None if per_value is None else nll.mean().item() * per_value,
        }
        for count, nll, ess in zip(counts, *every, strict=True)
    ]


@torch.no_grad()
def importance_nll(
    model: LatentVariableModel,
    batches: Iterable[Batch],
    samples: int | Sequence[int],
    images: int | None = None,
    seed: int = 0,
    chunk: int = 128,
    progress: Callable[[str, int], None] = lambda stage, images: None,
) -> tuple[Tensor, Tensor]:
    """-log p(x) by importance sampling on the first `images` images: nats and effective sample sizes, [images] each.

    Of several K, [len(K), images] each, in rising order of K. The samples are drawn once, the most there are; a smaller
    K takes the first K of them. Several connected processes share the work, as in `evaluate`.
    """
    counts = sample_counts(samples)
    # Few images at a time: all their noise is drawn at once.
    few = min(16, max(1, NOISE // (counts[-1] * max(1, model.latent_size))))

    def measured() -> Iterator[tuple[Tensor, Tensor]]:
        for number, (x, positions, context) in enumerate(first_images(batches, images, few)):
            if processes.mine(number):
                generators = keyed_generators(positions, seed, stream=1)
                nll, ess = at_each(model.log_weights(x, counts[-1], generators, chunk, context), counts)
                yield -nll, ess
            progress("nll", len(x))

    pieces = processes.in_turn(lambda: list(measured()))
    if not pieces:
        raise VlaeError("the data set is empty: there is nothing to evaluate")
    both = torch.cat([nll for nll, _ in pieces], 1), torch.cat([ess for _, ess in pieces], 1)
    return (both[0][0], both[1][0]) if isinstance(samples, int) else both


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


def bits_per_value(model: LatentVariableModel) -> float | None:
    """What nats per image are multiplied by for bits per sub-pixel; None where the likelihood is a density."""
    return BITS / math.prod(model.image_shape) if model.likelihood.levels else None


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of [N] values; 0 for a single one."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else 0.0
