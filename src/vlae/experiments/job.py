"""A cell as it is to be done, where it lies on the disk, and what is there of it.

cells/<cell>.yaml       its configuration
cells/<cell>.log        what training printed
cells/<cell>.json       CPU seconds of its training so far, over interruptions; null where one was killed uncounted; and
                        the checksum of the model that it started from, if it did
cells/<cell>/           the run, and
    result.json         what was measured, and what of: a cell with this file is finished
    pictures.npz        a few reconstructions and samples, uint8 [N, C, H, W]
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vlae.errors import VlaeError
from vlae.experiments.dae import flat
from vlae.experiments.plan import Load
from vlae.experiments.study import Cell, Measure
from vlae.files import write_text
from vlae.models.hub import PREFIX
from vlae.models.saving import CONFIG, locate
from vlae.training.settings import DataSettings, TrainerSettings

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
        return self._of_training().get("seconds")

    def started_from(self) -> str | None:
        """The checksum of the model that its training began with; None where that is not known."""
        return self._of_training().get(STARTED_FROM)

    def keep_of_training(self, seconds: float | None, started_from: str | None) -> None:
        """Keeps CPU seconds, and the checksum of the model that the training began with."""
        write_text(self.seconds_path, json.dumps({"seconds": seconds, STARTED_FROM: started_from}) + "\n")

    def _of_training(self) -> dict[str, Any]:
        try:
            kept = json.loads(self.seconds_path.read_text())
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

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
            source |= {"model": name, "sha256": checksum(name)}
        elif start := self.config.get("start_from"):
            source["config"] = self.config | {STARTED_FROM: self.started_from() or checksum(start)}
        settings = asdict(self.measure.settings) | {"split": self.measure.split, "limit": self.measure.limit}
        whole = {**source, "measure": settings, "timed": self.timed}
        return json.loads(json.dumps(whole))  # as it is read back: tuples are lists


def checksum(model: str | None) -> str | None:
    """Of a saved model's weights; None where that is not known.

    There may be no such model (yet, or any more), which is for others to say. From the Hub nothing is fetched for it.
    """
    if not model or model.startswith(PREFIX):
        return None
    try:
        return json.loads((locate(model) / CONFIG).read_text()).get("sha256")
    except (VlaeError, OSError, ValueError, AttributeError):
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
        was, now = job.started_from(), checksum(job.config.get("start_from"))
        if was and now and was != now:
            return State("changed", f"{STARTED_FROM} was {was}, now {now}", training_changed=True)
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
            path = Path(str(after.get(key.replace(".root", ".options.path")))).expanduser()
            return path.is_absolute()  # else a folder of that name elsewhere, which holds other images
        unknown = before.get(key) is None or after.get(key) is None
        return key.endswith(IGNORED) or (key.endswith(STARTED_FROM) and unknown)

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


def load_of(config: Mapping[str, Any]) -> Load:
    """How many images a configuration has."""
    data = DataSettings(**(config.get("data") or {}))
    trainer = TrainerSettings(**(config.get("trainer") or {}))
    return Load(len(data.load(data.split)), len(data.load("validation")), trainer.max_epochs, data.batch_size)
