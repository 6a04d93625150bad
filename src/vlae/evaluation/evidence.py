"""What `doctor` measures besides the metrics of `eval`: signs of what is wrong with a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from vlae.distributions.posteriors import DiagonalGaussian, rate_per_dimension
from vlae.errors import VlaeError
from vlae.evaluation.aggregate import pair_log_densities
from vlae.evaluation.passes import Batch, first_images, keyed_generators, parts, standard_error
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.latents import Latents, each, joined, some

STEP = 0.1  # of log sigma: in its differences, the curvature is 1% of the slope and cancels to first order
STREAM = 3  # of the noise; the bound, the importance weights and the mutual information have others
PAIRS = 2**15  # densities at a time: memory, not the result


@dataclass(frozen=True)
class Exchange:
    """How many nats of distortion one more nat of rate would save, and the standard error over images."""

    value: float
    error: float

    @property
    def is_finite(self) -> bool:
        """Whether both are numbers."""
        return math.isfinite(self.value) and math.isfinite(self.error)


@torch.no_grad()
def marginal_exchange(
    model: LatentVariableModel, batches: Callable[[], Iterable[Batch]], seed: int = 0
) -> Exchange | None:
    r"""-dD/dR, the slope of the rate-distortion curve, along the posterior's noise.

    Along the curve of the best distortion D at each rate R, the slope -dD/dR is the beta whose D + beta R that point
    minimises (Alemi et al. 2018, "Fixing a Broken ELBO", arXiv 1711.00464). Here the deviations of q(z|x)
    are all multiplied by one factor near 1, and the decoder stays as it is:

    .. math:: -\frac{dD}{d \log s} \Big/ \frac{dR}{d \log s}, \quad q_s(z|x) = N(\mu(x), s^2 \sigma^2(x)), \quad s = 1

    The encoder sets sigma, so at the minimum of distortion + beta * rate, the derivative of that sum is 0 and this is
    beta: 1 where the bound itself was maximised. Above 1, -ELBO would fall if the code were allowed more rate; below
    it, the code carries more than it is worth. By central differences with the same noise on both sides.

    Args:
        model: used in eval mode; left in the mode it was in.
        batches: gives a pass over the data, as of `evaluate`.
        seed: of the noise, which is keyed by image.

    Returns:
        None where the posterior is no diagonal Gaussian, or z has no dimensions. Infinite or NaN where the noise has no
        rate at all.
    """
    changes: list[Tensor] = []
    with model.evaluating():
        for x, positions, context in map(parts, batches()):
            told = given(model.check_context(context, len(x)))
            q = model.encode(x, **told)
            if not isinstance(q, DiagonalGaussian) or not model.latent_size:
                return None
            prior, sides = model.prior(**told), []
            for step in (-STEP, STEP):
                other = DiagonalGaussian(q.mean, q.log_stddev + step)
                z = other.rsample(generator=keyed_generators(positions, seed, STREAM))
                distortion = -model.decode(z, **told).log_prob(x).double().cpu()
                rate = rate_per_dimension(other, prior, z).flatten(1).sum(1).double().cpu()
                sides.append(torch.stack([distortion, rate], 1))
            changes.append(sides[1] - sides[0])
    if not changes:
        raise VlaeError("the data set is empty: there is nothing to measure")
    distortion, rate = torch.cat(changes).unbind(1)
    value = -distortion.mean() / rate.mean()
    # Of a ratio of means, by the delta method; both are infinite or NaN where the noise has no rate at all.
    error = torch.tensor(standard_error(distortion + value * rate)) / rate.mean().abs()
    return Exchange(value.item(), error.item())


@dataclass(frozen=True)
class Outside:
    """How many draws from the prior lie where no codes are.

    Attributes:
        share: of the prior's draws whose density under the aggregated posterior is below the quantile of the codes'.
        expected: that quantile, the share where prior and aggregated posterior are the same.
        gap: how much lower the median log density of the prior's draws is than that of the codes, nats; of the draws
            that are finite, and NaN where none is.
        draws: how many there were.
        broken: how many of them are not finite numbers; they count as outside.
    """

    share: float
    expected: float
    gap: float
    draws: int
    broken: int


@torch.no_grad()
def prior_outside(
    model: LatentVariableModel,
    batches: Callable[[], Iterable[Batch]],
    images: int = 1000,
    quantile: float = 0.05,
    seed: int = 0,
) -> Outside:
    """Compares draws from the prior with codes of held-out images, by their density under the codes of other images.

    One half of the images makes q(z) = 1/N sum_j q(z|x_j); codes z ~ q(z|x) of the other half, and as many draws
    z ~ p(z), are measured by it. It is a coarse estimate where the rate is far above log N, but the same for both, so
    that the comparison is fair: were p(z) what the codes of all images are distributed like, both would score alike.
    The halves are drawn, as images may be sorted by what is on them.

    Args:
        model: used in eval mode, with a density of continuous z; left in the mode it was in.
        batches: gives a pass over the data, as of `evaluate`.
        images: how many are used, the first ones; all of them are kept in memory.
        quantile: of the held-out codes' log densities, below which a draw counts as outside.
        seed: of all noise, and of the halves.
    """
    pieces = list(first_images(batches(), images))
    sizes = [len(x) for x, _, _ in pieces]
    total, half = sum(sizes), sum(sizes) // 2
    if half < 2:
        raise VlaeError(f"codes are compared with those of other images: give 4 images or more; got {total}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(total, generator=generator) < half
    posteriors: list[Any] = []
    codes: list[Latents] = []
    contexts: list[Tensor] = []
    with model.evaluating():
        for (x, positions, context), reference in zip(pieces, chosen.split(sizes), strict=True):
            context = model.check_context(context, len(x))
            for others, rows in ((False, reference), (True, ~reference)):
                if not rows.any():
                    continue
                part = None if context is None else context[rows.to(context.device)]
                q = model.encode(x[rows.to(x.device)], **given(part))
                if not others:
                    posteriors.append(q)
                    continue
                own = compress(positions, rows.tolist())
                codes.append(q.rsample(generator=keyed_generators(own, seed, STREAM)))
                contexts += [] if part is None else [part]
        prior = model.prior(**given(torch.cat(contexts) if contexts else None))
        drawn = prior.sample((total - half,), generator=generator)
        whole = _finite_rows(drawn)
        real = _aggregated(posteriors, joined(codes), total - half)
        made = torch.full_like(real, torch.nan)
        made[whole] = _aggregated(posteriors, each(lambda z: z[whole.to(z.device)], drawn), int(whole.sum()))
    outside = (~(made >= real.nanquantile(quantile))).double().mean().item()
    gap = (real.nanmedian() - made.nanmedian()).item()
    return Outside(outside, quantile, gap, total - half, int((~whole).sum()))


def _finite_rows(z: Latents) -> Tensor:
    """Which codes are finite numbers throughout, [N] on the CPU."""
    levels = z if isinstance(z, tuple) else (z,)
    return torch.stack([level.flatten(1).isfinite().all(1).cpu() for level in levels]).all(0)


def _aggregated(posteriors: Iterable[Any], z: Latents, count: int) -> Tensor:
    """log sum_j q(z_i|x_j) over all images j of the posteriors, in nats, float64 [count]."""
    result = torch.full((count,), -torch.inf, dtype=torch.float64)
    for q in posteriors:
        densities, step = pair_log_densities(q), max(1, PAIRS // q.batch_shape[0])
        for start in range(0, count, step):
            rows = slice(start, start + step)
            pairs = densities(some(z, start, start + step)).double().cpu()
            result[rows] = torch.logaddexp(result[rows], pairs.logsumexp(1))
    return result


@dataclass(frozen=True)
class Periodic:
    """What images have of one period.

    Attributes:
        period: in pixels.
        peak: their energy at the frequencies of that period, divided by the energy at the frequencies next to them.
        amplitude: root mean square of what is above those neighbours, in the images' units.
    """

    period: int
    peak: float
    amplitude: float


def periodic_energy(images: Tensor, period: int) -> Periodic | None:
    """Energy of images [N, C, H, W] at a period, by the mean of their squared Fourier transforms.

    A decoder that doubles the resolution by strided convolutions may leave a checkerboard of its stride (Odena et al.
    2016): a peak at the frequencies that are multiples of 1/period, in either direction or both. Those of half the
    period are left out, since they are measured by themselves. The spectrum of images without such a pattern is smooth
    there. A frequency on an axis is compared with its neighbours on that axis, where upright edges have their energy.

    Returns:
        None where the images are smaller than four periods: neighbouring frequencies would be those of content.

    Example:
        >>> board = (torch.arange(8)[:, None] + torch.arange(8)) % 2  # 0 and 1, half a unit around the mean
        >>> periodic_energy(board[None, None].float(), 2).amplitude
        0.5
    """
    if period < 2:
        raise VlaeError(f"a period is 2 pixels or more; got {period}")
    height, width = (side - side % period for side in images.shape[2:])
    if min(height, width) < 4 * period:
        return None
    spectrum = torch.fft.fft2(images[..., :height, :width].double()).abs().square().mean((0, 1))
    spectrum = spectrum / (height * width) ** 2  # sums to the mean square, by Parseval
    found = around = 0.0
    for a in range(period):
        for b in range(period):
            if (period % 2 == 0 and a % 2 == 0 and b % 2 == 0) or a == b == 0:
                continue
            u, v = a * height // period, b * width // period
            near = [spectrum[(u + s) % height, v] for s in (-1, 1) if u]
            near += [spectrum[u, (v + s) % width] for s in (-1, 1) if v]
            found += spectrum[u, v].item()
            around += torch.stack(near).mean().item()
    # Where there is nothing at all, 0 / 0, there is no peak.
    peak = found / around if around > 0 else float("inf") if found > 0 else 1.0
    return Periodic(period, peak, max(found - around, 0.0) ** 0.5)
