"""Bounds over a data set, in nats: the ELBO's terms, and whether z is used; with the NLL of `likelihood`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlae import processes
from vlae.errors import VlaeError
from vlae.evaluation.information import BITS, LatentStatistics, noise_means
from vlae.evaluation.likelihood import Likelihoods, likelihoods, nll_rows, sample_counts
from vlae.evaluation.passes import Batch, bits_per_value, keyed_generators, parts, standard_error
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.ladder import LadderBound
from vlae.models.latents import Latents, each, joined, some
from vlae.models.vqvae import VQVAE


@dataclass
class Evaluation:
    """What `evaluate` measures. Nats per image, means over the data set, with standard errors where named.

    Attributes:
        images: how many were evaluated.
        distortion, rate: the two terms; `rate_bits` the rate in bits. The rate, and all that follows from it, is None
            where z has no density (`has_bound` is False).
        negative_elbo: distortion + rate; `negative_elbo_error` its standard error.
        shuffled_gap: nats lost in distortion where each image is decoded with another image's z; NaN of one image,
            and without a code.
        active_units: latent dimensions in use; None where they hold discrete codes or are none, and of one image.
            `latent_dim` of how many.
        bits_per_latent: mean rate of each latent dimension, bits.
        bits_per_dim: -ELBO in bits per sub-pixel; None for densities, which would need dequantised data.
        nll: importance-weighted -log p(x) at `nll_samples` samples; `nll_error` its standard error, `ess` the mean
            effective sample size. None where not asked for. `nll_images` says on how many images, of a fixed order.
        negative_elbos: -ELBO of every image with one z, [images], float64; no part of `to_dict`.
        nll_of_all: of some of the images, the NLL of all by difference, and its error: see `Likelihoods.of_all`.
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
    nll_of_all: float | None = None
    nll_of_all_error: float | None = None
    ess: float | None = None
    negative_elbos: Tensor | None = field(default=None, repr=False, compare=False)
    nll_by_samples: list[dict[str, Any]] = field(default_factory=list)
    rate_per_level: list[float] = field(default_factory=list)
    perplexity: float | None = None
    codes_in_use: int | None = None
    codes: int | None = None

    def add_nll(self, measured: Likelihoods, rows: list[dict[str, Any]]) -> None:
        """Enters what importance sampling gave; the rows are those of `nll_rows`."""
        self.nll_by_samples, most = rows, rows[-1]
        self.nll, self.nll_error, self.nll_samples = most["nll"], most["error"], most["samples"]
        self.nll_images = len(measured.positions)
        self.nll_bits_per_dim, self.ess = most["bits_per_dim"], most["ess"]
        if self.nll_images < self.images and self.negative_elbos is not None:
            self.nll_of_all, self.nll_of_all_error = measured.of_all(self.negative_elbos) or (None, None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "negative_elbos"}


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
        nll_images: NLL on so many images only, the first of `fixed_order`; None for all.
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
            negative_elbo_error=standard_error(total) if count > 1 else None,
            negative_elbos=total,
            shuffled_gap=(shuffled - distortion).mean().item() if count > 1 and model.latent_size else math.nan,
            active_units=statistics.active_units if model.latent_size else None,
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
            result.negative_elbos = None
            result.bits_per_dim, result.bits_per_latent = None, []
        if several:
            measured_nll = likelihoods(model, batches, several, nll_images, seed, chunk, progress)
            result.add_nll(measured_nll, nll_rows(measured_nll, per_value))
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
