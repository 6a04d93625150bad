"""What tests of objectives need: gradients by differences, and a few real steps of training."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.func import functional_call

from vlae.data import Batches, ImageDataset
from vlae.training.logs import quiet
from vlae.training.task import OptimizerSettings, Task


class Seeded(nn.Module):
    """An objective's loss as a function of the weights, with the same noise at each call."""

    def __init__(self, objective, model, progress):
        super().__init__()
        self.objective, self.model, self.progress = objective, model, progress

    def forward(self, x):
        torch.manual_seed(5)
        return self.objective.compute(self.model, x, self.progress)[0]


@pytest.fixture
def gradients_are_right():
    """Checks autograd's gradient of `compute`'s loss against differences, by every parameter of the model."""

    def check(objective, model, x, progress=0.5):
        call = Seeded(objective, model, progress)
        names = [name for name, _ in call.model.named_parameters()]
        values = [p.detach().clone().requires_grad_() for p in call.model.parameters()]

        def loss(*weights):
            return functional_call(call, {f"model.{name}": w for name, w in zip(names, weights, strict=True)}, (x,))

        return torch.autograd.gradcheck(loss, values, rtol=1e-5, atol=1e-6)

    return check


def task_of(model, objective, lr=1e-2, **options):
    return Task(model, objective, OptimizerSettings("adam", lr=lr, schedule="constant"), **options)


@pytest.fixture
def fit():
    """Trains a model under an objective on 64 random images of its shape by real steps: the task, after it."""

    def run_it(model, objective, epochs=1, callbacks=(), levels=256, lr=1e-2):
        torch.manual_seed(0)
        images = torch.randint(levels, (64, *model.image_shape)).to(torch.uint8)
        dataset = ImageDataset.from_any(images.float() / (levels - 1), levels=levels, labels=torch.arange(64) % 3)
        task = task_of(model, objective, lr)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=list(callbacks),
        )
        with quiet():
            trainer.fit(task, Batches(dataset, 8, shuffle=True, drop_last=True), Batches(dataset, 8))
        return task

    return run_it


@pytest.fixture
def gradients_of():
    """Of a scalar by all parameters of a model, as {name: tensor}; copies, zeros where there is none."""

    def of(loss, model):
        names, parameters = zip(*model.named_parameters(), strict=True)
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else copy.deepcopy(g)
            for name, p, g in zip(names, parameters, found, strict=True)
        }

    return of
