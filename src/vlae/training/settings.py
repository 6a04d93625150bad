"""The settings of a training: which images, how long and on what, and where the run goes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from vlae import data
from vlae.errors import VlaeError
from vlae.training.devices import STRATEGIES


@dataclass
class DataSettings:
    """Which images, and how they come.

    Attributes:
        name: one of `vlae.data.names()`.
        root: where the files are; None looks in $VLAE_DATA and the download cache.
        binarize: "static", "dynamic" or "threshold"; null keeps all levels.
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
            for an objective of your own under which some parameters get a gradient in some steps only).
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
