"""A run that is overwritten is lost only once its successor has something to show."""

import csv
import math
import subprocess
import sys

import pytest
import torch

from vlae import VAE, VlaeError
from vlae.cli import main
from vlae.files import aside, holding
from vlae.objectives import ELBO, IWAE
from vlae.training import run
from vlae.training.directory import choose_directory, room_for
from vlae.training.settings import DataSettings, RunSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

DIGITS = {"name": "digits", "binarize": "threshold", "limit": 64, "validation_limit": 20}


def train(directory, objective=None, batch_size=32, split="train", model=None, lr=2e-3, overwrite=True, **trainer):
    torch.manual_seed(0)
    model = model or VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4])
    settings = TrainerSettings(max_epochs=1, precision="32-true", progress_bar=False, **trainer)
    data = DataSettings(**DIGITS, batch_size=batch_size, split=split)
    optimizer = OptimizerSettings(lr=lr)
    return run.train(
        model, objective or ELBO(), optimizer, data, settings, directory, config="new", overwrite=overwrite
    )


def contents(directory):
    """Every file of the run that was there, by name and bytes."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path):
    directory = tmp_path / "run"
    (directory / "ckpts").mkdir(parents=True)
    (directory / "config.yaml").write_text("old")
    (directory / "ckpts" / "last.ckpt").write_bytes(b"weights")
    return directory


def iaf():
    return VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4], posterior="iaf")


FAILURES = {
    "batch size": {"batch_size": 0},
    "early stopping": {"early_stopping": 3, "split": "train+validation"},
    "first step": {"objective": IWAE(estimator="dreg"), "model": iaf},
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_before_an_epoch_leaves_the_old_run_as_it_was(old, name):
    options = {key: value() if key == "model" else value for key, value in FAILURES[name].items()}
    before = contents(old)
    with pytest.raises(VlaeError):
        train(old, **options)
    assert contents(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_before_an_epoch_does_not_stand_in_the_way(tmp_path, name):
    options = {key: value() if key == "model" else value for key, value in FAILURES[name].items()}
    with pytest.raises(VlaeError):
        train(tmp_path / "run", **options)
    assert not any(tmp_path.iterdir())


DIVERGING = {"lr": 1e30, "gradient_clip": 0.0}


@pytest.fixture
def diverged(tmp_path, caplog):
    """A run whose first validation was NaN."""
    caplog.set_level("INFO", logger="vlae")
    with pytest.raises(VlaeError, match="validation images is NaN"):
        train(tmp_path / "run", **DIVERGING)
    return tmp_path / "run"


def test_a_training_that_came_to_nan_leaves_what_tells_why(diverged):
    assert sorted(path.name for path in diverged.iterdir()) == ["config.yaml", "logs"]
    *_, epoch, end = (diverged / "logs" / "train.log").read_text().splitlines()
    assert "epoch 1/1 | train: distortion" in epoch and "validation: distortion nan" in epoch
    assert " ERROR training stopped after epoch 1: the bound on the validation images is NaN" in end
    with (diverged / "logs" / "metrics.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert math.isnan(float(row["validation/elbo"])) and float(row["step"]) == 1


def test_one_whose_every_step_was_bad_does_so_too(tmp_path):
    class Broken(ELBO):
        def compute(self, *arguments):
            loss, bound = super().compute(*arguments)
            return loss * math.nan, bound

    for limit, steps in ((1, "1 step;"), (20, "2 steps in a row")):  # the limit is reached, or training is over before
        with pytest.raises(VlaeError, match=f"stopped at step 0: the loss .* in {steps}.*optimizer.lr"):
            train(tmp_path / "run", objective=Broken(), max_bad_steps=limit)
        log = (tmp_path / "run" / "logs" / "train.log").read_text()
        assert " ERROR training stopped at step 0" in log.splitlines()[-1]


def test_it_gives_way_to_the_next_try(diverged):
    settings = RunSettings("run", str(diverged.parent))
    for _ in range(2):  # it may come to NaN again
        assert choose_directory(settings, "", resume=False) == diverged
        with pytest.raises(VlaeError, match="validation images is NaN"):
            train(diverged, overwrite=False, **DIVERGING)
        assert len((diverged / "logs" / "metrics.csv").read_text().splitlines()) == 2
    train(diverged, overwrite=False)
    assert "ERROR" not in (diverged / "logs" / "train.log").read_text()
    with pytest.raises(VlaeError, match="exists"):
        choose_directory(settings, "", resume=False)
    assert [path.name for path in diverged.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["ckpts/last.ckpt", "model/config.json", "notes.txt"])
def test_it_does_not_where_there_is_more_in_it(diverged, name):
    (diverged / name).parent.mkdir(exist_ok=True)
    (diverged / name).write_text("mine")
    before = contents(diverged)
    with pytest.raises(VlaeError, match="exists"):
        choose_directory(RunSettings("run", str(diverged.parent)), "", resume=False)
    with pytest.raises(VlaeError, match="exists"):
        train(diverged, overwrite=False)
    assert contents(diverged) == before


def test_it_leaves_the_run_that_it_was_to_replace_as_it_was(old):
    before = contents(old)
    with pytest.raises(VlaeError, match="validation images is NaN"):
        train(old, **DIVERGING)
    assert contents(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["run"]


def test_a_successor_takes_the_place(old):
    train(old)
    assert (old / "config.yaml").read_text() == "new"
    assert (old / "ckpts" / "last.ckpt").stat().st_size > 100
    assert [path.name for path in old.parent.iterdir()] == ["run"]


def test_what_fails_later_keeps_its_own_epochs(old, monkeypatch):
    def fail(directory):
        raise VlaeError("no room on the disk")

    monkeypatch.setattr(run, "export", fail)
    with pytest.raises(VlaeError, match="no room"):
        train(old)
    assert (old / "config.yaml").read_text() == "new"


def test_cuda_is_refused_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(VlaeError, match="no CUDA device"):
        TrainerSettings(accelerator="cuda")


def test_the_configuration_kept_says_how_to_train_and_not_what_was_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--model", "VAE", "--model.latent_dim", "2", "--model.architecture", "mlp", "--run.name", "mine"]
    words += ["--data.binarize", "threshold", "--data.limit", "64", "--data.validation_limit", "20"]
    words += ["--data.batch_size", "32", "--trainer.max_epochs", "1", "--trainer.progress_bar", "false"]
    assert main([*words, "--run.overwrite", "true"]) == 0
    kept = (tmp_path / "outputs" / "mine" / "config.yaml").read_text()
    assert "resume: false" in kept and "overwrite: false" in kept and "name: mine" in kept
    assert main(["train", "--config", "outputs/mine/config.yaml"]) == 2  # it exists
    assert "the run outputs/mine exists" in capsys.readouterr().err


def test_a_run_that_was_set_aside_is_not_trained_into(old):
    """A process killed while it overwrote leaves the old run aside; the next one puts it back before anything else."""
    place = aside(old)
    old.rename(place)
    with pytest.raises(VlaeError, match="exists"), room_for(old, resume=False, overwrite=False):
        pass
    assert (place / "config.yaml").read_text() == "old" and not old.exists()


HOLDS = """
import sys, time
from pathlib import Path
from vlae.files import aside, holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(old):
    """Another process that trains into the run: its directory, until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(old)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="directories can't be held on Windows")
@pytest.mark.parametrize("put_aside", [False, True])
def test_a_run_that_another_process_trains_is_not_replaced(old, held, put_aside):
    """Nor where that one is in its first epoch itself, and has set aside the run before it."""
    if put_aside:
        kept = aside(old) / "config.yaml"
        kept.parent.mkdir()
        kept.write_text("older")
    before = contents(old.parent)
    with pytest.raises(VlaeError, match=r"another process is writing to .*run"):
        train(old)
    assert contents(old.parent) == before
    held.kill()
    held.wait()
    train(old)
    assert (old / "config.yaml").read_text() == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="directories can't be held on Windows")
def test_a_run_is_held_from_its_beginning_to_its_end(tmp_path, monkeypatch):
    directory, step = tmp_path / "run", run.Task.training_step
    refused = []

    def meanwhile(self, batch, batch_idx):
        with pytest.raises(VlaeError, match="another process"), holding(directory):
            pass
        refused.append(batch_idx)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(run.Task, "training_step", meanwhile)
    for _ in range(2):  # made, then overwritten
        train(directory)
        with holding(directory):
            pass
    assert len(refused) == 4
