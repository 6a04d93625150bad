"""A set of images in memory, with its split and its binarisation."""

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from vlae.data.arrays import as_labels, collect, plain, to_levels
from vlae.data.seeds import Stream, generator
from vlae.errors import VlaeError, one_line

Binarize = Literal["static", "dynamic", "threshold"]
SPLITS = ("train", "validation", "test", "train+validation")


class ImageDataset(Dataset[Tensor]):
    """Images as integer levels, handed out as floats in [0, 1].

    Binarisation reads a level as a grey value x in [0, 1]. "static": one fixed draw from Bernoulli(x), a function of
    the split's name alone. "dynamic": a new draw at each visit in training splits, the static draw in held-out ones.
    "threshold": x >= 0.5.

    Args:
        images: uint8 [N, C, H, W], values 0..levels-1, always as they came: binarisation leaves them alone.
        levels: how many levels there are: 2 for binary images, 256 for grey and RGB.
        name: what the set is called.
        split: "train", "validation", "test" or "train+validation".
        labels: int64 [N], or None.
        factors: ground-truth factors [N, F], or None.
        factor_names: what they are called, F of them, or none.
        factor_sizes: how many classes each has, where they are classes 0..size-1: F of them, or none.
        binarize: None, "static", "dynamic" or "threshold".
        note: how the split was made, for `protocol`.

    Raises:
        VlaeError: shapes, values, split or binarisation are not as above.
    """

    redrawn = False  # True where the images themselves are new in every epoch
    options: Mapping[str, Any] = MappingProxyType({})  # what `vlae.data.load` was told beside name, split and so on

    def __init__(
        self,
        images: Tensor,
        levels: int = 256,
        *,
        name: str = "images",
        split: str = "train",
        labels: Tensor | None = None,
        factors: Tensor | None = None,
        factor_names: Sequence[str] = (),
        factor_sizes: Sequence[int] = (),
        binarize: str | None = None,
        note: str = "",
    ) -> None:
        if images.dtype != torch.uint8:
            raise VlaeError(f"{name}: images of {images.dtype}; expected uint8, or use ImageDataset.from_any")
        self.images, self.levels = to_levels(images, levels)
        if factors is not None and factors.ndim != 2:
            raise VlaeError(f"{name}: factors of shape {list(factors.shape)}; expected [N, F]")
        for what, values in {"labels": labels, "factors": factors}.items():
            if values is not None and len(values) != len(images):
                raise VlaeError(f"{name}: {len(values)} {what} for {len(images)} images; expected one each")
        if factors is not None and not bool(factors.isfinite().all()):
            worst = int((~factors.isfinite()).any(1).nonzero()[0])
            raise VlaeError(f"{name}: the factors of image {worst} hold NaN or infinite values; leave such images out")
        for what, given in {"names": factor_names, "sizes": factor_sizes}.items():
            if given and (factors is None or len(given) != factors.shape[1]):
                has = 0 if factors is None else factors.shape[1]
                raise VlaeError(f"{name}: {len(given)} factor_{what} for {has} factors; expected one each")
        self.name = name
        self.split = check_split(split)
        self.labels = labels
        self.factors = factors
        self.factor_names = tuple(factor_names)
        self.factor_sizes = tuple(factor_sizes)
        self.note = note
        self.binarize: str | None = None
        self._fixed: Tensor | None = None  # the 0/1 images, where they are the same at every visit
        if check_binarize(binarize):
            self._binarize(binarize)

    @classmethod
    def from_any(
        cls,
        x: Any,
        *,
        name: str | None = None,
        split: str | None = None,
        levels: int | None = None,
        labels: Any = None,
        factors: Any = None,
        binarize: str | None = None,
    ) -> "ImageDataset":
        """A set from a tensor, an array or a torch `Dataset` of images or (image, label) pairs.

        Args:
            x: [N, C, H, W] or [N, H, W], uint8 or floats in [0, 1]; or a `Dataset` of such images without the N.
            name: what the set is called; "custom" if not given.
            split: which split it is to be; "train" if not given.
            levels: 2 to 256; by default 2 where all values are 0 or 1, else 256. Floats are rounded to these levels.
            labels: integers [N], instead of the `Dataset`'s own.
            factors: ground-truth factors, integers or floats [N, F].
            binarize: as in the class.

        Raises:
            VlaeError: NaN, values out of range or another shape; labels that are no integers; other options than
                `binarize` for what is an `ImageDataset` already, or a `Subset` of one, which stays what that is.

        Example:
            >>> ImageDataset.from_any(torch.rand(10, 28, 28)).image_shape
            (1, 28, 28)
        """
        if isinstance(x, Subset) and isinstance(whole := _unwrapped(x), ImageDataset):
            x = whole
        if isinstance(x, ImageDataset):
            given = {"name": name, "split": split, "levels": levels, "labels": labels, "factors": factors}
            if odd := [key for key, value in given.items() if value is not None]:
                raise VlaeError(
                    f"an ImageDataset has its own {odd[0]}: leave {odd[0]} out, or give its images alone "
                    "(dataset.images)"
                )
            return x if binarize is None else x.binarized(binarize)
        name, split, own = name or "custom", split or "train", None
        if isinstance(x, Dataset):
            x, own = collect(x)
        images, levels = to_levels(x, levels)
        labels = own if labels is None else as_labels(labels)
        factors = None if factors is None else _as_factors(factors)
        return ImageDataset(images, levels, name=name, split=split, labels=labels, factors=factors, binarize=binarize)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def effective_levels(self) -> int:
        """How many levels the images handed out have: 2 when binarised, else `levels`."""
        return 2 if self.binarize else self.levels

    @property
    def training(self) -> bool:
        """Whether this split is trained on, so that what is random is drawn anew at each visit."""
        return self.split in ("train", "train+validation")

    @property
    def protocol(self) -> str:
        """Split and binarisation in one line, as a results table needs it."""
        how = {
            None: "binary as they came" if self.levels == 2 else f"{self.levels} levels",
            "static": "static binarisation, one fixed draw",
            "dynamic": "dynamic binarisation, "
            + ("a new draw at each visit" if self._fixed is None else "this split's fixed draw"),
            "threshold": "binarised at 0.5",
        }[self.binarize]
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}, {self.split}{note}: {len(self)} images, {how}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Tensor:
        """Image `index` as floats [C, H, W] in [0, 1]; a dynamic draw comes from torch's global generator."""
        return self.to_float((self.images if self._fixed is None else self._fixed)[index])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.protocol})"

    def tensor(self, generator: torch.Generator | None = None) -> Tensor:
        """All images as floats [N, C, H, W] in [0, 1].

        Where the binarisation is drawn at each visit this is one draw: from `generator`, else always the same one.
        """
        if self._fixed is not None:
            return self._fixed.float()
        return self.to_float(self.images, generator or self._static_generator())

    def subset(self, n: int) -> Self:
        """The first `n` images, all else equal.

        Raises:
            VlaeError: n is not in 1..N.
        """
        if not isinstance(n, Integral) or isinstance(n, bool) or not 1 <= n <= len(self):
            raise VlaeError(f"expected 1 to {len(self)} images of {self.name} {self.split}; got {n!r}")
        return self._with(**{key: value[:n] for key, value in self._per_image().items()})

    def chosen(self, indices: Sequence[int]) -> Self:
        """The images at these positions, in this order, all else equal; positions below 0 count from the end.

        Raises:
            VlaeError: there are none, or some are no positions of images.
        """
        rows = _as_positions(indices)
        if not len(rows) or not bool(((-len(self) <= rows) & (rows < len(self))).all()):
            raise VlaeError(
                f"part of {self.name} {self.split}: expected positions from 0 to {len(self) - 1}, one or more"
            )
        return self._with(**{key: value[rows] for key, value in self._per_image().items()})

    def binarized(self, binarize: str | None) -> Self:
        """The same images with this binarisation.

        Raises:
            VlaeError: an unknown value, or the images are already binary.
        """
        new = self._with(binarize=None, _fixed=None)
        if check_binarize(binarize):
            new._binarize(binarize)
        return new

    def drawn(self) -> Self:
        """The same images with one draw, that of `tensor`, where they or their binarisation are drawn anew."""
        if self.binarize == "dynamic" and self._fixed is None:
            return self._with(_fixed=draw(self.images, self.levels, self._static_generator()), redrawn=False)
        return self._with(redrawn=False) if self.redrawn else self

    def join(self, other: "ImageDataset") -> Self:
        """Training and validation images as the split "train+validation"; fixed draws stay those of the parts."""
        if self.image_shape != other.image_shape:
            sizes = " and ".join("x".join(map(str, each.image_shape)) for each in (self, other))
            raise VlaeError(f"{self.name}: its training and validation images differ in size, {sizes}; make them one")
        mine, theirs = self._per_image(), other._per_image()
        both = {key: torch.cat([mine[key], theirs[key]]) if key in theirs else None for key in mine}
        return self._with(split="train+validation", note=both_notes(self.note, other.note), **both)

    def epoch_images(self, seed: int, epoch: int) -> Tensor:
        """What batches of this epoch are cut from: uint8 [N, C, H, W], a pure function of (seed, epoch)."""
        return self.images if self._fixed is None else self._fixed

    def to_float(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels cut from `epoch_images`, on any device, as floats in [0, 1], drawn here where that is due.

        Args:
            pixels: uint8, any shape.
            generator: on the pixels' device; decides a dynamic draw.
        """
        if self._fixed is not None:
            return pixels.float()
        if self.binarize == "dynamic":
            return draw(pixels, self.levels, generator).float()
        return pixels.float() / (self.levels - 1)

    def _binarize(self, binarize: str | None) -> None:
        if self.levels == 2:
            raise VlaeError(f"{self.name} is already binary; leave out binarize={binarize!r}")
        if binarize == "static" and self.redrawn:
            raise VlaeError(f'{self.name} {self.split} is drawn anew each epoch; use binarize="dynamic"')
        self.binarize = binarize
        if binarize == "threshold":
            self._fixed = threshold(self.images, self.levels)
        elif binarize == "static" or not self.training:
            self._fixed = draw(self.images, self.levels, self._static_generator())

    def _static_generator(self) -> torch.Generator:
        return generator(Stream.STATIC, SPLITS.index(self.split))

    def _per_image(self) -> dict[str, Tensor]:
        """Everything that has one row per image."""
        rows = {"images": self.images, "labels": self.labels, "factors": self.factors, "_fixed": self._fixed}
        return {key: value for key, value in rows.items() if value is not None}

    def _with(self, **changes: Any) -> Self:
        new = copy.copy(self)
        vars(new).update(changes)
        return new


def _as_factors(factors: Any) -> Tensor:
    """Factors of any origin: integers as int64, floats as they are."""
    try:
        factors = plain(factors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise VlaeError(f"factors must be numbers, one row per image ({one_line(error)})") from error
    return factors if factors.is_floating_point() else factors.long()


def _as_positions(indices: Any) -> Tensor:
    """Positions of any origin as int64 [n]; none where they are no integers."""
    none = torch.empty(0, dtype=torch.int64)
    try:
        rows = plain(indices)
    except (TypeError, ValueError, RuntimeError):
        return none
    return none if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool else rows.long()


def draw(pixels: Tensor, levels: int, generator: torch.Generator | None) -> Tensor:
    """One draw from Bernoulli(pixels / (levels - 1)) as uint8 0/1.

    A uniform integer u in 0..levels-2 is below level x with probability exactly x / (levels - 1): no floats needed.
    """
    noise = torch.randint(levels - 1, pixels.shape, dtype=torch.uint8, device=pixels.device, generator=generator)
    return (noise < pixels).view(torch.uint8)


def threshold(pixels: Tensor, levels: int) -> Tensor:
    """Whether pixels / (levels - 1) >= 0.5, as uint8 0/1."""
    return (pixels >= levels // 2).view(torch.uint8)


def both_notes(first: str, second: str) -> str:
    """The notes of two parts as the note of their union."""
    return first if first == second else f"{first} and {second}"


def check_split(split: str) -> str:
    """`split` by its full name; "val" and "valid" are validation."""
    parts = ["validation" if part in ("val", "valid") else part for part in str(split).split("+")]
    if "+".join(parts) not in SPLITS:
        raise VlaeError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    return "+".join(parts)


def check_binarize(binarize: str | None) -> bool:
    """Whether to binarise at all; unknown values are refused."""
    if binarize is not None and binarize not in get_args(Binarize):
        raise VlaeError(f'binarize={binarize!r}: expected "static", "dynamic" or "threshold", or null (all levels)')
    return binarize is not None


def _unwrapped(x: Subset[Any]) -> Dataset[Any]:
    """A `Subset` of an `ImageDataset`, or of a `Subset` of one, as that; any other's own data set."""
    inner = _unwrapped(x.dataset) if isinstance(x.dataset, Subset) else x.dataset
    return inner.chosen(x.indices) if isinstance(inner, ImageDataset) else inner
