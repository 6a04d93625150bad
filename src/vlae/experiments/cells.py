"""One cell of a study: trained by `vlae train` in a process of its own, measured, and kept.

cells/<cell>.yaml       its configuration
cells/<cell>.log        what training printed
cells/<cell>.json       CPU seconds of its training so far, over interruptions; null where one was killed uncounted
cells/<cell>/           the run, and
    result.json         what was measured, and what of: a cell with this file is finished
    pictures.npz        a few reconstructions and samples, uint8 [N, C, H, W]
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vlae.data import ImageDataset
from vlae.data import load as load_data
from vlae.errors import VlaeError
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.measurements import Measurements
from vlae.evaluation.suite import measure
from vlae.experiments.dae import flat, judge_of
from vlae.experiments.plan import Load, Timing
from vlae.experiments.study import KEPT_PICTURES, Cell, Measure
from vlae.files import holding, replacing, write_text
from vlae.machine import machine, versions
from vlae.models import LatentVariableModel, load
from vlae.models.saving import CONFIG, locate, trained_on
from vlae.sampling import prior_samples
from vlae.training.run import DataSettings, TrainerSettings

TIMED_BATCH, TIMES = 64, 3
CALIBRATION_STEPS = 8
CALIBRATION_SHARE = 20  # the evaluation is tried on one image in so many
RESULT = ("identity", "values", "errors", "skipped")  # tables of numbers and words in a result
IGNORED = ("data.root", "trainer.progress_bar", "measure.batch_size")  # where and how, not what
STARTED_FROM = "start_from_sha256"  # of which results that were measured long ago say nothing


@dataclass(frozen=True)
class Job:
    """A cell as it is to be done.

    Attributes:
        cell: what the study says.
        config: the cell's configuration within the budget.
        load: images of its training; None where it is not trained.
        measure: how it is evaluated.
        folder: where cells are kept.
        timed: whether sampling is timed.
        threads: of training and evaluation; None: as many as PyTorch likes.
        anew: train and measure whatever is there.
        measure_anew: measure again what is trained.
    """

    cell: Cell
    config: dict[str, Any]
    load: Load | None
    measure: Measure
    folder: Path
    timed: bool = False
    threads: int | None = None
    anew: bool = False
    measure_anew: bool = False

    def cleared(self) -> Job:
        """Sets aside what is to be done anew, so that the job, if interrupted, goes on from there without these wishes.

        It is removed when the job is done, and put back where that fails.
        """
        if self.result_path.is_file():  # done, so that nothing is kept for it
            shutil.rmtree(self.replaced, ignore_errors=True)
        if self.anew:
            self.put_back()  # what was begun anew before, and not done, is not worth keeping
            _move([path.name for path in self._kept], self.folder, self.replaced)
        elif self.measure_anew and self.result_path.is_file():
            _move([self.result_path.name], self.directory, self.replaced)
        return replace(self, anew=False, measure_anew=False)

    def put_back(self) -> None:
        """What was set aside, in the place of what came instead."""
        if not self.replaced.exists():
            return
        if (self.replaced / self.result_path.name).exists():
            _move([self.result_path.name], self.replaced, self.directory)
        else:
            _move([path.name for path in self._kept], self.replaced, self.folder)
        shutil.rmtree(self.replaced, ignore_errors=True)

    @property
    def replaced(self) -> Path:
        """Where what is done anew is kept until it is done."""
        return self.folder / f"{self.cell.slug}.replaced"

    @property
    def _kept(self) -> list[Path]:
        return [self.directory, self.config_path, self.log_path, self.seconds_path]

    @property
    def directory(self) -> Path:
        """The cell's run."""
        return self.folder / self.cell.slug

    @property
    def result_path(self) -> Path:
        """What was measured."""
        return self.directory / "result.json"

    @property
    def config_path(self) -> Path:
        """What it was trained with."""
        return self.folder / f"{self.cell.slug}.yaml"

    @property
    def log_path(self) -> Path:
        """What its training said."""
        return self.folder / f"{self.cell.slug}.log"

    @property
    def seconds_path(self) -> Path:
        """The CPU seconds of its training."""
        return self.folder / f"{self.cell.slug}.json"

    def seconds_so_far(self) -> float | None:
        """The CPU seconds of its training; None where they are not known."""
        try:
            return json.loads(self.seconds_path.read_text())["seconds"]
        except (OSError, ValueError, KeyError):
            return None

    @property
    def data(self) -> DataSettings | None:
        """The cell's data set; None where the model says it."""
        return DataSettings(**self.config["data"]) if self.config.get("data") else None

    def model_path(self) -> Path:
        """The directory of the cell's saved model."""
        if self.cell.trained:
            return self.directory / "model"
        return locate(self.cell.pretrained or self.cell.run)

    def identity(self) -> dict[str, Any]:
        """What the result is of: two jobs with the same have the same result."""
        source: dict[str, Any] = {"config": self.config}
        if not self.cell.trained:
            name = self.cell.pretrained or self.cell.run
            source |= {"model": name, "sha256": _checksum(name)}
        elif start := self.config.get("start_from"):
            source["config"] = self.config | {STARTED_FROM: _checksum(start)}
        settings = asdict(self.measure.settings) | {"split": self.measure.split, "limit": self.measure.limit}
        whole = {**source, "measure": settings, "timed": self.timed}
        return json.loads(json.dumps(whole))  # as it is read back: tuples are lists


def _checksum(model: str | None) -> str | None:
    """Of a saved model's weights; None where there is no such model (yet): that is for others to say."""
    try:
        return json.loads((locate(model or "") / CONFIG).read_text()).get("sha256")
    except (VlaeError, OSError, ValueError):
        return None


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    """Moves what there is of these names, in the place of what the target has; of the others it keeps nothing."""
    for name in names:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        else:
            (target / name).unlink(missing_ok=True)
        if (source / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            (source / name).rename(target / name)


@dataclass(frozen=True)
class State:
    """What is there of a cell.

    Attributes:
        name: "finished", "trained" (to be measured), "begun" (to be resumed), "new" or "changed".
        change: of a changed cell, the first setting that differs, in words.
        training_changed: whether the training itself would be another one.
    """

    name: str
    change: str = ""
    training_changed: bool = False


def state(job: Job) -> State:
    """What is there of a cell, and whether it is still the same cell."""
    directory, path = job.directory, job.config_path
    if job.anew:
        return State("new")
    if job.cell.trained and (directory / "config.yaml").is_file():
        if not path.is_file():
            return State("changed", f"{path.name} is missing, which says what it was trained with", True)
        if change := difference(_trained_with(path), job.config):
            return State("changed", change, training_changed=True)
    result = read_result(job)
    if result is not None and not job.measure_anew:
        change = difference(result["identity"], job.identity())
        return State("changed", change, change.startswith("config.")) if change else State("finished")
    if not job.cell.trained or (job.model_path() / CONFIG).is_file():
        return State("trained")
    return State("begun" if (directory / "ckpts" / "last.ckpt").is_file() else "new")


def _trained_with(path: Path) -> dict[str, Any]:
    """The configuration that is kept of a cell; empty where it is damaged, and so different from any other."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting that differs, in words; "" where none does."""
    before, after = flat(old), flat(new)

    def ignored(key: str) -> bool:
        if key.endswith("data.root") and after.get(key.replace(".root", ".name")) == "folder":
            return False  # a folder of that name elsewhere holds other images
        return key.endswith(IGNORED) or (key.endswith(STARTED_FROM) and key not in before)

    for key in {**after, **before}:
        if before.get(key) != after.get(key) and not ignored(key):
            return f"{key} was {before.get(key)}, now {after.get(key)}"
    return ""


def read_result(job: Job) -> dict[str, Any] | None:
    """What was measured of a cell; None where nothing was, or what there is is damaged."""
    try:
        result = json.loads(job.result_path.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(result, dict) and all(isinstance(result.get(key), dict) for key in RESULT)
    return result if whole else None


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


# -- training ---------------------------------------------------------------------------------------------------------


def train(job: Job, resume: bool) -> None:
    """Trains the cell, or goes on with it; its CPU seconds are added to those of earlier parts."""
    if job.directory.exists():
        with holding(job.directory):  # or another process is training it
            if not resume:  # what is left of an older one must not be taken for this one's
                shutil.rmtree(job.directory, ignore_errors=True)
    before = job.seconds_so_far() if resume else 0.0
    _keep_seconds(job, None)  # what remains, if this process is killed
    config, log = job.config_path, job.log_path
    write_text(config, yaml.safe_dump(job.config, sort_keys=False))
    print(f"{job.cell.name}: {'going on with' if resume else 'starting'} its training, log {log}", flush=True)
    try:
        spent = vlae_train(config, job.directory, log, job.threads, resume)
    except Interrupted as stopped:
        _keep_seconds(job, None if before is None else before + stopped.seconds)
        raise KeyboardInterrupt from None
    _keep_seconds(job, None if before is None else before + spent)


def _keep_seconds(job: Job, seconds: float | None) -> None:
    write_text(job.seconds_path, json.dumps({"seconds": seconds}) + "\n")


def train_words(config: Path, directory: Path, resume: bool) -> list[str]:
    """The command line of a cell's training."""
    words = ["train", "--config", str(config), "--run.root", str(directory.parent), "--run.name", directory.name]
    return [*words, "--resume"] if resume else words


class Interrupted(BaseException):
    """A training that was stopped from outside; `seconds` of CPU time went into it."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds


def vlae_train(config: Path, directory: Path, log: Path, threads: int | None, resume: bool = False) -> float:
    """Runs `vlae train` in a process of its own and returns its CPU seconds.

    Raises:
        VlaeError: its last line, where it fails.
        Interrupted: this process is told to stop; so is the training then.
    """
    command = [sys.executable, "-m", "vlae", *train_words(config, directory, resume)]
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    before = _children_seconds()
    with log.open("a" if resume else "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise Interrupted(_children_seconds() - before) from None
    if code == 130:  # it was interrupted and this process was not told
        raise Interrupted(_children_seconds() - before)
    if code:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = [line.partition("vlae: error: ")[2] for line in lines if line.startswith("vlae: error: ")]
        reason = (said or lines or ["it said nothing"])[-1] if code > 0 else f"stopped by signal {-code}"
        raise VlaeError(f"training failed: {reason} (log: {log})")
    return _children_seconds() - before


def _children_seconds() -> float:
    """CPU seconds of the processes that this one started and that have ended; wall time where the system can't say."""
    try:
        import resource
    except ImportError:
        return time.monotonic()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# -- evaluation -------------------------------------------------------------------------------------------------------


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
    if job.data is not None:
        return job.data
    own = {k: v for k, v in trained_on(model).items() if k in ("name", "binarize", "options")}
    if not own:
        raise VlaeError(f"the model {job.model_path()} does not say what it was trained on: give the cell its data")
    return DataSettings(**own)


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


# -- calibration ------------------------------------------------------------------------------------------------------


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


def load_of(config: Mapping[str, Any]) -> Load:
    """How many images a configuration has."""
    data = DataSettings(**(config.get("data") or {}))
    trainer = TrainerSettings(**(config.get("trainer") or {}))
    return Load(len(data.load(data.split)), len(data.load("validation")), trainer.max_epochs, data.batch_size)
