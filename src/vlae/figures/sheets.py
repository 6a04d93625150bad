"""Many sets of images on one sheet, a labelled row or more for each."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from vlae.errors import VlaeError
from vlae.figures.grids import _draw, _pixels


def sheet(sets: Mapping[str, Tensor], columns: int, title: str | None = None) -> Figure:
    """Draw sets of images below each other, each with its name beside its first row.

    Args:
        sets: images by name, [N, C, H, W] each, levels in [0, 1]; a set of more than `columns` goes on in further rows.
        columns: images per row; every set must fill its rows.
        title: a line above the sheet.

    Returns:
        A figure with one axes.

    Raises:
        VlaeError: no sets, wrong or unequal shapes, NaN, levels outside [0, 1], a row that is not full.

    Example:
        >>> import torch
        >>> figure = sheet({"data": torch.rand(4, 1, 8, 8), "samples": torch.rand(8, 1, 8, 8)}, columns=4)
        >>> [text.get_text() for text in figure.texts]
        ['data', 'samples', '']
    """
    if not sets or columns < 1:
        raise VlaeError(f"a sheet needs at least one set and one column; got {len(sets)} sets and {columns} columns")
    rows, labels = [], []
    shape = next(iter(sets.values())).shape[1:]
    for name, images in sets.items():
        if images.shape[1:] != shape or not len(images) or len(images) % columns:
            raise VlaeError(
                f"{name} has shape {list(images.shape)}, expected a multiple of {columns} images of {list(shape)}"
            )
        pixels = _pixels(images, name)
        rows += [pixels[start : start + columns] for start in range(0, len(pixels), columns)]
        labels += [name] + [""] * (len(pixels) // columns - 1)
    return _draw([rows], labels, title)
