"""A linear-Gaussian VAE with an encoder of its own: evidence and exact posterior are known in closed form."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.func import functional_call

from vlae.data import Batches, ImageDataset
from vlae.distributions import DiagonalGaussian, Factorised, Likelihood, StandardNormalPrior
from vlae.distributions.likelihoods import PixelGaussian
from vlae.models.base import LatentVariableModel
from vlae.training import run
from vlae.training.task import OptimizerSettings, Task

SIGMA = 0.4


class MeanGaussian(Likelihood):
    """A normal density of fixed deviation around the decoder's output itself."""

    def forward(self, parameters, temperature=1.0):
        return PixelGaussian(parameters.squeeze(-1), torch.tensor(SIGMA * temperature, dtype=parameters.dtype))


class Amortised(LatentVariableModel):
    """x [1, 2, 3] = W z + b + noise, z [2], and q(z|x) = N(A x + c, exp(s)^2)."""

    def __init__(self):
        super().__init__()
        self.image_shape, self.latent_shape, self.likelihood = (1, 2, 3), (2,), MeanGaussian()
        double = {"dtype": torch.float64}
        self.weight = nn.Parameter(torch.randn(6, 2, **double) * torch.tensor([0.8, 0.3], **double))
        self.bias = nn.Parameter(torch.rand(6, **double))
        self.encoder = nn.Linear(6, 2, **double)
        self.encoder.log_stddev = nn.Parameter(torch.full((2,), -0.7, **double))
        self.prior_module = StandardNormalPrior(2).double()

    def encode(self, x):
        mean = self.encoder(x.flatten(1))
        return DiagonalGaussian(mean, self.encoder.log_stddev.expand_as(mean))

    def decode(self, z, temperature=1.0):
        return Factorised(self.likelihood, (z @ self.weight.T + self.bias).view(-1, 1, 1, 2, 3), temperature)

    def prior(self):
        return self.prior_module()

    def networks(self):
        return [self.encoder]

    def evidence(self, x):
        """log p(x), nats, [B]."""
        covariance = self.weight @ self.weight.T + SIGMA**2 * torch.eye(6, dtype=torch.float64)
        return MultivariateNormal(self.bias, covariance).log_prob(x.flatten(1)).detach()

    @torch.no_grad()
    def gap(self, x):
        """KL(q(z|x) || p(z|x)) in nats, averaged over x: how far the encoder lags behind."""
        precision = torch.eye(2, dtype=torch.float64) + self.weight.T @ self.weight / SIGMA**2
        mean = ((x.flatten(1) - self.bias) @ self.weight) @ precision.inverse() / SIGMA**2
        q = self.encode(x)
        exact = MultivariateNormal(mean, precision_matrix=precision)
        return torch.distributions.kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), exact).mean()

    @torch.no_grad()
    def make_exact(self):
        """Sets the encoder to the exact posterior, after making the columns of W orthogonal."""
        basis = torch.linalg.qr(self.weight).Q
        self.weight.copy_(basis * torch.tensor([0.8, 0.3], dtype=torch.float64))
        precision = 1 + (self.weight**2).sum(0) / SIGMA**2
        self.encoder.weight.copy_(self.weight.T / SIGMA**2 / precision[:, None])
        self.encoder.bias.copy_(-self.encoder.weight @ self.bias)
        self.encoder.log_stddev.copy_(-0.5 * precision.log())


@pytest.fixture
def linear_gaussian():
    """A factory of linear-Gaussian VAEs in float64."""
    return Amortised


@pytest.fixture
def flat_images():
    """A factory of random images in float64 that suit them."""

    def make(count):
        return torch.rand(count, 1, 2, 3, dtype=torch.float64)

    return make


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
        with run.quiet():
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
