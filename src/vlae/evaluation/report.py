"""`vlae eval`: measures a model and writes down what was found, for the console, as JSON, CSV and one HTML page."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import rich.progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vlae import processes
from vlae.data import ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation import html
from vlae.evaluation.bounds import Evaluation, evaluate
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.criteria import Criterion, References, check_criteria, free_nats_at_end, needed
from vlae.evaluation.groups import Progress
from vlae.evaluation.history import read_rows
from vlae.evaluation.illustrations import illustrations
from vlae.evaluation.measurements import Measurements, Settings
from vlae.evaluation.metrics import GROUPS, METRICS
from vlae.evaluation.passes import batches_of
from vlae.evaluation.rows import in_bits, nll_cells, rows_of
from vlae.evaluation.suite import check_images, measure
from vlae.files import check_place, json_text, write_together
from vlae.machine import machine, versions
from vlae.models.base import LatentVariableModel

TOLERANCE = 0.02  # nats: what float32 kernels of another machine may change in a mean over a test set
CHECKED = ("distortion", "rate", "negative_elbo", "nll")

TrainingImages = Callable[[], ImageDataset]
Judging = Callable[[ImageDataset], tuple[Classifier | None, str]]


def run(
    model: LatentVariableModel,
    test: ImageDataset,
    directory: Path,
    settings: Settings,
    training: TrainingImages | None = None,
    judging: Judging | None = None,
    run: Path | None = None,
    double: bool = False,
    check: bool = False,
    criteria: bool = False,
    references: References | None = None,
    strict: bool = False,
    command: str = "",
    keep: Path | None = None,
) -> int:
    """Measures, prints tables, and writes `evaluation.json`, `metrics.csv` and `report.html`.

    Several connected processes all call this, and measure together what goes image by image; the first one does the
    rest, prints and writes.

    Args:
        model: what is measured.
        test: on which images.
        directory: where the files go.
        settings: what is measured, and on how many images.
        training: loads training images; only called where they are needed.
        judging: gives the small classifier for training images, or None and why; only called where it is needed.
        run: directory of the run that the model is of, whose training is drawn.
        double: in float64.
        check: compare with the model's expected numbers, measured as they were.
        criteria: whether the success criteria are checked.
        references: the models that they compare with, in the first process.
        strict: fail where a criterion is not met.
        command: the command line, for the report.
        keep: the file that the NLL of every image is kept in as it is measured, and not measured again.

    Returns:
        0, or 1 where a number is off by more than `TOLERANCE` nats, or (strict) a criterion is not met.
    """
    check_images(model, test)
    expected = model.metadata.get("expected")
    if check:
        if not expected:
            raise VlaeError("this model carries no expected numbers to check against: leave out --check")
        settings = replace(
            settings,
            only=(*(settings.only or ()), "bound", "nll"),
            nll_samples=(expected["nll_samples"],) if expected.get("nll_samples") else (),
            nll_images=expected["nll_images"] or None,
            seed=expected["seed"],
        )
    if criteria and settings.only:  # in all processes: they measure together
        settings = replace(settings, only=(*settings.only, *needed(settings.metrics)))
    if double:
        model = copy.deepcopy(model).double()
    if not processes.first():
        measure(model, test, None, settings, keep=keep)
        return 0
    check_place(directory)
    train, judge, notes = helpers(settings, training, judging)
    started = time.monotonic()
    with progress_bars() as progress:
        found = measure(model, test, train, settings, judge, progress, keep)
        found.notes += notes
        checked = failure = None
        if criteria and references is not None:
            try:
                free_nats = free_nats_at_end(model, run)
                checked = check_criteria(model, test, found, judge, references, settings, free_nats, progress)
            except VlaeError as error:  # told below: what was measured is not lost
                failure = error
    seconds = time.monotonic() - started
    show(found, checked)
    paths = write(directory, model, found, settings, run, command, checked, seconds)
    print(f"written in {seconds:.0f} s: {', '.join(map(str, paths))}")
    if failure is not None:
        raise failure
    failed = compare(found.values, expected) if check and expected else 0
    if strict and checked and any(criterion.met is False for criterion in checked):
        return 1
    return failed


def helpers(
    settings: Settings, training: TrainingImages | None, judging: Judging | None
) -> tuple[ImageDataset | None, Classifier | None, list[str]]:
    """Training images and a classifier, as far as they are needed and can be had; else notes that say why not."""
    if training is None or not (settings.needs_judge or settings.needs_training_images):
        return None, None, []
    try:
        train = training()
    except VlaeError as error:
        return None, None, [f"there are no training images: {error}"]
    judge, why = judging(train) if judging and settings.needs_judge else (None, "")
    return train, judge, [why] if why else []


def compare(values: Mapping[str, float], expected: Mapping[str, float | None]) -> int:
    """Prints obtained beside expected; 1 where one differs by more than the tolerance."""
    failed = False
    for name in CHECKED:
        if (should := expected.get(name)) is None:  # of a model without a bound
            continue
        difference = abs(values.get(name, math.nan) - should)
        failed |= not difference <= TOLERANCE
        obtained = values.get(name, math.nan)
        print(f"{name:14s} obtained {obtained:.4f}  expected {should:.4f}  differs by {difference:.4f}")
    print(f"check {'FAILED' if failed else 'passed'}: tolerance {TOLERANCE} nats")
    return int(failed)


# -- the console ------------------------------------------------------------------------------------------------------


def show(found: Measurements, criteria: Sequence[Criterion] | None = None) -> None:
    """Prints tables, notes, what is missing, and the time that each group took."""
    console = Console()
    for table in tables(found):
        console.print(table)
    if criteria is not None:
        console.print(criteria_table(criteria))
    lines = [f"- {note}" for note in found.notes]
    lines += [f"- not measured: {name}: {reason}" for name, reason in found.skipped.items()]
    if found.seconds:
        lines.append("- seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in found.seconds.items()))
    for line in lines:
        console.print(escape(line), highlight=False)


def tables(found: Measurements) -> list[Table]:
    """What was measured, by groups; the NLL at each number of samples in a table of its own."""
    table = Table(title=f"{found.model} on {escape(found.data)}", title_justify="left")
    table.add_column("per image")
    for column in ("", "bits"):
        table.add_column(column, justify="right")
    for group in GROUPS:
        if not (metrics := rows_of(found, group)):
            continue
        table.add_section()
        table.add_row(f"[bold]{group}[/bold]", "", "")
        for metric in metrics:
            value, error = found.values[metric.name], found.errors.get(metric.name)
            table.add_row(f"  {escape(metric.heading)}", metric.written(value, error), in_bits(metric, value))
            if metric.name == "rate":
                for level, rate in enumerate(found.series.get("rate_per_level", []), 1):
                    table.add_row(f"    of z_{level}", metric.written(rate), in_bits(metric, rate))
    shown = [table] if table.row_count else []
    if "nll_by_samples" in found.series:
        shown.append(nll_table(found))
    return shown


def nll_table(found: Measurements) -> Table:
    """The NLL at each number of samples."""
    images = found.images.get("nll")
    table = Table(title="NLL by importance samples" + (f", {images:,} images" if images else ""), title_justify="left")
    for column in ("K", METRICS["nll"].heading, "bits", "bits/dim", "effective samples"):
        table.add_column(escape(column), justify="right")
    for row in found.series["nll_by_samples"]:
        table.add_row(*nll_cells(row))
    return table


def criteria_table(criteria: Sequence[Criterion]) -> Table:
    """The success criteria, each with its numbers."""
    table = Table(title="success criteria", title_justify="left", show_lines=True)
    for column in ("criterion", "", "numbers"):
        table.add_column(column)
    for criterion in criteria:
        style = {True: "green", False: "bold red", None: "dim"}[criterion.met]
        table.add_row(escape(criterion.title), f"[{style}]{criterion.verdict}[/]", escape(criterion.evidence))
    return table


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar for each stage that reports, while the block lasts."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, transient=True) as bars:
        tasks: dict[str, rich.progress.TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress


# -- files ------------------------------------------------------------------------------------------------------------


def write(
    directory: Path,
    model: LatentVariableModel,
    found: Measurements,
    settings: Settings,
    run: Path | None = None,
    command: str = "",
    criteria: Sequence[Criterion] | None = None,
    seconds: float = 0.0,
) -> list[Path]:
    """Writes the three files and returns their paths."""
    about = provenance(model, found, settings, command)
    curves = read_rows(run / "logs" / "metrics.csv") if run else []
    texts = {
        "report.html": html.page(found, about, illustrations(found, curves), criteria),
        "metrics.csv": as_csv(found),
        "evaluation.json": as_json(found, about, settings, criteria, seconds),
    }
    write_together({directory / name: text.encode() for name, text in texts.items()})
    return [directory / name for name in texts]


def provenance(
    model: LatentVariableModel, found: Measurements, settings: Settings, command: str = ""
) -> dict[str, str]:
    """What was measured, how and where, as lines by name. No date: the same evaluation gives the same report."""
    data = model.metadata.get("protocol")
    lines = {
        "model": found.model,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
        "configuration": json.dumps(model.config),
        "trained on": data if isinstance(data, str) else "",
        "measured on": found.data,
        "settings": json.dumps(asdict(settings)),
        "seed": str(settings.seed),
        "command": command,
        "versions": versions(),
        "machine": machine(next(model.parameters()).device),
    }
    return {name: line for name, line in lines.items() if line}


def as_csv(found: Measurements) -> str:
    """The scalars, one a row, in full precision; empty where there is no standard error."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["metric", "value", "error", "unit", "group"])
    for name, metric in METRICS.items():
        if name in found.values:
            writer.writerow([name, found.values[name], found.errors.get(name, ""), metric.unit, metric.group])
    return buffer.getvalue()


def as_json(
    found: Measurements,
    about: Mapping[str, str],
    settings: Settings,
    criteria: Sequence[Criterion] | None = None,
    seconds: float = 0.0,
) -> str:
    """Everything but the pictures. What `Evaluation` holds is at the top, where it has always been."""
    values = {
        "data": found.data,
        "seed": settings.seed,
        "seconds": round(seconds, 1),
        **({} if found.evaluation is None else found.evaluation.to_dict()),
        "model": found.model,
        "values": found.values,
        "errors": found.errors,
        "series": found.series,
        "notes": found.notes,
        "skipped": found.skipped,
        "images_by_group": found.images,
        "seconds_by_group": {name: round(value, 2) for name, value in found.seconds.items()},
        "settings": asdict(settings),
        "provenance": dict(about),
    }
    if criteria is not None:
        values["criteria"] = [{**asdict(criterion), "verdict": criterion.verdict} for criterion in criteria]
    return json_text(values)


# -- the bound alone --------------------------------------------------------------------------------------------------


def evaluate_dataset(
    model: LatentVariableModel,
    dataset: ImageDataset,
    nll_samples: int = 0,
    nll_images: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Evaluation:
    """`evaluate` on a data set, with progress bars; the batch size does not change the result."""
    model.context_of(dataset.labels, dataset.factors, dataset.name)
    totals = {"bound": len(dataset), "nll": min(nll_images or len(dataset), len(dataset))}
    done = dict.fromkeys(totals, 0)

    with progress_bars() as progress:

        def count(stage: str, images: int) -> None:
            done[stage] += images
            progress(stage, done[stage], totals[stage])

        batches = partial(batches_of, model, dataset, batch_size)
        return evaluate(model, batches, nll_samples, nll_images, seed, progress=count)
