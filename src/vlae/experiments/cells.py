"""One cell of a study: trained, measured, and kept (`vlae.experiments.job` says where)."""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlae.data import ImageDataset
from vlae.data import load as load_data
from vlae.errors import VlaeError
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.measurements import Measurements
from vlae.evaluation.suite import measure
from vlae.experiments.cell_training import train
from vlae.experiments.dae import judge_of
from vlae.experiments.job import Job, state
from vlae.experiments.study import KEPT_PICTURES
from vlae.files import replacing, write_text
from vlae.machine import machine, versions
from vlae.models import LatentVariableModel, load
from vlae.models.saving import trained_on
from vlae.sampling import prior_samples
from vlae.training.settings import DataSettings

TIMED_BATCH, TIMES = 64, 3


def do(job: Job) -> str:
    """Does what is left to be done of a cell; why it failed, in a line, or "" where it did not."""
    started = time.monotonic()
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        now = state(job)
        if now.name == "finished":
            print(f"{job.cell.name}: finished before", flush=True)
            shutil.rmtree(job.replaced, ignore_errors=True)
            return ""
        if now.name in ("new", "begun"):
            train(job, resume=now.name == "begun")
        print(f"{job.cell.name}: measuring it", flush=True)
        result = evaluate(job)
        write_text(job.result_path, json.dumps(result, indent=2) + "\n")
    except Exception as error:  # whatever it is, the other cells go on
        if not isinstance(error, VlaeError | OSError):
            with job.log_path.open("a") as log:
                log.write(traceback.format_exc())
        text = " ".join(str(error).split()) or type(error).__name__
        reason = text if isinstance(error, VlaeError) else f"{type(error).__name__}: {text}"
        job.put_back()
        print(f"{job.cell.name}: FAILED: {reason}", flush=True)
        return reason
    shutil.rmtree(job.replaced, ignore_errors=True)
    print(f"{job.cell.name}: done in {time.monotonic() - started:.0f} s", flush=True)
    return ""


def evaluate(job: Job) -> dict[str, Any]:
    """Measures a trained cell: all that the table, the plots and a later reader want to know."""
    started = time.monotonic()
    model = load(job.model_path())
    training, test = images_of(job, model)
    judge = judge_for(job, model, training, test)
    found = measure(model, test, training, job.measure.settings, judge)
    values = found.values | counts(job, model)
    if job.timed:
        values["sampling_seconds"] = sampling_seconds(model, test)
    _keep_pictures(found, job.directory / "pictures.npz")
    result = {
        "name": job.cell.name,
        "identity": job.identity(),
        "model": found.model,
        "data": found.data,
        "images": len(test),
        "seed": job.config.get("seed", 0) if job.cell.trained else None,
        "values": {**values, "parameters": float(sum(p.numel() for p in model.parameters()))},
        "errors": found.errors,
        "series": found.series,
        "notes": found.notes,
        "skipped": found.skipped,
        "seconds": {**found.seconds, "all": time.monotonic() - started},
        "machine": machine(),
        "versions": versions(),
    }
    return _finite(result)


def data_of(job: Job, model: LatentVariableModel) -> DataSettings:
    """The cell's own data, else what its model was trained on, wherever that lies on this machine."""
    given = job.config.get("data") or {}
    if job.cell.trained or "name" in given:
        return DataSettings(**given)
    own = {k: v for k, v in trained_on(model).items() if k in ("name", "binarize", "options")}
    if not own:
        raise VlaeError(f"the model {job.model_path()} does not say what it was trained on: give the cell its data")
    return DataSettings(**{**own, **given})


def images_of(job: Job, model: LatentVariableModel) -> tuple[ImageDataset, ImageDataset]:
    """Training images, and the held-out ones that are measured."""
    data = data_of(job, model)

    def part(split: str) -> ImageDataset:
        return load_data(data.name, split, root=data.root, binarize=data.binarize, **data.options)

    test = part(job.measure.split)
    limit = job.measure.limit
    return part("train"), test if limit is None else test.subset(min(limit, len(test)))


def judge_for(job: Job, model: LatentVariableModel, training: ImageDataset, test: ImageDataset) -> Classifier | None:
    """The classifier that judges samples, where that is wanted and the set has one."""
    if not job.measure.settings.needs_judge:
        return None
    judge, _ = judge_of(data_of(job, model), training, test)
    return judge


def counts(job: Job, model: LatentVariableModel) -> dict[str, float]:
    """What training was, and what the decoder sees."""
    values: dict[str, float] = {}
    if (field := getattr(getattr(model, "decoder", None), "receptive_field", None)) is not None:
        values["receptive_field"] = float(field.size)
    log = job.directory / "logs" / "metrics.csv"
    if job.load is not None and log.is_file():
        with log.open(newline="") as file:
            epochs = max(int(row["epoch"]) for row in csv.DictReader(file))
        each, _ = job.load.budgeted(None)
        batch = min(job.load.batch, each)
        values["epochs"] = float(epochs)
        values["training_images"] = float(each // batch * batch * epochs)
        if (seconds := job.seconds_so_far()) is not None:
            values["training_seconds"] = seconds
    return values


def sampling_seconds(model: LatentVariableModel, test: ImageDataset) -> float:
    """Seconds per image of a batch of samples from the prior (wavefront, where there is one); the least of three."""
    context = model.context_of(test.labels, test.factors, test.name)
    if context is not None:
        context = context.repeat(-(-TIMED_BATCH // len(context)), *[1] * (context.ndim - 1))[:TIMED_BATCH]
    prior_samples(model, 2, context=None if context is None else context[:2])  # what is made once, is made here
    seconds = []
    for _ in range(TIMES):
        started = time.perf_counter()
        prior_samples(model, TIMED_BATCH, context=context)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / TIMED_BATCH


def _keep_pictures(found: Measurements, path: Path) -> None:
    arrays = {
        name: (images[:KEPT_PICTURES].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        for name, images in found.pictures.items()
    }
    if arrays:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _finite(value: Any) -> Any:
    """Plain values, with None for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, torch.Tensor):
        return _finite(value.tolist())
    return value
