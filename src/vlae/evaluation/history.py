"""What a run wrote down while it was trained: its settings, its epochs, its warnings."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from vlae.errors import VlaeError
from vlae.evaluation.collapse import innermost
from vlae.objectives import ELBO, Objective

Row = dict[str, float]


@dataclass
class History:
    """A run as its files tell it.

    Attributes:
        settings: its `config.yaml`.
        objective: what it minimised, new; None where it can't be made again.
        rows: of `logs/metrics.csv`, one per epoch; what an epoch did not log is missing.
        warnings: the lines of `logs/train.log` that are warnings or errors, without their times.
    """

    settings: dict[str, Any]
    objective: Objective | None = None
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting by its dotted name, such as "trainer.max_epochs"."""
        value: Any = self.settings
        for name in key.split("."):
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value

    def negative_elbos(self, stage: str) -> list[tuple[int, float]]:
        """Epochs and their -ELBO, nats; `stage` is "train" or "validation". Without a bound it is the distortion."""
        return [
            (int(row["epoch"]), row[f"{stage}/distortion"] + row[f"{stage}/rate"])
            for row in self.rows
            if f"{stage}/rate" in row
        ]

    def rises(self, stage: str) -> list[float]:
        """How much worse each epoch but the first made what it minimised, nats; negative where it made it better.

        For a plain ELBO that is the change of distortion + beta * rate, at the epoch's beta: a schedule of beta changes
        the bound without anything being wrong. Under free bits and other objectives the rate may rise on purpose, so
        the distortion must have risen as well. Epochs whose numbers are not finite are passed over.
        """
        names = [f"{stage}/distortion", f"{stage}/rate"]
        rows = [row for row in self.rows if all(math.isfinite(row.get(name, math.nan)) for name in names)]
        epochs = max(self.setting("trainer.max_epochs", 0) or 0, *(int(row["epoch"]) for row in rows), 1)
        objective = None if self.objective is None else innermost(self.objective)[0]
        found = []
        for before, row in pairwise(rows):
            distortion, rate = (row[f"{stage}/{name}"] - before[f"{stage}/{name}"] for name in ("distortion", "rate"))
            progress = row["epoch"] / epochs
            if not isinstance(objective, ELBO):
                found.append(min(distortion, distortion + rate))
                continue
            change = distortion + objective.beta(progress) * rate
            found.append(min(distortion, change) if objective.free_nats(progress) else change)
        return found


def read_history(directory: Path) -> History:
    """The history of the run in a directory.

    Raises:
        VlaeError: its settings or its metrics can't be read.
    """
    path = directory / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise VlaeError(f"{path} can't be read ({type(error).__name__}): give a run of vlae train") from None
    if not isinstance(settings, dict):
        raise VlaeError(f"{path} is no configuration: give a run of vlae train")
    rows = read_rows(directory / "logs" / "metrics.csv")
    return History(settings, make_objective(settings), rows, read_warnings(directory / "logs" / "train.log"))


def read_rows(path: Path) -> list[Row]:
    """The rows of a `metrics.csv`, numbers by their names; none where there is no file."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
    except (TypeError, ValueError, UnicodeDecodeError, csv.Error):
        raise VlaeError(f"{path} holds something else than numbers: it is not as vlae train wrote it") from None
    if any("epoch" not in row for row in rows):
        raise VlaeError(f"{path} has rows without an epoch: it is not as vlae train wrote it")
    return rows


def curves_of(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """`(epoch, value)` pairs by name, as `figures.training_curves` draws them, of the rows of a `metrics.csv`.

    Example:
        >>> curves_of([{"epoch": 0, "train/rate": 9.0}, {"epoch": 1, "train/rate": 12.0, "validation/rate": 11.0}])
        {'train/rate': [(0, 9.0), (1, 12.0)], 'validation/rate': [(1, 11.0)]}
    """
    names = dict.fromkeys(name for row in rows for name in row if name != "epoch")
    return {name: [(row["epoch"], row[name]) for row in rows if name in row] for name in names}


def read_warnings(path: Path) -> list[str]:
    """The warnings and errors in a `train.log`, without their times; none where there is no file."""
    if not path.is_file():
        return []
    lines = (
        line.split(maxsplit=3) for line in path.read_text(errors="replace").splitlines()
    )  # date, time, level, text
    return [words[3] for words in lines if len(words) == 4 and words[2] in ("WARNING", "ERROR")]


def make_objective(settings: dict[str, Any]) -> Objective | None:
    """The objective of a run's settings; None where they name none that can be made here."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    try:
        made = parser.instantiate(parser.parse_object({"objective": settings["objective"]})).objective
    except (ArgumentError, KeyError, TypeError, ValueError, OSError):
        return None
    return made if isinstance(made, Objective) else None


def is_finite(row: Row) -> bool:
    """Whether all of an epoch's numbers are."""
    return all(math.isfinite(value) for value in row.values())
