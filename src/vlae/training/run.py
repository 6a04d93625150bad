"""A run: a directory made by training one configuration, that can be resumed, evaluated and drawn.

outputs/<name>/
    config.yaml         everything that was set
    ckpts/              best.ckpt, last.ckpt (Lightning's; read weights-only)
    logs/               metrics.csv, train.log, TensorBoard events
    model/              the best model's averaged weights, as a saved model
    grids/ samples/ reports/
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from vlae import data, processes
from vlae.errors import VlaeError
from vlae.files import aside, holding, set_aside, write_text
from vlae.models.base import LatentVariableModel
from vlae.models.saving import check_rebuilds
from vlae.objectives import Objective
from vlae.training.callbacks import AveragedWeights, CompiledTraining, EpochReport
from vlae.training.checkpoints import (
    BestAndLast,
    WholeCheckpoints,
    best_of,
    check_resumable,
    check_training,
    error_of,
    model_of,
    take_weights,
)
from vlae.training.checkpoints import read_checkpoint as read_checkpoint
from vlae.training.devices import STRATEGIES, Layout, check_model, layout, strategy_for
from vlae.training.speed import best_precision, can_compile
from vlae.training.task import Diverged, OptimizerSettings, Task

logger = logging.getLogger("vlae.training")


@dataclass
class DataSettings:
    """Which images, and how they come.

    Attributes:
        name: one of `vlae.data.names()`.
        root: where the files are; None looks in $VLAE_DATA and the download cache.
        binarize: None, "static", "dynamic" or "threshold".
        batch_size: images per training step, of all processes together.
        split: what to train on: "train", or "train+validation" for a final run.
        options: further arguments of the data set, such as path, crop and crops_per_epoch of "folder".
        limit: train on the first so many images only; None takes all.
        validation_limit: validate on the first so many only; None takes all.
    """

    name: str = "digits"
    root: str | None = None
    binarize: str | None = None
    batch_size: int = 128
    split: str = "train"
    options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    validation_limit: int | None = None

    def __post_init__(self) -> None:
        for name, limit in (("limit", self.limit), ("validation_limit", self.validation_limit)):
            if limit is not None and limit < 1:
                raise VlaeError(f"data.{name} must be at least 1, or null for all images; got {limit}")

    def load(self, split: str) -> data.ImageDataset:
        """The images of a split."""
        images = data.load(self.name, split, root=self.root, binarize=self.binarize, **self.options)
        limit = {"validation": self.validation_limit, self.split: self.limit}.get(split)
        return images if limit is None else images.subset(min(limit, len(images)))


@dataclass
class TrainerSettings:
    """How long, how fast, on what.

    Attributes:
        max_epochs: passes over the training set.
        precision: "auto" (bf16 where the hardware multiplies it natively), "32-true", "bf16-mixed" or "64-true".
        compile: compile the networks; falls back, saying so, where no compiler is found.
        ema_decay: of the averaged weights; 0 switches averaging off.
        gradient_clip: the gradient's norm is cut to this; 0 leaves it as it is.
        early_stopping: stop after so many epochs without a better validation bound; 0 never does.
        max_bad_steps: stop after so many steps in a row with a NaN or infinite loss or gradient.
        accelerator: "auto" (CUDA where there is one, else the CPU), "cpu" or "cuda".
        devices: processes on each machine, one for each GPU. They share every batch and end up with the weights that
            one would have, up to rounding. Under torchrun it is torchrun's number.
        num_nodes: machines, each with as many devices.
        strategy: how several processes are kept together: "auto" (DistributedDataParallel), or "ddp" (the same, slower,
            for an objective of your own under which other parameters get a gradient in other steps).
        progress_bar: show one.
    """

    max_epochs: int = 20
    precision: str = "auto"
    compile: bool = False
    ema_decay: float = 0.998
    gradient_clip: float = 100.0
    early_stopping: int = 0
    max_bad_steps: int = 20
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise VlaeError(f"trainer.max_epochs must be at least 1; got {self.max_epochs}")
        if not 0 <= self.ema_decay < 1:
            raise VlaeError(f"trainer.ema_decay must be in [0, 1); got {self.ema_decay}")
        if not 0 <= self.gradient_clip < math.inf:
            raise VlaeError(f"trainer.gradient_clip must be positive, or 0 for none; got {self.gradient_clip}")
        if self.early_stopping < 0:
            raise VlaeError(f"trainer.early_stopping is epochs, or 0 for never; got {self.early_stopping}")
        counts = {"devices": self.devices, "num_nodes": self.num_nodes, "max_bad_steps": self.max_bad_steps}
        for name, number in counts.items():
            if number < 1:
                raise VlaeError(f"trainer.{name} must be at least 1; got {number}")
        if self.strategy not in STRATEGIES:
            raise VlaeError(f"trainer.strategy must be one of {', '.join(STRATEGIES)}; got {self.strategy!r}")
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise VlaeError(f"trainer.accelerator must be auto, cpu or cuda; got {self.accelerator!r}")
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise VlaeError("trainer.accelerator is cuda and PyTorch finds no CUDA device: leave it out, or set cpu")
        known = ("auto", "32-true", "bf16-mixed", "64-true")
        if self.precision not in known:
            raise VlaeError(f"trainer.precision must be one of {', '.join(known)}; got {self.precision!r}")


@dataclass
class RunSettings:
    """Where the run goes.

    Attributes:
        name: the run's directory; None takes the configuration's name.
        root: the directory of all runs.
        overwrite: replace a run of that name.
    """

    name: str | None = None
    root: str = "outputs"
    overwrite: bool = False


def train(
    model: LatentVariableModel,
    objective: Objective,
    optimizer: OptimizerSettings,
    data: DataSettings,
    trainer: TrainerSettings,
    directory: Path,
    config: str,
    seed: int = 0,
    resume: bool = False,
    start_from: str | None = None,
    overwrite: bool = True,
) -> Path:
    """Trains a model into a run directory and returns the directory of the saved model, its best averaged weights.

    Args:
        model: new, built for the images of `data`.
        objective: what to minimise.
        optimizer: how the weights move.
        data: which images.
        trainer: how long, how fast, on what.
        directory: the run's; see the module's text for what it holds.
        config: the whole configuration as YAML, kept in the run.
        seed: of the data's order, and of all noise in training.
        resume: go on from `ckpts/last.ckpt`, bit for bit as if there had been no stop.
        start_from: a saved model whose weights the new one begins with (`take_weights` says what may differ); the
            optimiser, its schedule and the averages begin anew. None initialises from the data.
        overwrite: replace a run that is there; else it is refused, unless it is resumed.

    Several processes (`trainer.devices`, or torchrun) all call this; the first one alone writes.
    """
    where = layout(trainer.accelerator, trainer.devices, trainer.num_nodes)
    check_model(where, model)
    start_from = start_from or None
    training, validation = data.load(data.split), data.load("validation")
    model.check_levels(training.effective_levels, training.name)
    objective.check(model)
    check_rebuilds(model)
    model.context_of(training.labels, training.factors, training.name)
    if not training.training:
        raise VlaeError(f"training is on train or train+validation, not on the images of {training.split!r}")
    held_out = "validation" not in training.split
    watching = {"early stopping": trainer.early_stopping, "a plateau schedule": optimizer.schedule == "plateau"}
    for name, wanted in watching.items():
        if wanted and not held_out:
            raise VlaeError(f"{name} needs held-out images, and this run trains on the validation split: switch it off")
    last = directory / "ckpts" / "last.ckpt"
    begun = {"started_from": start_from} if start_from else {}
    model.metadata = {"data": asdict(data), "protocol": training.protocol, **begun}
    anew: list[str] = []
    if not resume:
        torch.manual_seed(seed)
        if start_from:
            check_source(start_from, directory)
            anew = take_weights(model, start_from)
        if anew or not start_from:
            first = next(iter(_batches(training, data.batch_size, seed)))
            if anew:
                model.initialise_prior(first.images)
            else:
                model.initialise(first.images, model.context_of(first.labels, first.factors))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = Task(model, objective, optimizer, seed, trainer.gradient_clip, trainer.max_bad_steps)
    if resume:
        check_training(last, check_resumable(last, model), task, trainer.max_epochs, bool(trainer.ema_decay))
    checkpoints = BestAndLast(directory / "ckpts", held_out)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        engine = _engine(trainer, directory, checkpoints, where)
        if engine.precision == "64-true":
            task.double()  # now, or the averages would begin in float32; what the objective learns as well
        batches = _batches(training, data.batch_size, seed, (engine.global_rank, where.processes))
        if engine.is_global_zero:
            stack.enter_context(room_for(directory, resume, overwrite))
            stack.enter_context(log_to(directory / "logs" / "train.log"))
            write_text(directory / "config.yaml", config)
        logger.info(
            f"training {type(model).__name__} with {sum(p.numel() for p in model.parameters()):,} parameters on "
            f"{training.protocol}; {engine.precision}, run {directory}"
            + (f"; {where.processes} processes share each batch" if where.processes > 1 else "")
            + (f"; from the weights of {start_from}" if start_from and not resume else "")
            + (f", but for the prior, which begins anew: another {', '.join(anew)}" if anew else "")
        )
        if not held_out:
            logger.info(
                "the validation images are trained on: their bound is no held-out one, and the last model is kept"
            )
        if (field := getattr(getattr(model, "decoder", None), "receptive_field", None)) is not None:
            logger.info(f"a pixel sees {field.size} earlier pixels: {field}")
        try:
            engine.fit(
                task,
                batches,
                data_loader(validation, data.batch_size),
                ckpt_path=str(last) if resume else None,
                weights_only=True if resume else None,
            )
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
    if engine.is_global_zero:
        export(directory)
    processes.wait()
    return directory / "model"


def _batches(dataset: data.ImageDataset, batch_size: int, seed: int, share: tuple[int, int] = (0, 1)) -> data.Batches:
    return data.Batches(dataset, min(batch_size, len(dataset)), shuffle=True, seed=seed, drop_last=True, share=share)


def data_loader(dataset: data.ImageDataset, batch_size: int) -> data.Batches:
    """Batches for evaluation: all images once, in order."""
    return data.Batches(dataset, min(batch_size, len(dataset)))


def _engine(settings: TrainerSettings, directory: Path, checkpoints: BestAndLast, where: Layout) -> pl.Trainer:
    """Lightning's trainer with this package's callbacks."""
    device = torch.device(where.accelerator)
    precision = best_precision(device) if settings.precision == "auto" else settings.precision
    callbacks: list[pl.Callback] = [EpochReport(directory / "logs" / "metrics.csv"), checkpoints, LearningRateMonitor()]
    if settings.ema_decay:
        callbacks.append(AveragedWeights(settings.ema_decay))
    if settings.compile and can_compile(device):
        callbacks.append(CompiledTraining())
    elif settings.compile:
        logger.warning(
            "no C++ compiler with Python's headers was found: the networks are not compiled; slower, not different"
        )
    if settings.early_stopping:
        callbacks.append(EarlyStopping("validation/elbo", mode="max", patience=settings.early_stopping))
    if settings.progress_bar:
        callbacks.append(RichProgressBar())
    return pl.Trainer(
        max_epochs=settings.max_epochs,
        precision=precision,  # type: ignore[arg-type]
        accelerator=where.accelerator,
        devices=where.devices,
        num_nodes=where.num_nodes,
        strategy=strategy_for(where, settings.strategy),
        sync_batchnorm=where.processes > 1,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        logger=TensorBoardLogger(directory, name="logs", version=""),
        enable_progress_bar=settings.progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )


def export(directory: Path) -> Path:
    """Saves the best checkpoint's averaged weights as `<run>/model` and returns that path."""
    return model_of(best_of(directory)).save_pretrained(directory / "model")


def check_source(start_from: str, directory: Path) -> None:
    """Refuses to begin a run with weights out of the run that it replaces: other processes come to read them later."""
    source = Path(start_from).resolve()
    if directory.resolve() in (source, *source.parents):
        raise VlaeError(f"{start_from} would be replaced by what starts from it: choose another --run.name")


def choose_directory(settings: RunSettings, default_name: str, resume: bool) -> Path:
    """The run's directory; refuses one that exists, unless it is to be resumed or overwritten. Changes nothing."""
    directory = Path(settings.root) / (settings.name or default_name)
    if resume or not (directory.exists() or set_aside(directory)) or has_diverged(directory):
        return directory
    if not settings.overwrite:
        raise VlaeError(
            f"the run {directory} exists: continue it with --resume, replace it with --run.overwrite true, "
            "or choose another --run.name"
        )
    if not (directory / "config.yaml").is_file() and _holds_something_else(directory):
        raise VlaeError(f"{directory} is not a run, so it is not overwritten: choose another --run.name")
    return directory


def _holds_something_else(directory: Path, *known: str) -> bool:
    """Whether there is more in a directory than a run that was killed at once has left, beside what is known."""
    left = ("logs", *known)
    return directory.exists() and any(path.name not in left and path.suffix != ".tmp" for path in directory.iterdir())


def has_diverged(directory: Path) -> bool:
    """Whether a run came to NaN before it had weights to keep, so that it gives way to the next try.

    Its curves may have been drawn since.
    """
    return bool(error_of(directory)) and not _holds_something_else(directory, "config.yaml", "grids")


@contextmanager
def room_for(directory: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """The run's directory, new unless it is to be resumed.

    A run that was there is kept aside until its successor has finished an epoch. What fails before that comes to
    nothing: the old run is put back, and without one no directory is left to stand in the way of the next try, but for
    that of a run that diverged: its log tells why, and the next try replaces it. Until it ends, no other process may
    train into it or replace it.
    """
    with ExitStack() as held:
        there = held.enter_context(holding(directory)) if directory.exists() else None
        old = _make_room(directory, resume, overwrite)
        if directory.stat().st_ino != there:
            held.enter_context(holding(directory))
        diverged = False
        try:
            yield
        except Diverged:
            diverged = True
            raise
        finally:
            begun = resume or has_finished_an_epoch(directory) or (diverged and not old)
            if not begun:
                shutil.rmtree(directory, ignore_errors=True)
                if old:
                    old.rename(directory)
            if old:
                shutil.rmtree(old.parent, ignore_errors=True)


def _make_room(directory: Path, resume: bool, overwrite: bool) -> Path | None:
    """The run's directory, made or swept; where the run is that it replaces."""
    old: Path | None = None
    if has_diverged(directory):
        shutil.rmtree(directory)
    if not (resume or overwrite):
        try:
            if set_aside(directory):  # it is to be put back first, not trained into
                raise FileExistsError
            directory.mkdir(parents=True)
        except FileExistsError:
            raise VlaeError(
                f"the run {directory} exists, or another process has just begun it: choose another --run.name"
            ) from None
    put_back(directory)
    sweep(directory)
    if directory.exists() and not resume and overwrite:
        old = aside(directory)
        directory.rename(old)
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    return old


def sweep(directory: Path) -> None:
    """Removes what a killed process has left of files that it was writing into a run."""
    for left in directory.rglob(".*.tmp"):
        left.unlink(missing_ok=True)
    for left in directory.glob(".model.*-*"):  # it is made again from the best checkpoint
        shutil.rmtree(left, ignore_errors=True)


def has_finished_an_epoch(directory: Path) -> bool:
    """Whether a run has a checkpoint."""
    return any((directory / "ckpts").glob("*.ckpt"))


def put_back(directory: Path) -> None:
    """The run that a killed process had set aside, unless its successor had finished an epoch."""
    for old in set_aside(directory):
        if not has_finished_an_epoch(directory):
            shutil.rmtree(directory, ignore_errors=True)
            old.rename(directory)
        shutil.rmtree(old.parent, ignore_errors=True)


class LogFile(logging.FileHandler):
    """A log whose lines may be lost on a full disk: the console has them, and what matters fails by itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Passes over the line, without the traceback that logging would print."""


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Copies this package's log lines to a file as well as to the console, and to the file alone what ends the block.

    That error the command prints.
    """
    handler = LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("vlae")
    package.addHandler(handler)
    try:
        yield
    except VlaeError as error:
        handler.emit(logging.makeLogRecord({"levelname": "ERROR", "msg": str(error)}))
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Lightning's hints about loaders, loggers and hardware out of the way."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    report = threading.excepthook

    def report_but_not_twice(args: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread has met a full disk: the training meets the same error, and prints it in one line.
        if not issubclass(args.exc_type, OSError):
            report(args)

    threading.excepthook = report_but_not_twice
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        threading.excepthook = report
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
