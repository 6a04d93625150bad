"""Every prior in float64 with weights that are far from where training starts."""

import pytest
import torch
from torch import nn

from vlae.distributions import DiagonalGaussian, make_prior

SHAPES = {1: (1, 1, 1), 2: (1, 1, 2), 5: (1, 1, 5), 12: (2, 3, 2)}
OPTIONS = {
    "normal": {},
    "normal maps": {"maps": True},
    "flow": {"steps": 3, "hidden": (8, 8)},
    "flow same": {"steps": 2, "hidden": (8,), "order": "same"},
    "flow shift": {"steps": 2, "hidden": (8,), "affine": False},
    "spline": {"steps": 2, "bins": 4, "hidden": (8,)},
    "spline same": {"steps": 2, "bins": 3, "hidden": (8,), "order": "same"},
    "spline coupling": {"steps": 3, "bins": 4, "hidden": (8,), "coupling": True},
    "autoregressive_mixture": {"components": 3, "hidden": (8,)},
    "mixture": {"components": 4},
    "mixture maps": {"components": 3, "maps": True},
    "vamp": {"components": 3},
    "vamp weights": {"components": 4, "learned_weights": True},
    "delta": {"alpha": 0.8},
    "map_flow": {"steps": 3, "layers": 1, "channels": 4},
    "map_flow channels": {"steps": 2, "layers": 0, "channels": 4, "column": True},
    "map_flow same": {"steps": 2, "layers": 1, "channels": 4, "order": "same", "stacks": "plain"},
    "map_flow shift": {"steps": 3, "layers": 1, "channels": 4, "affine": False, "reverse_every": 2},
}


class AnyPrior(nn.Module):
    """A prior's module and, for a VampPrior, a small encoder beside it."""

    def __init__(self, case, dimensions):
        super().__init__()
        options = dict(OPTIONS[case])
        name = case.split()[0]
        maps = options.pop("maps", name == "map_flow")
        self.shape = SHAPES[dimensions] if maps else (dimensions,)
        if options.pop("column", False):
            self.shape = (dimensions, 1, 1)
        if name == "vamp":
            options["image_shape"] = (1, 2, 2)
            self.encoder = nn.Linear(4, 2 * dimensions)
        self.module = make_prior(name, self.shape, **options)

    def encode(self, images):
        mean, log_stddev = self.encoder(images.flatten(1)).chunk(2, 1)
        return DiagonalGaussian(2 * mean, 0.5 * log_stddev)

    def forward(self):
        return self.module(self.encode) if self.module.needs_encoder else self.module()


@pytest.fixture(params=OPTIONS)
def case(request):
    """The name of one prior with its options."""
    return request.param


@pytest.fixture
def any_prior():
    """A factory of modules that are called for the prior, given `case`, the dimensions, and how far from the start."""

    def make(case, dimensions, spread=0.4):
        module = AnyPrior(case, dimensions).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
        return module

    return make
