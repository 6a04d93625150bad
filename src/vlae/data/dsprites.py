"""dSprites (Matthey et al., 2017): white shapes on black, with the factors that they were drawn from."""

import math
from pathlib import Path

import numpy as np
import torch

from vlae.data import files, formats, sources
from vlae.data.datasets import ImageDataset
from vlae.data.factors import grid, rows_of
from vlae.data.sources import File, Root
from vlae.errors import VlaeError

NAMES = ("shape", "scale", "orientation", "x", "y")
SIZES = (3, 6, 40, 32, 32)  # of the official file, in which each of the 737,280 combinations occurs once


def dsprites(split: str, root: Root, *, variant: str = "factorial", whole: bool = False) -> ImageDataset:
    """dSprites at 64x64, binary; `factors` are classes of shape, scale, orientation, x and y, `labels` the shape's.

    Three variants. "factorial": the part of the full grid with every fourth orientation and every second x and y,
    46,080 images; made from the official file where there is none of its own. "full": the official file, 737,280
    images, 3 GB in memory. "random": a file of 20,000 images of these, with the class numbers of the full grid.

    A fixed random tenth of the images is the test split, another one validation; `whole=True` gives all of them in
    the order of the grid, as measures of disentanglement need it, whatever the split.
    """
    if variant == "factorial":
        path = sources.find(files.DSPRITES_FACTORIAL, root)
        images, classes = _read(path) if path else _thin_out(root)
    elif variant == "full":
        images, classes = _read(_fetched("dsprites", files.DSPRITES_FULL, root))
    elif variant == "random":
        images, classes = _read(_fetched("dsprites", files.DSPRITES_RANDOM, root), SIZES)
    else:
        raise VlaeError(f'variant={variant!r}: expected "factorial", "full" or "random"')
    sizes = SIZES if variant == "random" else _sizes(classes)
    rows = rows_of(split, len(images), whole)
    factors = torch.from_numpy(classes)[rows]
    which = f"{len(images)} images drawn from the grid" if variant == "random" else "the grid"
    return ImageDataset(
        torch.from_numpy(images)[rows][:, None],
        2,
        name="dsprites",
        split=split,
        labels=factors[:, 0].contiguous(),
        factors=factors,
        factor_names=NAMES,
        factor_sizes=sizes,
        note=f"variant {variant}, {'all' if whole else 'a fixed part'} of {which} {'x'.join(map(str, sizes))}",
    )


def _fetched(what: str, file: File, root: Root) -> Path:
    (path,) = sources.fetch(what, [file], root)
    return path


def _read(path: Path, sizes: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 64, 64] of 0 and 1, and classes int64 [N, 5].

    The classes must be a full grid in its order; or where `sizes` are given any within them.
    """
    images, classes = formats.read_npz(path, "imgs", "latents_classes")
    if images.dtype != np.uint8 or images.shape[1:] != (64, 64) or not images.size or images.max() > 1:
        raise VlaeError(f"{path}: imgs is {images.dtype} {images.shape}, expected uint8 (N, 64, 64) of 0 and 1")
    if classes.dtype.kind in "iu" and classes.shape[1:] == (6,) and not classes[:, 0].any():
        classes = classes[:, 1:]  # the colour, of which there is but one
    if classes.dtype.kind not in "iu" or classes.shape != (len(images), 5):
        raise VlaeError(
            f"{path}: latents_classes is {classes.dtype} {classes.shape}, expected integers ({len(images)}, 5)"
        )
    classes = classes.astype(np.int64)
    if sizes is not None:
        if classes.min() < 0 or (classes >= sizes).any():
            raise VlaeError(f"{path}: latents_classes out of range, expected 0 to size - 1 for the sizes {sizes}")
    elif math.prod(_sizes(classes)) != len(images) or not np.array_equal(classes, grid(_sizes(classes))):
        raise VlaeError(f"{path}: latents_classes is no full grid, expected each combination once, in order")
    return images, classes


def _sizes(classes: np.ndarray) -> tuple[int, ...]:
    """How many classes each factor of a full grid has."""
    return tuple((classes.max(0) + 1).tolist())


def _thin_out(root: Root) -> tuple[np.ndarray, np.ndarray]:
    """The official file without most orientations and positions, kept in the cache."""
    images, classes = _read(
        _fetched(f"dsprites, for want of {files.DSPRITES_FACTORIAL.name}", files.DSPRITES_FULL, root)
    )
    every = (slice(None), slice(None), slice(None, None, 4), slice(None, None, 2), slice(None, None, 2))
    complete = _sizes(classes) == SIZES
    images = images.reshape(*_sizes(classes), 64, 64)[every]
    classes = grid(images.shape[:5]).numpy()
    images = images.reshape(-1, 64, 64)
    if complete:
        sources.keep(files.DSPRITES_FACTORIAL, {"imgs": images, "latents_classes": classes})
    return images, classes
