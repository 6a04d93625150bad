"""Image files as tiles of the one shape that a model codes, and back, exact in every pixel.

    pictures = read(["photos", "digits.npz"], levels=256)
    entries = [picture.entry for picture in pictures]         # what the header of a compressed file keeps of them
    coded = tiles(pictures, image_shape=(3, 32, 32), levels=256)                      # uint8 [N, 3, 32, 32]
    write(assemble(validate(entries, max_pixels), coded, levels=256), "restored")

What a file holds beside its pixels (format, meta data, colour profile, labels beside an array) is not kept.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, cast
from zipfile import ZipFile

import numpy as np
from PIL import Image

from vlae.data import folder, formats
from vlae.errors import VlaeError, one_line
from vlae.files import NO_ROOM, check_place, replacing

SUFFIXES = {"image": folder.SUFFIXES | {".pbm"}, "array": {".npy", ".npz"}}
RESTORED = {"image": ".png", "array": ".npz"}

_CHANNELS = {"L": 1, "RGB": 3}
_VALUES = ("grey", "levels")
_LONGEST_SIDE = 65535
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_LONGEST_NAME = 4096
_LARGEST_ARRAY = 1 << 30  # bytes; a small zip file can hold terabytes of zeros
# How each mode of Pillow is kept. The others (CMYK, YCbCr, LAB, ...) don't become RGB exactly.
_MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGB": "RGB", "RGBA": "RGB"}


class Source(NamedTuple):
    """A file to read, and the name that it is known and restored by: a relative POSIX path."""

    path: Path
    name: str

    @property
    def kind(self) -> str:
        """ "image" or "array", by the suffix; "" if it is neither."""
        return _kind(self.name)


class Entry(NamedTuple):
    """All that is kept of a picture beside its pixels; JSON writes it as a list, `validate` reads it again.

    Attributes:
        name: relative POSIX path of the original.
        kind: "image", or "array" of several images.
        mode: "L" (grey) or "RGB".
        values: "grey" for 8-bit values round(255 k / (levels - 1)), "levels" for the levels k themselves.
        height: of each image, in pixels.
        width: of each image, in pixels.
        number: of images; 1 for an image.
    """

    name: str
    kind: str
    mode: str
    values: str
    height: int
    width: int
    number: int

    @property
    def target(self) -> str:
        """The name to restore it under: the original's with the suffix .png or .npz."""
        return _restored(self.name)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, or an array of images of one size.

    Attributes:
        name: relative POSIX path.
        kind: "image" or "array".
        pixels: uint8 [N, C, h, w], N = 1 for an image, C = 1 or 3.
        values: what the pixels mean under a model of fewer than 256 levels, see `Entry`.
    """

    name: str
    kind: str
    pixels: np.ndarray
    values: str = "grey"

    @property
    def entry(self) -> Entry:
        """What a header keeps of it."""
        number, channels, height, width = self.pixels.shape
        mode = "L" if channels == 1 else "RGB"
        return Entry(self.name, self.kind, mode, self.values, height, width, number)


def collect(paths: Sequence[str | Path]) -> list[Source]:
    """The image and array files given, and those below the directories given.

    Of a directory, files that are hidden or of other suffixes are left out; the rest are sorted by name.

    Raises:
        VlaeError: a path that is missing or of another kind, a directory without images, or names that can't be
            restored or not beside each other.
    """
    if not paths:
        raise VlaeError("no images given; give files or directories")
    sources = [source for path in paths for source in _expanded(Path(path))]
    for path, name in sources:
        if _unsafe(name):
            raise VlaeError(f"{str(path)!r}: can't be restored under this name on every system; rename it")
    targets = [_restored(source.name) for source in sources]
    if clash := _clash(targets):
        a, b = clash
        raise VlaeError(
            f"{sources[a].path} and {sources[b].path} would clash when restored as {targets[a]} and {targets[b]}; "
            "rename one, or compress them into separate files"
        )
    return sources


def read(paths: Sequence[str | Path], levels: int = 256) -> list[Picture]:
    """The pictures of files and directories, in the order of `collect`.

    Images of 8 bits or fewer become grey (1-bit images too, as 0 and 255) or RGB (palettes too), turned as their EXIF
    data says; a fully opaque alpha channel is dropped. Arrays are uint8 [N, h, w], [N, 1, h, w] or [N, 3, h, w], from
    .npy or from .npz, there under the name `images` or alone. An array whose maximum is at most levels - 1 < 255 is
    taken to hold levels, anything else 8-bit values: `Picture.values` says which, so that the same values come back.

    Args:
        paths: files and directories.
        levels: of the model.

    Raises:
        VlaeError: see `collect`; a file that is broken, or that can't be restored exactly from 8-bit grey or RGB.
    """
    pictures = []
    for source in collect(paths):
        pixels = _image(source.path) if source.kind == "image" else _array(source.path)
        if max(pixels.shape[2:]) > _LONGEST_SIDE:
            raise VlaeError(f"{source.path}: a side of more than {_LONGEST_SIDE} pixels; cut it into parts")
        low = source.kind == "array" and levels < 256 and pixels.max() < levels
        pictures.append(Picture(source.name, source.kind, pixels, "levels" if low else "grey"))
    return pictures


def count_tiles(entry: Entry, image_shape: tuple[int, int, int]) -> int:
    """How many tiles of [C, H, W] a picture is cut into."""
    return entry.number * _up(entry.height, image_shape[1]) * _up(entry.width, image_shape[2])


def tiles(pictures: Sequence[Picture], image_shape: tuple[int, int, int], levels: int) -> np.ndarray:
    """Pictures cut into tiles of one shape: picture by picture, image by image, row by row.

    The last row and column are repeated where the size is no multiple of the tile's. Grey pictures are replicated for
    a model of three channels; of pictures whose three channels are equal, a model of one channel gets one.

    Args:
        pictures: of any sizes.
        image_shape: (C, H, W) of the model, C 1 or 3.
        levels: of the model, 2 to 256.

    Returns:
        uint8 [N, C, H, W], values 0..levels-1.

    Raises:
        VlaeError: a colour picture for a grey model, or values that are none of the model's levels.
    """
    channels, high, wide = image_shape
    if channels not in (1, 3):
        raise VlaeError(f"a model of {channels} channels can't code image files; expected 1 (grey) or 3 (RGB)")
    counts = [count_tiles(picture.entry, image_shape) for picture in pictures]
    cut = np.empty((sum(counts), *image_shape), np.uint8)
    start = 0
    for picture, count in zip(pictures, counts, strict=True):
        pixels = _to_levels(picture, _in_channels(picture, channels), levels)
        n, _, height, width = pixels.shape
        down, across = _up(height, high), _up(width, wide)
        if (height, width) != (down * high, across * wide):
            margin = (0, 0), (0, 0), (0, down * high - height), (0, across * wide - width)
            pixels = np.pad(pixels, margin, mode="edge")
        # One copy, into the tiles seen as [N, C, rows, H, columns, W]: splitting axes makes a view.
        grid = cut[start : start + count].reshape(n, down, across, channels, high, wide)
        grid.transpose(0, 3, 1, 4, 2, 5)[...] = pixels.reshape(n, pixels.shape[1], down, high, across, wide)
        start += count
    return cut


def assemble(entries: Sequence[Entry], tiles: np.ndarray, levels: int) -> list[Picture]:
    """The pictures that `tiles` cut.

    Args:
        entries: of the pictures, in order; from a file, through `validate` first.
        tiles: uint8 [N, C, H, W], values 0..levels-1.
        levels: as when cut.

    Raises:
        VlaeError: another number of tiles than the pictures have.
    """
    image_shape = tiles.shape[1], tiles.shape[2], tiles.shape[3]
    channels, high, wide = image_shape
    counts = [count_tiles(entry, image_shape) for entry in entries]
    if sum(counts) != len(tiles):
        raise _damaged(f"{len(tiles)} tiles for pictures of {sum(counts)}")
    pictures = []
    start = 0
    for entry, count in zip(entries, counts, strict=True):
        down, across = _up(entry.height, high), _up(entry.width, wide)
        grid = tiles[start : start + count].reshape(entry.number, down, across, channels, high, wide)
        whole = grid.transpose(0, 3, 1, 4, 2, 5).reshape(entry.number, channels, down * high, across * wide)
        pixels = whole[:, : _CHANNELS[entry.mode], : entry.height, : entry.width]
        if entry.values == "grey" and levels < 256:
            pixels = _grey(levels)[pixels]
        if entry.mode == "RGB" and channels == 1:
            pixels = pixels.repeat(3, axis=1)
        pictures.append(Picture(entry.name, entry.kind, pixels, entry.values))
        start += count
    return pictures


def validate(entries: object, max_pixels: int) -> list[Entry]:
    """The entries of a header, which anyone may have written: sound in type, bounded in size, safe and unique in name.

    Args:
        entries: what JSON gave.
        max_pixels: number times height times width, summed over the entries, may not exceed this.

    Raises:
        VlaeError: anything that `read` would not have made.
    """
    if not isinstance(entries, list) or not entries:
        raise _damaged("no list of pictures")
    checked = [_checked(entry) for entry in entries]
    pixels = sum(entry.number * entry.height * entry.width for entry in checked)
    if pixels > max_pixels:
        raise _damaged(f"pictures of {pixels} pixels, expected {max_pixels} at most")
    if clash := _clash([entry.target for entry in checked]):
        raise _damaged(f"{checked[clash[0]].name!r} and {checked[clash[1]].name!r} would clash")
    return checked


def write(pictures: Sequence[Picture], directory: str | Path, overwrite: bool = False) -> list[Path]:
    """Writes each picture below a directory, images as PNG, arrays as .npz under the name `images`; returns the paths.

    No file appears before all of them have been written in full. Symbolic links are not followed out of the directory;
    one in the place of a file counts as that file.

    Args:
        pictures: with names as `validate` accepts them.
        directory: made if missing.
        overwrite: replace files that exist.

    Raises:
        VlaeError: a file exists (unless `overwrite`), a name leads out of the directory, or the disk refuses.
    """
    entries = validate([picture.entry for picture in pictures], max_pixels=sum(p.pixels.size for p in pictures))
    paths = targets(entries, directory, overwrite)
    # All temporary files are written before the first takes its place.
    with _writing(directory), ExitStack() as stack:
        for picture, path in zip(pictures, paths, strict=True):
            _save(picture, stack.enter_context(replacing(path)))
    return paths


def targets(entries: Sequence[Entry], directory: str | Path, overwrite: bool = False) -> list[Path]:
    """Where `write` puts pictures; refuses what it would, before hours are spent decoding them."""
    root = Path(directory)
    paths = [root / entry.target for entry in entries]
    with _writing(root):
        _check_targets(paths, root, overwrite)
        check_place(root)
    return paths


@contextmanager
def _writing(directory: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "free some space" if error.errno in NO_ROOM else "choose another directory"
        raise VlaeError(f"{directory}: can't be written to ({one_line(error)}); {advice}") from error


def _kind(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), "")


def _restored(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(RESTORED[_kind(name)]))


def _expanded(path: Path) -> list[Source]:
    if path.is_dir():
        found = [Source(file, file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file()]
        hidden = [any(part.startswith(".") for part in PurePosixPath(source.name).parts) for source in found]
        sources = [source for source, skip in zip(found, hidden, strict=True) if source.kind and not skip]
        if not sources:
            raise VlaeError(f"{path}: no images in it; expected files of {_known()}")
        return sorted(sources, key=lambda source: source.name)
    if not path.exists():
        raise VlaeError(f"{path}: no such file or directory; give files or directories of images")
    source = Source(path, path.name)
    if not path.is_file() or not source.kind:
        raise VlaeError(f"{path}: not an image file by its name; expected {_known()}")
    return [source]


def _known() -> str:
    return ", ".join(sorted(suffix for suffixes in SUFFIXES.values() for suffix in suffixes))


def _unsafe(name: str) -> bool:
    """Whether a name leads out of a directory, or could do so elsewhere, or is none that `collect` gives."""
    return (
        len(name) > _LONGEST_NAME
        or any(part in ("", ".", "..") for part in name.split("/"))  # an absolute path starts with an empty part
        or "\\" in name
        or bool(PureWindowsPath(name).drive)
        # Control characters (NUL, newline, escape), and bytes of a file name that are no text.
        or any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
        # Those that turn text around would show people another name. (Joiners and soft hyphens are part of words.)
        or any(unicodedata.bidirectional(character) in _TURNING for character in name)
    )


def _clash(targets: Sequence[str]) -> tuple[int, int] | None:
    """The places of two files of which one would replace the other, or be a directory of it."""
    places: dict[str, int] = {}
    for i, target in enumerate(targets):
        if target in places:
            return places[target], i
        places[target] = i
    for i, target in enumerate(targets):
        for parent in PurePosixPath(target).parents:
            if str(parent) in places:
                return places[str(parent)], i
    return None


def _image(path: Path) -> np.ndarray:
    """uint8 [1, C, h, w]."""
    with formats.reading(path, "image", "replace or remove it"), formats.open_image(path) as image:
        if image.format not in folder.FORMATS:  # others lose bits on the way to 8
            raise VlaeError(f"{path}: its content is {image.format}; save it as PNG")
        upright = formats.plain(image, path)
        if image.mode not in _MODES:
            raise VlaeError(f"{path}: pixels of the kind {image.mode}; save it as grey or RGB")
        mode = _MODES[image.mode]
        pixels = np.array(upright.convert(mode))
    return pixels[None, None] if mode == "L" else pixels.transpose(2, 0, 1)[None]


def _array(path: Path) -> np.ndarray:
    """uint8 [N, C, h, w]."""
    with formats.reading(path, "array file"):
        loaded = np.load(path, allow_pickle=False)
        images = loaded if isinstance(loaded, np.ndarray) else _of_npz(path, loaded)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise VlaeError(f"{path}: holds NaN or infinite values; mend them, then save 8-bit values (uint8)")
    if images.dtype != np.uint8:
        advice = "(images * 255).round().astype('uint8')" if images.dtype.kind == "f" else "images.astype('uint8')"
        raise VlaeError(f"{path}: values of {images.dtype}, expected uint8; save 8-bit values, such as {advice}")
    if images.ndim not in (3, 4) or not images.size or (images.ndim == 4 and images.shape[1] not in (1, 3)):
        last = images.ndim == 4 and images.shape[3] in (1, 3)
        advice = "move the channels, images.transpose(0, 3, 1, 2)" if last else "give it such a shape"
        expected = "[N, h, w], [N, 1, h, w] or [N, 3, h, w]"
        raise VlaeError(f"{path}: shape {list(images.shape)}, expected {expected}; {advice}")
    return images[:, None] if images.ndim == 3 else images


def _of_npz(path: Path, variables: np.lib.npyio.NpzFile) -> np.ndarray:
    with variables:
        key = variables.files[0] if len(variables.files) == 1 else "images"
        if key not in variables.files:
            held = ", ".join(variables.files[:8]) or "nothing"
            raise VlaeError(f"{path}: holds {held}; expected one array, or one under the name images")
        archive = cast(ZipFile, variables.zip)
        if max(info.file_size for info in archive.infolist()) > _LARGEST_ARRAY:
            raise VlaeError(f"{path}: an array of more than {_LARGEST_ARRAY} bytes; cut it into several files")
        return formats.read_member(path, archive, key, _LARGEST_ARRAY)


def _up(size: int, tile: int) -> int:
    """size / tile, rounded up."""
    return -(-size // tile)


def _grey(levels: int) -> np.ndarray:
    """The 8-bit value of each level, uint8 [levels]."""
    if not 2 <= levels <= 256:
        raise VlaeError(f"levels={levels}: expected 2 to 256")
    return np.round(np.arange(levels) * 255 / (levels - 1)).astype(np.uint8)


def _in_channels(picture: Picture, channels: int) -> np.ndarray:
    """The pixels, in one channel if the model has one; a model of three takes one by broadcasting."""
    pixels = picture.pixels
    if channels < pixels.shape[1]:
        if not (pixels == pixels[:, :1]).all():
            raise VlaeError(f"{picture.name}: in colour, but the model codes grey images; convert it to grey first")
        return pixels[:, :1]
    return pixels


def _to_levels(picture: Picture, pixels: np.ndarray, levels: int) -> np.ndarray:
    values = _grey(levels) if picture.values == "grey" else np.arange(levels, dtype=np.uint8)
    if levels == 256:
        return pixels
    known = np.zeros(256, bool)
    known[values] = True
    fits = known[pixels]
    if not fits.all():
        some = ", ".join(map(str, values if levels < 6 else [*values[:3], "...", values[-1]]))
        advice = "binarise it first (0 and 255)" if levels == 2 else "round it to these first"
        raise VlaeError(
            f"{picture.name}: has the pixel value {pixels[~fits][0]}, but the model knows {levels} levels ({some}); "
            f"{advice}, or use a model of 256 levels"
        )
    table = np.zeros(256, np.uint8)
    table[values] = np.arange(levels)
    return table[pixels]


def _damaged(what: str) -> VlaeError:
    return VlaeError(f"{what}: the file is damaged or not written by vlae; make it again")


def _checked(entry: object) -> Entry:
    if not isinstance(entry, list | tuple) or len(entry) != len(Entry._fields):
        raise _damaged("a picture without its properties")
    texts, sizes = entry[:4], entry[4:]
    # By exact type: True is an int too.
    if any(type(text) is not str for text in texts) or any(type(size) is not int for size in sizes):
        raise _damaged("a picture with properties of other types")
    checked = Entry(*entry)
    if _unsafe(checked.name) or not checked.kind or _kind(checked.name) != checked.kind:
        raise _damaged(f"a picture of the name {checked.name[:80]!r}")
    if checked.mode not in _CHANNELS or checked.values not in _VALUES:
        raise _damaged(f"{checked.name}: unknown mode {checked.mode[:20]!r} or values {checked.values[:20]!r}")
    if not (
        1 <= checked.height <= _LONGEST_SIDE and 1 <= checked.width <= _LONGEST_SIDE and 1 <= checked.number < 2**63
    ):
        raise _damaged(f"{checked.name}: {checked.number} images of {checked.width}x{checked.height} pixels")
    if checked.kind == "image" and (checked.number > 1 or checked.values != "grey"):
        raise _damaged(f"{checked.name}: an image with the properties of an array")
    return checked


def _check_targets(paths: Sequence[Path], root: Path, overwrite: bool) -> None:
    """Refuses targets that exist or lie elsewhere, before anything is written."""
    top = root.resolve()
    folders = {parent for path in paths for parent in path.parents if parent == root or root in parent.parents}
    for parent in sorted(folders):
        if os.path.lexists(parent) and not parent.is_dir():
            raise VlaeError(f"{parent}: not a directory; choose another directory to write to")
        if not parent.resolve().is_relative_to(top):
            raise VlaeError(f"{parent}: a symbolic link that leads out of {root}; choose another directory")
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            raise VlaeError(f"{path}: a directory, where a file is to be written; choose another directory")
        if os.path.lexists(path) and not overwrite:
            raise VlaeError(f"{path} exists; choose another directory, or ask to overwrite")


def _save(picture: Picture, path: Path) -> None:
    if picture.kind == "array":
        with path.open("wb") as file:  # given a path, NumPy appends its suffix
            np.savez_compressed(file, images=picture.pixels)
    else:
        pixels = picture.pixels[0].transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).save(path, "PNG")
