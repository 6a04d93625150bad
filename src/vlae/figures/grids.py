"""Images side by side, pixel for pixel, and the one function that writes a figure to disk."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from torch import Tensor

from vlae.errors import VlaeError
from vlae.figures.text import plain
from vlae.files import replacing

Pixels = npt.NDArray[np.uint8]

DPI = 128  # a power of two: pixels / DPI * DPI is then exact, and no row of pixels is lost to rounding
TARGET_WIDTH = 900  # pixels: images are enlarged by the largest whole factor that stays below it
MAX_SCALE = 10
GAP = 2  # pixels between images
BLOCK_GAP = 14  # pixels between blocks of rows
MARGIN = 12  # pixels around everything
GAP_LEVEL = 200  # grey, so that both black and white backgrounds have an edge
LABEL_SIZE, TITLE_SIZE = 8.0, 10.0  # points


def image_grid(images: Tensor, columns: int | None = None, title: str | None = None) -> Figure:
    """Draw images row by row, enlarged by a whole factor without smoothing.

    Args:
        images: [N, C, H, W], levels in [0, 1]; C is 1 (grey) or 3 (RGB).
        columns: images per row; by default the grid is about as high as it is wide.
        title: a line above the grid.

    Returns:
        A figure with one axes; the level `v` of a pixel is drawn as `round(255 v)`.

    Raises:
        VlaeError: wrong shape, NaN or levels outside [0, 1], or `columns` < 1.

    Example:
        >>> import torch
        >>> figure = image_grid(torch.rand(10, 1, 8, 8), columns=5)
        >>> len(figure.axes)
        1
    """
    pixels = _pixels(images, "images")
    columns = min(_columns(columns, _square(pixels)), len(pixels))
    rows = [pixels[start : start + columns] for start in range(0, len(pixels), columns)]
    return _draw([rows], [], title)


def recon_grid(
    originals: Tensor,
    reconstructions: Tensor | Mapping[str, Tensor],
    title: str | None = None,
    row_labels: tuple[str, str] = ("original", "reconstruction"),
    columns: int | None = None,
) -> Figure:
    """Draw each image above its reconstructions, in labelled rows.

    Args:
        originals: [N, C, H, W], levels in [0, 1]; C is 1 (grey) or 3 (RGB).
        reconstructions: the same shape; or several sets by name, one row each, labelled with the name.
        title: a line above the grid.
        row_labels: the names of the two rows; the second is used for a single tensor only.
        columns: images per row, at most 10 by default; more images go into further blocks of rows.

    Returns:
        A figure with one axes per block of rows.

    Raises:
        VlaeError: wrong or unequal shapes, NaN, levels outside [0, 1], no reconstructions, `columns` < 1.
    """
    if isinstance(reconstructions, Tensor):
        reconstructions = {row_labels[1]: reconstructions}
    if not reconstructions:
        raise VlaeError("recon_grid needs at least one set of reconstructions")
    for name, images in reconstructions.items():
        if images.shape != originals.shape:
            raise VlaeError(f"{name} has shape {list(images.shape)}, expected {list(originals.shape)}")
    sets = [_pixels(originals, row_labels[0]), *(_pixels(x, name) for name, x in reconstructions.items())]
    columns = min(_columns(columns, 10), len(originals))
    blocks = [[s[start : start + columns] for s in sets] for start in range(0, len(originals), columns)]
    return _draw(blocks, [row_labels[0], *reconstructions], title)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG; a reader sees the old file or the whole new one, never a part.

    Args:
        figure: any matplotlib figure.
        path: where to, ending in `.png`; missing parent directories are made, an existing file is replaced.

    Returns:
        The path written.

    Raises:
        VlaeError: the path does not end in `.png`, or can't be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise VlaeError(f"figures are saved as PNG, but {path} does not end in .png")
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi="figure")
    except OSError as error:
        raise VlaeError(f"can't write {path}: {error.strerror or error}") from error
    return path


def _pixels(images: Tensor, name: str) -> Pixels:
    """Check `images`, [N, C, H, W] in [0, 1], and return them as bytes [N, H, W, 3]."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise VlaeError(f"{name} has shape {list(images.shape)}, expected [N, C, H, W] with C = 1 or 3")
    values = images.detach().cpu().double()
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise VlaeError(f"{name} has levels from {low:g} to {high:g}, expected [0, 1]")
    levels = (values * 255).round().byte().permute(0, 2, 3, 1)
    return levels.expand(-1, -1, -1, 3).numpy()


def _columns(columns: int | None, default: int) -> int:
    if columns is None:
        return default
    if columns < 1:
        raise VlaeError(f"columns is {columns}, expected at least 1")
    return columns


def _square(pixels: Pixels) -> int:
    """How many columns make a grid of these images about square."""
    number, height, width, _ = pixels.shape
    return math.ceil((number * height / width) ** 0.5)


def _mosaic(rows: Sequence[Pixels], scale: int) -> Pixels:
    """Rows of images [n, H, W, 3] in one picture, each pixel a block of `scale` x `scale`."""
    columns = len(rows[0])
    height, width = (scale * side for side in rows[0].shape[1:3])
    canvas = np.full((len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), GAP_LEVEL, dtype=np.uint8)
    for i, row in enumerate(rows):
        top = GAP + i * (height + GAP)
        for j, image in enumerate(row):
            left = GAP + j * (width + GAP)
            canvas[top : top + height, left : left + width] = image.repeat(scale, 0).repeat(scale, 1)
        # A last row that is not full ends in paper, not in grey.
        canvas[top : top + height + GAP, GAP + len(row) * (width + GAP) :] = 255
    return canvas


def _draw(blocks: Sequence[Sequence[Pixels]], labels: Sequence[str], title: str | None) -> Figure:
    """Stack blocks of image rows, measured in pixels, so that an element of a mosaic is one PNG pixel."""
    first = blocks[0][0]
    scale = max(1, min(MAX_SCALE, TARGET_WIDTH // (len(first) * first.shape[2])))
    mosaics = [_mosaic(rows, scale) for rows in blocks]
    left = MARGIN + max((_text_width(label, LABEL_SIZE) + 8 for label in labels), default=0)
    top = MARGIN + (_line_height(TITLE_SIZE) * (title.count("\n") + 1) + 6 if title else 0)
    title_width = max((_text_width(line, TITLE_SIZE) for line in (title or "").split("\n")), default=0)
    width = max(left + mosaics[0].shape[1], MARGIN + title_width) + MARGIN
    height = top + sum(len(mosaic) for mosaic in mosaics) + BLOCK_GAP * (len(mosaics) - 1) + MARGIN

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.text(MARGIN / width, 1 - MARGIN / height, plain(title), size=TITLE_SIZE, va="top", color="black")
    for mosaic, rows in zip(mosaics, blocks, strict=True):
        bottom = height - top - len(mosaic)
        axes = figure.add_axes(
            (left / width, bottom / height, mosaic.shape[1] / width, len(mosaic) / height), frameon=False
        )
        axes.imshow(mosaic, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for i, label in enumerate(labels):
            middle = top + GAP + (i + 0.5) * (len(mosaic) - GAP) / len(rows)
            x, y = (left - 8) / width, 1 - middle / height
            figure.text(x, y, plain(label), size=LABEL_SIZE, ha="right", va="center", color="black")
        top += len(mosaic) + BLOCK_GAP
    return figure


def _text_width(text: str, size: float) -> int:
    """Pixels that `text` takes in the default font at `size` points."""
    width, _, _ = RendererAgg(1, 1, DPI).get_text_width_height_descent(text, FontProperties(size=size), False)
    return math.ceil(width)


def _line_height(size: float) -> int:
    return round(1.2 * size * DPI / 72)
