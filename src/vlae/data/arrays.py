"""Tensors, arrays and data sets of any origin, checked and turned into uint8 levels [N, C, H, W]."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from vlae.errors import VlaeError, one_line

# What torch computes with; what it only stores, and numpy computes with; and floats that it only stores.
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)


def to_levels(x: Tensor | np.ndarray, levels: int | None = None) -> tuple[Tensor, int]:
    """Images as integer levels.

    Args:
        x: [N, C, H, W] or [N, H, W]; integers 0..levels-1, booleans, or floats in [0, 1], rounded to the nearest
            of `levels` equidistant values.
        levels: 2 to 256; by default 2 where all values are 0 or 1, else 256.

    Returns:
        A uint8 tensor [N, C, H, W] with values 0..levels-1, and `levels`.

    Raises:
        VlaeError: another shape, NaN or values out of range.
    """
    x = _shaped(_as_tensor(x))
    levels = None if levels is None else _whole_levels(levels)
    real = x.is_floating_point()
    if real and not bool(torch.isfinite(x).all()):
        raise VlaeError("the images hold NaN or infinite values; expected floats in [0, 1]")
    low, high = x.min().item(), x.max().item()
    top = 1 if real else 255 if levels is None else levels - 1
    if low < 0 or high > top:
        hint = "; divide by 255, or give uint8" if real and low >= 0 and high <= 255 else ""
        kind = "floats in [0, 1]" if real else f"integers in 0..{top}"
        raise VlaeError(f"the images hold values from {low:g} to {high:g}; expected {kind}{hint}")
    if levels is None:
        levels = 2 if bool(((x == 0) | (x == 1)).all()) else 256
    return (x * (levels - 1)).round().to(torch.uint8) if real else x.to(torch.uint8), levels


def collect(dataset: Dataset[Any]) -> tuple[Tensor, Tensor | None]:
    """All images [N, C, H, W] and, if it yields pairs, int64 labels [N] of a `torch.utils.data.Dataset`."""
    if isinstance(dataset, IterableDataset):
        items = list(dataset)
    else:
        try:
            items = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
        except (TypeError, NotImplementedError) as error:
            raise VlaeError(f"{type(dataset).__name__} needs __len__ and __getitem__ ({error})") from error
    if not items:
        raise VlaeError(f"{type(dataset).__name__} is empty; expected at least one image")
    items = [item if isinstance(item, (tuple, list)) else (item,) for item in items]
    labelled = len(items[0]) > 1
    if any(not item or (len(item) > 1) != labelled for item in items):
        raise VlaeError(
            f"{type(dataset).__name__} yields images here and (image, label) pairs there, or nothing; make them alike"
        )
    images = [_one_image(item[0]) for item in items]
    if {(image.shape, image.dtype) for image in images} != {(images[0].shape, images[0].dtype)}:
        raise VlaeError(f"{type(dataset).__name__} yields images of different shapes or types; make them alike")
    return torch.stack(images), _labels([item[1] for item in items]) if labelled else None


def plain(x: Any) -> Tensor:
    """Real numbers as a dense tensor on the CPU, of a type that torch computes with; their values stay.

    Raises:
        TypeError: a tensor that is not dense; numbers that are not real, packed, or integers of 2^63 or more.
        ValueError, RuntimeError: neither tensor nor array, and nothing that torch makes a tensor of.
    """
    if not isinstance(x, (Tensor, np.ndarray)):
        x = torch.as_tensor(x)
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_nested or x.is_meta:
            raise TypeError(f"a {'nested' if x.is_nested else 'meta' if x.is_meta else x.layout} tensor")
        x = x.detach().cpu()
        if x.dtype in _INTEGERS + _FLOATS:
            return x
        if x.dtype in _FLOAT8:
            return x.float()
        if x.dtype not in _UNSIGNED:  # complex, quantised, or several in a byte
            raise TypeError(f"values of {x.dtype}")
        x = x.numpy()
    if x.dtype.kind not in "buif":
        raise TypeError(f"values of {x.dtype}")
    if x.dtype.kind == "u" and int(x.max(initial=0)) >= 2**63:
        raise TypeError("integers of 2^63 or more")
    return torch.from_numpy(x.astype(_native(x.dtype)))  # a copy: torch shares no read-only memory


def _native(dtype: np.dtype[Any]) -> type[np.generic]:
    """The nearest of numpy's types that torch has, in this machine's byte order."""
    if dtype.kind == "f":
        return dtype.type if dtype.itemsize <= 8 else np.float64
    return dtype.type if dtype.itemsize == 1 else np.int64


def _as_tensor(x: Any) -> Tensor:
    """`x` as `plain`; no lists, which are slow."""
    if not isinstance(x, (Tensor, np.ndarray)):
        raise VlaeError(
            f"{type(x).__name__} can't be images; expected a tensor or array [N, C, H, W], or a torch Dataset"
        )
    try:
        return plain(x)
    except TypeError as error:
        raise VlaeError(
            f"{error} can't be images; expected a dense tensor or array, uint8 or floats in [0, 1]"
        ) from None


def _whole_levels(levels: Any) -> int:
    """A number of levels, of whatever type, as an integer."""
    try:
        whole = int(levels)
        fits = bool(whole == levels) and 2 <= whole <= 256
    except (TypeError, ValueError, OverflowError, RuntimeError):
        fits = False
    if not fits:
        raise VlaeError(f"levels={levels!r:.40}: expected an integer from 2 to 256")
    return whole


def _shaped(x: Tensor) -> Tensor:
    """[N, H, W] or [N, C, H, W] as [N, C, H, W], none of it empty."""
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4 or x.numel() == 0:
        raise VlaeError(f"images of shape {list(x.shape)}; expected [N, C, H, W] or [N, H, W], none of them 0")
    if x.shape[1] > 4 and x.shape[3] in (1, 3):
        raise VlaeError(f"images of shape {list(x.shape)}; expected channels second: use permute(0, 3, 1, 2)")
    return x


def _one_image(x: Any) -> Tensor:
    """One image as [C, H, W]; a Pillow image has its channels last."""
    if not isinstance(x, (Tensor, np.ndarray)) and hasattr(x, "getbands"):
        if x.mode not in ("1", "L", "RGB", "P"):
            raise VlaeError(f"an image of the kind {x.mode}; convert it to grey (L) or RGB first")
        x = x.convert("RGB") if x.mode == "P" else x  # the indices of a palette are no levels
        pixels = torch.from_numpy(np.array(x))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    x = _as_tensor(x)
    if x.ndim not in (2, 3):
        raise VlaeError(f"an image of shape {list(x.shape)}; expected [C, H, W] or [H, W]")
    return x[None] if x.ndim == 2 else x


def _labels(values: list[Any]) -> Tensor:
    """Integer labels as int64 [N]."""

    def one(value: Any) -> Any:
        single = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1)
        return value.item() if single else value

    return as_labels([one(value) for value in values])


def as_labels(labels: Any) -> Tensor:
    """Labels of any origin as int64 [N]; floats that are whole numbers are taken."""
    try:
        given = plain(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise VlaeError(f"labels must be integers, one per image ({one_line(error)})") from error
    if given.ndim != 1:
        raise VlaeError(f"labels must be integers, one per image; got a tensor of shape {list(given.shape)}")
    whole = given.long()
    if given.is_floating_point() and not torch.equal(whole.to(given.dtype), given):  # nor is NaN equal to anything
        raise VlaeError("labels must be integers, one per image; these hold fractions, NaN or infinite values")
    return whole
