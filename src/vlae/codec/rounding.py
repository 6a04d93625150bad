"""From a model's floating-point numbers to integer tables that every machine computes alike.

Encoder and decoder compute the same parameters in different ways: one parallel pass there, a wavefront here, in another
batch, by other kernels. They differ in the last bits. So every parameter is rounded to a grid, and the encoder sees to
it that none lies within `GUARD` of a boundary between two grid points, by shifting the grid until that is so: whatever
the decoder's error, as long as it is under `GUARD`, it rounds alike. Errors can't build up, because what a decoder
feeds back into its networks are decoded symbols, which are exact. Which shift was taken is coded with the image.

From the rounded parameters on, there are only integers, and floating-point additions and multiplications, which IEEE
754 defines to the last bit; exponentials and the normal distribution come from tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlae.codec.ans import TOTAL
from vlae.errors import VlaeError

Float = NDArray[np.float64]
Int = NDArray[np.int64]
# Means, log-scales and (mixtures) log-weights of normals, each [lanes, D, K].
Parameters = tuple[Float, Float, Float | None]

GUARD = 1e-9  # in units of the parameters; float64 networks agree to about 1e-13
SHIFTS = np.array([((25 * r + 32) % 64 - 32) / 64 for r in range(16)])  # of the grid, in steps; the first is 0
LOG_STEP = 1 / 64  # of log-masses: costs about 1e-5 nats a symbol
MEAN_STEP = 1 / 256  # of means of z
SCALE_STEP = 1 / 32  # of the logarithms of their standard deviations
LOG_LEAST = -21.5  # exp of it times WEIGHT is under 1/2: no weight is left
WEIGHT = 2**30  # of the likeliest symbol


# -- guarded rounding -------------------------------------------------------------------------------------------------


def choose_shifts(*groups: tuple[Float, float]) -> Int:
    """For each lane the first shift at which all its parameters are safe, an index into `SHIFTS`, [lanes].

    Args:
        groups: parameters [lanes, ...] and the step of their grid.

    Raises:
        VlaeError: parameters are not finite, or no shift is safe.
    """
    lanes = len(groups[0][0])
    chosen, left = np.full(lanes, -1), np.arange(lanes)
    for shift in range(len(SHIFTS)):
        safe = np.ones(len(left), bool)
        for values, step in groups:
            scaled = values[left].reshape(len(left), -1) / step + SHIFTS[shift]
            if not np.isfinite(scaled).all():
                raise VlaeError("the model's parameters are not finite on these images: it can't code them")
            scaled -= np.floor(scaled)
            safe &= (np.abs(scaled - 0.5) > GUARD / step).all(1)
        chosen[left[safe]] = shift
        left = left[~safe]
        if not len(left):
            return chosen
    raise VlaeError(f"no grid keeps the parameters of an image {GUARD} away from its boundaries: use smaller images")


def rounded(values: Float, step: float, shifts: Int) -> Int:
    """Parameters [lanes, ...] as grid points, with each lane's shift."""
    shift = SHIFTS[shifts].reshape(-1, *[1] * (values.ndim - 1))
    # A damaged file may lead to latents at which a network overflows: its checksum fails in the end, not its decoding.
    return np.rint(np.clip(np.nan_to_num(values / step + shift), -(2.0**40), 2.0**40)).astype(np.int64)


def bounded(log_masses: Float) -> Float:
    """Log-masses cut off where no weight is left, so that -inf is as good as any."""
    return np.maximum(log_masses, LOG_LEAST)


# -- tables -----------------------------------------------------------------------------------------------------------


@lru_cache
def _exponentials() -> Int:
    """WEIGHT exp(-k LOG_STEP), rounded, for k = 0, 1, ... until nothing is left."""
    count = math.ceil(-LOG_LEAST / LOG_STEP) + 2  # the grid may be shifted by a half
    with localcontext() as context:
        context.prec = 40
        return np.array([round(WEIGHT * (Decimal(-k) * Decimal(LOG_STEP)).exp()) for k in range(count)], np.int64)


CELLS = 128  # entries of the normal distribution's table per standard deviation
FAR = 7  # standard deviations, beyond which nothing is left
UNIT = 2**38  # weights times TOTAL must stay under 2**63


@lru_cache
def _normal() -> Float:
    """UNIT Phi(i / CELLS), rounded, for i = -FAR CELLS .. FAR CELLS: integers, kept as floats.

    From the series of the error function in decimal arithmetic: a library's last bit could differ between machines.
    """
    upper = []
    with localcontext() as context:
        context.prec = 60
        root = (
            2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
        ).sqrt()
        for i in range(1, FAR * CELLS):
            x = Decimal(i) / CELLS
            term, total, n = x, x, 0
            while abs(term) > Decimal("1e-30"):  # phi's series, integrated: sum (-1)^n x^(2n+1) / (2^n n! (2n+1))
                n += 1
                term *= -x * x / (2 * n)
                total += term / (2 * n + 1)
            upper.append(round(UNIT * (Decimal("0.5") + total / root)))
    upper.append(UNIT)  # all the mass is inside
    return np.array([*(UNIT - value for value in reversed(upper)), UNIT // 2, *upper], np.float64)


SCALES = 512  # log-scales of up to so many steps: exp(16)


@lru_cache
def _inverse_scales() -> Float:
    """exp(-k SCALE_STEP) for k = -SCALES .. SCALES."""
    with localcontext() as context:
        context.prec = 40
        return np.array([float((Decimal(-k) * Decimal(SCALE_STEP)).exp()) for k in range(-SCALES, SCALES + 1)])


def normal_cdf(x: Float) -> Int:
    """UNIT Phi(x) as integers, from the table, linear in between: monotone, and the same on every machine."""
    place = np.clip(x, -FAR, FAR) * CELLS + FAR * CELLS
    table = _normal()
    cell = np.minimum(place.astype(np.int64), len(table) - 2)
    below = table[cell]
    return np.floor(below + (place - cell) * (table[cell + 1] - below)).astype(np.int64)


def frequencies(weights: Int, least: int) -> Int:
    """Integer weights [..., N] to frequencies that sum to `TOTAL`, each at least `least` (0 or 1).

    Rows without any weight become uniform. What the division leaves over goes to the heaviest symbol.
    """
    size = weights.shape[-1]
    total = weights.sum(-1, keepdims=True)
    if not total.all():
        weights = np.where(total == 0, 1, weights)
        total = np.where(total == 0, size, total)
    freqs = weights * (TOTAL - size * least) // total + least
    rest = TOTAL - freqs.sum(-1, keepdims=True)
    heaviest = weights.argmax(-1)[..., None]
    np.put_along_axis(freqs, heaviest, np.take_along_axis(freqs, heaviest, -1) + rest, -1)
    return freqs


def level_frequencies(log_masses: Float, shifts: Int) -> Int:
    """Log-masses of the levels [lanes, ..., N] to their table; every level can be coded."""
    exponent = np.clip(-rounded(bounded(log_masses), LOG_STEP, shifts), 0, len(_exponentials()) - 1)
    return frequencies(_exponentials()[exponent], least=1)


# -- a latent dimension -----------------------------------------------------------------------------------------------

DIGIT = 64  # a bin's number is two digits of this base
BINS = DIGIT * DIGIT


@dataclass(frozen=True)
class Normals:
    """A normal distribution for each of some latent numbers, or a mixture of K, as grid points.

    Attributes:
        mean: [..., K], in steps of MEAN_STEP.
        scale: logarithms of the standard deviations, [..., K], in steps of SCALE_STEP.
        weights: of the components, integers that sum to TOTAL, [..., K]; None for a single one.
    """

    mean: Int
    scale: Int
    weights: Int | None = None

    @classmethod
    def of(cls, parameters: Parameters, shifts: Int) -> Normals:
        """Rounds parameters [lanes, ..., K] with each lane's shift (see `shifts_of`)."""
        mean, scale, log_weights = parameters
        grid = rounded(mean, MEAN_STEP, shifts), rounded(scale, SCALE_STEP, shifts)
        if log_weights is None:
            return cls(*grid)
        exponent = np.clip(-rounded(bounded(log_weights), LOG_STEP, shifts), 0, len(_exponentials()) - 1)
        return cls(*grid, frequencies(_exponentials()[exponent], least=0))

    def __getitem__(self, sites: slice) -> Normals:
        """Those of some latent dimensions: of arrays [lanes, D, K], [lanes, sites, K]."""
        weights = None if self.weights is None else self.weights[:, sites]
        return Normals(self.mean[:, sites], self.scale[:, sites], weights)

    def mixed(self, masses: Int) -> Int:
        """The masses of components [..., K, N], at most UNIT each, as those of the mixture [..., N]."""
        if self.weights is None:
            return masses[..., 0, :]
        return (masses * self.weights[..., None]).sum(-2) // TOTAL


def shifts_of(parameters: Parameters) -> Int:
    """The shift of each lane's grid at which all its parameters are safe, [lanes]."""
    mean, scale, log_weights = parameters
    weights = [] if log_weights is None else [(bounded(log_weights), LOG_STEP)]
    return choose_shifts((mean, MEAN_STEP), (scale, SCALE_STEP), *weights)


class Bins:
    """Bins of equal width around 0, the values of a coded latent dimension: bin k is the value (k - BINS / 2) width.

    A bin is coded as two digits, so that tables stay small.
    """

    def __init__(self, width: float):
        self.width = width

    def nearest(self, z: Float) -> Int:
        """The bins nearest to z, of the same shape.

        Raises:
            VlaeError: z is out of their range.
        """
        bins = np.rint(z / self.width) + BINS // 2
        if not ((bins >= 0) & (bins < BINS)).all():
            reach = BINS // 2 * self.width
            raise VlaeError(f"latents of up to {np.abs(z).max():.4g} are out of the codec's range, {reach:g}")
        return bins.astype(np.int64)

    def values(self, bins: Int) -> Float:
        """The middles of the bins."""
        return (bins - BINS // 2).astype(np.float64) * self.width

    def first(self, normal: Normals, least: int) -> Int:
        """Tables of the first digit, [..., DIGIT]."""
        return self._table(np.zeros(normal.mean.shape[:-1], np.int64), DIGIT, normal, least)

    def second(self, first: Int, normal: Normals, least: int) -> Int:
        """Tables of the second digit, given the first."""
        return self._table(first * DIGIT, 1, normal, least)

    def _table(self, start: Int, span: int, normal: Normals, least: int) -> Int:
        edges = (start[..., None] + span * np.arange(DIGIT + 1) - (BINS // 2 + 0.5)) * self.width
        inverse = _inverse_scales()[np.clip(normal.scale, -SCALES, SCALES) + SCALES]
        below = normal_cdf((edges[..., None, :] - (normal.mean * MEAN_STEP)[..., None]) * inverse[..., None])
        return frequencies(normal.mixed(np.diff(below, axis=-1)), least)
