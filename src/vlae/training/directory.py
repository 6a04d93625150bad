"""The directory of a run: held by whoever trains it, and never lost to a successor that fails.

outputs/<name>/
    config.yaml         everything that was set
    ckpts/              best.ckpt, last.ckpt (Lightning's; read weights-only)
    logs/               metrics.csv, train.log, TensorBoard events
    model/              the best model's averaged weights, as a saved model
    grids/ samples/ reports/
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vlae.errors import VlaeError
from vlae.files import aside, holding, set_aside
from vlae.training.checkpoints import error_of
from vlae.training.settings import RunSettings
from vlae.training.task import Diverged


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
