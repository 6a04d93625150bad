"""kill -9 at any moment: what is on the disk under its own name is whole, and the resumed run is the uninterrupted one.

The trials run in a process of their own, which imports everything once and forks a child for each of them. A child is
killed at a moment drawn from a seed, or at its k-th call that changes what a name stands for, before or after it.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import vlae
from vlae.codec import compress_files, decompress
from vlae.objectives import ELBO
from vlae.training import run
from vlae.training.task import OptimizerSettings

EPOCHS = 2
PARTS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")


def train(directory: Path) -> None:
    """The whole run, or what is left of it."""
    torch.manual_seed(1)
    run.train(
        vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4]),
        ELBO(),
        OptimizerSettings("adamax", lr=0.01),
        run.DataSettings("digits", binarize="dynamic", batch_size=50, limit=200, validation_limit=20),
        run.TrainerSettings(max_epochs=EPOCHS, precision="32-true", accelerator="cpu", progress_bar=False),
        directory,
        config="seed: 3\n",
        seed=3,
        resume=(directory / "ckpts" / "last.ckpt").is_file(),
    )


def forked(work, kill_after=None, kill_at=None) -> bool:
    """Runs `work` in a child; whether it came to its end before it was killed."""
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if kill_at is not None:
            die_at(*kill_at)
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return not os.WIFSIGNALED(status)


def die_at(count: int, after: bool) -> None:
    """This process kills itself at its `count`-th rename, replacement or flush of a file, before or after it."""
    left = [count]

    def deadly(call):
        def wrapped(*arguments, **options):
            left[0] -= 1
            if left[0] < 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    for name in ("rename", "replace", "fsync"):
        setattr(os, name, deadly(getattr(os, name)))


def check_whole(directory: Path) -> None:
    """Every file of the run that has its own name is whole."""
    for path in directory.glob("ckpts/[!.]*"):
        run.read_checkpoint(path)
    if (directory / "model").exists():
        vlae.load(directory / "model")
    if (directory / "config.yaml").exists():
        assert yaml.safe_load((directory / "config.yaml").read_text()) == {"seed": 3}
    if (directory / "logs" / "metrics.csv").exists():
        with (directory / "logs" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows and all(float(row["validation/elbo"]) < 0 for row in rows)


def check_same(directory: Path, whole: Path) -> None:
    """The finished run is the uninterrupted one, bit for bit."""
    ours, theirs = (run.read_checkpoint(path / "ckpts" / "last.ckpt") for path in (directory, whole))
    for part in PARTS:
        assert same(ours[part], theirs[part]), part
    a, b = (vlae.load(path / "model") for path in (directory, whole))
    assert same(a.state_dict(), b.state_dict()) and a.metadata == b.metadata
    rows = [(path / "logs" / "metrics.csv").read_text().splitlines() for path in (directory, whole)]
    assert [row.rsplit(",", 1)[0] for row in rows[0]] == [row.rsplit(",", 1)[0] for row in rows[1]]  # all but the speed


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def training_trials(root: Path, kills: int) -> None:
    train(root / "warm")  # imports what is imported late
    started = time.monotonic()
    assert forked(lambda: train(root / "whole"))
    duration = time.monotonic() - started
    draw = random.Random(0)
    survived = 0
    for _ in range(kills):  # each kill is of the run as the one before has left it, until it is finished
        directory = root / f"random{survived}"
        if forked(lambda path=directory: train(path), kill_after=draw.uniform(0, 1.2 * duration)):
            check_same(directory, root / "whole")
            survived += 1
        check_whole(directory)
    count, finished, directory = 0, False, root / "systematic"
    while not finished:  # at every call, one after the other, the run going on from each kill
        finished = forked(lambda: train(directory), kill_at=(count, bool(count % 2)))
        check_whole(directory)
        count += 1
        assert count < 60, "the run does not get on"
    check_same(directory, root / "whole")
    last = root / f"random{survived}"
    assert forked(lambda: train(last))
    check_same(last, root / "whole")
    assert not list(root.rglob(".*")), "what killed processes left was not swept up"
    print(f"{kills} random and {count} systematic kills, run of {duration:.2f} s")


def compression_trials(root: Path, kills: int) -> None:
    torch.manual_seed(0)
    model = vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4]).double().eval()
    images = model.sample(12, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(root / "images.npz", images=images.astype(np.uint8))
    output = root / "images.vlae"

    def work() -> None:
        compress_files(model, [root / "images.npz"], output)

    work()  # imports what is imported late
    started = time.monotonic()
    assert forked(work)
    duration, data = time.monotonic() - started, output.read_bytes()
    draw = random.Random(1)
    for trial in range(kills):
        if trial % 3 == 0:
            output.unlink(missing_ok=True)
        forked(work, kill_after=draw.uniform(0, 1.2 * duration))
        assert not output.exists() or output.read_bytes() == data
    for count in range(4):
        forked(work, kill_at=(count // 2, bool(count % 2)))
        assert not output.exists() or output.read_bytes() == data
    assert forked(work) and output.read_bytes() == data
    assert np.array_equal(decompress(model, data).numpy(), images)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment(tmp_path):
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(vlae.__file__).parents[1])}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    training_trials(Path(sys.argv[1]), kills=3)
    compression_trials(Path(sys.argv[1]), kills=3)
