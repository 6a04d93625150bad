"""Training 2N epochs equals training N, stopping, and resuming: bit for bit (weights, averages, optimiser, metrics)."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from vlae.errors import VlaeError
from vlae.models import VAE, VLAE, load
from vlae.objectives import ELBO, Adversarial, Linear, SoftFreeBits, WithTerms
from vlae.training import run
from vlae.training.checkpoints import read_checkpoint
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

SMALL = {"latent_dim": 4, "encoder_widths": (4,), "encoder_hidden": 16, "channels": 4, "flow_hidden": (8,)}


class StopAfter(Callback):
    """Ends the process's training after an epoch, as a kill between epochs would."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epochs:
            raise KeyboardInterrupt


def train(directory: Path, monkeypatch, stop_after=None, resume=False, objective=None, schedule="cosine", epochs=4):
    torch.manual_seed(1)
    model = VLAE((1, 8, 8), decoder_layers=1, weight_norm=True, **SMALL)
    if stop_after:
        engine = run._engine
        monkeypatch.setattr(run, "_engine", lambda *a: _with_callback(engine(*a), StopAfter(stop_after)))
    try:
        return run.train(
            model,
            objective or ELBO(beta=Linear(0.2, 1.0), free_nats=2.0),
            OptimizerSettings("adamax", lr=0.01, warmup_steps=5, schedule=schedule, patience=1),
            DataSettings("digits", binarize="dynamic", batch_size=200),
            TrainerSettings(max_epochs=epochs, precision="32-true", accelerator="cpu", devices=1, progress_bar=False),
            directory,
            config="",
            seed=3,
            resume=resume,
        )
    finally:
        monkeypatch.undo()


def _with_callback(engine, callback):
    engine.callbacks.append(callback)
    return engine


def same(a, b) -> bool:
    """Nested equality, exact for tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    ("objective", "schedule"), [(lambda: None, "cosine"), (lambda: SoftFreeBits(3.0, interval=4), "plateau")]
)
def test_resumed_run_equals_uninterrupted_run(tmp_path, monkeypatch, objective, schedule):
    train(tmp_path / "whole", monkeypatch, objective=objective(), schedule=schedule)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", monkeypatch, stop_after=2, objective=objective(), schedule=schedule)
    assert not (tmp_path / "cut" / "model").exists()
    train(tmp_path / "cut", monkeypatch, resume=True, objective=objective(), schedule=schedule)
    whole, cut = (read_checkpoint(tmp_path / name / "ckpts" / "last.ckpt") for name in ("whole", "cut"))
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
        assert same(whole[part], cut[part]), part
    assert whole["global_step"] == cut["global_step"] == 4 * (1197 // 200)
    rows = [(tmp_path / name / "logs" / "metrics.csv").read_text().splitlines() for name in ("whole", "cut")]
    without_speed = [[line.rsplit(",", 1)[0] for line in lines] for lines in rows]
    assert without_speed[0] == without_speed[1]
    assert len(rows[0]) == 5


def test_each_epoch_sees_other_noise_and_order(tmp_path, monkeypatch):
    """Guards the equality above against being trivial: two seeds, and two epochs, must differ."""
    train(tmp_path / "a", monkeypatch, epochs=2)
    lines = (tmp_path / "a" / "logs" / "metrics.csv").read_text().splitlines()
    assert lines[1].split(",")[2:5] != lines[2].split(",")[2:5]


def test_saved_model_is_the_average_not_the_last_weights(tmp_path, monkeypatch):
    path = train(tmp_path / "run", monkeypatch, epochs=2)
    best = read_checkpoint(tmp_path / "run" / "ckpts" / "best.ckpt")
    saved = load(path).state_dict()
    assert all(torch.equal(saved[k], best["state_dict"][f"model.{k}"]) for k in saved)
    assert any(not torch.equal(saved[k], best["current_model_state"][f"model.{k}"]) for k in saved)


def test_validation_metric_is_the_unclipped_bound_of_the_average(tmp_path, monkeypatch):
    """`vlae eval` on the validation split finds the very numbers that training reported, free bits or not."""
    from vlae.data import Batches
    from vlae.data import load as load_data
    from vlae.evaluation import evaluate

    path = train(tmp_path / "run", monkeypatch, epochs=2, objective=ELBO(free_nats=50.0))
    dataset = load_data("digits", "validation", binarize="dynamic")
    result = evaluate(load(path), lambda: ((b.images, b.indices.tolist()) for b in Batches(dataset, 64)), seed=3)
    rows = [
        dict(zip(lines[0].split(","), lines[i].split(","), strict=True))
        for lines in [(tmp_path / "run" / "logs" / "metrics.csv").read_text().splitlines()]
        for i in (1, 2)
    ]
    best = max(rows, key=lambda row: float(row["validation/elbo"]))
    assert result.negative_elbo == pytest.approx(-float(best["validation/elbo"]), abs=1e-3)
    assert result.rate == pytest.approx(float(best["validation/rate"]), abs=1e-3)


def test_another_model_is_not_resumed(tmp_path, monkeypatch):
    train(tmp_path / "run", monkeypatch, epochs=1)
    with pytest.raises(VlaeError, match="another latent_dim"):
        run.check_resumable(tmp_path / "run" / "ckpts" / "last.ckpt", VLAE((1, 8, 8), **{**SMALL, "latent_dim": 5}))


def test_a_run_from_before_an_argument_existed_is_resumed(tmp_path, monkeypatch):
    train(tmp_path / "run", monkeypatch, epochs=1)
    last = tmp_path / "run" / "ckpts" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["vlae"]["arguments"]["latent_maps"]
    torch.save(checkpoint, last)
    run.check_resumable(last, VLAE((1, 8, 8), decoder_layers=1, weight_norm=True, **SMALL))
    with pytest.raises(VlaeError, match="another latent_maps"):
        run.check_resumable(last, VLAE((1, 8, 8), decoder_layers=1, weight_norm=True, **SMALL, latent_maps=2))


def test_resume_without_a_checkpoint_says_so(tmp_path, monkeypatch):
    with pytest.raises(VlaeError, match="nothing to resume"):
        train(tmp_path / "none", monkeypatch, resume=True)


@pytest.mark.parametrize("damage", [lambda b: b[:1000], lambda b: b"", lambda b: b"not a checkpoint"])
def test_damaged_checkpoint_is_one_clear_line(tmp_path, monkeypatch, damage):
    path = tmp_path / "best.ckpt"
    path.write_bytes(damage(b"PK\x03\x04" + bytes(5000)))
    with pytest.raises(VlaeError, match="not a whole checkpoint") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_discriminator_is_resumed_in_the_precision_of_the_training(tmp_path, monkeypatch):
    """Its optimiser's averages are float64 as its weights are, whether the run is new or goes on."""

    def go(name, epochs, resume=False):
        torch.manual_seed(1)
        return run.train(
            VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[8]),
            WithTerms([Adversarial(1.0, channels=4, stages=1)]),
            OptimizerSettings("adam", lr=0.01, schedule="constant"),
            DataSettings("digits", binarize="threshold", batch_size=32, limit=64, validation_limit=16),
            TrainerSettings(max_epochs=epochs, precision="64-true", accelerator="cpu", progress_bar=False),
            tmp_path / name,
            config="",
            resume=resume,
        )

    go("whole", 2)
    go("cut", 1)
    go("cut", 2, resume=True)
    whole, cut = (read_checkpoint(tmp_path / name / "ckpts" / "last.ckpt") for name in ("whole", "cut"))
    assert any("discriminator" in key for key in whole["state_dict"])
    assert same(whole["state_dict"], cut["state_dict"])
