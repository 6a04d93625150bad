"""Bits-back coding: lossless coding at the rate of the bound.

An image costs log q(z|x) - log p(x|z) - log p(z) (Townsend et al. 2019, arXiv 1901.04866): z is *popped* from the bits
already written, under q(z|x), which gives -log q bits back; then x is pushed under p(x|z) and z under p(z). So images
are chained in blocks. The first images of a block, before there are enough bits to pop a z from, are coded in two
parts: a z chosen by the encoder, in coarser bins, and x given z.

A coder works on many blocks at once, a lane each; images of different blocks are coded together, so that the networks
see batches. Encoding an image takes one pass of each network; decoding scans prior and pixels.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Normal

from vlae.codec import rounding
from vlae.codec.ans import PRECISION, Coder, make_coder
from vlae.codec.rounding import LOG_STEP, Bins, Float, Int, Normals
from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.latent import Prior
from vlae.distributions.likelihoods import Factorised
from vlae.distributions.mixtures import NormalMixture
from vlae.distributions.posteriors import DiagonalGaussian
from vlae.distributions.scan import Dimensions, Pixels
from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel

Bool = NDArray[np.bool_]
Levels = NDArray[np.uint8]
CoderKind = Literal["auto", "numpy", "constriction"]

WIDTH = 1 / 16  # of the bins of z in bits-back coding: narrow beside a posterior
COARSE = (0.5, 1.0, 2.0)  # widths of the bins of z that is coded in two parts
STARTS = 16  # at most so many images of a block in two parts
LARGEST = 2**25  # entries of the tables held at a time


def geometric(size: int, ratio: float) -> Int:
    """A table whose first symbol is likely and each further one `ratio` times as likely as the one before, [size]."""
    return rounding.frequencies(np.array([max(1, round(2**30 * ratio**k)) for k in range(size)], np.int64), least=1)


SHIFT_TABLE = geometric(len(rounding.SHIFTS), 1 / 4096)
START_TABLE = geometric(STARTS, 1 / 2)
COARSE_TABLE = geometric(len(COARSE), 1 / 2)


BOTTOM = b"\x01\0\0\0"  # above the checksum, so that a stack's last word is not zero
BOTTOM_BITS = 32  # the checksum's


def stacks(kind: CoderKind, checksums: Sequence[bytes]) -> Coder:
    """A lane for each block, with the block's checksum at the bottom."""
    return make_coder(kind, [check + BOTTOM for check in checksums])


def contents(coder: Coder) -> list[bytes]:
    """What is on each lane, without the zero bytes at the end."""
    return [coder.get(lane).rstrip(b"\0") for lane in range(coder.lanes)]


def restacked(kind: CoderKind, contents: Sequence[bytes]) -> Coder:
    """The reverse of `contents`."""
    return make_coder(kind, [content + bytes(-len(content) % 4) for content in contents])


def check_bottom(coder: Coder, checksums: Sequence[bytes]) -> None:
    """Refuses stacks that hold anything but their block's checksum."""
    for lane, check in enumerate(checksums):
        if coder.get(lane) != check + BOTTOM:
            raise VlaeError(f"block {lane} of those decoded does not match its checksum: the file is damaged")


def repeated(table: Int, lanes: int, count: int = 1) -> Int:
    """One table [N] for `count` symbols on each lane, [lanes, count, N]."""
    return np.broadcast_to(table, (lanes, count, len(table)))


def normals_of(conditional: Distribution) -> rounding.Parameters:
    """The parameters of normals, or of mixtures of K, in double precision, each [lanes, D, K]."""
    if isinstance(conditional, Normal):
        one = conditional.loc.flatten(1)[..., None], conditional.scale.log().flatten(1)[..., None]
        return one[0].cpu().numpy(), one[1].cpu().numpy(), None
    if isinstance(conditional, NormalMixture):
        parameters = conditional.means, conditional.log_scales, conditional.log_weights
        mean, scale, log_weights = (each.flatten(1, -2).cpu().numpy() for each in parameters)
        return mean, scale, log_weights
    raise VlaeError(
        f"the codec codes z_i given z_<i where that is normal, or a mixture; got {type(conditional).__name__}"
    )


class ModelCoder:
    """Pushes and pops images and latents of a model, in float64, on lanes of a `Coder`.

    Arrays of levels are uint8 [lanes, C, H, W], latents are bins [lanes, D], those of maps in the order of memory.
    `active` lanes alone are coded; the networks run over all of them.

    Raises:
        VlaeError: a model that can't be coded: a density, a hierarchy of codes, a prior without conditionals.
    """

    def __init__(self, model: LatentVariableModel):
        if model.likelihood.levels is None:
            raise VlaeError(
                f"a {type(model.likelihood).__name__} likelihood is a density and can't code pixels: "
                "train with likelihood bernoulli, categorical or logistic_mixture"
            )
        if model.likelihood.levels > 256 or model.image_shape[0] not in (1, 3):
            raise VlaeError(
                "the codec takes models of 2 to 256 levels and of 1 or 3 image channels; "
                f"this one has {model.likelihood.levels} levels and {model.image_shape[0]} channels"
            )
        if getattr(model.likelihood, "channel_means", False):
            raise VlaeError("the codec can't code a logistic mixture with channel_means: train without")
        if model.condition is not None:
            raise VlaeError("the codec does not code under a conditional model, whose context the file does not hold")
        if any(isinstance(size, tuple) for size in model.latent_shape):
            raise VlaeError(
                f"the codec needs one latent code; this model has {len(model.latent_shape)}, one above the other"
            )
        self.model = copy.deepcopy(model).double().eval()
        self.levels: int = model.likelihood.levels
        self.shape, self.latent_shape = tuple(model.image_shape), tuple(model.latent_shape)
        self.dimensions = math.prod(self.latent_shape)
        self.device = next(self.model.parameters(), torch.empty(0)).device
        with torch.no_grad():
            q = self.model.encode(self.images(np.zeros((1, *self.shape), np.uint8)))
            if not isinstance(q, DiagonalGaussian):
                raise VlaeError(f"the codec needs a Gaussian posterior; this model's is a {type(q).__name__}")
            self.prior: Prior = self.model.prior()
            mean, _, _ = self.conditionals(self._no_latents())
        self.components = mean.shape[-1]

    # -- between arrays and tensors -----------------------------------------------------------------------------------

    def images(self, levels: Levels) -> Tensor:
        """Levels as images in [0, 1]."""
        return torch.from_numpy(levels.astype(np.float64) / (self.levels - 1)).to(self.device)

    def latents(self, bins: Bins, z: Int) -> Tensor:
        """Bins as latents, [lanes, *latent_shape]."""
        return torch.from_numpy(bins.values(z)).to(self.device).unflatten(1, self.latent_shape)

    def _no_latents(self) -> Tensor:
        return torch.zeros(1, *self.latent_shape, dtype=torch.float64, device=self.device)

    def lanes_at_once(self) -> int:
        """How many lanes fit in memory: the largest tables are those of all sub-pixels of a batch, or all latents."""
        of_latents = self.dimensions * self.components * rounding.DIGIT
        return max(1, LARGEST // max(math.prod(self.shape) * self.levels, of_latents))

    # -- parameters ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def posterior(self, levels: Levels) -> tuple[Float, Float]:
        """Means and log standard deviations of q(z|x), [lanes, D]."""
        parts = [self.model.encode(self.images(levels[i : i + 256])) for i in range(0, len(levels), 256)]
        mean, log_stddev = torch.cat([q.mean for q in parts]), torch.cat([q.log_stddev for q in parts])
        return mean.flatten(1).cpu().numpy(), log_stddev.flatten(1).cpu().numpy()

    @torch.no_grad()
    def conditionals(self, z: Tensor) -> rounding.Parameters:
        """Means, log standard deviations and weights of p(z_i | z_<i), each [lanes, D, K]; z is [lanes, *shape]."""
        return normals_of(self.prior.conditionals(z))

    @torch.no_grad()
    def pixel_masses(self, levels: Levels, z: Tensor) -> Float:
        """Log-masses of every level of every sub-pixel given those before it, [lanes, C, H, W, levels]."""
        p: Autoregressive | Factorised = self.model.decode(z)
        pixels = p.pixels if isinstance(p, Factorised) else p.conditionals(self.images(levels))
        return pixels.log_masses.cpu().numpy()

    @cached_property
    def order(self) -> Int:
        """The positions of the sub-pixels in a flattened image, in the order in which the decoder meets them."""
        channels, height, width = self.shape
        numbers = torch.arange(channels * height * width).view(channels, height, width)
        with torch.no_grad():
            p = self.model.decode(self._no_latents())
        if isinstance(p, Factorised):
            return numbers.flatten().numpy()
        return torch.cat([values.flatten() for values in p.schedule().arrange(numbers)]).numpy()

    @cached_property
    def latent_order(self) -> Int:
        """The positions of z's values in the order of memory, in the order in which the prior's scan meets them."""
        numbers = torch.arange(self.dimensions).view(1, *self.latent_shape)
        met = [np.zeros(0, np.int64)]

        def visit(sites: Dimensions | Pixels, conditional: Distribution) -> Tensor:
            here = numbers[:, sites.index] if isinstance(sites, Dimensions) else numbers[sites.index]
            met.append(here.flatten().numpy())
            return self._no_latents().new_zeros(here.shape)

        self.prior.scan(visit, 1)
        return np.concatenate(met)

    # -- latents ------------------------------------------------------------------------------------------------------

    def pop_posterior(self, coder: Coder, mean: Float, scale: Float, active: Bool) -> tuple[Int, Int]:
        """z from q(z|x), and the grid shifts that were taken: bins [lanes, D] and shifts [lanes]."""
        parameters = mean[..., None], scale[..., None], None
        shifts = rounding.shifts_of(parameters)
        normal = Normals.of(parameters, shifts)
        bins = Bins(WIDTH)
        bins.nearest(mean[active])  # refuses latents that are out of range
        first = coder.pop(bins.first(normal, least=0), active)
        second = coder.pop(bins.second(first, normal, least=0), active)
        z = first * rounding.DIGIT + second
        z[~active] = rounding.BINS // 2  # z = 0, where the networks are safe to run
        return z, shifts

    def push_posterior(self, coder: Coder, z: Int, mean: Float, scale: Float, shifts: Int, active: Bool) -> None:
        """The reverse of `pop_posterior`."""
        normal = Normals.of((mean[..., None], scale[..., None], None), shifts)
        first, second = np.divmod(z, rounding.DIGIT)
        bins = Bins(WIDTH)
        coder.push(second, bins.second(first, normal, least=0), active)
        coder.push(first, bins.first(normal, least=0), active)

    def prior_tables(self, z: Int, bins: Bins) -> tuple[Int, Int, Int]:
        """What pushes z under the prior: digits [lanes, 2 D], their tables [lanes, 2 D, DIGIT], shifts [lanes]."""
        parameters = self.conditionals(self.latents(bins, z))
        shifts = rounding.shifts_of(parameters)
        normal = Normals.of(parameters, shifts)
        first, second = np.divmod(z, rounding.DIGIT)
        digits = np.stack([first, second], -1)[:, self.latent_order]
        tables = np.stack([bins.first(normal, least=1), bins.second(first, normal, least=1)], 2)[:, self.latent_order]
        return digits.reshape(len(z), -1), tables.reshape(len(z), -1, rounding.DIGIT), shifts

    def pop_prior(self, coder: Coder, bins: Bins, shifts: Int, active: Bool) -> Int:
        """z from the prior, in the order of its scan: bins [lanes, D]."""
        lanes = coder.lanes
        popped = [np.zeros((lanes, 0), np.int64)]  # a z of no dimensions is popped too

        def visit(sites: object, conditional: Distribution) -> Tensor:
            normal = Normals.of(normals_of(conditional), shifts)
            start = len(popped)
            for i in range(normal.mean.shape[1]):
                here = normal[i : i + 1]
                first = coder.pop(bins.first(here, least=1), active)
                popped.append(first * rounding.DIGIT + coder.pop(bins.second(first, here, least=1), active))
            values = bins.values(np.concatenate([*popped[:1], *popped[start:]], 1))
            return torch.from_numpy(values).to(self.device)

        self.prior.scan(visit, lanes)
        z = np.zeros((lanes, self.dimensions), np.int64)
        z[:, self.latent_order] = np.concatenate(popped, 1)
        return z

    # -- pixels -------------------------------------------------------------------------------------------------------

    def pixel_tables(self, levels: Levels, z: Tensor) -> tuple[Int, Int, Int]:
        """What pushes x given z: symbols [lanes, C H W] in the decoder's order, their tables, shifts [lanes]."""
        masses = rounding.bounded(self.pixel_masses(levels, z)).reshape(len(levels), -1, self.levels)
        shifts = rounding.choose_shifts((masses, LOG_STEP))
        tables = rounding.level_frequencies(masses[:, self.order], shifts)
        return levels.reshape(len(levels), -1)[:, self.order].astype(np.int64), tables, shifts

    @torch.no_grad()
    def pop_pixels(self, coder: Coder, z: Tensor, shifts: Int, active: Bool) -> Levels:
        """x given z, along the wavefront: levels [lanes, C, H, W]."""

        def pop(log_masses: Tensor) -> Int:
            return coder.pop(rounding.level_frequencies(log_masses.cpu().numpy(), shifts), active)

        p: Autoregressive | Factorised = self.model.decode(z)
        if isinstance(p, Factorised):
            symbols = pop(p.pixels.log_masses.flatten(1, 3))
            return symbols.reshape(-1, *self.shape).astype(np.uint8)

        def visit(sites: object, conditional: torch.distributions.Distribution) -> Tensor:
            return self.images(pop(conditional.log_masses))  # type: ignore[attr-defined, arg-type]

        images = p.scan(visit)
        return torch.round(images * (self.levels - 1)).to(torch.uint8).cpu().numpy()


class BitsBack:
    """Encodes and decodes blocks of images, all blocks at once.

    Args:
        model: with a discrete likelihood and a prior with conditionals.
        coder: "auto", "numpy" or "constriction": the bytes are the same.
    """

    def __init__(self, model: LatentVariableModel, coder: CoderKind = "auto"):
        self.model, self.kind = ModelCoder(model), coder

    def encode(self, blocks: Sequence[Levels], seeds: Sequence[int]) -> list[bytes]:
        """Blocks of levels uint8 [n, C, H, W], n >= 1 each, to bytes; `seeds` go into their checksums."""
        return by_lanes(self.model, self._encode, blocks, seeds)

    def decode(self, contents: Sequence[bytes], sizes: Sequence[int], seeds: Sequence[int]) -> list[Levels]:
        """The blocks again.

        Args:
            contents: of each block.
            sizes: the number of images of each block.
            seeds: the same as in `encode`.

        Raises:
            VlaeError: a block is damaged, or belongs to another model.
        """
        return by_lanes(self.model, self._decode, contents, sizes, seeds)

    # -- encoding -----------------------------------------------------------------------------------------------------

    def _encode(self, blocks: Sequence[Levels], seeds: Sequence[int]) -> list[bytes]:
        lanes, sizes = len(blocks), np.array([len(block) for block in blocks])
        coder = stacks(self.kind, list(map(checksum, blocks, seeds)))
        starting, starts = np.ones(lanes, bool), np.zeros(lanes, np.int64)
        for number in range(sizes.max()):
            active = number < sizes
            levels = np.stack([block[min(number, len(block) - 1)] for block in blocks])
            mean, scale = self.model.posterior(levels)
            # A lane starts in two parts until it holds the bits that a z takes, with some to spare.
            need = (scale / math.log(2) + math.log2(math.sqrt(2 * math.pi * math.e) / WIDTH)).clip(0).sum(1)
            starting &= (coder.bits() < 1.1 * need + 64) & (starts < STARTS - 1)
            first, then = active & starting, active & ~starting
            starts += first
            if first.any():
                self._push_in_two_parts(coder, levels, mean, first)
            if then.any():
                self._push_with_bits_back(coder, levels, mean, scale, then)
        coder.push(starts[:, None], repeated(START_TABLE, lanes))
        return contents(coder)

    def _push_with_bits_back(self, coder: Coder, levels: Levels, mean: Float, scale: Float, active: Bool) -> None:
        z, posterior_shifts = self.model.pop_posterior(coder, mean, scale, active)
        self._push_image(coder, levels, z, Bins(WIDTH), posterior_shifts, active)

    def _push_in_two_parts(self, coder: Coder, levels: Levels, mean: Float, active: Bool) -> None:
        """With the bins, of those on offer, in which each lane's image takes the fewest bits."""
        choices = []
        for width in COARSE if self.model.dimensions else COARSE[:1]:
            z = Bins(width).nearest(np.clip(mean, -100, 100))
            digits, tables, _ = self.model.prior_tables(z, Bins(width))
            symbols, pixels, _ = self.model.pixel_tables(levels, self.model.latents(Bins(width), z))
            choices.append((z, cost(digits, tables) + cost(symbols, pixels)))
        best = np.argmin([bits for _, bits in choices], 0)
        for number, (z, _) in enumerate(choices):
            chosen = active & (best == number)
            if chosen.any():
                self._push_image(coder, levels, z, Bins(COARSE[number]), np.zeros(len(z), np.int64), chosen)
                coder.push(np.full((len(z), 1), number), repeated(COARSE_TABLE, len(z)), chosen)

    def _push_image(self, coder: Coder, levels: Levels, z: Int, bins: Bins, shifts: Int, active: Bool) -> None:
        """x given z, z under the prior, and the shifts of all grids."""
        symbols, tables, pixel_shifts = self.model.pixel_tables(levels, self.model.latents(bins, z))
        coder.push(symbols, tables, active)
        digits, tables, prior_shifts = self.model.prior_tables(z, bins)
        coder.push(digits, tables, active)
        every = np.stack([shifts, pixel_shifts, prior_shifts], 1)
        coder.push(every, repeated(SHIFT_TABLE, len(z), 3), active)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(self, contents: Sequence[bytes], sizes: Sequence[int], seeds: Sequence[int]) -> list[Levels]:
        lanes, counts = len(contents), np.array(sizes)
        coder = restacked(self.kind, contents)
        starts = coder.pop(repeated(START_TABLE, lanes))[:, 0]
        blocks = [np.zeros((size, *self.model.shape), np.uint8) for size in sizes]
        for number in reversed(range(counts.max())):
            active = number < counts
            first, then = active & (number < starts), active & (number >= starts)
            levels = np.zeros((lanes, *self.model.shape), np.uint8)
            if then.any():
                self._pop_with_bits_back(coder, levels, then)
            if first.any():
                choice = coder.pop(repeated(COARSE_TABLE, lanes), first)[:, 0]
                for width in np.unique(choice[first]):
                    self._pop_image(coder, levels, Bins(COARSE[width]), first & (choice == width))
            for lane in np.flatnonzero(active):
                blocks[lane][number] = levels[lane]
            # What was only pushed onto never held less than its bottom, however many images are promised. (Where z was
            # popped it may have.)
            if not self.model.dimensions and (coder.bits()[active] < BOTTOM_BITS).any():
                raise VlaeError("a block ends before its images do: the file is damaged")
        check_bottom(coder, list(map(checksum, blocks, seeds)))
        return blocks

    def _pop_with_bits_back(self, coder: Coder, levels: Levels, active: Bool) -> None:
        z, shifts = self._pop_image(coder, levels, Bins(WIDTH), active)
        mean, scale = self.model.posterior(levels)
        try:
            self.model.push_posterior(coder, z, mean, scale, shifts, active)
        except VlaeError:  # a z that this posterior gives no mass to was never popped from it
            raise VlaeError("a block does not decode to what was written: the file is damaged") from None

    def _pop_image(self, coder: Coder, levels: Levels, bins: Bins, active: Bool) -> tuple[Int, Int]:
        """The reverse of `_push_image`: x into the active lanes of `levels`; returns z and the posterior's shifts."""
        shifts, pixel_shifts, prior_shifts = coder.pop(repeated(SHIFT_TABLE, coder.lanes, 3), active).T
        z = self.model.pop_prior(coder, bins, prior_shifts, active)
        x = self.model.pop_pixels(coder, self.model.latents(bins, z), pixel_shifts, active)
        levels[active] = x[active]
        return z, shifts


def by_lanes(model: ModelCoder, function, *arguments):  # type: ignore[no-untyped-def]
    """Calls a function of blocks with as many at once as fit into memory; `arguments` and results are one a block."""
    size = model.lanes_at_once()
    parts = (tuple(a[i : i + size] for a in arguments) for i in range(0, len(arguments[0]), size))
    return [block for part in parts for block in function(*part)]


def cost(symbols: Int, tables: Int) -> Float:
    """Bits of symbols [lanes, n] under tables [lanes, n, N], [lanes]."""
    freqs = np.take_along_axis(tables, symbols[..., None], -1)[..., 0]
    return (PRECISION - np.log2(freqs)).sum(1)


def checksum(block: Levels, seed: int) -> bytes:
    """CRC-32 of a block's levels, 4 bytes; the seed says which block of which file it is."""
    return zlib.crc32(np.ascontiguousarray(block).tobytes(), seed).to_bytes(4, "little")
