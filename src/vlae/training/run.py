"""A run: a directory made by training one configuration, that can be resumed, evaluated and drawn."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from vlae import data, processes
from vlae.errors import VlaeError
from vlae.files import write_text
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
    model_of,
    take_weights,
)
from vlae.training.devices import Layout, check_model, layout, strategy_for
from vlae.training.directory import room_for
from vlae.training.logs import log_to, quiet
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.speed import best_precision, can_compile
from vlae.training.task import OptimizerSettings, Task

logger = logging.getLogger("vlae.training")


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
        directory: the run's; see `vlae.training.directory` for what it holds.
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
    done = 0
    if resume:
        done = check_training(last, check_resumable(last, model), task, trainer.max_epochs, bool(trainer.ema_decay))
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
        if done == trainer.max_epochs:
            logger.info(f"all {done} epochs are behind it: nothing is left to train; more with --trainer.max_epochs")
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
