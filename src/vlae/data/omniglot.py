"""OMNIGLOT, of which there are two versions that must never be confused."""

import numpy as np
import torch
from torch import Tensor

from vlae.data import formats, sources
from vlae.data.datasets import ImageDataset
from vlae.data.files import OMNIGLOT_BOX28, OMNIGLOT_CHARDATA, OMNIGLOT_ZIPS
from vlae.data.seeds import Stream, generator
from vlae.data.sources import Root
from vlae.errors import VlaeError


def omniglot(split: str, root: Root, *, variant: str = "box28") -> ImageDataset:
    """OMNIGLOT at 28x28, bright ink on black; labels are alphabets, 0..49.

    Two variants that must not be set beside each other. "box28": the official background images (a fixed tenth of
    them held out for validation) and evaluation images as test split, shrunk by averaging. "chardata": the file of
    the VAE literature (Burda et al., 2016), 24,345 / 8,070 images, 1,345 of the former held out for validation.
    """
    if variant == "box28":
        images, labels = _box28(split, root)
        held = len(images) // 10
        part = "evaluation" if split == "test" else "background"
        note = f"variant box28, {part} alphabets, not the literature's split"
    elif variant == "chardata":
        images, labels = _chardata(split, root)
        held = min(1345, len(images) // 10)
        note = "variant chardata, the literature's resize and split"
    else:
        raise VlaeError(f'variant={variant!r}: expected "box28" or "chardata"')
    # Of the test images too, which are sorted by alphabet: the first so many are to stand for all.
    order = torch.randperm(len(images), generator=generator(Stream.SPLIT, 0))
    rows = {"train": order[held:], "validation": order[:held], "test": order}[split]
    images, labels = images[rows], labels[rows]
    return ImageDataset(images, name="omniglot", split=split, labels=labels, note=note)


def _box28(split: str, root: Root) -> tuple[Tensor, Tensor]:
    """All images of the background or evaluation part, uint8 [N, 28, 28], and their alphabets."""
    part = "evaluation" if split == "test" else "background"
    path = sources.find(OMNIGLOT_BOX28, root)
    if path:
        images, alphabet = formats.read_npz(path, f"images_{part}", f"images_{part}_alphabet")
        background = 30
    else:
        made = _shrink(root)
        images, alphabet = made[f"images_{part}"], made[f"images_{part}_alphabet"]
        background = int(made["images_background_alphabet"].max()) + 1
    if images.dtype != np.uint8 or images.shape != (alphabet.size, 28, 28):
        raise VlaeError(f"{path}: images of {images.dtype} {images.shape}, expected uint8 (N, 28, 28)")
    # Evaluation alphabets are others than the background's: they must not share numbers.
    first = background if part == "evaluation" else 0
    return torch.from_numpy(images), torch.from_numpy(alphabet.astype(np.int64)) + first


def _shrink(root: Root) -> dict[str, np.ndarray]:
    """Both official zip files at 28x28, kept in the cache where they are complete."""
    made = {}
    for part, path in zip(("background", "evaluation"), sources.fetch("omniglot", OMNIGLOT_ZIPS, root), strict=True):
        images, names = formats.read_png_zip(path, side=28)
        # images_background/<alphabet>/character01/0709_01.png
        alphabets = [name.split("/")[-3] if name.count("/") >= 2 else "" for name in names]
        characters = [name.rpartition("/")[0] for name in names]
        made[f"images_{part}"] = images
        made[f"images_{part}_alphabet"] = np.unique(alphabets, return_inverse=True)[1].astype(np.int16)
        made[f"images_{part}_character"] = np.unique(characters, return_inverse=True)[1].astype(np.int16)
    if (len(made["images_background"]), len(made["images_evaluation"])) == (19280, 13180):
        sources.keep(OMNIGLOT_BOX28, made)
    return made


def _chardata(split: str, root: Root) -> tuple[Tensor, Tensor]:
    """Grey images in [0, 1], column-major, one per column of the matrix, and one-hot alphabets."""
    (path,) = sources.fetch("omniglot", [OMNIGLOT_CHARDATA], root)
    prefix = "test" if split == "test" else ""
    data, target = formats.read_mat(path, f"{prefix}data", f"{prefix}target")
    if data.ndim != 2 or data.shape[0] != 784 or target.shape[1:] != data.shape[1:]:
        raise VlaeError(f"{path}: {prefix}data is {data.shape}, expected (784, N); fetch the file again")
    with formats.reading(path, "chardata.mat"):
        grey = np.clip(data.T.astype(np.float64), 0, 1)
        images = torch.from_numpy(np.round(255 * grey).astype(np.uint8)).reshape(-1, 28, 28).mT
        return images.contiguous(), torch.from_numpy(np.argmax(target, axis=0).astype(np.int64))
