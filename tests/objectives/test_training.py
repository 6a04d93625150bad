"""Every objective through the task's real steps, from YAML, and resumed bit for bit."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from vlae import cli
from vlae.models import VAE, load
from vlae.objectives import (
    ELBO,
    GECO,
    IWAE,
    Adversarial,
    Capacity,
    Contrastive,
    Cyclical,
    InfoVAE,
    LaggingInference,
    LatentNoise,
    Linear,
    Perceptual,
    SoftFreeBits,
    WithTerms,
)
from vlae.training import configuration, run
from vlae.training.checkpoints import read_checkpoint
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

OBJECTIVES = {
    "ELBO": lambda: ELBO(Cyclical(), free_nats=0.1, per="level"),
    "SoftFreeBits": lambda: SoftFreeBits(1.0, interval=2),
    "IWAE": lambda: IWAE(3),
    "IWAE dreg": lambda: IWAE(3, "dreg"),
    "Capacity": lambda: Capacity(2.0),
    "GECO": lambda: GECO(target_per_dim=0.5),
    "InfoVAE": lambda: InfoVAE(0.5, 20.0),
    "LaggingInference": lambda: LaggingInference(2),
    "Perceptual": lambda: WithTerms([Perceptual(1.0, nn.Conv2d(1, 2, 3))]),
    "Adversarial": lambda: WithTerms([Adversarial(1.0, channels=2, stages=1, lr=0.01)], GECO(5.0)),
    "Contrastive": lambda: WithTerms([Contrastive(0.5)], IWAE(2)),
    "LatentNoise": lambda: WithTerms([LatentNoise(Linear(0.0, 1.0))], LaggingInference(2)),
}


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]()


def small():
    torch.manual_seed(0)
    return VAE((1, 4, 4), latent_dim=2, architecture="mlp", widths=[8], flow_steps=1, flow_hidden=(4,))


class FirstBound(pl.Callback):
    """The terms that the task keeps of its first step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.terms = pl_module.training_terms[0]


def test_a_real_epoch(objective, fit):
    model, first, plain = small(), FirstBound(), FirstBound()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    task = fit(model, objective, callbacks=[first], levels=2)
    assert task.guard.total == 0 and task.global_step == 8
    assert all(torch.isfinite(p).all() and not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.state_dict().keys() == small().state_dict().keys()  # nothing of the objective is saved with it
    fit(small(), ELBO(), callbacks=[plain], levels=2)
    torch.testing.assert_close(first.terms, plain.terms, rtol=1e-6, atol=0)  # the bound of the step, whatever the loss


YAML = """
model:
  class_path: vlae.VAE
  init_args: {latent_dim: 2, architecture: mlp, widths: [8], likelihood: categorical, likelihood_options: {levels: 17}}
data: {name: digits, batch_size: 64, limit: 128, validation_limit: 64}
objective:
  class_path: vlae.objectives.WithTerms
  init_args:
    objective:
      class_path: vlae.objectives.LaggingInference
      init_args: {inner_steps: 1, beta: {class_path: vlae.objectives.Linear, init_args: {start: 0.1, end: 1.0}}}
    terms:
      - class_path: vlae.objectives.Perceptual
        init_args: {weight: 0.1, network: {class_path: torch.nn.Flatten}}
      - class_path: vlae.objectives.Adversarial
        init_args: {weight: 0.2, channels: 2, stages: 2, betas: [0.0, 0.9]}
      - class_path: vlae.objectives.Contrastive
        init_args: {weight: {class_path: vlae.objectives.Linear, init_args: {start: 0.0, end: 1.0}}}
      - class_path: vlae.objectives.LatentNoise
        init_args: {sigma: 0.2}
trainer: {max_epochs: 1, progress_bar: false, accelerator: cpu}
"""


def test_a_yaml_with_terms_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("terms.yaml").write_text(YAML)
    assert cli.main(["train", "--config", "terms.yaml"]) == 0
    assert load("outputs/terms/model").sample(2).shape == (2, 1, 8, 8)
    objective = configuration.train_parser().parse_args(["--config", "terms.yaml"]).objective
    assert len(objective.init_args.terms) == 4


@pytest.mark.parametrize(
    "snippet",
    [
        "{class_path: vlae.objectives.IWAE, init_args: {samples: 5, estimator: dreg}}",
        "{class_path: vlae.objectives.Capacity, init_args: {max_nats: 10, gamma: 50, finish: 0.8}}",
        "{class_path: vlae.objectives.GECO, init_args: {target_nats: 80}}",
        "{class_path: vlae.objectives.InfoVAE, init_args: {alpha: 0, lambda_: 500, kernel: imq}}",
        "{class_path: vlae.objectives.LaggingInference, init_args: {inner_steps: 20, until: 0.3}}",
    ],
)
def test_every_objective_can_be_written_in_yaml(snippet, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(f"objective: {snippet}\n")
    parser = configuration.train_parser()
    settings = parser.parse_args(["--config", str(path)])
    settings.pop("model", None)
    made = parser.instantiate(settings).objective
    assert type(made).__name__ in snippet


class StopAfter(Callback):
    """Ends the process's training after an epoch, as a kill between epochs would."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def train(directory, objective, monkeypatch, stop=False, resume=False):
    torch.manual_seed(1)
    model = VAE((1, 8, 8), latent_dim=4, architecture="mlp", widths=[8], likelihood="gaussian")
    if stop:
        engine = run._engine

        def stopping(*arguments):
            trainer = engine(*arguments)
            trainer.callbacks.append(StopAfter())
            return trainer

        monkeypatch.setattr(run, "_engine", stopping)
    try:
        run.train(
            model,
            objective,
            OptimizerSettings("adamax", lr=0.01),
            DataSettings("digits", batch_size=100, limit=400, validation_limit=100),
            TrainerSettings(max_epochs=3, precision="32-true", accelerator="cpu", devices=1, progress_bar=False),
            directory,
            config="",
            seed=3,
            resume=resume,
        )
    finally:
        monkeypatch.undo()


def same(a, b):
    """Nested equality, exact for tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_resumed_training_equals_uninterrupted_training(tmp_path, monkeypatch):
    def stateful():
        terms = [Adversarial(5.0, channels=4, stages=2, lr=0.01), Contrastive(0.1), Perceptual(0.1, nn.Flatten())]
        return WithTerms(terms, GECO(target_nats=-10.0, speed=0.1))

    train(tmp_path / "whole", stateful(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stateful(), monkeypatch, stop=True)
    train(tmp_path / "cut", stateful(), monkeypatch, resume=True)
    whole, cut = (read_checkpoint(tmp_path / name / "ckpts" / "last.ckpt") for name in ("whole", "cut"))
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert same(whole[part], cut[part]), part
    state = whole["current_model_state"]
    assert state["objective.terms.0._extra_state"]["state"][0]["step"] == 12
    assert state["objective.objective.log_multiplier"] != 0
    assert not any(name.startswith("objective.terms.2.") for name in state)
    assert not any("discriminator" in name for name in load(tmp_path / "cut" / "model").state_dict())
