"""Plots of studies: numbers of many models. Groups differ in marker and dashes too, for prints in grey."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from vlae.errors import VlaeError
from vlae.figures.charts import DARK, LIGHT, WARM, _figure, _tidy
from vlae.figures.text import plain

STYLES: list[dict[str, Any]] = [
    {"color": DARK, "marker": "o", "linestyle": "-"},
    {"color": WARM, "marker": "s", "linestyle": "--"},
    {"color": "#6a8caf", "marker": "^", "linestyle": "-."},
    {"color": "#7f3b08", "marker": "D", "linestyle": ":"},
    {"color": "#777777", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
]
CLOSE = 0.25  # numbers that differ by less of their size are points, as bars would look alike
PUBLISHED: dict[str, Any] = {
    "marker": "*",
    "linestyle": "none",
    "markersize": 10,
    "markerfacecolor": "white",
    "color": "black",
}


class Point(NamedTuple):
    """A number of one model.

    Attributes:
        name: of the model.
        y: the number.
        x: where it is on the axis; bars have none.
        error: its standard error.
        published: what a paper says of it.
        group: models of one group are joined.
        text: the number as it is written at a bar.
    """

    name: str
    y: float
    x: float = math.nan
    error: float | None = None
    published: float | None = None
    group: str = ""
    text: str = ""


def lines(panels: Mapping[str, Sequence[Point]], x_label: str, title: str | None = None, log_x: bool = False) -> Figure:
    """Draw numbers against one setting: a panel for each number, a line for each group.

    Args:
        panels: points by the label of their axis, with units.
        x_label: of the setting, with units.
        title: a line above the panels.
        log_x: a logarithmic axis; x must be positive.

    Returns:
        A figure with one axes per panel, bars for standard errors and stars for published numbers.

    Raises:
        VlaeError: no points, or an x that is not finite or not positive where it must be.
    """
    _check(panels)
    for point in itertools.chain(*panels.values()):
        if not math.isfinite(point.x) or (log_x and point.x <= 0):
            raise VlaeError(f"{point.name} is at x = {point.x}, expected a {'positive' if log_x else 'finite'} number")
    figure = _figure(4.6 * len(panels), 3.8, title)
    for axes, (label, points) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for style, (group, members) in zip(itertools.cycle(STYLES), _groups(points).items(), strict=False):
            members = sorted(members, key=lambda point: point.x)
            errors = [point.error or 0.0 for point in members]
            axes.errorbar(
                [point.x for point in members],
                [point.y for point in members],
                yerr=errors if any(errors) else None,
                label=plain(group) or "obtained",
                markersize=5,
                linewidth=1.5,
                capsize=2.5,
                **style,
            )
        published = [point for point in points if point.published is not None]
        if published:
            axes.plot([p.x for p in published], [p.published for p in published], label="published", **PUBLISHED)
        axes.set_xlabel(plain(x_label))
        axes.set_ylabel(plain(label))
        places = sorted({point.x for point in points})
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(_apart(places)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        elif all(place == round(place) for place in places):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if published or len(_groups(points)) > 1:
            axes.legend(frameon=False, fontsize=8)
        _tidy(axes)
    return figure


def bars(panels: Mapping[str, Sequence[Point]], title: str | None = None) -> Figure:
    """Draw numbers of named models as horizontal bars: a panel for each number, the models in the order given.

    Bars start at 0. Where that would leave no difference to be seen, the numbers lying close together and far from 0,
    they are points on an axis of their own.

    Args:
        panels: points by the label of their axis, with units.
        title: a line above the panels.

    Returns:
        A figure with one axes per panel, each number written at its bar, stars for published ones.

    Raises:
        VlaeError: no points.
    """
    _check(panels)
    names = list(dict.fromkeys(point.name for points in panels.values() for point in points))
    figure = _figure(2.2 + 3.4 * len(panels), 0.34 * len(names) + 1.3, title)
    every, stars = np.ravel(figure.subplots(1, len(panels), sharey=True)), None
    for axes, (label, points) in zip(every, panels.items(), strict=True):
        rows = [names.index(point.name) for point in points]
        values, errors = [point.y for point in points], [point.error or 0.0 for point in points]
        whiskers, low, high = errors if any(errors) else None, *_span(points)
        close = len(points) > 1 and (low > 0 or high < 0) and high - low < CLOSE * max(abs(low), abs(high))
        if close:
            axes.errorbar(values, rows, xerr=whiskers, fmt="o", color=DARK, markersize=6, elinewidth=1, capsize=2)
        else:
            error_kw = {"elinewidth": 1, "capsize": 2}
            look: dict[str, Any] = {"height": 0.62, "color": LIGHT, "edgecolor": DARK, "linewidth": 0.8}
            axes.barh(rows, values, xerr=whiskers, error_kw=error_kw, **look)
            axes.axvline(0, color=DARK, linewidth=0.8)
            low, high = min(low, 0.0), max(high, 0.0)
        published = [
            (point.published, row) for point, row in zip(points, rows, strict=True) if point.published is not None
        ]
        if published:
            (stars,) = axes.plot(*zip(*published, strict=True), label="published", **PUBLISHED)
        _write_values(axes, points, rows, low, high)
        axes.set_xlabel(plain(label))
        axes.set_yticks(range(len(names)), [plain(name) for name in names], size=9)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _tidy(axes)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    if stars is not None:
        figure.legend(handles=[stars], loc="outside lower right", frameon=False, fontsize=8)
    return figure


def rate_distortion(points: Sequence[Point], title: str | None = None, unit: str = "nats per image") -> Figure:
    """Draw models in the rate-distortion plane, with lines of equal -ELBO (Alemi et al. 2018, figure 1).

    Args:
        points: `x` is the rate, `y` the distortion.
        title: a line above.
        unit: of both.

    Returns:
        A figure with one axes. Along a dashed line the sum of the two, the -ELBO, is the same.

    Raises:
        VlaeError: no points, or one that is not finite.
    """
    _check({"points": points})
    if bad := [point.name for point in points if not math.isfinite(point.x)]:
        raise VlaeError(f"the rate of {bad[0]} is not finite")
    figure = _figure(6.4, 5.2, title)
    axes = figure.add_subplot()
    groups = _groups(points)
    for style, (group, members) in zip(itertools.cycle(STYLES), groups.items(), strict=False):
        look = {**style, "linestyle": style["linestyle"] if group and len(members) > 1 else "none"}
        axes.plot([p.x for p in members], [p.y for p in members], markersize=7, label=plain(group) or None, **look)
    axes.margins(0.18)
    if len({(p.x, p.y) for p in points}) == 1:  # as far in both directions, so that the lines are seen to fall
        around = 0.1 * (abs(points[0].x) + abs(points[0].y)) or 1.0
        axes.set_xlim(points[0].x - around, points[0].x + around)
        axes.set_ylim(points[0].y - around, points[0].y + around)
    if axes.get_xlim()[0] < 0:  # there is no rate below 0, but for estimates of it
        axes.set_xlim(left=min(0, *(p.x for p in points)) - 0.03 * axes.get_xlim()[1])
    _equal_sums(axes)
    _name_points(axes, points)
    axes.set_xlabel(plain(f"rate [{unit}]"))
    axes.set_ylabel(plain(f"distortion [{unit}]"))
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _equal_sums(axes: Axes) -> None:
    """Dashed lines of equal rate + distortion at round numbers, over the axes' present limits."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    spacing = _round_step((right + top - left - bottom) / 12)
    for total in np.arange(math.ceil((left + bottom) / spacing), (right + top) / spacing) * spacing:
        axes.plot([left, right], [total - left, total - right], color="#999999", linewidth=0.7, linestyle=(0, (4, 4)))
        x = max(left, total - top)  # where it enters, at the left or at the top
        if total - x > bottom + 0.06 * (top - bottom) and x < right - 0.1 * (right - left):
            axes.annotate(
                f"−ELBO {total:g}",
                (x, total - x),
                textcoords="offset points",
                xytext=(3, -3),
                ha="left",
                va="top",
                size=7,
                color="#666666",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                clip_on=True,
            )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Writes each name beside its point, at the corner where it covers the least of the other names and points."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    # A letter and a line of 8 points in units of the axes, whose sides are about 5.6 and 4.4 inches.
    letter, line = (right - left) * 0.062 / 5.6, (high - low) * 0.14 / 4.4
    taken = [(p.x - letter, p.y - line / 2, p.x + letter, p.y + line / 2) for p in points]
    for i, point in enumerate(points):
        width = letter * len(point.name)
        corners: list[tuple[float, int, tuple[float, float, float, float], int, int]] = []
        for side, up in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
            x = point.x + side * 1.5 * letter - (width if side < 0 else 0)
            y = point.y + (0.1 if up > 0 else -1.1) * line
            box = (x, y, x + width, y + line)
            others = taken[:i] + taken[i + 1 :]
            outside = max(0.0, left - box[0]) + max(0.0, box[2] - right)
            corners.append(
                (sum(_overlap(box, other) for other in others) + outside * line, len(corners), box, side, up)
            )
        _, _, box, side, up = min(corners)
        taken.append(box)
        ends: dict[str, Any] = {"ha": "left" if side > 0 else "right", "va": "bottom" if up > 0 else "top"}
        name = plain(point.name)
        axes.annotate(name, (point.x, point.y), textcoords="offset points", xytext=(8 * side, up), size=8, **ends)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """The area that two boxes (left, low, right, high) share.

    Example:
        >>> _overlap((0, 0, 2, 2), (1, 1, 4, 4)), _overlap((0, 0, 1, 1), (2, 0, 3, 1))
        (1, 0)
    """
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _span(points: Sequence[Point]) -> tuple[float, float]:
    """From the least to the greatest of all that is drawn: numbers with their errors, and published ones."""
    ends = [point.y + sign * (point.error or 0.0) for point in points for sign in (-1, 1)]
    ends += [point.published for point in points if point.published is not None]
    return min(ends), max(ends)


def _write_values(axes: Axes, points: Sequence[Point], rows: Sequence[int], low: float, high: float) -> None:
    """Each number beside its bar or point, and an axis from `low` to `high` with room for them."""
    reach = (high - low) or 1.0
    for point, row in zip(points, rows, strict=True):
        end = max(point.y, low if low > 0 else 0.0) + (point.error or 0.0)
        axes.text(end + 0.02 * reach, row, f" {plain(point.text) or format(point.y, '.4g')}", va="center", size=8)
    axes.set_xlim(low if low == 0 else low - 0.06 * reach, high + 0.28 * reach)


def _apart(places: Sequence[float], ratio: float = 1.12) -> list[float]:
    """Those places, in rising order, that a logarithmic axis has room to label."""
    kept: list[float] = []
    for place in places:
        if not kept or place >= ratio * kept[-1]:
            kept.append(place)
    return kept


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(step))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= step)


def _groups(points: Sequence[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.group, []).append(point)
    return found


def _check(panels: Mapping[str, Sequence[Point]]) -> None:
    if not panels or not any(panels.values()):
        raise VlaeError("nothing to draw: there are no points")
    for point in itertools.chain(*panels.values()):
        if not math.isfinite(point.y):
            raise VlaeError(f"{point.name} has a number that is not finite")
