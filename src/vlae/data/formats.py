"""Parsers of the file formats that data sets come in: any bytes give a valid array or one clear error."""

import gzip
import io
import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image, ImageOps

from vlae.errors import VlaeError, one_line

_LARGEST_ARRAY = 1 << 32  # bytes; the full dSprites are 3 GB
_LARGEST_PNG = 1 << 26  # bytes
_header_2 = np.lib.format.read_array_header_2_0
_LIMIT = 1 << 30  # bytes; no idx file of a known set and no picture comes near; a broken header may ask for terabytes


@contextmanager
def reading(path: Path, kind: str, advice: str = "fetch the file again") -> Iterator[None]:
    """Turn whatever a parser raises on a broken file into one line, which ends with what to do.

    Parsers of third parties raise almost anything on broken bytes, so every `Exception` is meant.
    """
    try:
        yield
    except VlaeError:
        raise
    except Exception as error:
        raise VlaeError(f"{path}: not a readable {kind} ({one_line(error)}); {advice}") from error


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """An idx file of uint8, gzipped or not, as an array of `ndim` dimensions."""
    with reading(path, "idx file"), _opened(path) as stream:
        header = stream.read(4 + 4 * ndim)
        if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
            raise VlaeError(f"{path}: not an idx file of uint8 in {ndim} dimensions; fetch the file again")
        shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4)]
        size = math.prod(shape)
        if size > _LIMIT:
            raise VlaeError(f"{path}: its header asks for {size} bytes, {_LIMIT} at most; fetch the file again")
        body = stream.read(size + 1)
        if len(body) != size:
            raise VlaeError(f"{path}: its header says {size} bytes, but it holds others; fetch the file again")
        return np.frombuffer(body, np.uint8).reshape(shape).copy()


def read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A CIFAR-10 binary file as images uint8 [N, 3, 32, 32] and labels int64 [N]."""
    with reading(path, "CIFAR-10 binary file"):
        data = np.fromfile(path, np.uint8)
        if data.size == 0 or data.size % 3073:
            raise VlaeError(f"{path}: {data.size} bytes, expected a multiple of 3073; fetch the file again")
        rows = data.reshape(-1, 3073)
        if rows[:, 0].max() > 9:
            raise VlaeError(f"{path}: label {rows[:, 0].max()}, expected 0 to 9; fetch the file again")
        return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def read_mat(path: Path, *keys: str) -> list[np.ndarray]:
    """Variables of a MATLAB file (version 5).

    Only of files that have been held to a checksum: SciPy's parser, in C, can crash on damaged ones.
    """
    from scipy.io import loadmat

    with reading(path, "MATLAB file"):
        variables = loadmat(path, variable_names=keys)
        return [_variable(path, variables, key) for key in keys]


def read_npz(path: Path, *keys: str) -> list[np.ndarray]:
    """Arrays of an npz file; pickled objects are refused, and sizes that the file does not hold."""
    with reading(path, "npz file"), zipfile.ZipFile(path) as archive:
        return [read_member(path, archive, key, _LARGEST_ARRAY) for key in keys]


def read_member(path: Path, archive: zipfile.ZipFile, key: str, limit: int) -> np.ndarray:
    """One array of an npz file that is open, of `limit` bytes at most."""
    name = f"{key}.npy"
    if name not in archive.namelist():
        raise VlaeError(f"{path}: holds no {key!r}; fetch the file again")
    # zipfile reads no more than this, so neither a small file of zeros nor a header can ask for more.
    size = archive.getinfo(name).file_size
    if size > limit:
        raise VlaeError(f"{path}: {key} has {size} bytes, {limit} at most; fetch the file again")
    with archive.open(name) as stream:
        header = np.lib.format.read_array_header_1_0 if np.lib.format.read_magic(stream) == (1, 0) else _header_2
        shape, _, dtype = header(stream)
        if math.prod(shape) * dtype.itemsize > size:
            raise VlaeError(f"{path}: the header of {key} asks for {shape}, more than it holds; fetch the file again")
    with archive.open(name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def read_amat(path: Path) -> np.ndarray:
    """Larochelle's text format, one line "0 1 ... 0" of 784 pixels per image, as uint8 0/1 [N, 784]."""
    with reading(path, "amat file"):
        data = np.fromfile(path, np.uint8)
        if data.size == 0 or data.size % (2 * 784):
            raise VlaeError(f"{path}: {data.size} bytes, expected lines of 784 pixels; fetch the file again")
        rows = data.reshape(-1, 784, 2)
        pixels = rows[:, :, 0] - ord("0")  # uint8: what comes before "0" wraps to large values
        between = (rows[:, :-1, 1] == ord(" ")).all() and (rows[:, -1, 1] == ord("\n")).all()
        if pixels.max() > 1 or not between:
            raise VlaeError(f'{path}: expected lines "0 1 ... 0" of 784 pixels; fetch the file again')
        return pixels


def read_png_zip(path: Path, side: int) -> tuple[np.ndarray, list[str]]:
    """All PNG images of a zip file, in order of their names, dark ink on white as bright ink on black.

    Returns:
        uint8 [N, side, side], each image shrunk by averaging (box resize), and their names.
    """
    with reading(path, "zip file of PNG images"), zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        if not names:
            raise VlaeError(f"{path}: no PNG image in it; fetch the file again")
        images = np.empty((len(names), side, side), np.uint8)
        for image, name in zip(images, names, strict=True):
            if archive.getinfo(name).file_size > _LARGEST_PNG:
                raise VlaeError(f"{path}: {name} has more than {_LARGEST_PNG} bytes; fetch the file again")
            with open_image(io.BytesIO(archive.read(name)), ["PNG"]) as png:
                grey = ImageOps.invert(png.convert("L")).resize((side, side), Image.Resampling.BOX)
                image[:] = np.asarray(grey)
        return images, names


def open_image(source: Path | IO[bytes], kinds: Sequence[str] | None = None) -> Image.Image:
    """An image opened by Pillow, which only warns of images of one to two times its limit: refuse these too.

    `kinds` are Pillow's names of the formats that it may be of, whatever its name says.
    """
    if isinstance(source, Path):
        if (size := source.stat().st_size) > _LIMIT:
            raise VlaeError(f"{source}: {size} bytes, {_LIMIT} at most; save it smaller")
        # From memory: of a file Pillow would ask for as many bytes as a damaged length says, up to 4 GiB.
        source = io.BytesIO(source.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(source)
    if kinds and image.format not in kinds:
        image.close()
        raise ValueError(f"its content is {image.format}")
    return image


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb")


def _variable(path: Path, variables: object, key: str) -> np.ndarray:
    if key not in variables:  # type: ignore[operator]
        raise VlaeError(f"{path}: holds no {key!r}; fetch the file again")
    array = np.asarray(variables[key])  # type: ignore[index]
    if array.dtype.kind not in "buif" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise VlaeError(f"{path}: {key!r} holds NaN, infinite values or no numbers; fetch the file again")
    return array


def plain(image: Image.Image, path: Path) -> Image.Image:
    """An image turned as its EXIF data says, and without its alpha channel.

    Raises:
        VlaeError: what would be lost without a word: more than 8 bits, further images, transparent pixels.
    """
    if image.mode.startswith(("I", "F")) or _deep(image):
        raise VlaeError(f"{path}: pixels of more than 8 bits; save it with 8 bits per channel")
    # The further pictures of an MPO file, a JPEG photo, are previews and the like.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise VlaeError(f"{path}: holds {frames} images; save each as its own file")
    upright = ImageOps.exif_transpose(image)
    if not _has_alpha(upright):
        return upright
    whole = upright.convert("RGBA")
    if whole.getchannel("A").getextrema() != (255, 255):
        raise VlaeError(f"{path}: has transparent pixels; save it without transparency")
    # Red is the grey of what was grey: exact, where a conversion would weight the channels.
    return whole.getchannel("R") if upright.mode in ("1", "L", "LA") else whole.convert("RGB")


def _deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits per channel, of which Pillow would silently keep 8."""
    for codec, _, _, arguments in getattr(image, "tile", ()):
        parts = arguments if isinstance(arguments, tuple) else (arguments,)
        if any(isinstance(part, str) and ";16" in part and not part.startswith("BGR") for part in parts):
            return True  # BGR;16 has 16 bits for all three channels
        if codec.startswith("ppm") and parts[-1] > 255:
            return True
    return False


def _has_alpha(image: Image.Image) -> bool:
    palette = image.palette is not None and image.palette.mode.endswith("A")
    return image.mode.endswith("A") or palette or "transparency" in image.info
