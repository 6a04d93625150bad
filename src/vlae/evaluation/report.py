"""Runs an evaluation on a data set and writes it down: a table, `evaluation.json` and `metrics.csv`."""

from __future__ import annotations

import copy
import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from vlae.data import Batches, ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation.bounds import Evaluation, evaluate
from vlae.evaluation.information import BITS
from vlae.files import write_text
from vlae.models.base import LatentVariableModel

TOLERANCE = 0.02  # nats: what float32 kernels of another machine may change in a mean over a test set


def run(
    model: LatentVariableModel,
    dataset: ImageDataset,
    directory: Path,
    nll_samples: int,
    nll_images: int | None,
    batch_size: int,
    seed: int,
    double: bool,
    check: bool,
) -> int:
    """Evaluates, prints the table, writes the files; with `check` compares with the model's expected numbers.

    Returns 0, or 1 where an expected number is missed by more than `TOLERANCE` nats.
    """
    model.check_levels(dataset.effective_levels, dataset.name)
    expected = model.metadata.get("expected")
    if check:
        if not expected:
            raise VlaeError("this model carries no expected numbers to check against: leave out --check")
        nll_samples, nll_images, seed = expected["nll_samples"], expected["nll_images"], expected["seed"]
    if double:
        model = copy.deepcopy(model).double()
    started = time.monotonic()
    result = evaluate_dataset(model, dataset, nll_samples, nll_images, batch_size, seed)
    seconds = time.monotonic() - started
    kind = type(model).__name__
    print_table(result, f"{kind} on {dataset.protocol} ({seconds:.0f} s)", kind)
    values = {"data": dataset.protocol, "seed": seed, "seconds": round(seconds, 1), **result.to_dict()}
    write_text(directory / "evaluation.json", json.dumps(values, indent=2) + "\n")
    write_text(directory / "metrics.csv", _csv(result))
    print(f"written: {directory / 'evaluation.json'}, {directory / 'metrics.csv'}")
    return compare(result, expected) if check and expected else 0


def compare(result: Evaluation, expected: dict[str, float]) -> int:
    """Prints obtained beside expected; 1 where one differs by more than the tolerance."""
    failed = False
    for name in ("distortion", "rate", "negative_elbo", "nll"):
        difference = abs(getattr(result, name) - expected[name])
        failed |= not difference <= TOLERANCE
        obtained = getattr(result, name)
        print(f"{name:14s} obtained {obtained:.4f}  expected {expected[name]:.4f}  differs by {difference:.4f}")
    print(f"check {'FAILED' if failed else 'passed'}: tolerance {TOLERANCE} nats")
    return int(failed)


def print_table(result: Evaluation, title: str, kind: str = "model") -> None:
    """The evaluation as a console table, nats and bits; `kind` is what the model is called, its class."""
    table = Table(title=title, title_justify="left")
    table.add_column("per image")
    for column in ("nats", "bits", "bits/dim", ""):
        table.add_column(column, justify="right" if column else "left")

    bounded = result.rate is not None

    def row(name: str, nats: float, note: str = "", per_dim: float | None = None) -> None:
        bits = f"{nats * BITS:.2f}" if bounded else ""
        table.add_row(name, f"{nats:.3f}", bits, "" if per_dim is None else f"{per_dim:.4f}", note)

    row("distortion", result.distortion, "-log p(x|z)" + ("" if bounded else f", {result.images} images"))
    if result.rate is not None:
        used = "" if result.active_units is None else f", {result.active_units} of {result.latent_dim} units active"
        row("rate", result.rate, f"KL(q(z|x) || p(z)){used}")
    for level, rate in enumerate(result.rate_per_level, 1):
        top = level == len(result.rate_per_level)
        row(f"  of z_{level}", rate, "from N(0, I)" if top else f"from p(z_{level}|z_{level + 1})")
    if result.negative_elbo is not None:
        note = f"± {result.negative_elbo_error:.3f}, {result.images} images"
        row("-ELBO", result.negative_elbo, note, result.bits_per_dim)
    if result.nll is not None:
        note = f"± {result.nll_error:.3f}, K = {result.nll_samples}, {result.nll_images} images, ESS {result.ess:.1f}"
        row("NLL", result.nll, note, result.nll_bits_per_dim)
    row("shuffled z costs", result.shuffled_gap, "distortion with another image's z, less the distortion")
    console = Console()
    console.print(table)
    if result.perplexity is not None:
        console.print(
            f"perplexity {result.perplexity:.2f} of {result.codes} codes, {result.codes_in_use} of them in use"
        )
    if not bounded:
        console.print(f"a {kind} has no density of z: its distortion alone is given")
    elif result.bits_per_dim is None:
        console.print("a density: nats of continuous data; bits/dim would need dequantised images")


def evaluate_dataset(
    model: LatentVariableModel,
    dataset: ImageDataset,
    nll_samples: int = 0,
    nll_images: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Evaluation:
    """`evaluate` on a data set, with progress bars; the batch size does not change the result."""
    dtype = next(model.parameters()).dtype
    model.context_of(dataset.labels, dataset.factors, dataset.name)

    def batches() -> Iterator[tuple[Tensor, list[int], Tensor | None]]:
        for batch in Batches(dataset, min(batch_size, len(dataset))):
            context = model.context_of(batch.labels, batch.factors)
            yield batch.images.to(dtype), batch.indices.tolist(), context

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bars:
        tasks = {"bound": bars.add_task("bound", total=len(dataset))}
        if nll_samples:
            tasks["nll"] = bars.add_task("NLL", total=min(nll_images or len(dataset), len(dataset)))
        return evaluate(
            model,
            batches,
            nll_samples,
            nll_images,
            seed,
            progress=lambda stage, images: bars.advance(tasks[stage], images),
        )


def _csv(result: Evaluation) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["metric", "value"])
    writer.writerows((k, v) for k, v in result.to_dict().items() if isinstance(v, int | float))
    return buffer.getvalue()
