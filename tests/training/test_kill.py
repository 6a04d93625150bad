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
from vlae.codec import compress_files, decompress, decompress_files
from vlae.data import Batches, ImageDataset
from vlae.evaluation import KeptLikelihoods
from vlae.evaluation.likelihood import likelihoods
from vlae.objectives import ELBO
from vlae.training import run
from vlae.training.checkpoints import read_checkpoint
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

KILLS = int(os.environ.get("VLAE_KILLS", "3"))  # at random moments, of each kind of work
EPOCHS = 2
PARTS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")


def train(directory: Path) -> None:
    """The whole run, or what is left of it."""
    torch.manual_seed(1)
    run.train(
        vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4]),
        ELBO(),
        OptimizerSettings("adamax", lr=0.01),
        DataSettings("digits", binarize="dynamic", batch_size=50, limit=200, validation_limit=20),
        TrainerSettings(max_epochs=EPOCHS, precision="32-true", accelerator="cpu", progress_bar=False),
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
        read_checkpoint(path)
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
    ours, theirs = (read_checkpoint(path / "ckpts" / "last.ckpt") for path in (directory, whole))
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


def trials(work, state, states, kills: int, seed: int) -> None:
    """Kills `work`, which may be begun anew, at random moments and at each of its calls; lets it end at last.

    Args:
        work: what a process does; has been done once in this one.
        state: what is on the disk.
        states: what may be there after a kill; the first is that of finished work.
        kills: how many at random moments.
        seed: of the moments.
    """
    whole, *_ = states
    started = time.monotonic()
    assert forked(work) and state() == whole
    duration = time.monotonic() - started
    draw = random.Random(seed)
    for _ in range(kills):
        forked(work, kill_after=draw.uniform(0, 1.2 * duration))
        assert state() in states
    count, finished = 0, False
    while not finished:
        finished = forked(work, kill_at=(count // 2, bool(count % 2)))
        assert state() in states
        count += 1
        assert count < 60, "the work does not get on"
    assert count > 2 and state() == whole


def tiny_model() -> vlae.VAE:
    torch.manual_seed(0)
    return vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4]).double().eval()


def nothing_is_left(root: Path) -> None:
    """No temporary file, once the work has ended."""
    assert not list(root.rglob(".*")), "what killed processes left was not swept up"


def codec_trials(root: Path, kills: int) -> None:
    """Compression replaces another file; decompression writes two pictures and an array, first where nothing was."""
    model, root = tiny_model(), root / "codec"
    images = model.sample(12, generator=torch.Generator().manual_seed(0)).numpy().astype(np.uint8)
    root.mkdir()
    np.savez(root / "images.npz", images=images)
    output, pictures = root / "images.vlae", root / "pictures"

    def compressed() -> bytes:
        return output.read_bytes()

    def work() -> None:
        compress_files(model, [root / "images.npz"], output)

    work()
    whole = compressed()
    assert np.array_equal(decompress(model, whole).numpy(), images)
    trials(work, compressed, [whole], kills, seed=1)
    output.write_bytes(b"old")
    for count in range(4):  # the old file or the new one, none between them
        forked(work, kill_at=(count // 2, bool(count % 2)))
        assert compressed() in (b"old", whole)
    nothing_is_left(root)

    for name, array in (("a.npy", images[:3, 0]), ("b.npy", images[3:])):
        np.save(root / name, array)
    compress_files(model, [root / "a.npy", root / "b.npy"], output)

    def written() -> list[bytes]:
        return [path.read_bytes() for path in sorted(pictures.glob("[!.]*"))]

    def unpack() -> None:
        decompress_files(model, output.read_bytes(), pictures, overwrite=True)

    unpack()
    a, b = written()
    trials(unpack, written, [[a, b], [], [a], [b]], kills, seed=2)
    for path in pictures.iterdir():
        path.unlink()
    trials(unpack, written, [[a, b], [], [a], [b]], 0, seed=2)
    nothing_is_left(root)


def saving_trials(root: Path, kills: int) -> None:
    """One model takes the place of another: the old one, or the new one, or for an instant the old one set aside."""
    models = [tiny_model(), tiny_model()]
    for parameter in models[0].parameters():
        parameter.data += 1
    place = root / "saved" / "model"

    def saved() -> int:
        try:
            found = vlae.load(place)
        except vlae.VlaeError as error:
            found = vlae.load(str(error).rpartition("the old model is ")[2])
        return next(k for k, model in enumerate(models) if same(found.state_dict(), model.state_dict()))

    def work() -> None:
        models[1].save_pretrained(place)
        models[0].save_pretrained(place)

    work()
    trials(work, saved, [0, 1], kills, seed=3)
    nothing_is_left(root / "saved")


def likelihood_trials(root: Path, kills: int) -> None:
    """Likelihoods are added to a file in several steps: a killed measurement goes on, and gives the same numbers."""
    model, path = tiny_model(), root / "nll.csv"
    images = ImageDataset(torch.randint(0, 2, (150, 1, 8, 8), dtype=torch.uint8), levels=2)

    def measured(kept: KeptLikelihoods | None = None):
        def batches():
            return ((batch.images.double(), batch.indices.tolist(), None) for batch in Batches(images, 50))

        return likelihoods(model, batches, [2, 5], images=140, seed=4, kept=kept)

    def kept() -> KeptLikelihoods:
        return KeptLikelihoods(path, model, "digits")

    def work() -> None:
        measured(kept())

    def lines() -> list[str]:
        return path.read_text().splitlines(keepends=True)

    undisturbed = measured()
    work()
    whole = lines()
    assert len(whole) == 2 + 140
    duration = 0.0
    draw = random.Random(4)
    for trial in range(kills + 1):
        path.unlink(missing_ok=True)
        started = time.monotonic()
        forked(work, kill_after=draw.uniform(0, duration) if trial else None)
        duration = duration or time.monotonic() - started
        found = lines() if path.exists() else []
        assert found[:-1] == whole[: max(0, len(found) - 1)]  # the last one may be cut off
        assert not found or whole[len(found) - 1].startswith(found[-1])
    path.unlink(missing_ok=True)
    count, finished = 0, False
    while not finished:  # each goes on from where the one before was killed
        finished = forked(work, kill_at=(count % 3, bool(count % 2)))
        count += 1
        assert count < 30, "the measurement does not get on"
    assert count > 3
    path.write_text("".join(whole[:80]) + whole[80][:20])  # killed within a write
    for resumed in (measured(kept()), measured(kept())):  # the second one measures nothing
        for name in ("positions", "elbo", "nll", "ess"):  # batches of other sizes round in other places
            torch.testing.assert_close(getattr(resumed, name), getattr(undisturbed, name), rtol=1e-12, atol=1e-12)
    assert lines()[:80] == whole[:80] and len(lines()) == len(whole)
    nothing_is_left(root)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment(tmp_path):
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(vlae.__file__).parents[1])}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for try_out in (training_trials, codec_trials, saving_trials, likelihood_trials):
        try_out(Path(sys.argv[1]), KILLS)
