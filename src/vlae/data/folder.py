"""Any directory of images: each resized to a square, or random crops of all of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vlae.data import formats, sources
from vlae.data.datasets import SPLITS, ImageDataset, both_notes, threshold
from vlae.data.seeds import Stream, generator
from vlae.errors import VlaeError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Pillow finds the format by the content, and would run other programs to draw some (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")


class CropDataset(ImageDataset):
    """Square crops of images of any size: drawn anew each epoch for training, fixed for the other splits.

    A crop is of a random image, then at a random position in it, both uniformly.

    Args:
        sources: uint8 [C, h, w] each, all at least `crop` wide and high.
        crop: side of a crop.
        count: crops per epoch.
        name: what the set is called.
        split: decides whether crops are drawn anew.
        note: for `protocol`.
    """

    def __init__(
        self, sources: Sequence[Tensor], crop: int, count: int, *, name: str, split: str, note: str = ""
    ) -> None:
        self.sources = list(sources)
        self.crop = crop
        fixed = generator(Stream.FIXED_CROPS, SPLITS.index(split))
        super().__init__(self._crops(count, fixed), name=name, split=split, note=note)
        self.redrawn = self.training

    def epoch_images(self, seed: int, epoch: int) -> Tensor:
        """The crops of this epoch, uint8 [N, C, crop, crop]."""
        if not self.redrawn:
            return super().epoch_images(seed, epoch)
        crops = self._crops(len(self), generator(Stream.CROPS, seed, epoch))
        return threshold(crops, self.levels) if self.binarize == "threshold" else crops

    def join(self, other: ImageDataset) -> "CropDataset":
        """Crops of the images of both, as many per epoch as here."""
        assert isinstance(other, CropDataset)
        joined = CropDataset(
            self.sources + other.sources,
            self.crop,
            len(self),
            name=self.name,
            split="train+validation",
            note=both_notes(self.note, other.note),
        )
        return joined.binarized(self.binarize)

    def _crops(self, count: int, generator: torch.Generator) -> Tensor:
        which, down, right = torch.rand(count, 3, generator=generator, dtype=torch.float64).unbind(1)
        which = (which * len(self.sources)).long()
        crops = torch.empty(count, self.sources[0].shape[0], self.crop, self.crop, dtype=torch.uint8)
        for i, image in enumerate(self.sources):
            mine = (which == i).nonzero()[:, 0]
            windows = image.unfold(1, self.crop, 1).unfold(2, self.crop, 1)  # a view: [C, rows, columns, crop, crop]
            rows, columns = windows.shape[1:3]
            crops[mine] = windows[:, (down[mine] * rows).long(), (right[mine] * columns).long()].transpose(0, 1)
        return crops


def folder(
    split: str,
    root: str | Path | None,
    *,
    path: str | Path | None = None,
    size: int | None = None,
    crop: int | None = None,
    mode: str = "RGB",
    crops_per_epoch: int | None = None,
) -> ImageDataset:
    """The images below a directory, sorted by name: the last tenth is the test split, the tenth before validation.

    A tenth is rounded down, but at least one image; a folder of one or two images is all training.

    Args:
        split: "train", "validation" or "test".
        root: where `path` is looked for if it is not found as it stands.
        path: the directory.
        size: resize the middle square of each image to this side.
        crop: instead, random crops of this side.
        mode: "RGB" or "L" (grey).
        crops_per_epoch: how many crops the set counts as, 1,000 by default.

    Raises:
        VlaeError: options that contradict each other, no image for this split, or an unreadable image.
    """
    _check_options(size, crop, mode, crops_per_epoch)
    directory = directory_of(path, root)
    files = sorted(
        (file for file in directory.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()),
        key=lambda file: file.relative_to(directory).as_posix(),
    )
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(directory).parts)]
    images = [read_image(file, mode, size) for file in _of_split(split, files, directory)]
    note = f"{directory.name}, {len(images)} of {len(files)} files"
    if crop is None:
        if len({image.shape for image in images}) > 1:
            raise VlaeError(f"{directory}: images of different sizes; give size=... or crop=...")
        return ImageDataset(torch.stack(images), name="folder", split=split, note=note)
    for file, image in zip(_of_split(split, files, directory), images, strict=True):
        if min(image.shape[1:]) < crop:
            raise VlaeError(f"{file}: {image.shape[2]}x{image.shape[1]} pixels, too small for crop={crop}")
    note += f", {crop}x{crop} crops"
    return CropDataset(images, crop, crops_per_epoch or 1000, name="folder", split=split, note=note)


def read_image(path: Path, mode: str, size: int | None = None) -> Tensor:
    """An image file as uint8 [C, h, w], turned as its EXIF data says; with `size`, its middle square resized."""
    with formats.reading(path, "image", "replace or remove it"), formats.open_image(path, FORMATS) as image:
        upright = formats.plain(image, path).convert(mode)
        if size is not None:
            upright = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(upright))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _check_options(size: int | None, crop: int | None, mode: str, crops_per_epoch: int | None) -> None:
    if size is not None and crop is not None:
        raise VlaeError("folder: give size (whole images, resized) or crop (random crops), not both")
    if crops_per_epoch is not None and crop is None:
        raise VlaeError("folder: crops_per_epoch needs crop, the side of a crop")
    for option, value in {"size": size, "crop": crop, "crops_per_epoch": crops_per_epoch}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise VlaeError(f"folder: {option}={value!r}, expected a positive integer")
    if mode not in ("L", "RGB"):
        raise VlaeError(f'folder: mode={mode!r}, expected "L" or "RGB"')


def directory_of(path: str | Path | None, root: str | Path | None) -> Path:
    """The directory of images that `path` names, as it stands or in a place of data sets, absolute."""
    if path is None:
        raise VlaeError('folder needs path=..., a directory of images: load("folder", path="photos", crop=32)')
    path = str(path)  # 2024 is a number in YAML
    candidates = [Path(path).expanduser(), *(place / path for place in sources.places(root))]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    raise VlaeError(f"folder: no directory {', '.join(map(str, candidates))}; give the path of a directory of images")


def _of_split(split: str, files: list[Path], directory: Path) -> list[Path]:
    held = max(1, len(files) // 10) if len(files) >= 3 else 0
    end = len(files)
    rows = {
        "train": slice(end - 2 * held),
        "validation": slice(end - 2 * held, end - held),
        "test": slice(end - held, end),
    }
    chosen = files[rows[split]]
    if not chosen:
        need = "at least 3 for a validation and a test split" if files else ", ".join(sorted(SUFFIXES))
        raise VlaeError(f"{directory}: {len(files)} images, none left for split {split!r}; expected {need}")
    return chosen
