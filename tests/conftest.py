"""What the tests of several rooms share: a fixed seed and tiny models in float64."""

import itertools

import pytest
import torch

import vlae

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
