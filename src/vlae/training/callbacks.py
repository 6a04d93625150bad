"""What happens around the training steps: averaging, reporting, the collapse warning."""

from __future__ import annotations

import csv
import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from vlae.evaluation import BITS, collapse
from vlae.files import replacing
from vlae.training.speed import compile_networks, eager
from vlae.training.task import Task

logger = logging.getLogger("vlae.training")


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights; validation, the best model and the final model use it.

    The decay rises as (1 + n) / (10 + n) after n steps until it reaches `decay`, so that short runs do not average over
    their random start.
    """

    def __init__(self, decay: float):
        @torch.no_grad()
        def update(averages: list[Tensor], currents: list[Tensor], count: Tensor | int) -> None:
            n = int(count)
            torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + n) / (10 + n)))

        # Buffers (masks, running statistics) are copied, not averaged.
        super().__init__(use_buffers=False, multi_avg_fn=update)


class CompiledTraining(Callback):
    """Compiles the networks for training steps and leaves validation, with its odd last batch, uncompiled."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Marks the networks for compilation; it happens at the first step."""
        assert isinstance(pl_module, Task)
        compile_networks(pl_module.model)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enters uncompiled execution."""
        self._stack.enter_context(eager())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves it."""
        self._stack.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leaves it."""
        self._stack.close()


class EpochReport(Callback):
    """After each epoch: one line in the log, one row in `metrics.csv`, and a warning when the rate dies."""

    def __init__(self, csv_path: Path):
        self.csv_path = csv_path
        self.started = time.monotonic()
        self.images = 0
        self.training_seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.started, self.images, self.training_seconds = time.monotonic(), 0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts images, and the time until the last step of the epoch."""
        self.images += batch.total or len(batch.images)
        self.training_seconds = time.monotonic() - self.started

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports the epoch."""
        assert isinstance(pl_module, Task)
        # The module logs its training metrics after this hook, so they are asked for here.
        logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("validation/")}
        metrics = {**pl_module.training_metrics(), **logged}
        speed = self.images / max(self.training_seconds, 1e-9)
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **metrics,
            "train/images_per_second": speed,
        }
        if trainer.is_global_zero:
            write_row(self.csv_path, row)
            model = pl_module.model
            logger.info(epoch_line(row, trainer.max_epochs, model.latent_size, model.has_bound))
            warning = collapse_warning(metrics.get("validation/rate", math.inf), pl_module)
            if warning := warning or collapse.levels_warning(groups(row, "level"), model, pl_module.objective):
                logger.warning(warning)


def groups(row: dict[str, float], kind: str) -> list[float]:
    """The validation rates in bits of a ladder's levels or of latent maps' channels, in order; empty without any."""
    return [value for name, value in row.items() if name.startswith(f"validation/bits_{kind}_")]


def epoch_line(row: dict[str, float], max_epochs: int | None, latent_dim: int, has_bound: bool = True) -> str:
    """One epoch in one line: distortion, rate in nats and bits, -ELBO, bits of each level or channel, active units or
    perplexity, speed, skipped steps.

    Without a bound the distortion stands alone.
    """
    parts = [f"epoch {row['epoch']}/{max_epochs}"]
    for stage in ("train", "validation"):
        if f"{stage}/rate" in row:
            distortion, rate = row[f"{stage}/distortion"], row[f"{stage}/rate"]
            if not has_bound:
                parts.append(f"{stage}: distortion {distortion:.2f} nats")
                continue
            parts.append(
                f"{stage}: distortion {distortion:.2f} + rate {rate:.2f} nats ({rate * BITS:.1f} bits) "
                f"= -ELBO {-row[f'{stage}/elbo']:.2f}"
            )
    rates = {kind: " ".join(f"{rate:.1f}" for rate in groups(row, kind)) for kind in ("level", "channel")}
    parts += [f"bits per {kind} {each}" for kind, each in rates.items() if each]
    if "validation/active_units" in row:
        parts.append(f"active units {row['validation/active_units']:.0f}/{latent_dim}")
    if "validation/perplexity" in row:
        parts.append(f"perplexity of the codes {row['validation/perplexity']:.1f}")
    parts.append(f"{row['train/images_per_second']:.0f} images/s")
    if row.get("train/bad_steps"):
        parts.append(f"{row['train/bad_steps']:.0f} steps skipped (NaN or infinite)")
    return " | ".join(parts)


def collapse_warning(rate: float, task: Task) -> str | None:
    """What to change when the validation rate (nats per image) is under one bit: the decoder ignores z."""
    return collapse.collapse_warning(rate, task.model, task.objective)


def write_row(path: Path, row: dict[str, float]) -> None:
    """Adds a row to a CSV file, replacing rows of the same or later epochs (a resumed run); the write is atomic."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
    columns = list(dict.fromkeys([*(rows[0] if rows else []), *row]))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows([*rows, row])
