"""Bounds over a data set, in nats: the ELBO's terms, the importance-weighted NLL, and whether z is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

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


@torch.no_grad()
def evaluate(
    model: LatentVariableModel,
    batches: Callable[[], Iterable[Batch]],
    nll_samples: int = 0,
    nll_images: int | None = None,
    seed: int = 0,
    chunk: int = 128,
    progress: Callable[[str, int], None] = lambda stage, images: None,
) -> Evaluation:
    """Evaluates a model on a data set; independent of the batch size, since all noise is keyed by image.

    Args:
        model: used in eval mode; left in the mode it was in.
        batches: gives a fresh pass over the data: (images [B, C, H, W], positions) in order of position, and for a
            conditional model the context as a third.
        nll_samples: importance samples K per image; 0 leaves the NLL out.
        nll_images: NLL on the first so many images only; None for all.
        seed: of the noise.
        chunk: images decoded at a time for the NLL.
        progress: called with the stage's name and the number of images done.
    """
    if not model.has_bound:
        nll_samples = 0
    if nll_samples < 0 or (nll_images is not None and nll_images < 1):
        raise VlaeError(f"nll_samples must be 0 or more and nll_images 1 or more; got {nll_samples} and {nll_images}")
    with model.evaluating():
        distortions, rates, codes, levels = [], [], [], []
        statistics = LatentStatistics()
        for x, positions, context in map(parts, batches()):
            bound = model.elbo(x, generator=keyed_generators(positions, seed), context=context)
            statistics.add(bound.rate_per_dimension, noise_means(model, x, context))
            distortions.append(bound.distortion.double().cpu())
            rates.append(bound.rate.double().cpu())
            if isinstance(bound, LadderBound):
                levels.append(bound.rate_per_level.double().cpu())
            codes.append(bound.z)
            progress("bound", len(x))
        if not distortions:
            raise VlaeError("the data set is empty: there is nothing to evaluate")
        distortion, rate = torch.cat(distortions), torch.cat(rates)
        total, count = distortion + rate, len(distortion)
        per_value = BITS / math.prod(model.image_shape) if model.likelihood.levels else None
        result = Evaluation(
            images=count,
            distortion=distortion.mean().item(),
            rate=rate.mean().item(),
            rate_bits=rate.mean().item() * BITS,
            negative_elbo=total.mean().item(),
            negative_elbo_error=standard_error(total),
            shuffled_gap=(shuffled_distortion(model, batches(), joined(codes)) - distortion).mean().item(),
            active_units=statistics.active_units,
            latent_dim=model.latent_size,
            bits_per_latent=statistics.bits_per_dimension.flatten().tolist(),
            bits_per_dim=None if per_value is None else total.mean().item() * per_value,
            rate_per_level=torch.cat(levels).mean(0).tolist() if levels else [],
            perplexity=statistics.perplexity,
            codes_in_use=statistics.codes_in_use,
            codes=len(model.codebook.vectors) if isinstance(model, VQVAE) else None,
        )
        if not model.has_bound:  # the zeros in the rate's place are none
            result.rate = result.rate_bits = result.negative_elbo = result.negative_elbo_error = None
            result.bits_per_dim, result.bits_per_latent = None, []
        if nll_samples:
            limit = count if nll_images is None else min(nll_images, count)
            nll, ess = importance_nll(model, batches(), nll_samples, limit, seed, chunk, progress)
            result.nll, result.nll_error = nll.mean().item(), standard_error(nll)
            result.nll_samples, result.nll_images, result.ess = nll_samples, limit, ess.mean().item()
            result.nll_bits_per_dim = None if per_value is None else result.nll * per_value
        return result


@torch.no_grad()
def shuffled_distortion(model: LatentVariableModel, batches: Iterable[Batch], codes: Latents) -> Tensor:
    """-log p(x_i | z_(i-1)) in nats, [N]: each image decoded with the code of the image before it in the data set.

    Far above the distortion where z is used; equal to it where the decoder ignores z.
    """
    shuffled, start, result = each(lambda z: z.roll(1, dims=0), codes), 0, []
    for x, _, context in map(parts, batches):
        z = some(shuffled, start, start + len(x))
        result.append(-model.decode(z, **given(context)).log_prob(x).double().cpu())
        start += len(x)
    return torch.cat(result)


@torch.no_grad()
def importance_nll(
    model: LatentVariableModel,
    batches: Iterable[Batch],
    samples: int,
    images: int,
    seed: int = 0,
    chunk: int = 128,
    progress: Callable[[str, int], None] = lambda stage, images: None,
) -> tuple[Tensor, Tensor]:
    """-log p(x) by importance sampling on the first `images` images: nats and effective sample sizes, [images] each."""
    values: list[Tensor] = []
    sizes: list[Tensor] = []
    remaining = images
    for x, positions, context in map(parts, batches):
        # Few images at a time: all their noise is drawn at once.
        for start in range(0, min(len(x), remaining), 16):
            few = slice(start, min(start + 16, remaining))
            part, keys, told = x[few], list(positions)[few], None if context is None else context[few]
            estimate = LogMeanExp()
            for weights in model.log_weights(part, samples, keyed_generators(keys, seed, stream=1), chunk, told):
                estimate.add(weights)
            values.append(-estimate.value)
            sizes.append(estimate.effective_samples)
            progress("nll", len(part))
        remaining -= len(x)
        if remaining <= 0:
            break
    return torch.cat(values), torch.cat(sizes)


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of [N] values; 0 for a single one."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else 0.0
