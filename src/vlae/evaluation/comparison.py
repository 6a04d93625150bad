"""Several models side by side on one data set: bounds, image quality, usefulness of the code; one table of it all.

Images come from a decoder in two ways, decoded and drawn (`pictures`), and both are measured.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vlae.data import ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation import pictures, quality
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.metrics import METRICS
from vlae.evaluation.probes import probe
from vlae.evaluation.report import evaluate_dataset
from vlae.files import json_text
from vlae.models.base import LatentVariableModel

Column = dict[str, float]  # a model's numbers, or the data's, by the name of the row; what it lacks is left out

_RECONSTRUCTION = ("mse", "l1", "psnr", "ssim", "sharpness")
_SAMPLE = ("sharpness", "frechet", "inception_score", "confidence", "confident")
# The rows, by their names in METRICS.
SECTIONS: tuple[tuple[str, ...], ...] = (
    ("parameters", "latent_size"),
    ("distortion", "rate", "negative_elbo"),
    _RECONSTRUCTION,
    tuple(f"drawn_{name}" for name in _RECONSTRUCTION),
    tuple(f"sample_{name}" for name in _SAMPLE),
    tuple(f"drawn_sample_{name}" for name in _SAMPLE),
    ("linear_probe", "knn", "factor_r2"),
)


@dataclass(frozen=True)
class Images:
    """What a model makes of N images and of N draws from its prior, each [N, C, H, W] in [0, 1]."""

    reconstructions: Tensor
    drawn_reconstructions: Tensor
    samples: Tensor
    drawn_samples: Tensor


def images_of(model: LatentVariableModel, x: Tensor, seed: int = 0) -> Images:
    """Reconstructions of x [N, C, H, W] and as many samples, decoded and drawn; the same for the same seed."""
    return Images(*pictures.reconstructions(model, x, seed=seed), *pictures.samples(model, len(x), seed=seed))


def measure(
    model: LatentVariableModel, train: ImageDataset, test: ImageDataset, judge: Classifier | None = None, seed: int = 0
) -> tuple[Column, Images]:
    """A model's numbers on the test images, and the images behind them.

    Args:
        model: not conditional.
        train: what the probes are trained on.
        test: what everything is measured on; as many samples are drawn.
        judge: the classifier behind the Frechet distance and the confidence; None leaves them out.
        seed: of all noise.

    Raises:
        VlaeError: the model is of other images, of other levels, or conditional.
    """
    if model.condition is not None:
        raise VlaeError("a conditional model has no samples without a context: compare unconditional models")
    if tuple(model.image_shape) != tuple(test.image_shape):
        raise VlaeError(
            f"the model is of {by(model.image_shape)} images and those of {test.name} are {by(test.image_shape)}"
        )
    x = test.tensor()
    images = images_of(model, model.placed(x), seed)
    bound = evaluate_dataset(model, test, seed=seed)
    column = {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "latent_size": float(model.latent_size),
        "distortion": bound.distortion,
        **({"rate": bound.rate, "negative_elbo": bound.negative_elbo} if model.has_bound else {}),
        **quality.reconstruction_quality(x, images.reconstructions),
        **_named("drawn", quality.reconstruction_quality(x, images.drawn_reconstructions)),
        **_named("sample", _of_samples(judge, x, images.samples)),
        **_named("drawn_sample", _of_samples(judge, x, images.drawn_samples)),
        **_probed(model, train, test),
    }
    return column, images


def measure_data(train: ImageDataset, test: ImageDataset, judge: Classifier | None = None) -> Column:
    """What the data's own images score in the same table: what a model's numbers are to be read against.

    Samples are as many training images, and the code is the pixels themselves.
    """
    x, others = test.tensor(), train.subset(min(len(train), len(test))).tensor()
    return {
        "latent_size": float(math.prod(test.image_shape)),
        "sharpness": quality.sharpness(x).mean().item(),
        **_named("sample", _of_samples(judge, x, others)),
        **_probed(None, train, test),
    }


def _of_samples(judge: Classifier | None, x: Tensor, samples: Tensor) -> Column:
    judged = {} if judge is None else quality.sample_quality(judge, x, samples)
    return {"sharpness": quality.sharpness(samples).mean().item(), **judged}


def _probed(model: LatentVariableModel | None, train: ImageDataset, test: ImageDataset) -> Column:
    result = probe(model, train, test)
    varying = [value for value in result.r2 or [] if not math.isnan(value)]
    values = {
        "linear_probe": result.linear,
        "knn": result.knn,
        "factor_r2": sum(varying) / len(varying) if varying else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _named(prefix: str, column: Column) -> Column:
    return {f"{prefix}_{name}": value for name, value in column.items()}


def by(shape: Sequence[int]) -> str:
    """A shape in words: 1x28x28."""
    return "x".join(map(str, shape))


# -- the table --------------------------------------------------------------------------------------------------------


def sections(columns: Mapping[str, Column]) -> list[list[str]]:
    """The rows of which any column has a number, in their sections."""
    found = [[name for name in names if any(name in column for column in columns.values())] for names in SECTIONS]
    return [names for names in found if names]


def label(name: str) -> str:
    """A row's words; the notes say whose features and classes are meant."""
    return METRICS[name].heading.replace(" (own classifier)", "")


def written(name: str, column: Column) -> str:
    """A number as the table shows it, "-" where there is none."""
    return METRICS[name].written(column.get(name))


def as_table(columns: Mapping[str, Column], title: str) -> Table:
    """The table for a console."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for names in sections(columns):
        for name in names:
            table.add_row(escape(label(name)), *(written(name, column) for column in columns.values()))
        table.add_section()
    return table


def as_markdown(columns: Mapping[str, Column], title: str, notes: Sequence[str] = ()) -> str:
    """The table as markdown, with its notes as a list."""
    lines = [f"# {title}", "", "| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for names in sections(columns):
        lines += [
            f"| {label(name)} | " + " | ".join(written(name, c) for c in columns.values()) + " |" for name in names
        ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def as_csv(columns: Mapping[str, Column]) -> str:
    """The table as CSV, numbers in full, empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["metric", *columns])
    for names in sections(columns):
        writer.writerows([name, *(column.get(name, "") for column in columns.values())] for name in names)
    return buffer.getvalue()


def as_json(columns: Mapping[str, Column], about: Mapping[str, Any]) -> str:
    """Everything as JSON; a value that is not finite becomes null."""
    return json_text({**about, "columns": columns})
