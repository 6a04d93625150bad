"""Is a file of the codec as small as the bound promises, and how small is that beside other compressors?

    python benchmarks/codec.py --model mnist-codec                        # all of the model's own test images
    python benchmarks/codec.py --model mnist-codec --images 500 --write results.md

The images are compressed without loss, decompressed, and compared pixel by pixel. Beside the file stand -ELBO, image by
image, and general-purpose and image compressors on the same images, each decoded again and compared too.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import lzma
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image
from torch import Tensor
from training import table

import vlae.codec
from vlae import VlaeError, cli
from vlae.cli import choices
from vlae.codec.ans import Coder
from vlae.codec.bitsback import WIDTH, BitsBack, Bool, Levels, ModelCoder
from vlae.codec.coding import IMAGES_PER_BLOCK, to_levels
from vlae.codec.container import Container
from vlae.codec.rounding import Bins, Float, Int
from vlae.data import ImageDataset
from vlae.evaluation.passes import keyed_generators
from vlae.files import write_text
from vlae.models.base import LatentVariableModel
from vlae.training.speed import machine

SAMPLES = 4  # z's per image in the bound
FAR_OVER = 100  # bits: an image that takes so many more than its bound deserves a look
WARM_UP = 8  # images
VALUES = 2**24  # log-masses held at a time
COLUMNS = 100  # of a mosaic
WEBP_SIDE = 16383  # pixels, the format's limit


# -- the model and its images -----------------------------------------------------------------------------------------


def choose_model(name: str) -> LatentVariableModel:
    """A pretrained model by its name, a saved model by its directory, or that of a run."""
    is_run = (Path(name) / "config.yaml").is_file()
    settings = Namespace(model=None if is_run else name, run=name if is_run else None, config=None)
    return choices.choose_model(settings)[0]


def held_out(model: LatentVariableModel, count: int | None) -> ImageDataset:
    """The first `count` test images of the data that the model was trained on; all of them if there are fewer."""
    asked = Namespace(name=None, root=None, binarize=None, split="test", options={}, limit=None)
    dataset = choices.choose_data(Namespace(data=asked), model)
    return dataset.subset(min(count or len(dataset), len(dataset)))


# -- the bound --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def bound_bits(model: LatentVariableModel, images: Tensor, samples: int = SAMPLES, seed: int = 0) -> Float:
    """-ELBO in bits of images [N, C, H, W], for several z each, [samples, N]; the noise is keyed by image."""
    size = max(1, min(250, VALUES // (math.prod(model.image_shape) * (model.likelihood.levels or 1))))
    parts = []
    with model.evaluating():
        for start in range(0, len(images), size):
            x = images[start : start + size].to(next(model.parameters()))
            keys = range(start, start + len(x))
            bounds = [model.elbo(x, generator=keyed_generators(keys, seed, stream)).elbo for stream in range(samples)]
            parts.append(-torch.stack(bounds).double().cpu().numpy() / math.log(2))
    return np.concatenate(parts, 1)


@torch.no_grad()
def bits_at(coder: ModelCoder, levels: Levels, z: Int) -> Float:
    """-log2 p(x|z) p(z) / q(z|x) of each image at one z, given as bins [N, D], in float64, [N]."""
    size = max(1, min(250, VALUES // (math.prod(coder.shape) * coder.levels)))
    parts = []
    for start in range(0, len(levels), size):
        x = coder.images(levels[start : start + size])
        latent = coder.latents(Bins(WIDTH), z[start : start + size])
        p, prior, q = coder.model.decode(latent), coder.model.prior(), coder.model.encode(x)
        elbo = p.log_prob(x) + prior.log_prob(latent) - q.log_prob(latent)
        parts.append(-elbo.cpu().numpy() / math.log(2))
    return np.concatenate(parts) if parts else np.zeros(0)


# -- what each image takes --------------------------------------------------------------------------------------------


@dataclass
class Record:
    """What an image added to the stack, in bits, and the bins of the z popped for it; None if coded in two parts."""

    bits: float
    z: Int | None


class RecordingBitsBack(BitsBack):
    """Writes the same bytes, and notes what each image added: `records`, in the order of the images."""

    records: list[Record]

    def encode(self, blocks: Sequence[Levels], seeds: Sequence[int]) -> list[bytes]:
        """As `BitsBack.encode`."""
        self.records = []
        return super().encode(blocks, seeds)

    def _encode(self, blocks: Sequence[Levels], seeds: Sequence[int]) -> list[bytes]:
        self._lanes: list[list[Record]] = [[] for _ in blocks]
        contents = super()._encode(blocks, seeds)
        self.records += [record for lane in self._lanes for record in lane]
        return contents

    def _push_with_bits_back(self, coder: Coder, levels: Levels, mean: Float, scale: Float, active: Bool) -> None:
        before = held(coder)
        super()._push_with_bits_back(coder, levels, mean, scale, active)
        self._note(held(coder) - before, self._popped, active)

    def _push_in_two_parts(self, coder: Coder, levels: Levels, mean: Float, active: Bool) -> None:
        before = held(coder)
        super()._push_in_two_parts(coder, levels, mean, active)
        self._note(held(coder) - before, None, active)

    def _push_image(self, coder: Coder, levels: Levels, z: Int, bins: Bins, shifts: Int, active: Bool) -> None:
        self._popped = z
        super()._push_image(coder, levels, z, bins, shifts, active)

    def _note(self, added: Float, z: Int | None, active: Bool) -> None:
        for lane in np.flatnonzero(active):
            self._lanes[lane].append(Record(float(added[lane]), None if z is None else z[lane]))


def held(coder: Coder) -> Float:
    """The information on each lane in bits, [lanes]: as `Coder.bits`, but not rounded to whole bits."""
    contents = [coder.get(lane) for lane in range(coder.lanes)]
    tops = [int.from_bytes(content[-8:], "little") for content in contents]
    return np.array([math.log2(max(t, 1)) + 8 * max(len(c) - 8, 0) for t, c in zip(tops, contents, strict=True)])


@dataclass
class Sizes:
    """A file beside the bound. Bits, of each image where [N].

    Attributes:
        count, sub_pixels, blocks: how many images, sub-pixels of an image, blocks.
        file_bytes, payload_bytes: of the whole file, and of its blocks alone.
        bound: -ELBO at several z, [samples, N].
        added: what each image added to the stack, [N].
        two_parts: which images were coded in two parts at the start of a block, bool [N].
        own_bound: -log2 p(x|z) p(z) / q(z|x) at the z that was popped, [N]; NaN for images in two parts.
        encoding, decoding: images per second.
    """

    count: int
    sub_pixels: int
    blocks: int
    file_bytes: int
    payload_bytes: int
    bound: Float = field(repr=False)
    added: Float = field(repr=False)
    two_parts: Bool = field(repr=False)
    own_bound: Float = field(repr=False)
    encoding: float
    decoding: float

    @property
    def bound_error(self) -> float:
        """Standard error of payload - bound in bits an image, from z: of the coder's one draw and the bound's few."""
        samples = len(self.bound)
        if samples < 2:
            return math.nan
        variance = self.bound.var(0, ddof=1) * (1 + 1 / samples)
        return math.sqrt(variance.sum()) / self.count

    @property
    def own_or_mean(self) -> Float:
        """-ELBO at the z that was popped, or the mean over z where none was, [N]."""
        return np.where(self.two_parts, self.bound.mean(0), self.own_bound)

    @property
    def ends(self) -> float:
        """Bits of all blocks that are no image's: checksums, numbers of images in two parts, the last words' rests."""
        return 8 * self.payload_bytes - self.added.sum()


def measure(model: LatentVariableModel, images: Tensor, images_per_block: int = IMAGES_PER_BLOCK) -> Sizes:
    """Compresses, decompresses and compares images [N, C, H, W] in [0, 1], and accounts for every bit.

    Raises:
        VlaeError: the decoded images are not the images.
    """
    few = vlae.codec.compress(model, images[:WARM_UP], verify=False)
    vlae.codec.decompress(model, few)
    started = time.perf_counter()
    data = vlae.codec.compress(model, images, images_per_block=images_per_block, verify=False)
    compressed = time.perf_counter()
    decoded = vlae.codec.decompress(model, data)
    decompressed = time.perf_counter()
    levels = to_levels(model, images)
    if not np.array_equal(to_levels(model, decoded), levels) or not torch.equal(decoded, images.to(decoded)):
        raise VlaeError("the decoded images are not the images that were compressed")

    container = Container.from_bytes(data)
    recorder = RecordingBitsBack(model)
    blocks = np.split(levels, np.cumsum(container.header.sizes)[:-1])
    if tuple(recorder.encode(blocks, container.seeds)) != container.blocks:
        raise VlaeError("the recording encoder writes other bytes than the codec: benchmarks/codec.py is out of date")
    records = recorder.records
    two_parts = np.array([record.z is None for record in records])
    own_bound = np.full(len(images), np.nan)
    if not two_parts.all():
        popped = np.stack([record.z for record in records if record.z is not None])
        own_bound[~two_parts] = bits_at(recorder.model, levels[~two_parts], popped)
    return Sizes(
        count=len(images),
        sub_pixels=math.prod(model.image_shape),
        blocks=container.header.blocks,
        file_bytes=len(data),
        payload_bytes=sum(map(len, container.blocks)),
        bound=bound_bits(model, images),
        added=np.array([record.bits for record in records]),
        two_parts=two_parts,
        own_bound=own_bound,
        encoding=len(images) / (compressed - started),
        decoding=len(images) / (decompressed - compressed),
    )


def size_rows(sizes: Sizes) -> list[tuple[str, ...]]:
    """Rows (what, bytes, bits an image, bits a sub-pixel, over -ELBO)."""
    bound = sizes.bound.mean()
    error = 100 * sizes.bound_error / bound
    rows = [(f"-ELBO, mean of {len(sizes.bound)} z", "", f"{bound:.3f}", f"{bound / sizes.sub_pixels:.5f}", "")]
    for name, size in {"blocks of the file": sizes.payload_bytes, "whole file": sizes.file_bytes}.items():
        bits = 8 * size / sizes.count
        over = f"{100 * (bits / bound - 1):+.3f} % ± {error:.3f}"
        rows.append((name, f"{size:,}", f"{bits:.3f}", f"{bits / sizes.sub_pixels:.5f}", over))
    return rows


def account_rows(sizes: Sizes) -> list[tuple[str, ...]]:
    """Every bit of the file, in rows (part, how many, bits each, their own -ELBO, over it, over all images)."""

    def row(name: str, which: Bool, bound: Float) -> tuple[str, ...]:
        if not which.any():
            return name, "0", "", "", "", ""
        bits, own = sizes.added[which].mean(), bound[which].mean()
        share = (sizes.added - bound)[which].sum() / sizes.count
        return name, counted(which.sum(), "image"), f"{bits:.3f}", f"{own:.3f}", f"{bits - own:+.3f}", f"{share:+.4f}"

    blocks, images, own = counted(sizes.blocks, "block"), counted(sizes.count, "image"), sizes.own_or_mean.mean()
    ends, head, bits = sizes.ends, 8 * (sizes.file_bytes - sizes.payload_bytes), 8 * sizes.file_bytes / sizes.count
    over, share = f"{bits - own:+.3f}", f"{100 * (bits / own - 1):+.3f} %"
    return [
        row("with bits back, beside -ELBO at the same z", ~sizes.two_parts, sizes.own_bound),
        row("in two parts, beside the mean -ELBO", sizes.two_parts, sizes.bound.mean(0)),
        ("checksums and last words", blocks, f"{ends / sizes.blocks:.1f}", "", "", f"{ends / sizes.count:+.4f}"),
        ("header and index", "", f"{head}", "", "", f"{head / sizes.count:+.4f}"),
        ("whole file", images, f"{bits:.3f}", f"{own:.3f}", over, share),
    ]


def counted(number: int, noun: str) -> str:
    """The number with its noun: 1 image, 1,200 images."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def worst(sizes: Sizes) -> str:
    """How far single images are over their bound, in a sentence."""
    chained = ~sizes.two_parts
    if not chained.any():
        return "All images were coded in two parts."
    parts = []
    for name, bound in {"at the z popped for it": sizes.own_bound, "on average over z": sizes.bound.mean(0)}.items():
        over = (sizes.added - bound)[chained]
        parts.append(
            f"the worst image takes {over.max():.2f} bits more than its -ELBO {name} "
            f"({counted((over > FAR_OVER).sum(), 'image')} over {FAR_OVER} bits more)"
        )
    return f"With bits back, {'; '.join(parts)}."


# -- other compressors ------------------------------------------------------------------------------------------------


def picture(pixels: Levels, levels: int) -> Image.Image:
    """Pixels uint8 [C, H, W] as a picture: 1-bit for two levels, else grey or RGB."""
    if pixels.shape[0] == 1:
        return Image.fromarray(pixels[0] > 0) if levels == 2 else Image.fromarray(pixels[0])
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def pixels_of(image: Image.Image, channels: int, levels: int) -> Levels:
    """The reverse of `picture`, from any mode: uint8 [C, H, W]."""
    array = np.asarray(image.convert("RGB")).transpose(2, 0, 1)[:channels]
    return array // 255 if levels == 2 else array


def as_png(pixels: Levels, levels: int) -> bytes:
    """PNG, 1-bit for two levels."""
    file = io.BytesIO()
    picture(pixels, levels).save(file, "PNG", optimize=True)
    return file.getvalue()


def as_webp(pixels: Levels, levels: int) -> bytes:
    """Lossless WebP at its greatest effort; it knows RGB only."""
    file = io.BytesIO()
    picture(pixels, levels).convert("RGB").save(file, "WEBP", lossless=True, quality=100, method=6)
    return file.getvalue()


def mosaics(levels: Levels, largest: int | None = None) -> list[Levels]:
    """Images [N, C, H, W] as one picture [C, h, w], 100 wide and black where none is left; several if one is too large.

    Args:
        levels: of the images.
        largest: side of a mosaic in pixels.
    """
    count, channels, height, width = levels.shape
    side = largest or max(COLUMNS * width, count * height)
    across = min(COLUMNS, count, side // width)
    down = side // height
    made = []
    for start in range(0, count, across * down):
        part = levels[start : start + across * down]
        rows = -(-len(part) // across)
        grid = np.zeros((rows * across, channels, height, width), np.uint8)
        grid[: len(part)] = part
        grid = grid.reshape(rows, across, channels, height, width).transpose(2, 0, 3, 1, 4)
        made.append(np.ascontiguousarray(grid.reshape(channels, rows * height, across * width)))
    return made


def raw(levels: Levels, count: int) -> bytes:
    """All pixels in a row: eight to a byte for two levels, else a byte each."""
    return np.packbits(levels).tobytes() if count == 2 else levels.tobytes()


def baselines(levels: Levels, count: int) -> list[tuple[str, int]]:
    """What other compressors make of images uint8 [N, C, H, W] of `count` levels: names and total bytes.

    Raises:
        VlaeError: one of them does not decode to the same.
    """
    plain, packed = raw(levels, count), "packed bits" if count == 2 else "bytes"
    results = [(f"raw {packed}", len(plain))]
    streams: list[tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]] = [
        ("gzip -9", lambda data: gzip.compress(data, 9, mtime=0), gzip.decompress),
        ("bzip2 -9", lambda data: bz2.compress(data, 9), bz2.decompress),
        ("xz -9", lambda data: lzma.compress(data, preset=9), lzma.decompress),
    ]
    for name, pack, unpack in streams:
        data = pack(plain)
        if unpack(data) != plain:
            raise VlaeError(f"{name} does not decode to the same")
        results.append((f"{name} on {packed}", len(data)))
    pictures: list[tuple[str, Callable[[Levels, int], bytes], Iterable[Levels]]] = [
        ("PNG, a file each", as_png, levels),
        ("PNG, {} {}", as_png, mosaics(levels)),
        ("WebP lossless, a file each", as_webp, levels),
        ("WebP lossless, {} {}", as_webp, mosaics(levels, WEBP_SIDE)),
    ]
    for name, write, parts in pictures:
        total, files = 0, 0
        for part in parts:
            data = write(part, count)
            with Image.open(io.BytesIO(data)) as image:
                if not np.array_equal(pixels_of(image, len(part), count), part):
                    raise VlaeError(f"{name} does not decode to the same")
            total, files = total + len(data), files + 1
        results.append((name.format(files, "mosaic" if files == 1 else "mosaics"), total))
    return results


# Bits a sub-pixel as published; gzip to WebP from the BB-ANS paper (Townsend et al. 2019).
PUBLISHED: dict[str, list[tuple[str, float]]] = {
    "binarised MNIST": [("PNG", 0.78), ("WebP", 0.44), ("gzip", 0.33), ("bz2", 0.25), ("BB-ANS", 0.19)],
    "MNIST, 256 grey levels": [("PNG", 2.79), ("WebP", 2.10), ("BB-ANS", 1.41), ("Bit-Swap", 1.29)],
    "ImageNet at 32x32": [("HiLLoC", 4.20), ("NeLLoC, its worst", 3.94), ("NeLLoC, its best", 3.81)],
}


def published(dataset: ImageDataset) -> tuple[str, list[tuple[str, float]]]:
    """The data set of published figures that comes nearest, and the figures."""
    channels = dataset.image_shape[0]
    names = list(PUBLISHED)
    name = names[2] if channels == 3 else names[0] if dataset.effective_levels == 2 else names[1]
    return name, PUBLISHED[name]


def is_same(dataset: ImageDataset, name: str) -> bool:
    """Whether the published figures are on this data set, if in another draw of its binarisation."""
    mnist = dataset.name in ("mnist", "binarized_mnist")
    return mnist and name == ("binarised MNIST" if dataset.effective_levels == 2 else "MNIST, 256 grey levels")


# -- output -----------------------------------------------------------------------------------------------------------


class Page:
    """What is printed, kept as Markdown."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def say(self, text: str) -> None:
        """Prints a paragraph or a table."""
        print(text + "\n", flush=True)
        self.parts.append(text)

    def write(self, path: Path | None) -> None:
        """To a file, if one is given."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "\n\n".join(self.parts) + "\n")


def run(model: LatentVariableModel, dataset: ImageDataset, name: str, images_per_block: int, page: Page) -> None:
    """Measures and says everything."""
    images, unit = dataset.tensor(), "a sub-pixel" if model.image_shape[0] > 1 else "a pixel"
    page.say(f"Model: {name}. Data: {dataset.protocol}. Machine: {machine()}.")
    sizes = measure(model, images, images_per_block)
    page.say(table(("", "bytes", "bits an image", f"bits {unit}", "over -ELBO"), size_rows(sizes)))
    page.say(
        f"{counted(sizes.count, 'image')} in {counted(sizes.blocks, 'block')}, decoded and found equal in every pixel. "
        f"Encoding {sizes.encoding:.0f} images/s, decoding {sizes.decoding:.0f} images/s, each timed once. "
        "± is one standard error, of the z's that were drawn; the account below has no such chance in it."
    )
    header = ("where the bits are", "how many", "bits each", "-ELBO", "over it", "over all images")
    page.say(table(header, account_rows(sizes)))
    page.say(worst(sizes))

    levels = to_levels(model, images)
    rows = []
    others = baselines(levels, model.likelihood.levels or 256)
    for other, size in [("this codec, whole file", sizes.file_bytes), *others]:
        bits = 8 * size / sizes.count
        times = f"{size / sizes.file_bytes:.2f}"
        rows.append((other, f"{size:,}", f"{bits:.2f}", f"{bits / sizes.sub_pixels:.4f}", times))
    page.say(table(("the same images", "bytes", "bits an image", f"bits {unit}", "times ours"), rows))
    page.say("The model's own weights are in none of these numbers.")

    data, figures = published(dataset)
    comparison = "another draw or order of them perhaps" if is_same(dataset, data) else "other images than these"
    page.say(
        table((f"published, on {data} ({comparison})", f"bits {unit}"), [(who, f"{bits:.2f}") for who, bits in figures])
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Size and speed of lossless coding, beside -ELBO and other codecs.")
    parser.add_argument("--model", default="mnist-codec", help="pretrained name, directory of a saved model, or a run")
    parser.add_argument("--images", type=int, default=10_000, help="test images, the first so many")
    parser.add_argument("--images_per_block", type=int, default=IMAGES_PER_BLOCK, help="as in vlae compress")
    parser.add_argument("--write", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    if options.images < 1:
        return cli.fail("--images must be positive")
    page = Page()
    try:
        model = choose_model(options.model)
        run(model, held_out(model, options.images), options.model, options.images_per_block, page)
        page.write(options.write)
    except VlaeError as error:
        return cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
