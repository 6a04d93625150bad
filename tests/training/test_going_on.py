"""A training that goes on: what may change changes, what can't is refused, and a moved run keeps its best."""

import csv
from pathlib import Path

import pytest
import torch

from vlae import VAE, VlaeError
from vlae.models import load
from vlae.objectives import ELBO, GECO, IWAE, Contrastive, LatentNoise, SoftFreeBits, WithTerms
from vlae.training import run
from vlae.training.checkpoints import load_any, read_checkpoint
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

DIGITS = {"name": "digits", "binarize": "threshold", "limit": 64, "validation_limit": 20}


def train(directory: Path, epochs=1, optimizer=None, objective=None, ema_decay=0.9, clip=100.0, data=None, **options):
    torch.manual_seed(0)
    model = VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4])
    trainer = TrainerSettings(
        epochs, precision="32-true", accelerator="cpu", progress_bar=False, ema_decay=ema_decay, gradient_clip=clip
    )
    images = DataSettings(**{**DIGITS, "batch_size": 32, **(data or {})})
    optimizer = OptimizerSettings(**{"schedule": "constant", "lr": 0.01, **(optimizer or {})})
    return run.train(model, objective or ELBO(), optimizer, images, trainer, directory, "text", **options)


def logged(directory: Path, key: str) -> list[float]:
    with (directory / "logs" / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_a_lower_rate_is_taken_up(tmp_path, schedule):
    """As the message after a NaN advises: noise and order repeat, so that with the old rate it would come again."""
    train(tmp_path / "run", epochs=2, optimizer={"schedule": schedule})
    settings = {"schedule": schedule, "lr": 1e-5, "weight_decay": 0.1, "betas": (0.8, 0.9)}
    train(tmp_path / "run", epochs=4, optimizer=settings, resume=True)
    rates = logged(tmp_path / "run", "train/lr")
    assert min(rates[:2]) > 1e-4 or schedule == "cosine"
    assert max(rates[2:]) <= 1e-5
    last = read_checkpoint(tmp_path / "run" / "ckpts" / "last.ckpt")
    [group] = last["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.1, (0.8, 0.9))


@pytest.mark.parametrize(
    "changed", [{"schedule": "cosine", "warmup_steps": 1}, {"schedule": "constant", "warmup_steps": 6}]
)
def test_from_the_first_step_on_the_rate_is_that_of_the_longer_training(tmp_path, monkeypatch, changed):
    """Two epochs of two steps each, then four: the cosine of the two had come to 0, the warm-up to its end."""
    rates: list[float] = []
    step = torch.optim.Adamax.step

    def recorded(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adamax, "step", recorded)
    train(tmp_path / "whole", epochs=4, optimizer=changed)
    whole, rates[:] = list(rates), []
    train(tmp_path / "run", epochs=2, optimizer={**changed, "warmup_steps": 1})
    rates.clear()
    train(tmp_path / "run", epochs=4, optimizer=changed, resume=True)
    assert len(whole) == 8 and rates == whole[4:]


def test_a_checkpoint_of_the_time_when_the_plateau_took_an_epoch_more_goes_on(tmp_path):
    """Its schedule holds PyTorch's number, which was ours then: what is asked for now is taken."""
    settings = {"schedule": "plateau", "patience": 2}
    train(tmp_path / "run", optimizer=settings, ema_decay=0.0)
    last = tmp_path / "run" / "ckpts" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["lr_schedulers"][1]["patience"] = 2
    torch.save(checkpoint, last)
    train(tmp_path / "run", epochs=3, optimizer={**settings, "lr": 1e-6}, ema_decay=0.0, resume=True)
    assert logged(tmp_path / "run", "train/lr")[1:] == [1e-6, 1e-6]
    assert read_checkpoint(last)["optimizer_states"][0]["param_groups"][0]["lr"] == 5e-7


def test_a_rate_that_the_plateau_has_halved_stays_halved(tmp_path):
    train(tmp_path / "run", optimizer={"schedule": "plateau"})
    last = tmp_path / "run" / "ckpts" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] /= 2
    torch.save(checkpoint, last)
    train(tmp_path / "run", epochs=2, optimizer={"schedule": "plateau", "lr": 0.004}, resume=True)
    assert logged(tmp_path / "run", "train/lr")[1] == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 1}, "has 2 epochs behind it"),
        ({"epochs": 3, "optimizer": {"name": "adam"}}, "trained with optimizer.name adamax, not adam"),
        ({"epochs": 3, "objective": IWAE(samples=2)}, "trained with objective ELBO, not IWAE"),
        ({"epochs": 3, "optimizer": {"schedule": "plateau"}}, "trained with optimizer.schedule constant, not plateau"),
        ({"epochs": 3, "seed": 1}, "trained with seed 0, not 1"),
        ({"epochs": 3, "data": {"binarize": "static"}}, "trained with data.binarize threshold, not static"),
        ({"epochs": 3, "data": {"split": "train+validation"}}, "trained with data.split train, not train"),
        ({"epochs": 3, "data": {"validation_limit": 5}}, "trained with data.validation_limit 20, not 5"),
        ({"epochs": 3, "ema_decay": 0.0}, "has averaged weights"),
        ({"epochs": 3, "start_from": "mnist-dynamic"}, "started from new weights, not from mnist-dynamic"),
    ],
)
def test_what_cannot_be_another_is_refused_and_nothing_changes(tmp_path, options, words):
    train(tmp_path / "run", epochs=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(VlaeError, match=words) as error:
        train(tmp_path / "run", resume=True, **options)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def noisy(inner=None):
    return WithTerms([LatentNoise(0.1)], inner)


@pytest.mark.parametrize("other", [noisy(GECO(10.0)), noisy(SoftFreeBits(3.0)), WithTerms([Contrastive(0.1)])])
def test_other_parts_of_an_objective_are_refused_and_the_configuration_stays(tmp_path, other):
    train(tmp_path / "run", objective=noisy())
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    with pytest.raises(VlaeError, match=r"trained with objective\.parts WithTerms, ELBO, LatentNoise") as error:
        train(tmp_path / "run", epochs=2, objective=other, resume=True)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()} == before
    train(tmp_path / "run", epochs=2, objective=noisy(), resume=True)


def test_of_older_checkpoints_the_state_tells(tmp_path):
    """They do not name the parts."""
    train(tmp_path / "run", objective=noisy())
    last = tmp_path / "run" / "ckpts" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["vlae"]["training"]["objective.parts"]
    torch.save(checkpoint, last)
    with pytest.raises(VlaeError, match=r"another objective or model, as objective\.objective"):
        train(tmp_path / "run", epochs=2, objective=noisy(GECO(10.0)), resume=True)
    train(tmp_path / "run", epochs=2, objective=noisy(), resume=True)


def test_a_finished_run_says_that_nothing_is_left(tmp_path, caplog):
    train(tmp_path / "run", epochs=1)
    with caplog.at_level("INFO", logger="vlae.training"):
        train(tmp_path / "run", epochs=1, resume=True)
        assert "all 1 epochs are behind it: nothing is left to train" in caplog.text
        caplog.clear()
        train(tmp_path / "run", epochs=2, resume=True)
    assert "nothing is left" not in caplog.text


def test_a_run_without_averages_is_not_resumed_with_them(tmp_path):
    train(tmp_path / "run", ema_decay=0.0)
    with pytest.raises(VlaeError, match="has no averaged weights"):
        train(tmp_path / "run", epochs=2, resume=True)


def test_a_checkpoint_that_does_not_say_how_it_was_trained_is_resumed(tmp_path):
    train(tmp_path / "run")
    last = tmp_path / "run" / "ckpts" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["vlae"]["training"]
    torch.save(checkpoint, last)
    train(tmp_path / "run", epochs=2, resume=True)
    assert len(logged(tmp_path / "run", "train/lr")) == 2


def test_what_was_best_has_the_name_that_lightning_gives_it(tmp_path):
    """So that runs from before there was a class of our own are resumed with theirs."""
    train(tmp_path / "run")
    states = read_checkpoint(tmp_path / "run" / "ckpts" / "last.ckpt")["callbacks"]
    assert [key.split("{")[0] for key in states if "Checkpoint" in key or "Best" in key] == ["ModelCheckpoint"]


def test_a_run_that_was_moved_keeps_its_best(tmp_path):
    """At this rate each further epoch is worse: the best stays the one from before the move."""
    train(tmp_path / "here", epochs=2)
    best = (tmp_path / "here" / "ckpts" / "best.ckpt").read_bytes()
    (tmp_path / "here").rename(tmp_path / "there")
    train(tmp_path / "there", epochs=3, optimizer={"lr": 30.0}, ema_decay=0.9, resume=True)
    bounds = logged(tmp_path / "there", "validation/elbo")
    assert bounds[2] < max(bounds[:2]) - 1
    assert (tmp_path / "there" / "ckpts" / "best.ckpt").read_bytes() == best
    assert load(tmp_path / "there" / "model").metadata["epochs"] == 2


def test_of_a_run_that_goes_on_the_best_so_far_is_taken(tmp_path, monkeypatch):
    train(tmp_path / "run")
    first = load(tmp_path / "run" / "model").metadata["epochs"]
    step = run.Task.training_step

    def killed(self, batch, batch_idx):
        if self.current_epoch == 2:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(run.Task, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", epochs=3, resume=True)
    assert load(tmp_path / "run").metadata["epochs"] == first
    assert load_any(tmp_path / "run").metadata["epochs"] > first


def test_a_run_that_another_process_has_begun_is_left_to_it(tmp_path):
    """Both have found the name free; the second comes to make the directory when the first is training."""
    (tmp_path / "run" / "ckpts").mkdir(parents=True)
    (tmp_path / "run" / "ckpts" / ".last.ckpt.tmp").write_bytes(b"the other's")
    with pytest.raises(VlaeError, match="another process has just begun it"):
        train(tmp_path / "run", overwrite=False)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".last.ckpt.tmp"]


def test_a_clip_of_zero_clips_nothing(tmp_path):
    unclipped, wide = (load(train(tmp_path / str(clip), clip=clip)) for clip in (0.0, 1e9))
    assert all(torch.equal(a, b) for a, b in zip(unclipped.parameters(), wide.parameters(), strict=True))
    narrow = load(train(tmp_path / "narrow", clip=1e-30))
    assert not all(torch.equal(a, b) for a, b in zip(unclipped.parameters(), narrow.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": float("inf")},
        {"lr": float("nan")},
        {"warmup_steps": -1},
        {"patience": 0},
        {"weight_decay": -1.0},
        {"weight_decay": float("nan")},
        {"betas": (0.9, 1.0)},
        {"final_lr": 2.0},
    ],
)
def test_settings_of_the_optimizer_that_would_do_harm_are_refused(settings):
    with pytest.raises(VlaeError, match=f"optimizer.{next(iter(settings))}"):
        OptimizerSettings(**settings)


@pytest.mark.parametrize(
    "settings", [{"gradient_clip": -1.0}, {"gradient_clip": float("nan")}, {"early_stopping": -1}, {"max_bad_steps": 0}]
)
def test_settings_of_the_trainer_that_would_do_harm_are_refused(settings):
    with pytest.raises(VlaeError, match=f"trainer.{next(iter(settings))}"):
        TrainerSettings(**settings)
