"""Several models side by side on one data set: bounds, image quality, usefulness of the code; one table of it all.

Images come from a decoder in two ways, and both are measured. *Decoded* is deterministic: the mean image of a
factorised p(x|z), the greedy image of an autoregressive one. *Drawn* is x ~ p(x|z); where the pixels are independent
that is the mean image with noise on every pixel, which the sharpness counts too.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vlae.data import ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation import quality
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.probes import probe
from vlae.evaluation.report import evaluate_dataset
from vlae.models.base import LatentVariableModel

CHUNK = 100  # images decoded at a time

Column = dict[str, float]  # a model's numbers, or the data's, by the name of the row; what it lacks is left out


@dataclass(frozen=True)
class Row:
    """One row of the table: its name in files, its words, how its numbers are written."""

    name: str
    label: str
    form: str


def _quality_of(prefix: str, words: str, names: Mapping[str, tuple[str, str]]) -> tuple[Row, ...]:
    return tuple(Row(f"{prefix}{name}", f"{words}: {label}", form) for name, (label, form) in names.items())


_RECONSTRUCTION = {
    "mse": ("MSE", ".4f"),
    "l1": ("L1", ".4f"),
    "psnr": ("PSNR [dB]", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "sharpness": ("sharpness", ".4f"),
}
_SAMPLE = {
    "sharpness": ("sharpness", ".4f"),
    "frechet": ("Frechet distance", ".2f"),
    "confidence": ("confidence", ".3f"),
    "confident": ("confident share", ".3f"),
}
SECTIONS: tuple[tuple[Row, ...], ...] = (
    (Row("parameters", "parameters", ",.0f"), Row("latent_size", "numbers in z", ".0f")),
    (
        Row("distortion", "distortion [nats]", ".2f"),
        Row("rate", "rate [nats]", ".2f"),
        Row("negative_elbo", "-ELBO [nats]", ".2f"),
    ),
    _quality_of("", "reconstructions", _RECONSTRUCTION),
    _quality_of("drawn_", "drawn reconstructions", _RECONSTRUCTION),
    _quality_of("sample_", "samples", _SAMPLE),
    _quality_of("drawn_sample_", "drawn samples", _SAMPLE),
    (
        Row("linear_probe", "linear probe of z: accuracy", ".3f"),
        Row("knn", "nearest neighbours in z: accuracy", ".3f"),
        Row("factor_r2", "factors from z: mean R²", ".3f"),
    ),
)


@dataclass(frozen=True)
class Images:
    """What a model makes of N images and of N draws from its prior, each [N, C, H, W] in [0, 1]."""

    reconstructions: Tensor
    drawn_reconstructions: Tensor
    samples: Tensor
    drawn_samples: Tensor


@torch.no_grad()
def images_of(model: LatentVariableModel, x: Tensor, seed: int = 0) -> Images:
    """Reconstructions of x [N, C, H, W] and as many samples, decoded and drawn; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[Tensor, ...]] = []
    with model.evaluating():
        for part in x.split(CHUNK):
            model.check(part)
            q = model.encode(part)
            drawn = model.decode(q.sample(generator=generator)).sample(generator=generator)
            z = model.prior().sample((len(part),), generator=generator)
            sampled = model.decode(z).sample(generator=generator)
            parts.append((model.decode(q.mean).reconstruction, drawn, model.decode(z).reconstruction, sampled))
    return Images(*(torch.cat(images).clamp(0, 1) for images in zip(*parts, strict=True)))


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
    images = images_of(model, x.to(next(model.parameters()).dtype), seed)
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


def sections(columns: Mapping[str, Column]) -> list[list[Row]]:
    """The rows of which any column has a number, in their sections."""
    found = [[row for row in rows if any(row.name in column for column in columns.values())] for rows in SECTIONS]
    return [rows for rows in found if rows]


def written(row: Row, column: Column) -> str:
    """A number as the table shows it, "-" where there is none."""
    return format(column[row.name], row.form) if row.name in column else "-"


def as_table(columns: Mapping[str, Column], title: str) -> Table:
    """The table for a console."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for rows in sections(columns):
        for row in rows:
            table.add_row(escape(row.label), *(written(row, column) for column in columns.values()))
        table.add_section()
    return table


def as_markdown(columns: Mapping[str, Column], title: str, notes: Sequence[str] = ()) -> str:
    """The table as markdown, with its notes as a list."""
    lines = [f"# {title}", "", "| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for rows in sections(columns):
        lines += [f"| {row.label} | " + " | ".join(written(row, c) for c in columns.values()) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def as_csv(columns: Mapping[str, Column]) -> str:
    """The table as CSV, numbers in full, empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["metric", *columns])
    for rows in sections(columns):
        writer.writerows([row.name, *(column.get(row.name, "") for column in columns.values())] for row in rows)
    return buffer.getvalue()


def as_json(columns: Mapping[str, Column], about: Mapping[str, Any]) -> str:
    """Everything as JSON; a value that is not finite becomes null."""
    values = {
        title: {name: value if math.isfinite(value) else None for name, value in column.items()}
        for title, column in columns.items()
    }
    return json.dumps({**about, "columns": values}, indent=2) + "\n"
