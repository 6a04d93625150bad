"""The named data sets: one short function each, from original files to an `ImageDataset` of one split.

Each takes `split`, one of "train", "validation" and "test", `root`, and its own options by keyword.
"""

import numpy as np
import torch

from vlae.data import files, formats, sources
from vlae.data.datasets import ImageDataset
from vlae.data.seeds import Stream, generator
from vlae.data.sources import File, Root
from vlae.errors import VlaeError


def digits(split: str, root: Root) -> ImageDataset:
    """scikit-learn's 8x8 handwriting, 17 levels; one fixed permutation cut into 1,197 / 300 / 300."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.images).to(torch.uint8), torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=generator(Stream.SPLIT, 0))
    rows = order[{"train": slice(600, None), "validation": slice(300, 600), "test": slice(300)}[split]]
    return ImageDataset(images[rows], 17, name="digits", split=split, labels=labels[rows])


def mnist(split: str, root: Root, *, size: int = 28) -> ImageDataset:
    """MNIST; the last 10,000 of the training file are the validation split.

    With `size` 14 or 7 its pixels are means over squares of the original's: a study then takes a quarter of the time.
    """
    return _smaller(_idx_set("mnist", files.MNIST, split, root), size)


def fashion_mnist(split: str, root: Root, *, size: int = 28) -> ImageDataset:
    """Fashion-MNIST; the last 10,000 of the training file are the validation split. `size` as of MNIST."""
    return _smaller(_idx_set("fashion_mnist", files.FASHION_MNIST, split, root), size)


def _smaller(images: ImageDataset, size: int) -> ImageDataset:
    """The images with each square of (28 / size)^2 pixels replaced by its mean, rounded to the nearest level."""
    if not isinstance(size, int) or size not in (7, 14, 28):
        raise VlaeError(f"{images.name}: size={size!r}: expected 28, 14 or 7")
    if size == 28:
        return images
    means = torch.nn.functional.avg_pool2d(images.images.double(), 28 // size).round().to(torch.uint8)
    note = f"{images.note}, means over {28 // size}x{28 // size} pixels"
    return ImageDataset(means, 256, name=images.name, split=images.split, labels=images.labels, note=note)


def binarized_mnist(split: str, root: Root) -> ImageDataset:
    """Larochelle's static binarisation and split, without labels.

    The files are sorted by class: a fixed permutation makes the first so many images stand for all.
    """
    key = {"train": "train", "validation": "valid", "test": "test"}[split]
    path = sources.find(files.PACKED_FILE, root)
    packed = formats.read_npz(path, key)[0] if path else _pack_amats(root)[key]
    if packed.dtype != np.uint8 or packed.shape[1:] != (98,):
        raise VlaeError(f"{path}: {key} is {packed.dtype} {packed.shape}, expected uint8 (N, 98); fetch it again")
    sources.verify_bytes(f"{path}: {key}", packed.tobytes(), files.PACKED_ARRAYS[key])
    images = torch.from_numpy(np.unpackbits(packed, axis=1).reshape(-1, 1, 28, 28))
    order = torch.randperm(len(images), generator=generator(Stream.SPLIT, 0))
    return ImageDataset(images[order], 2, name="binarized_mnist", split=split, note="Larochelle's")


def caltech101_silhouettes(split: str, root: Root) -> ImageDataset:
    """Silhouettes of Caltech 101 at 28x28 (Marlin et al., 2010), object 1 on background 0; labels 0..100."""
    key = {"train": "train", "validation": "val", "test": "test"}[split]
    (path,) = sources.fetch("caltech101_silhouettes", [files.CALTECH], root)
    data, labels = formats.read_mat(path, f"{key}_data", f"{key}_labels")
    if data.ndim != 2 or data.shape[1] != 784 or data.max() > 1 or labels.size != len(data):
        raise VlaeError(f"{path}: {key}_data is {data.shape}, expected (N, 784) of 0 and 1; fetch the file again")
    images = 1 - torch.from_numpy(data.astype(np.uint8)).reshape(-1, 1, 28, 28).mT
    classes = torch.from_numpy(labels.reshape(-1).astype(np.int64)) - 1
    return ImageDataset(images.contiguous(), 2, name="caltech101_silhouettes", split=split, labels=classes)


def cifar10(split: str, root: Root) -> ImageDataset:
    """CIFAR-10 from its binary files; the last tenth (5,000) of the training images is the validation split."""
    six = files.CIFAR10
    paths = sources.fetch("cifar10", six[5:] if split == "test" else six[:5], root, archive=files.CIFAR10_ARCHIVE)
    parts = [formats.read_cifar(path) for path in paths]
    images = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    rows = _tail(split, len(images), len(images) // 10)
    return ImageDataset(
        torch.from_numpy(images[rows]),
        name="cifar10",
        split=split,
        labels=torch.from_numpy(labels[rows]),
        note=_tail_note(split, len(images), len(images) // 10),
    )


def _idx_set(name: str, four: list[File], split: str, root: Root) -> ImageDataset:
    """MNIST and its likes, from training images and labels and test images and labels."""
    paths = sources.fetch(name, four[2:] if split == "test" else four[:2], root)
    images, labels = formats.read_idx(paths[0], 3), formats.read_idx(paths[1], 1)
    if len(images) != len(labels) or labels.size == 0 or labels.max() > 9:
        raise VlaeError(f"{paths[1]}: expected {len(images)} labels of 0 to 9; fetch both files again")
    held = len(images) // 6
    rows = _tail(split, len(images), held)
    return ImageDataset(
        torch.from_numpy(images[rows]),
        name=name,
        split=split,
        labels=torch.from_numpy(labels[rows]).long(),
        note=_tail_note(split, len(images), held),
    )


def _tail(split: str, total: int, held: int) -> slice:
    """Rows of a split, where validation is the last `held` of the training images."""
    return {"train": slice(total - held), "validation": slice(total - held, None), "test": slice(None)}[split]


def _tail_note(split: str, total: int, held: int) -> str:
    return {
        "train": f"the first {total - held} training images",
        "validation": f"the last {held} training images",
        "test": "the official test images",
    }[split]


def _pack_amats(root: Root) -> dict[str, np.ndarray]:
    """The three text files, eight pixels to a byte, kept so in the cache."""
    paths = sources.fetch("binarized_mnist", files.AMAT_FILES, root)
    packed = {
        key: np.packbits(formats.read_amat(path), axis=1)
        for key, path in zip(("train", "valid", "test"), paths, strict=True)
    }
    if sources.keep(files.PACKED_FILE, packed):
        for path in paths:
            if sources.cache_dir() in path.parents:  # only what was downloaded, never the user's own
                path.unlink()
    return packed
