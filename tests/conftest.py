"""What the tests of several rooms share: a fixed seed, tiny models in float64, and a linear-Gaussian VAE."""

import itertools
import random
import struct

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import vlae
from vlae.distributions import DiagonalGaussian, Factorised, Likelihood, StandardNormalPrior
from vlae.distributions.likelihoods import PixelGaussian
from vlae.models.base import LatentVariableModel

TINY = {"latent_dim": 3, "encoder_widths": [4], "encoder_hidden": 8, "channels": 5, "context_channels": 3}


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same global seed and leaves the generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def tiny_vlae():
    """A factory of small VLAEs in float64 and eval mode with random weights."""

    def make(image_shape=(1, 5, 4), **options):
        return vlae.VLAE(image_shape, **{**TINY, "flow_hidden": (8,), "decoder_layers": 1, **options}).double().eval()

    return make


@pytest.fixture
def tiny_vae():
    """A factory of small VAEs in float64 and eval mode with random weights."""

    def make(image_shape=(1, 5, 4), **options):
        settings = {"latent_dim": 3, "architecture": "mlp", "widths": [6], "flow_hidden": (8,), **options}
        return vlae.VAE(image_shape, **settings).double().eval()

    return make


@pytest.fixture
def all_images():
    """A factory of every image of the given shape and number of levels, [levels ** (C H W), C, H, W], float64."""

    def make(shape, levels=2):
        values = [level / (levels - 1) for level in range(levels)]
        count = torch.Size(shape).numel()
        return torch.tensor(list(itertools.product(values, repeat=count)), dtype=torch.float64).view(-1, *shape)

    return make


@pytest.fixture
def binary():
    """A factory of random binary images in float64."""

    def make(count, shape=(1, 5, 4)):
        return torch.randint(0, 2, (count, *shape), dtype=torch.float64)

    return make


@pytest.fixture
def mutations():
    """A generator of so many versions of some bytes: some changed, cut, doubled or exchanged, from a seed."""

    def make(data, count, seed=0):
        rng = random.Random(seed)
        for _ in range(count):
            changed = bytearray(data)
            for _ in range(rng.choice([1, 1, 2, 5, 20])):
                at = rng.randrange(len(changed))
                kind = rng.randrange(4)
                if kind == 0:
                    changed[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
                elif kind == 1:
                    word = rng.choice([0, 2**31, 2**32 - 1, 10**9])
                    changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", word)
                elif kind == 2:
                    del changed[at : at + rng.randrange(1, 9)]
                else:
                    changed[at:at] = changed[at : at + rng.randrange(1, 9)]
                if not changed:
                    break
            yield bytes(changed)

    return make


SIGMA = 0.4


class MeanGaussian(Likelihood):
    """A normal density of fixed deviation around the decoder's output itself, of any real values."""

    def check(self, x):
        pass

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
