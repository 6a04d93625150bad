"""The pictures of a report: images that a model makes, and charts of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vlae import figures
from vlae.errors import VlaeError
from vlae.evaluation.history import Row, curves_of
from vlae.evaluation.information import BITS
from vlae.evaluation.measurements import Measurements
from vlae.figures.studies import Point, bars, lines

COLUMNS, MOST = 10, 40  # reconstructed images in a row; samples in a picture


@dataclass(frozen=True)
class Illustration:
    """A figure with its words.

    Attributes:
        title: above it.
        about: what it shows, in a sentence; it also stands in for the picture where none can be seen.
        figure: the figure.
    """

    title: str
    about: str
    figure: Figure

    @property
    def wide(self) -> bool:
        """Whether it wants the page's full width."""
        width, height = self.figure.get_size_inches()
        return width > 1.9 * height


def illustrations(found: Measurements, curves: Sequence[Row] = ()) -> list[Illustration]:
    """What can be drawn of an evaluation, and of the epochs of its run; what can't is left out.

    Args:
        found: with its pictures.
        curves: rows of the run's `metrics.csv`.
    """
    made, series = found.pictures, found.series
    drawings: list[tuple[str, str, Callable[[], Figure]]] = []
    if "reconstructions" in made:
        rows = {"reconstruction": "reconstructions", "drawn": "drawn reconstructions"}
        drawings.append(
            (
                "Reconstructions",
                "Images measured, below them their reconstructions from the posterior mean, and below those drawn from "
                "p(x|z), z ~ q(z|x).",
                partial(reconstructions, made["data"], {label: made[name] for label, name in rows.items()}),
            )
        )
    for name, about in {
        "data": "Images measured, to compare samples with.",
        "samples": "Codes from the prior, each decoded to its mean or greedy image.",
        "drawn samples": "Codes from the prior, pixels drawn from p(x|z).",
    }.items():
        if name in made and ("samples" in made or "drawn samples" in made):
            title = "Data" if name == "data" else name.capitalize()
            drawings.append((title, about, partial(figures.image_grid, made[name][:MOST], columns=8)))
    if len(series.get("bits_per_latent", [])) > 1:
        drawings.append(
            (
                "Rate per dimension",
                "How many bits of an image each dimension of z holds, the largest first.",
                partial(figures.rate_per_dimension, torch.tensor(series["bits_per_latent"])),
            )
        )
    if levels := series.get("rate_per_level"):
        points = [Point(f"z_{level}", rate * BITS) for level, rate in enumerate(levels, 1)]
        drawings.append(
            (
                "Rate per level",
                "How many bits each level of the ladder adds to those above it; z_1 is the lowest.",
                partial(bars, {"rate [bits per image]": points}),
            )
        )
    if len(several := series.get("nll_by_samples", [])) > 1:
        label = "NLL [nats per image]"
        points = [Point(f"{row['samples']}", row["nll"], row["samples"], row["error"]) for row in several]
        drawings.append(
            (
                "NLL and importance samples",
                "The bound on -log p(x) falls as more importance samples are taken; bars are standard errors.",
                partial(lines, {label: points}, "importance samples K", log_x=True),
            )
        )
    if curves:
        drawings.append(
            (
                "Training",
                "How the bound and its two terms moved, epoch by epoch, on training and validation images.",
                partial(figures.training_curves, curves_of(curves)),
            )
        )
    result = []
    for title, about, draw in drawings:
        with suppress(VlaeError):  # images of two channels, say, or numbers that are not finite
            result.append(Illustration(title, about, draw()))
    return result


def reconstructions(images: Tensor, rows: dict[str, Tensor]) -> Figure:
    """The first images, each above its reconstructions."""
    count = min(2 * COLUMNS, len(images))
    return figures.recon_grid(images[:count], {label: row[:count] for label, row in rows.items()}, columns=COLUMNS)
