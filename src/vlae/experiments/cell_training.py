"""The training of a cell, by `vlae train` in a process of its own; its CPU seconds are counted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from vlae.errors import VlaeError
from vlae.experiments.job import Job, checksum
from vlae.files import holding, write_text


def train(job: Job, resume: bool) -> None:
    """Trains the cell, or goes on with it; its CPU seconds are added to those of earlier parts."""
    if job.directory.exists():
        with holding(job.directory):  # or another process is training it
            if not resume:  # what is left of an older one must not be taken for this one's
                shutil.rmtree(job.directory, ignore_errors=True)
    before = job.seconds_so_far() if resume else 0.0
    source = job.started_from() if resume else checksum(job.config.get("start_from"))
    job.keep_of_training(None, source)  # what remains, if this process is killed
    config, log = job.config_path, job.log_path
    write_text(config, yaml.safe_dump(job.config, sort_keys=False))
    print(f"{job.cell.name}: {'going on with' if resume else 'starting'} its training, log {log}", flush=True)
    try:
        spent = vlae_train(config, job.directory, log, job.threads, resume)
    except Interrupted as stopped:
        job.keep_of_training(None if before is None else before + stopped.seconds, source)
        raise KeyboardInterrupt from None
    job.keep_of_training(None if before is None else before + spent, source)


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
