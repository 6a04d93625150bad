"""Charts of numbers. Colours that mean something also differ in lightness or dashes, for prints in grey."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vlae.errors import VlaeError
from vlae.figures.text import plain

DARK, LIGHT, WARM = "#17324d", "#9ecae1", "#e08214"
NATS_PER_BIT = math.log(2)

STAGES: dict[str, dict[str, Any]] = {
    "train": {"label": "train", "color": WARM, "linestyle": "--"},
    "validation": {"label": "validation", "color": DARK, "linestyle": "-"},
}
PANELS = {"distortion": "distortion", "rate": "rate", "elbo": "−ELBO"}


def training_curves(metrics: Mapping[str, Sequence[tuple[float, float]]], title: str | None = None) -> Figure:
    """Draw how the bound and its two terms moved: one panel each, training against validation.

    Args:
        metrics: `(epoch, value)` pairs by name. A name is a stage (`train`, `val` or `validation`) and a term
            (`distortion`, `rate` or `elbo`), joined by `/` or `_`: `"train/rate"`, `"val_elbo"`. Values are
            nats per image; `elbo` is drawn with its sign changed, so that it reads as a cost. Other names are
            left out, and so are values that are not finite: a run that diverged is still drawn up to there.
        title: a line above the panels.

    Returns:
        A figure with one panel per term that occurs; the rate has a second axis in bits.

    Raises:
        VlaeError: no name is known, or no value is finite.

    Example:
        >>> figure = training_curves({"train/rate": [(0, 9.0), (1, 12.0)], "val/rate": [(1, 11.0)]})
        >>> figure.axes[0].get_ylabel()
        'rate [nats per image]'
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, points in metrics.items():
        stage, _, term = name.replace("_", "/", 1).partition("/")
        stage = "validation" if stage == "val" else stage
        finite = [(float(x), float(y)) for x, y in points if math.isfinite(y)]
        if stage in STAGES and term in PANELS and finite:
            curves.setdefault(term, {})[stage] = finite
    if not curves:
        raise VlaeError(
            f"no curve to draw among {sorted(metrics)}: expected finite values under names such as "
            "train/distortion, train/rate or validation/elbo"
        )
    panels = [term for term in PANELS if term in curves]
    figure = _figure(4.2 * len(panels), 3.4, title)
    for axes, term in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        _curves(axes, term, curves[term])
    return figure


def receptive_field(mask: Tensor, slope: int | None = None, measured: Tensor | None = None) -> Figure:
    """Draw which earlier pixels a pixel of an autoregressive decoder can see.

    Args:
        mask: bool [rows, columns], True where it can see; columns are odd, and the pixel itself is in the
            middle of the last row.
        slope: `s` of the wavefront: each cell then shows its step `j + s i`, counted from the pixel's own.
            All that is seen must come earlier, so its numbers are negative.
        measured: another mask, of what it was found to see; drawn beside the first, with a cross in every cell where
            the two differ.

    Returns:
        A figure with one axes, or two, in pixels from the pixel itself.

    Raises:
        VlaeError: a mask is not bool or its shape is wrong.
    """
    masks = [mask] if measured is None else [mask, measured]
    for each in masks:
        if each.dtype != torch.bool or each.ndim != 2 or each.shape[0] == 0 or each.shape[1] % 2 == 0:
            raise VlaeError(f"the mask is {each.dtype} {list(each.shape)}, expected bool [rows, columns], columns odd")
    rows, columns = (max(each.shape[side] for each in masks) for side in (0, 1))
    fields = [_enlarged(each, rows, columns) for each in masks]

    # Cells shrink as the window grows, but never below what a number needs.
    cell = min(0.45, max(0.15 if slope is None else 0.3, 8 / columns))
    least = (4.0, 2.6) if slope is None else (5.5, 3.2)  # what the title takes
    figure = _figure(max(least[0], cell * columns + 1) * len(fields), max(least[1], cell * rows + 1.6))
    every = np.ravel(figure.subplots(1, len(fields)))
    for axes, seen in zip(every, fields, strict=True):
        _field(axes, seen, slope, cell)
    steps = "" if slope is None else f"\nnumbers: wavefront step j + {slope} i, relative to the pixel's own"
    names = {"seen": LIGHT, "the pixel itself": DARK, "not seen": "white"}
    handles: list[Any] = [Patch(facecolor=colour, edgecolor="#999999", label=name) for name, colour in names.items()]
    if measured is None:
        every[0].set_title(f"receptive field: {int(fields[0].sum())} pixels{steps}", size=10)
    else:
        different = fields[0] != fields[1]
        every[0].set_title(f"declared: {int(fields[0].sum())} pixels{steps}", size=10)
        every[1].set_title(f"measured by gradients: {int(fields[1].sum())} pixels{steps and chr(10)}", size=10)
        for i, j in np.argwhere(different):
            every[1].plot(
                j - columns // 2, i - rows + 1, marker="x", color=WARM, markersize=28 * cell, markeredgewidth=2
            )
        if different.any():
            cross: dict[str, Any] = {"marker": "x", "color": WARM, "linestyle": "none", "markeredgewidth": 2}
            handles.append(Line2D([], [], label="differs", **cross))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def _enlarged(mask: Tensor, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """The mask in a larger window, bool [rows, columns], in which the pixel itself is in the same place."""
    seen = np.zeros((rows, columns), dtype=bool)
    left = (columns - mask.shape[1]) // 2
    seen[rows - mask.shape[0] :, left : left + mask.shape[1]] = mask.detach().cpu().numpy()
    return seen


def _field(axes: Axes, seen: npt.NDArray[np.bool_], slope: int | None, cell: float) -> None:
    """One window, bool [rows, columns], whose cells are `cell` inches wide."""
    rows, columns = seen.shape
    above, reach = rows - 1, columns // 2
    cells = seen.astype(int)
    cells[above, reach] = 2
    edges = (np.arange(-reach, reach + 2) - 0.5, np.arange(-above, 2) - 0.5)
    colours = ListedColormap(["white", LIGHT, DARK])
    axes.pcolormesh(*edges, cells, cmap=colours, vmin=0, vmax=2, edgecolor="#bbbbbb", linewidth=0.6)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    if slope is None:
        axes.text(0, 0, "×", ha="center", va="center", color="white", size=30 * cell)
    else:
        for (row, column), value in np.ndenumerate(cells):
            i, j = row - above, column - reach
            colour = {0: "#888888", 1: "black", 2: "white"}[int(value)]
            axes.text(j, i, f"{j + slope * i}", ha="center", va="center", color=colour, size=min(9, 22 * cell))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("columns from the pixel")
    axes.set_ylabel("rows from the pixel")


def rate_per_dimension(bits: Tensor) -> Figure:
    """Draw the rate of each latent dimension as bars, the largest first, and state the sum.

    Args:
        bits: [D], bits per image.

    Returns:
        A figure with one axes; up to 40 bars carry their dimension's number.

    Raises:
        VlaeError: wrong shape, or a value that is not finite.
    """
    if bits.ndim != 1 or bits.numel() == 0:
        raise VlaeError(f"bits has shape {list(bits.shape)}, expected [D]")
    values = bits.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise VlaeError("bits has values that are not finite")
    order = np.argsort(-values, kind="stable")
    number = len(values)
    figure = _figure(min(10.0, max(4.5, 0.24 * number + 1.2)), 3.4)
    axes = figure.add_subplot()
    axes.bar(np.arange(number), values[order], width=0.8 if number <= 100 else 1.0, color=DARK)
    if number <= 40:
        axes.set_xticks(np.arange(number), [str(k) for k in order], size=8)
        axes.set_xlabel("latent dimension, largest rate first")
    else:
        axes.set_xlabel("latent dimensions, largest rate first")
    axes.set_xlim(-0.7, number - 0.3)
    axes.set_ylabel("rate [bits per image]")
    axes.set_title(rate_in_words(values), size=10)
    _tidy(axes)
    return figure


def rate_in_words(bits: npt.NDArray[np.float64]) -> str:
    """The sum of the dimensions' mean rates [D], in bits and nats."""
    total = bits.sum()
    return f"rate: {total:.2f} bits = {total * NATS_PER_BIT:.2f} nats per image in {len(bits)} dimensions"


def _curves(axes: Axes, term: str, stages: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    sign = -1 if term == "elbo" else 1
    for stage, style in STAGES.items():
        if stage in stages:
            epochs, values = np.array(sorted(stages[stage])).T
            marker = "o" if len(epochs) <= 25 else None
            axes.plot(epochs, sign * values, marker=marker, markersize=3, linewidth=1.5, **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{PANELS[term]} [nats per image]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)
    if term == "rate":
        right = axes.secondary_yaxis("right", functions=(_to_bits, _to_nats))
        right.set_ylabel("rate [bits per image]")


def _to_bits(nats: Any) -> Any:
    return nats / NATS_PER_BIT


def _to_nats(bits: Any) -> Any:
    return bits * NATS_PER_BIT


def _figure(width: float, height: float, title: str | None = None) -> Figure:
    """Make an empty figure, sides in inches, that lays itself out."""
    figure = Figure(figsize=(width, height), dpi=128, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(plain(title), size=11)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
