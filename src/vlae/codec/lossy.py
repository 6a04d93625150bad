"""Lossy coding: only z is kept, in bins of a chosen width, coded under the prior; decoding makes new texture."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vlae.codec.bitsback import (
    BOTTOM_BITS,
    SHIFT_TABLE,
    CoderKind,
    Levels,
    ModelCoder,
    by_lanes,
    check_bottom,
    contents,
    cost,
    repeated,
    restacked,
    stacks,
)
from vlae.codec.rounding import BINS, Bins, Float, Int
from vlae.distributions.likelihoods import Factorised
from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel

Texture = Literal["sample", "greedy", "mean"]
SAMPLES_OF_MEAN = 16


class Lossy:
    """Encodes the latents of blocks of images, all blocks at once: z = the posterior's mean, rounded to bins.

    Args:
        model: with a z and a prior with conditionals.
        step: width of the bins; about a posterior's standard deviation keeps what the model itself knows of z.
        coder: "auto", "numpy" or "constriction": the bytes are the same.
    """

    def __init__(self, model: LatentVariableModel, step: float, coder: CoderKind = "auto"):
        if not 1e-30 <= step <= 1e30:  # beyond, numbers overflow
            raise VlaeError(f"the step of lossy coding, the width of the bins of z, must be positive; got {step}")
        self.model, self.bins, self.kind = ModelCoder(model), Bins(float(step)), coder
        if not self.model.dimensions:
            raise VlaeError("lossy coding keeps z alone, and this model has none")

    def quantise(self, levels: Levels) -> Int:
        """The bins of z of images uint8 [n, C, H, W], [n, D]."""
        mean = self.model.posterior(levels)[0]
        try:
            return self.bins.nearest(mean)
        except VlaeError as error:
            if not np.isfinite(mean).all():
                raise
            raise VlaeError(f"{error}: take a larger --lossy_step") from None

    def bits(self, levels: Levels) -> Float:
        """What each image's z takes, in bits, [n], without writing it."""
        return bits_of(self.model, self.quantise(levels), self.bins)

    def encode(self, blocks: Sequence[Levels], seeds: Sequence[int]) -> list[bytes]:
        """Blocks of levels uint8 [n, C, H, W], n >= 1 each, to bytes; `seeds` go into their checksums."""
        return by_lanes(self.model, self._encode, blocks, seeds)

    def _encode(self, blocks: Sequence[Levels], seeds: Sequence[int]) -> list[bytes]:
        lanes, sizes = len(blocks), np.array([len(block) for block in blocks])
        latents = [self.quantise(block) for block in blocks]
        coder = stacks(self.kind, list(map(checksum, latents, seeds)))
        for number in range(sizes.max()):
            active = number < sizes
            z = np.stack([block[min(number, len(block) - 1)] for block in latents])
            digits, tables, shifts = self.model.prior_tables(z, self.bins)
            coder.push(digits, tables, active)
            coder.push(shifts[:, None], repeated(SHIFT_TABLE, lanes), active)
        return contents(coder)

    def decode(self, contents: Sequence[bytes], sizes: Sequence[int], seeds: Sequence[int]) -> list[Int]:
        """The bins of z of each block, [n, D].

        Raises:
            VlaeError: a block is damaged.
        """
        return by_lanes(self.model, self._decode, contents, sizes, seeds)

    def _decode(self, contents: Sequence[bytes], sizes: Sequence[int], seeds: Sequence[int]) -> list[Int]:
        lanes, counts = len(contents), np.array(sizes)
        coder = restacked(self.kind, contents)
        blocks = [np.zeros((size, self.model.dimensions), np.int64) for size in sizes]
        for number in reversed(range(counts.max())):
            active = number < counts
            shifts = coder.pop(repeated(SHIFT_TABLE, lanes), active)[:, 0]
            z = self.model.pop_prior(coder, self.bins, shifts, active)
            for lane in np.flatnonzero(active):
                blocks[lane][number] = z[lane]
            # Nothing is popped from below the bottom, however many images are promised.
            if (coder.bits() < BOTTOM_BITS).any():
                raise VlaeError("a block ends before its images do: the file is damaged")
        check_bottom(coder, list(map(checksum, blocks, seeds)))
        return blocks

    @torch.no_grad()
    def images(self, bins: Int, numbers: Sequence[int], texture: Texture = "sample", seed: int = 0) -> Tensor:
        """Images [n, C, H, W] in [0, 1] for latents [n, D].

        Args:
            bins: of z.
            numbers: of the images, for their noise, which does not depend on the images beside them.
            texture: "sample" draws it, "greedy" takes each pixel's likeliest value, "mean" the expected image (of an
                autoregressive decoder the average of 16 samples).
            seed: of the noise.
        """
        p = self.model.model.decode(self.model.latents(self.bins, bins))
        if texture == "greedy":
            return p.mode
        if texture == "mean" and isinstance(p, Factorised):
            return p.mean
        generators = [torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63) for number in numbers]
        count = SAMPLES_OF_MEAN if texture == "mean" else 1
        return sum(p.sample(generator=generators) for _ in range(count)).clamp(0, count) / count  # type: ignore[union-attr]


def checksum(z: Int, seed: int) -> bytes:
    """CRC-32 of a block's bins, 4 bytes; the seed says which block of which file it is."""
    return zlib.crc32(np.ascontiguousarray(z, "<i8").tobytes(), seed).to_bytes(4, "little")


def bits_of(model: ModelCoder, z: Int, bins: Bins) -> Float:
    """What z [n, D] takes under the prior, in bits, [n]."""

    def bits(z: Int) -> Float:
        digits, tables, _ = model.prior_tables(z, bins)
        return cost(digits, tables)

    return np.array(by_lanes(model, bits, z))


def step_for(model: LatentVariableModel, levels: Levels, bits: float) -> float:
    """The step at which images uint8 [n, C, H, W] take `bits` bits each on average, by bisection.

    Raises:
        VlaeError: no step between 1/64 and 64 gives that rate.
    """
    coder = Lossy(model, 1.0).model  # which refuses models that have no z
    mean = coder.posterior(levels)[0]

    def rate(step: float) -> float:
        return float(bits_of(coder, Bins(step).nearest(mean), Bins(step)).mean())

    least, most = (
        max(2.0**-6, float(np.abs(mean).max()) / (BINS // 2 - 1)),
        2.0**6,
    )  # the bins must reach the furthest z
    rates = [rate(step) for step in (most, least)]
    if not rates[0] <= bits <= rates[1]:
        raise VlaeError(f"{bits:g} bits an image can't be had: between {rates[0]:.1f} and {rates[1]:.1f} can")
    for _ in range(12):
        middle = (least * most) ** 0.5
        least, most = (middle, most) if rate(middle) > bits else (least, middle)
    return most
