"""How much of an image a few bits of z keep: rate against distortion of the codec's lossy mode.

    python benchmarks/lossy.py --model mnist-codec --images 1000 --steps 0.5 1 2 4 --plot lossy.png

A file keeps z alone, in bins of a chosen width; the decoder makes new texture. So pixels may be off while the digit is
the same: beside the squared error stands a classifier's opinion of whether it is. A second figure, beside the first and
named `...-pictures.png`, shows what is decoded at each rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from codec import Page, choose_model, held_out
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from training import table

import vlae.codec
from vlae import VlaeError, cli, figures
from vlae.codec.lossy import Texture
from vlae.data import ImageDataset
from vlae.evaluation.classifier import Classifier, trained_classifier
from vlae.evaluation.passes import standard_error
from vlae.figures.charts import DARK, LIGHT, WARM
from vlae.models.base import LatentVariableModel

TEXTURES: tuple[Texture, ...] = get_args(Texture)
STYLES = {  # told apart by marker and dashes too
    "sample": {"color": DARK, "marker": "o", "linestyle": "-"},
    "greedy": {"color": WARM, "marker": "s", "linestyle": "--"},
    "mean": {"color": LIGHT, "marker": "^", "linestyle": ":", "markeredgecolor": DARK},
}
SHOWN = 10  # images in the second figure


@dataclass(frozen=True)
class Quality:
    """What decoded images are worth: means over images with their standard errors.

    Attributes:
        error: mean squared error per sub-pixel.
        agreement: share of images of which the classifier says the same as of the original.
        accuracy: share of images of which it says their label.
    """

    error: tuple[float, float]
    agreement: tuple[float, float]
    accuracy: tuple[float, float]


@dataclass(frozen=True)
class Point:
    """One rate: the bins' width (0: lossless), bits an image, and the quality under each texture."""

    step: float
    bits: float
    quality: dict[str, Quality]


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of [N] values and its standard error."""
    values = values.double()
    return values.mean().item(), standard_error(values)


def quality(decoded: Tensor, images: Tensor, labels: Tensor, judge: Classifier) -> Quality:
    """Of decoded images, beside the originals."""
    said = judge.predict(decoded)
    return Quality(
        error=mean_and_error((decoded - images).square().flatten(1).mean(1)),
        agreement=mean_and_error(said == judge.predict(images)),
        accuracy=mean_and_error(said == labels),
    )


def bits_an_image(data: bytes) -> float:
    """Of a file's blocks: what each further image takes."""
    found = vlae.codec.info(data)
    return 8 * found["payload_bytes"] / found["images"]


def measure(
    model: LatentVariableModel, images: Tensor, labels: Tensor, judge: Classifier, steps: Sequence[float], shown: int
) -> tuple[list[Point], dict[str, Tensor]]:
    """A point for each step, by real files, the lossless one last; and the first `shown` images at each rate."""
    points, rows = [], {}
    for step in sorted(steps, reverse=True):
        data = vlae.codec.compress(model, images, lossy_step=step, verify=False)
        decoded = {t: vlae.codec.decompress(model, data, texture=t).to(images) for t in TEXTURES}
        bits = bits_an_image(data)
        points.append(Point(step, bits, {t: quality(x, images, labels, judge) for t, x in decoded.items()}))
        rows[f"step {step:g}: {bits:.1f} bits"] = decoded["sample"][:shown]
    data = vlae.codec.compress(model, images, verify=False)
    decoded_again = vlae.codec.decompress(model, data).to(images)
    points.append(Point(0, bits_an_image(data), {t: quality(decoded_again, images, labels, judge) for t in TEXTURES}))
    if points[-1].quality["sample"].error[0] > 0:
        raise VlaeError("the lossless file does not decode to the same")
    return points, rows


def rows_of(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """Rows (step, bits, texture, error, agreement, accuracy)."""
    rows = []
    for point in points:
        for texture, found in point.quality.items():
            if point.step or texture == TEXTURES[0]:
                rows.append(
                    (
                        f"{point.step:g}" if point.step else "lossless",
                        f"{point.bits:.2f}",
                        texture if point.step else "",
                        f"{found.error[0]:.4f} ± {found.error[1]:.4f}",
                        f"{100 * found.agreement[0]:.1f} ± {100 * found.agreement[1]:.1f} %",
                        f"{100 * found.accuracy[0]:.1f} ± {100 * found.accuracy[1]:.1f} %",
                    )
                )
    return rows


def chart(points: Sequence[Point], title: str) -> Figure:
    """Squared error and agreement against bits an image, a line for each texture; the lossless rate as a line."""
    figure = Figure(figsize=(9, 3.8), dpi=128, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, size=10)
    names = {"error": "mean squared error per pixel", "agreement": "share classified as the original is"}
    *lossy, lossless = points
    for axes, (term, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        for texture, style in STYLES.items():
            values = [getattr(point.quality[texture], term) for point in lossy]
            axes.errorbar(
                [point.bits for point in lossy],
                [mean for mean, _ in values],
                yerr=[error for _, error in values],
                label=texture,
                markersize=5,
                linewidth=1.5,
                **style,
            )
        exact = getattr(lossless.quality["sample"], term)[0]
        axes.axvline(lossless.bits, color="#999999", linewidth=1, linestyle="-.")
        axes.plot(lossless.bits, exact, "*", color="black", markersize=10, label="lossless", clip_on=False, zorder=3)
        axes.set_xlim(left=0)
        axes.set_xlabel("bits an image")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].set_ylim(top=1)
    return figure


def run(
    model: LatentVariableModel, dataset: ImageDataset, name: str, steps: Sequence[float], plot: Path | None, page: Page
) -> None:
    """Measures, says and draws everything."""
    judge = trained_classifier(dataset.name, dataset.binarize)
    images, labels = dataset.tensor(), dataset.labels
    assert labels is not None  # or there would be no classifier
    page.say(f"Model: {name}. Data: {dataset.protocol}.")
    points, rows = measure(model, images, labels, judge, steps, SHOWN)
    header = ("step", "bits an image", "texture", "squared error", "says the same", "says the label")
    page.say(table(header, rows_of(points)))
    page.say(
        f"Bits are those of a file's blocks. The classifier was trained on such images; on all test images it is right "
        f'in {judge.test_accuracy:.2%}. It never saw grey values between the levels, which the texture "mean" has. '
        "± is one standard error over images."
    )
    if plot is not None:
        figures.save(chart(points, dataset.protocol), plot)
        pictures = plot.with_name(f"{plot.stem}-pictures{plot.suffix}")
        title = "only z is kept, in so many bits on average; texture drawn anew"
        figures.save(figures.recon_grid(images[:SHOWN], rows, title), pictures)
        print(f"{plot} and {pictures}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Rate and distortion of lossy coding.")
    parser.add_argument("--model", default="mnist-codec", help="pretrained name, directory of a saved model, or a run")
    parser.add_argument("--images", type=int, default=1000, help="test images, the first so many")
    parser.add_argument("--steps", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0, 4.0], help="widths of z's bins")
    parser.add_argument("--plot", type=Path, help="PNG; a second one, of pictures, goes beside it")
    parser.add_argument("--write", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    if options.images < 1 or not all(step > 0 for step in options.steps):
        return cli.fail("--images and --steps must be positive")
    page = Page()
    try:
        model = choose_model(options.model)
        with torch.no_grad():
            run(model, held_out(model, options.images), options.model, options.steps, options.plot, page)
        page.write(options.write)
    except VlaeError as error:
        return cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
