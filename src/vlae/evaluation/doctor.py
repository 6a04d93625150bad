"""`vlae doctor`: reads a run, or a model alone, and says what is wrong and what to change, with the evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from vlae.data import ImageDataset
from vlae.distributions.posteriors import DiagonalGaussian
from vlae.errors import VlaeError
from vlae.evaluation import pictures
from vlae.evaluation.aggregate import information
from vlae.evaluation.bounds import evaluate
from vlae.evaluation.case import NOTICE, OK, PROBLEM, Case, Finding, LeftOut, times
from vlae.evaluation.evidence import marginal_exchange, prior_outside
from vlae.evaluation.history import read_history
from vlae.evaluation.model_checks import (
    LEAST_OUTSIDE_IMAGES,
    blur,
    checkerboard,
    codebook,
    collapse,
    holes,
    regularisation,
)
from vlae.evaluation.passes import batches_of
from vlae.evaluation.training_checks import instability, overfitting, unfinished
from vlae.files import check_place, json_text, write_text
from vlae.models.base import LatentVariableModel
from vlae.models.context import given

CHECKS: dict[str, Callable[[Case], Finding]] = {
    "collapse": collapse,
    "codebook": codebook,
    "over-regularisation": regularisation,
    "holes": holes,
    "blur": blur,
    "checkerboard": checkerboard,
    "instability": instability,
    "overfitting": overfitting,
    "unfinished training": unfinished,
}
PICTURES = 200  # reconstructions, and samples: enough for means over them, and quick with autoregressive decoders
SLOW_PAIRS = 200  # images whose codes and posteriors are paired, where each pair takes more than a few products

Said = Callable[[str], None]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        model: the model's class; `data` the protocol of the images, `images` how many.
        findings: the worst first.
        left_out: check -> why it does not apply.
        warnings: lines of the run's log.
    """

    model: str
    data: str
    images: int
    findings: list[Finding]
    left_out: dict[str, str]
    warnings: list[str]

    def count(self, severity: str) -> int:
        """How many findings are "ok", "notice" or "problem"."""
        return sum(finding.severity == severity for finding in self.findings)


def run(
    model: LatentVariableModel,
    dataset: ImageDataset,
    directory: Path,
    run_directory: Path | None = None,
    images: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
    strict: bool = False,
) -> int:
    """Diagnoses, prints what was found and writes `doctor.json` into `directory`.

    Returns 0; with `strict` 1 where there is a problem.
    """
    check_place(directory)
    with Progress(TextColumn("{task.description}"), BarColumn(), transient=True) as bars:
        task = bars.add_task("", total=None)
        found = diagnose(
            model, dataset, run_directory, images, batch_size, seed, lambda stage: bars.update(task, description=stage)
        )
    show(found, str(run_directory or directory.parent))
    path = directory / "doctor.json"
    values = {"run": None if run_directory is None else str(run_directory), "seed": seed, **asdict(found)}
    write_text(path, json_text(values))
    print(f"written: {path}")
    return int(strict and found.count(PROBLEM) > 0)


def diagnose(
    model: LatentVariableModel,
    dataset: ImageDataset,
    run_directory: Path | None = None,
    images: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
    progress: Said = lambda stage: None,
) -> Diagnosis:
    """Measures a model on the first images of a data set, reads its run, and checks for what goes wrong with VAEs.

    Independent of the batch size but for the rounding of the model's own precision.

    Args:
        model: used in eval mode; left in the mode it was in.
        dataset: held-out images.
        run_directory: where `config.yaml` and `logs/` are; None leaves the checks of training out.
        images: how many are used, all there are where they are fewer.
        batch_size: images at a time: memory, not the result.
        seed: of all noise.
        progress: told what is being done.

    Raises:
        VlaeError: the images are too few, of another shape or other levels than the model's, or the run can't be read.
    """
    if images < 2 or batch_size < 1:
        raise VlaeError(f"images must be at least 2 and batch_size at least 1; got {images} and {batch_size}")
    if len(dataset) < 2:
        raise VlaeError(
            f"{dataset.name} {dataset.split} has {times(len(dataset), 'image')}: they are compared with each other, "
            "give at least 2"
        )
    dataset = dataset.subset(min(images, len(dataset)))
    case = gather(model, dataset, run_directory, batch_size, seed, progress)
    findings, left_out = examine(case)
    warnings = [] if case.history is None else case.history.warnings
    return Diagnosis(type(model).__name__, dataset.protocol, len(dataset), findings, left_out, warnings)


def examine(case: Case) -> tuple[list[Finding], dict[str, str]]:
    """The findings, the worst first, and why the other checks were left out."""
    findings, left_out = [], {}
    for name, check in CHECKS.items():
        try:
            findings.append(check(case))
        except LeftOut as reason:
            if reason.args:
                left_out[name] = str(reason)
    order = [PROBLEM, NOTICE, OK]
    return sorted(findings, key=lambda finding: order.index(finding.severity)), left_out


def gather(
    model: LatentVariableModel,
    dataset: ImageDataset,
    run_directory: Path | None,
    batch_size: int,
    seed: int,
    progress: Said,
) -> Case:
    """Everything that the checks ask for."""
    model.check_levels(dataset.effective_levels, dataset.name)
    model.context_of(dataset.labels, dataset.factors, dataset.name)
    batches = partial(batches_of, model, dataset, batch_size)
    progress("the run's log")
    history = None if run_directory is None else read_history(run_directory)
    progress("bound")
    case = Case(model, dataset, evaluate(model, batches, seed=seed), history=history)
    if not case.is_finite:
        return case
    count = len(dataset)
    if model.latent_size and model.has_bound and not model.discrete:
        progress("what a nat of rate is worth")
        case.exchange = marginal_exchange(model, batches, seed)
        progress("prior and codes")
        few = count if is_gaussian(model, dataset) else min(count, SLOW_PAIRS)
        case.information = information(model, batches, few, seed)
        if few >= 2 * LEAST_OUTSIDE_IMAGES:
            case.outside = prior_outside(model, batches, few, seed=seed)
    if min(model.image_shape[1:]) >= 3:
        progress("pictures")
        part = dataset.subset(min(PICTURES, count))
        x, context = model.placed(part.tensor()), model.context_of(part.labels, part.factors)
        # An autoregressive decoder makes images by drawing: the greedy one misses what is never the likelier value.
        kind = "drawn" if model.autoregressive else "decoded"
        case.images = case.expected = x
        if kind == "decoded" and part.binarize in ("static", "dynamic"):
            case.expected = part.binarized(None).tensor()
        if model.latent_size:
            case.reconstructions = getattr(pictures.reconstructions(model, x, context, seed), kind)
        if case.outside is None or not case.outside.broken:
            case.samples = getattr(pictures.samples(model, len(x), context, seed), kind)
    return case


@torch.no_grad()
def is_gaussian(model: LatentVariableModel, dataset: ImageDataset) -> bool:
    """Whether the model's posterior is a diagonal Gaussian."""
    first = dataset.subset(1)
    told = given(model.context_of(first.labels, first.factors))
    with model.evaluating():
        return isinstance(model.encode(model.placed(first.tensor()), **told), DiagonalGaussian)


COLOURS = {PROBLEM: "bold red", NOTICE: "yellow", OK: "green"}


def show(found: Diagnosis, name: str) -> None:
    """Prints the findings, the worst first, then what is healthy and what was left out."""
    console = Console()
    table = Table(title=f"{found.model} {name} on {found.data}", title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in found.findings:
        text = _sentence(finding.evidence) + (f"\n[bold]->[/] {escape(finding.advice)}" if finding.advice else "")
        table.add_row(f"[{COLOURS[finding.severity]}]{finding.severity}[/]", finding.name, text)
    for check, reason in found.left_out.items():
        table.add_row("[dim]left out[/]", f"[dim]{check}[/]", f"[dim]{escape(reason)}[/]")
    console.print(table, highlight=False)
    problems, notices = found.count(PROBLEM), found.count(NOTICE)
    total = f"{len(found.findings)} checks: {problems} problem{'s' * (problems != 1)}"
    console.print(f"{total}, {notices} notice{'s' * (notices != 1)}", highlight=False)


def _sentence(text: str) -> str:
    return escape(text[:1].upper() + text[1:] + ".")
