"""Pictures of the latent code: a scatter of it, its distribution beside the prior's, its rate image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vlae.errors import VlaeError
from vlae.figures.charts import DARK, LIGHT, _figure, _tidy, rate_in_words
from vlae.figures.text import plain

Values = npt.NDArray[np.float64]

# One colour per class, from dark to light in even steps of lightness, so that neighbours differ in grey as well.
CLASSES = (
    "#1b1035",
    "#6b0f1a",
    "#17457a",
    "#0d6236",
    "#8f42a6",
    "#c94f20",
    "#2a8fd0",
    "#e873ab",
    "#93b52b",
    "#f3b340",
)
MOST_IN_LEGEND = 20  # classes
MOST_NAMES = 40  # dimensions whose names there is room for
MOST_DOTS = 1000  # of each kind in the plane of two dimensions: more hide each other
# Zero is white and more is darker. What is below zero is orange, so light that in grey it reads as next to nothing.
RISING = ("white", LIGHT, "#3b76a8", DARK)
BELOW = "#fdcf94"
PRIOR = "#b35806"


def latent_scatter(
    points: Tensor,
    labels: Tensor | None = None,
    axis_labels: tuple[str, str] = ("first coordinate", "second coordinate"),
    title: str | None = None,
) -> Figure:
    """Draw codes in a plane, each as the number of its class.

    The numbers themselves are the marks, in a colour for each class, so that classes can be told apart in grey too.

    Args:
        points: [N, 2].
        labels: integers [N], the classes; None draws all codes alike, as dots.
        axis_labels: what the two coordinates are.
        title: a line or more above.

    Returns:
        A figure with one axes: a collection of marks for each class, in the order of the classes.

    Raises:
        VlaeError: wrong shapes, or a value that is not finite.

    Example:
        >>> import torch
        >>> figure = latent_scatter(torch.randn(6, 2), torch.tensor([0, 0, 1, 1, 1, 7]))
        >>> [str(marks.get_label()) for marks in figure.axes[0].collections]
        ['0', '1', '7']
    """
    values = _finite(points, "points", 2)
    if values.shape[1] != 2:
        raise VlaeError(f"points has shape {list(points.shape)}, expected [N, 2]")
    figure = _figure(6.6, 5.6, title)
    axes = figure.add_subplot()
    if labels is None:
        axes.scatter(values[:, 0], values[:, 1], s=_area(len(values)) / 3, color=DARK, alpha=0.6, linewidths=0)
    else:
        if labels.shape != points.shape[:1] or labels.is_floating_point():
            raise VlaeError(f"labels has shape {list(labels.shape)}, expected one integer for each of {len(values)}")
        classes = sorted(set(labels.tolist()))
        for k, name in enumerate(classes):
            of_class = values[(labels == name).cpu().numpy()]
            area = _area(len(values)) * _breadth(str(name)) ** 2
            look: dict[str, Any] = {"s": area, "marker": f"${name}$", "color": class_colour(k), "linewidths": 0.35}
            axes.scatter(of_class[:, 0], of_class[:, 1], label=str(name), **look)
        if len(classes) <= MOST_IN_LEGEND:
            dots: list[dict[str, Any]] = [
                {"marker": f"${name}$", "color": class_colour(k), "markersize": 7 * _breadth(str(name))}
                for k, name in enumerate(classes)
            ]
            handles = [Line2D([], [], linestyle="none", **dot) for dot in dots]
            counts = [f"{int((labels == name).sum()):,}" for name in classes]
            sizes: dict[str, Any] = {"fontsize": 8, "title_fontsize": 8, "frameon": False}
            figure.legend(handles, counts, loc="outside right center", title="label: images", **sizes)
    axes.set_xlabel(plain(axis_labels[0]))
    axes.set_ylabel(plain(axis_labels[1]))
    axes.margins(0.04)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def class_colour(k: int) -> str:
    """The colour of the k-th class; after ten they come again, as far apart as before."""
    return CLASSES[k % len(CLASSES)]


def aggregate_posterior(
    codes: Tensor,
    prior: Tensor,
    names: Sequence[str],
    standard_normal: bool = False,
    title: str | None = None,
) -> Figure:
    """Draw the aggregate posterior q(z) = mean over images of q(z|x) beside the prior p(z).

    Where they differ the prior draws codes that the decoder has hardly seen, and a "hole" is where the prior has mass
    and the aggregate posterior has none (Makhzani et al. 2015; Hoffman and Johnson 2016).

    Args:
        codes: z ~ q(z|x), one or more for each image, [N, D]; a panel for each dimension, in the order given.
        prior: z ~ p(z), [M, D].
        names: of the D dimensions.
        standard_normal: the prior's marginals are known to be N(0, 1): their exact density is drawn, not a histogram.
        title: a line or more above.

    Returns:
        A figure with D axes of marginals and, of two dimensions or more, one of the first two in a plane.

    Raises:
        VlaeError: wrong shapes, or a value that is not finite.
    """
    q, p = _finite(codes, "codes", 2), _finite(prior, "prior", 2)
    if q.shape[1] != p.shape[1] or q.shape[1] != len(names) or not len(names):
        raise VlaeError(f"codes {list(q.shape)} and prior {list(p.shape)} need {len(names)} dimensions, one per name")
    panels = len(names) + (len(names) > 1)
    columns = panels if panels < 4 else math.ceil(math.sqrt(panels))
    rows = math.ceil(panels / columns)
    figure = _figure(3.3 * columns + 0.4, 2.9 * rows + 0.7, title)
    every = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for d, name in enumerate(names):
        _marginals(every[d], q[:, d], p[:, d], name, standard_normal)
    if len(names) > 1:
        _plane(every[len(names)], q, p, names)
    for axes in every[panels:]:
        axes.remove()
    handles, labels = every[0].get_legend_handles_labels()
    if len(names) > 1:
        dots, their = every[len(names)].get_legend_handles_labels()
        handles, labels = handles + dots, labels + their
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def _marginals(axes: Axes, q: Values, p: Values, name: str, standard_normal: bool) -> None:
    low, high = np.quantile(np.concatenate([q, p]), [0.0005, 0.9995])
    low, high = (min(low, -3.5), max(high, 3.5)) if standard_normal else (low, high)
    pad = 0.02 * (high - low) or 1.0
    edges = np.linspace(low - pad, high + pad, min(40, max(20, round(math.sqrt(len(q))))) + 1)
    heights = _density(q, edges)
    axes.stairs(heights, edges, fill=True, facecolor=LIGHT, edgecolor=DARK, linewidth=0.7, label="aggregate posterior")
    line: dict[str, Any] = {"color": PRIOR, "linewidth": 1.6, "linestyle": "--"}
    if standard_normal:
        z = np.linspace(edges[0], edges[-1], 201)
        of_prior = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        axes.plot(z, of_prior, label="prior, N(0, 1)", **line)
    else:
        of_prior = _density(p, edges)
        axes.stairs(of_prior, edges, baseline=None, label="prior, draws", **line)
    axes.set_xlabel(plain(name))
    axes.set_ylabel("density")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.06 * max(heights.max(), of_prior.max()))
    _tidy(axes)


def _density(values: Values, edges: Values) -> Values:
    """A histogram whose area is the share of the values within the edges."""
    return np.histogram(values, edges)[0] / (len(values) * np.diff(edges))


def _plane(axes: Axes, q: Values, p: Values, names: Sequence[str]) -> None:
    """The first two dimensions, as many codes of one kind as of the other."""
    count = min(len(q), len(p), MOST_DOTS)
    rings: dict[str, Any] = {"facecolors": "none", "edgecolors": PRIOR, "linewidths": 0.6}
    axes.scatter(p[:count, 0], p[:count, 1], s=9, label=f"{count:,} of the prior", **rings)
    axes.scatter(q[:count, 0], q[:count, 1], s=4, color=DARK, linewidths=0, label=f"{count:,} of images")
    axes.set_xlabel(plain(names[0]))
    axes.set_ylabel(plain(names[1]))
    axes.spines[["top", "right"]].set_visible(False)


def bits_heatmap(
    bits: Tensor, names: Sequence[str] | None = None, labels: Tensor | None = None, title: str | None = None
) -> Figure:
    """Draw what each image spends on each latent dimension, and beside it the dimensions' means.

    Dimensions are sorted by their mean, the largest first; images by their label, where there are labels. A share below
    zero, which an estimate from samples may give, is drawn in orange, so that none is hidden.

    Args:
        bits: [N, D], bits.
        names: of the dimensions; else their numbers.
        labels: integers [N].
        title: a line above; the sum of the means is stated below it.

    Returns:
        A figure with three axes: the heatmap (image [D, N], sorted), the bars, and the scale of colours.

    Raises:
        VlaeError: wrong shapes, or a value that is not finite.
    """
    values = _finite(bits, "bits", 2)
    count, number = values.shape
    names = [str(k) for k in range(number)] if names is None else names
    if len(names) != number:
        raise VlaeError(f"bits has {number} dimensions and {len(names)} names")
    if labels is not None and labels.shape != (count,):
        raise VlaeError(f"labels has shape {list(labels.shape)}, expected [{count}]")
    means = values.mean(0)
    order = np.argsort(-means, kind="stable")
    columns = np.arange(count) if labels is None else np.argsort(labels.cpu().numpy(), kind="stable")
    cells = values[columns][:, order].T

    figure = _figure(8.4, min(8.0, max(3.4, 0.16 * number + 1.9)))
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    picture = heat.imshow(cells, aspect="auto", interpolation="nearest", **_scale(cells))
    beyond = ((cells < picture.norm.vmin).any(), (cells > picture.norm.vmax).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    figure.colorbar(picture, ax=[heat, bars], label="rate [bits]", extend=extend, pad=0.02, fraction=0.05)
    if labels is None:
        heat.set_xlabel(f"{count:,} images")
    else:
        _name_groups(heat, labels.cpu().numpy()[columns])
        heat.set_xlabel(f"{count:,} images, by label")
    if number <= MOST_NAMES:
        heat.set_yticks(range(number), [plain(names[k]) for k in order], size=7)
        heat.set_ylabel("latent dimension, largest mean first")
    else:
        heat.set_yticks([])
        heat.set_ylabel(f"{number:,} latent dimensions, largest mean first")
    heat.tick_params(axis="y", length=0)
    bars.barh(np.arange(number), means[order], height=0.8 if number <= 100 else 1.0, color=DARK)
    bars.axvline(0, color=DARK, linewidth=0.8)
    bars.set_xlabel("mean [bits per image]")
    bars.xaxis.set_major_locator(MaxNLocator(4))
    bars.tick_params(axis="y", length=0, labelleft=False)
    _tidy(bars)
    bars.grid(visible=False, axis="y")
    bars.grid(axis="x", color="#dddddd", linewidth=0.6)
    negative = (cells < 0).mean()
    notes = [line for line in (title, rate_in_words(means)) if line]
    if negative:
        notes.append(f"orange: {negative:.0%} are below 0, as estimates from samples of z may be")
    figure.suptitle(plain("\n".join(notes)), size=10)
    return figure


def _scale(cells: Values) -> dict[str, Any]:
    """Colours of rates, white at 0, on one linear scale; the few largest and smallest may lie beyond its ends."""
    low, high = (float(end) for end in np.quantile(cells, [0.001, 0.999]))
    low, high = min(low, 0.0), max(high, 1e-3)
    zero = -low / (high - low)
    places = zero + (1 - zero) * np.linspace(0, 1, len(RISING))
    colours = [*([(0.0, BELOW)] if zero else []), *zip(places.tolist(), RISING, strict=True)]
    return {"cmap": LinearSegmentedColormap.from_list("rates", colours), "norm": Normalize(low, high)}


def _name_groups(axes: Axes, labels: npt.NDArray[Any]) -> None:
    """Lines between the labels' groups of columns, and each label below the middle of its own."""
    classes, starts = np.unique(labels, return_index=True)
    ends = np.append(starts[1:], len(labels))
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="#777777", linewidth=0.5)
    if len(classes) <= MOST_IN_LEGEND:
        axes.set_xticks((starts + ends - 1) / 2, [str(name) for name in classes], size=8)
        axes.tick_params(axis="x", length=0)
    else:
        axes.set_xticks([])


def _area(count: int) -> float:
    """Square points of a mark, smaller where there are many."""
    return float(np.clip(30_000 / count, 9, 40))


def _breadth(text: str) -> float:
    """How much wider than high a text is, at least 1: marks of all texts are made equally large, not equally high."""
    box = TextPath((0, 0), f"${text}$", size=10).get_extents()
    return max(1.0, float(box.width / box.height))


def _finite(values: Tensor, name: str, dimensions: int) -> Values:
    """A tensor as float64; refuses what is empty, of other dimensions or not finite."""
    if values.ndim != dimensions or values.numel() == 0:
        raise VlaeError(f"{name} has shape {list(values.shape)}, expected {dimensions} dimensions and no empty one")
    array = values.detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        raise VlaeError(f"{name} has values that are not finite")
    return array
