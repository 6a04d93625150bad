"""Images that codes were decoded to, in labelled rows and columns: paths, traversals, arithmetic, completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from vlae.errors import VlaeError
from vlae.figures.grids import (
    BLOCK_GAP,
    DPI,
    GAP,
    LABEL_SIZE,
    MARGIN,
    MAX_SCALE,
    TITLE_SIZE,
    Pixels,
    _line_height,
    _mosaic,
    _pixels,
    _text_width,
)
from vlae.figures.text import plain

COLUMN_SIZE = 7.0  # points
WIDTH = 1200  # pixels that the images of a row may take together, before they are enlarged for a label's sake
STRIPES = (0.45, 0.7)  # levels of the stripes that stand for unknown pixels: neither black nor white
AFTER_LABEL = 8  # pixels between a row's label and its images


class Panel(NamedTuple):
    """Columns of images that stand together, between them and the next panel a gap.

    Attributes:
        rows: of each row its images, [K, C, H, W], levels in [0, 1]; up to as many as there are columns.
        columns: a label above each column, "" for none.
        heading: a line above the labels.
    """

    rows: Sequence[Tensor]
    columns: Sequence[str]
    heading: str = ""


def interpolations(
    paths: Tensor,
    rows: Sequence[str],
    ends: tuple[Tensor, Tensor] | None = None,
    title: str | None = None,
    group: int = 1,
) -> Figure:
    """Draw paths between two codes, a row each, from the first on the left to the second on the right.

    Args:
        paths: [R, S, C, H, W], levels in [0, 1]: of each path its decoded steps.
        rows: the label of each row.
        ends: the images whose codes are the ends, two of [R, C, H, W]; drawn beside their ends.
        title: a line above.
        group: so many rows stand together, such as two paths between the same ends.

    Returns:
        A figure with one axes; the columns are labelled with the share of the way.

    Raises:
        VlaeError: shapes that do not fit, NaN, levels outside [0, 1].
    """
    _check_rows(paths, rows, "paths")
    share = [f"{t:.3g}" for t in np.linspace(0, 1, paths.shape[1])]
    panels = [Panel(list(paths), share, "share of the way")]
    if ends is not None:
        first, second = (_column(end, "original") for end in ends)
        panels = [first, *panels, second]
    return _panels(panels, rows, title, group)


def traversals(
    images: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    starts: Mapping[str, Tensor] | None = None,
    heading: str = "prior quantile",
    title: str | None = None,
) -> Figure:
    """Draw one dimension of a code moving in each row.

    Args:
        images: [R, V, C, H, W], levels in [0, 1]: of each row the images at its values.
        rows: the label of each row, such as the dimension.
        columns: the label of each column, such as the quantile's probability.
        starts: images to draw before the rows by name, [R, C, H, W], such as the one that the code is of; where there
            are fewer, they stand before the first rows.
        heading: what the columns are.
        title: a line above.

    Returns:
        A figure with one axes.

    Raises:
        VlaeError: shapes that do not fit, NaN, levels outside [0, 1].
    """
    _check_rows(images, rows, "images")
    panels = [Panel(list(images), columns, heading)]
    if starts:
        before = [torch.cat([start[r : r + 1] for start in starts.values()]) for r in range(len(rows))]
        panels.insert(0, Panel(before, list(starts)))
    return _panels(panels, rows, title)


def latent_arithmetic(
    decoded: Mapping[str, Tensor], originals: Mapping[str, Tensor] | None = None, title: str | None = None
) -> Figure:
    """Draw the terms of a sum of codes and its result, a row each.

    Args:
        decoded: by term, images of its code, [K, C, H, W] with levels in [0, 1]; a column for each noise.
        originals: by term, the images whose mean code it is; the result has none.
        title: a line above.

    Returns:
        A figure with one axes.

    Raises:
        VlaeError: shapes that do not fit, NaN, levels outside [0, 1].
    """
    if not decoded:
        raise VlaeError("there are no terms to draw")
    most = max(len(images) for images in decoded.values())
    panels = [Panel(list(decoded.values()), [""] * most, "decoded" if most == 1 else f"decoded, {most} draws")]
    if originals:
        none = next(iter(decoded.values()))[:0]
        rows = [originals.get(name, none) for name in decoded]
        panels.append(Panel(rows, [""] * max(map(len, rows)), "the mean code of"))
    return _panels(panels, list(decoded), title)


def completions(
    originals: Tensor,
    mask: Tensor,
    completed: Tensor,
    rows: Sequence[str] = (),
    title: str | None = None,
) -> Figure:
    """Draw images, what a model was given of them, and how it completed them; striped grey is what it was not given.

    Args:
        originals: [N, C, H, W], levels in [0, 1].
        mask: bool, True where a pixel is given; broadcasts to the originals.
        completed: [N, K, C, H, W], K completions of each.
        rows: a label for each row.
        title: a line above.

    Returns:
        A figure with one axes.

    Raises:
        VlaeError: shapes that do not fit, NaN, levels outside [0, 1].
    """
    _check_rows(completed, rows or [""] * len(completed), "completed")
    panels = [
        _column(originals, "original"),
        _column(given_part(originals, mask), "given"),
        Panel(list(completed), [str(k + 1) for k in range(completed.shape[1])], "completions"),
    ]
    return _panels(panels, rows or [""] * len(originals), title)


def decompressions(originals: Tensor, drawn: Tensor, title: str | None = None) -> Figure:
    """Draw images beside several x ~ p(x|z), z ~ q(z|x): what all of them share is what the code holds.

    Args:
        originals: [N, C, H, W], levels in [0, 1].
        drawn: [N, K, C, H, W].
        title: a line above.

    Returns:
        A figure with one axes.

    Raises:
        VlaeError: shapes that do not fit, NaN, levels outside [0, 1].
    """
    labels = [""] * len(originals)
    _check_rows(drawn, labels, "drawn")
    draws = Panel(list(drawn), [str(k + 1) for k in range(drawn.shape[1])], "decompressions")
    return _panels([_column(originals, "original"), draws], labels, title)


def given_part(images: Tensor, mask: Tensor) -> Tensor:
    """Images [N, C, H, W] with diagonal grey stripes where the mask (True: given) is False."""
    mask = mask.to(images.device)
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    dark = (rows[:, None] + columns) % 4 < 2
    first, second = (torch.tensor(level).to(images) for level in STRIPES)
    stripes = torch.where(dark, first, second)
    return torch.where(mask, images, stripes)


def _column(images: Tensor, name: str) -> Panel:
    return Panel([image[None] for image in images], [name])


def _check_rows(images: Tensor, rows: Sequence[str], name: str) -> None:
    if images.ndim != 5 or not len(images) or len(images) != len(rows):
        raise VlaeError(f"{name} has shape {list(images.shape)}, expected [{len(rows)}, columns, C, H, W]")


def _panels(panels: Sequence[Panel], labels: Sequence[str], title: str | None = None, group: int = 1) -> Figure:
    """Panels side by side, their rows in line, so that an element of the picture is one PNG pixel."""
    pixels = [[_pixels(row, panel.heading or "images") if len(row) else None for row in panel.rows] for panel in panels]
    shapes = {row.shape[1:3] for rows in pixels for row in rows if row is not None}
    if len(shapes) != 1 or any(len(panel.rows) != len(labels) for panel in panels):
        raise VlaeError(f"expected {len(labels)} rows of images of one size in each panel; got sizes {sorted(shapes)}")
    ((height, width),) = shapes
    counts = [len(panel.columns) for panel in panels]
    for panel, count in zip(panels, counts, strict=True):
        if wide := [len(row) for row in panel.rows if len(row) > count]:
            raise VlaeError(f"{wide[0]} images in a row of {count} columns: give a label for each column")
    scale = max(1, min(MAX_SCALE, WIDTH // (sum(counts) * width)))
    widest = max(_text_width(label, COLUMN_SIZE) for panel in panels for label in panel.columns)
    scale = max(scale, math.ceil((widest + 4) / width))  # a column is as wide as its label

    step = width * scale + GAP, height * scale + GAP
    left = MARGIN + max(_width(label, LABEL_SIZE) for label in labels) + (AFTER_LABEL if any(labels) else 0)
    lefts = [left]
    for panel, count in zip(panels, counts, strict=True):
        lefts.append(lefts[-1] + max(count * step[0] + GAP, _text_width(panel.heading, COLUMN_SIZE)) + BLOCK_GAP)
    top = MARGIN + (_line_height(TITLE_SIZE) * (title.count("\n") + 1) + 6 if title else 0)
    heading = _line_height(COLUMN_SIZE)
    headings = heading if any(panel.heading for panel in panels) else 0
    above = headings + (heading if any(any(panel.columns) for panel in panels) else 0)
    tops = [top + above + 2 + i * step[1] + (i // group) * (BLOCK_GAP // 2) * (group > 1) for i in range(len(labels))]
    total = tops[-1] + step[1] + GAP + MARGIN
    across = max(lefts[-1] - BLOCK_GAP, MARGIN + _width(title or "", TITLE_SIZE)) + MARGIN

    canvas = np.full((total, across, 3), 255, dtype=np.uint8)
    for rows, start in zip(pixels, lefts, strict=False):
        for row, y in zip(rows, tops, strict=True):
            if row is not None:
                _paste(canvas, _mosaic([row], scale), start, y)
    figure = Figure(figsize=(across / DPI, total / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()

    def write(x: float, y: float, text: str, size: float, **where: Any) -> None:
        if text:
            figure.text(x / across, 1 - y / total, plain(text), size=size, color="black", **where)

    write(MARGIN, MARGIN, title or "", TITLE_SIZE, va="top")
    for panel, start in zip(panels, lefts, strict=False):
        write(start, top, panel.heading, COLUMN_SIZE, va="top")
        for k, label in enumerate(panel.columns):
            write(start + GAP + (k + 0.5) * step[0], top + above, label, COLUMN_SIZE, ha="center", va="bottom")
    for label, y in zip(labels, tops, strict=True):
        write(left - AFTER_LABEL, y + step[1] / 2, label, LABEL_SIZE, ha="right", va="center")
    return figure


def _paste(canvas: Pixels, part: Pixels, left: int, top: int) -> None:
    canvas[top : top + len(part), left : left + part.shape[1]] = part


def _width(text: str, size: float) -> int:
    return max(_text_width(line, size) for line in text.split("\n"))
