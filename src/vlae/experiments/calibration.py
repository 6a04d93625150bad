"""What a cell costs on this machine, measured on a few steps and a few images."""

from __future__ import annotations

import csv
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from vlae.errors import VlaeError
from vlae.evaluation.suite import measure
from vlae.experiments.cell_training import vlae_train
from vlae.experiments.cells import TIMED_BATCH, TIMES, images_of, judge_for, sampling_seconds
from vlae.experiments.job import Job
from vlae.experiments.plan import Load, Timing
from vlae.files import write_text
from vlae.models import load

CALIBRATION_STEPS = 8
CALIBRATION_SHARE = 20  # the evaluation is tried on one image in so many


def calibrate(job: Job) -> Timing:
    """What a cell costs, from a training of a few steps and an evaluation of a few images. Leaves nothing behind."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=".calibration-") as folder:
        trial = replace(job, folder=Path(folder))
        start = image = 0.0
        if job.load is not None:
            start, image = _trial_training(trial, job.load)
        return Timing(start, image, _trial_evaluation(trial))


def _trial_training(trial: Job, load: Load) -> tuple[float, float]:
    """Seconds once, and seconds per image, of two epochs of a few steps; the first warms up and compiles."""
    batch = min(load.batch, load.available)
    images = min(CALIBRATION_STEPS * batch, load.available) // batch * batch
    config = json.loads(json.dumps(trial.config))
    config["data"] = {**(config.get("data") or {}), "limit": images, "validation_limit": 2}
    config["trainer"] = {**config.get("trainer", {}), "max_epochs": 2, "early_stopping": 0}
    path = trial.folder / f"{trial.cell.slug}.yaml"
    write_text(path, yaml.safe_dump(config, sort_keys=False))
    started = time.monotonic()
    vlae_train(path, trial.directory, trial.folder / f"{trial.cell.slug}.log", trial.threads)
    whole = time.monotonic() - started
    with (trial.directory / "logs" / "metrics.csv").open(newline="") as file:
        first, second = (images / float(row["train/images_per_second"]) for row in csv.DictReader(file))
    return max(0.0, whole - 2 * min(first, second)), second / images


def _trial_evaluation(trial: Job) -> float:
    """Seconds of the evaluation, from a share of its images."""
    model = load(trial.model_path())
    training, test = images_of(trial, model)
    judge = judge_for(trial, model, training, test)  # trained once for all cells, and kept
    settings = trial.measure.settings
    few: dict[str, Any] = {}
    for name in ("nll_images", "information_images", "quality_images", "train_images"):
        count = getattr(settings, name)
        few[name] = max(8, (len(test) if count is None else count) // CALIBRATION_SHARE)
    part = test.subset(max(min(8, len(test)), len(test) // CALIBRATION_SHARE))
    timed = sampling_seconds(model, test) * TIMED_BATCH * TIMES if trial.timed else 0.0
    started = time.monotonic()
    try:
        measure(model, part, training, replace(settings, **few), judge)
    except (VlaeError, ValueError) as error:
        raise VlaeError(f"its evaluation can't be tried on {len(part)} images: {error}") from None
    return (time.monotonic() - started) * len(test) / len(part) + timed
