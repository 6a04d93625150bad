"""The cached evaluators against the whole network: the numbers, the samples, what is read, and how often."""

import itertools
import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.distributions import Autoregressive, Bernoulli, Categorical, LogisticMixture
from vlae.nn import GatedPixelCNN, MaskedConv2d, PlainPixelCNN, ReceptiveField, apply_weight_norm, cached
from vlae.nn.cached import CachedGated, CachedPlain, Canvas, FullForward, evaluator
from vlae.nn.pixelcnn import CausalConv2d
from vlae.nn.receptive import Kernel
from vlae.nn.wavefront import Schedule

KINDS = ("two", "slanted", "plain")
MODES = ("none", "bias", "input")


@dataclass
class Case:
    """A random network with logits of a few nats, its context maps and images of any values in [0, 1]."""

    options: dict
    network: nn.Module
    context: Tensor
    x: Tensor

    @property
    def schedule(self):
        return Schedule.of(*self.x.shape[2:], self.network.receptive_field.slope)


def case(seed, largest=12, parameters=None, dtype=torch.float64, **given):
    """Kind, image channels and conditioning go through all 18 combinations; the rest is drawn."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    kind, image_channels, mode = KINDS[seed % 3], (1, 3)[seed // 3 % 2], MODES[seed // 6 % 3]
    options = {
        "kind": kind,
        "image_channels": image_channels,
        "mode": mode,
        "layers": draw.randint(0, 4),
        "kernel_size": draw.choice([3, 3, 5, 7]),
        "channels": draw.randint(2, 5),
        "hidden": draw.choice([None, 4]),
        "parameters": parameters or draw.randint(1, 4),
        "height": draw.randint(1, largest),
        "width": draw.randint(1, largest),
        "batch": draw.choice([1, 1, 2, 5, 64]),
        "tied": draw.random() < 0.4,
        "pointwise_blocks": draw.choice([0, 1, 3]),
        "weight_norm": draw.random() < 0.3,
        **given,
    }
    options["width"] -= options["width"] == options["height"] > 1  # square images hide swapped axes
    network = build(**options).to(dtype)
    context = torch.randn(options["batch"], 2 if options["mode"] != "none" else 0, options["height"], options["width"])
    x = torch.rand(options["batch"], options["image_channels"], options["height"], options["width"])
    enliven(network, x.to(dtype), context.to(dtype))
    if options["weight_norm"]:
        apply_weight_norm(network)
        for name, p in network.named_parameters():
            if name.endswith("original0"):  # the gains: from here on, a weight is not the direction that is stored
                p.data.mul_(1.1)
    return Case(options, network, context.to(dtype), x.to(dtype))


def build(kind, image_channels, parameters, layers, mode, tied=False, pointwise_blocks=0, **options):
    trunk = {name: options[name] for name in ("kernel_size", "channels", "hidden") if name in options}
    trunk |= {"context_channels": 0} if mode == "none" else {"context_channels": 2, "conditioning": mode}
    if kind != "plain":
        return GatedPixelCNN(image_channels, parameters, layers, slanted=kind == "slanted", **trunk)
    plain = {"tied": tied, "pointwise_blocks": pointwise_blocks if layers else 0}
    return PlainPixelCNN(image_channels, parameters, layers, **trunk, **plain)


@torch.no_grad()
def enliven(network, x, context):
    """Weights 2.5 times PyTorch's, so that nothing is nearly linear, and parameters of standard deviation 3."""
    for p in network.parameters():
        p.mul_(2.5)
    for layer in network.modules():
        if isinstance(layer, MaskedConv2d):  # what is masked starts at zero, but nothing may rely on it
            layer.weight.add_((1 - layer.mask) * torch.randn_like(layer.weight))
    output = network(x, context)
    factor = 3 / output.std() if output.numel() > 1 else 1
    network.head.output.weight.mul_(factor)
    network.head.output.bias.mul_(factor)


@torch.no_grad()
def parameters_along(network, context, x, schedule):
    """What the evaluator hands out for each site when the image turns out to be x, [B, C, P, H, W]."""
    steps, result = evaluator(network, context, x.shape[1:], schedule), None
    assert type(steps) is {GatedPixelCNN: CachedGated, PlainPixelCNN: CachedPlain}.get(type(network), FullForward)
    for step in schedule.steps:
        steps.advance(step)
        if not step.count:
            continue
        for channel in range(x.shape[1]):
            parameters = steps.parameters(channel)
            assert parameters.shape[:2] == (len(x), step.count)
            if result is None:
                result = x.new_full((*x.shape, parameters.shape[2]), torch.nan)
            result[:, channel, step.rows, step.columns] = parameters
            steps.put(channel, x[:, channel, step.rows, step.columns])
    return result.movedim(-1, 2)


@torch.no_grad()
def expected(network, x, context):
    return network(x, context)


def error(drawn, schedule=None):
    """The largest difference from the whole network's parameters, after their scale."""
    exact = expected(drawn.network, drawn.x, drawn.context)
    assert exact.abs().max() < 50
    result = parameters_along(drawn.network, drawn.context, drawn.x, schedule or drawn.schedule)
    return (result - exact).abs().max() / exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("seed", range(90))
def test_parameters_are_those_of_the_whole_network(monkeypatch, seed):
    drawn = case(seed)
    monkeypatch.setattr(cached, "PRECOMPUTED", 0)  # the context's biases at each step
    assert error(drawn) < 1e-10
    monkeypatch.setattr(cached, "PRECOMPUTED", 2**40)  # and all at once
    assert error(drawn) < 1e-10


@pytest.mark.parametrize("seed", range(18))
def test_parameters_are_those_of_the_whole_network_in_single_precision(seed):
    assert error(case(seed, dtype=torch.float32)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 12), (12, 1), (2, 12), (12, 2), (3, 4)])
@pytest.mark.parametrize("layers", [0, 3])
def test_images_smaller_than_the_window(kind, size, layers):
    options = {"kind": kind, "height": size[0], "width": size[1], "layers": layers, "kernel_size": 5, "batch": 2}
    drawn = case(9, **options | {"weight_norm": False, "mode": "bias"})
    assert tuple(drawn.x.shape[2:]) == size
    assert error(drawn) < 1e-10


@pytest.mark.parametrize("seed", range(18))
def test_any_larger_slope_gives_the_same(seed):
    drawn = case(seed, largest=7, batch=2)
    for slope in (drawn.schedule.slope + extra for extra in (1, 2, 5)):
        assert error(drawn, Schedule.of(*drawn.x.shape[2:], slope)) < 1e-10


@pytest.mark.parametrize("stacks", KINDS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic_mixture"])
def test_weight_normalised_model_after_its_data_dependent_start(tiny_vlae, stacks, likelihood):
    options = {"levels": 5, "components": 2} if likelihood == "logistic_mixture" else {}
    settings = {"likelihood": likelihood, "likelihood_options": options, "decoder_layers": 2, "stacks": stacks}
    model = tiny_vlae((3, 5, 7), weight_norm=True, **settings)
    x = torch.randint(0, 2, (6, 3, 5, 7), dtype=torch.float64)
    model.initialise(x)
    with torch.no_grad():
        context = model.decoder(torch.randn(6, 3, dtype=torch.float64))
    network, schedule = model.decoder.pixels, Schedule.of(5, 7, model.decoder.receptive_field.slope)
    result = parameters_along(network, context, x, schedule)
    assert (result - expected(network, x, context)).abs().max() < 1e-10
    assert result.std() > 0.5


LIKELIHOODS = [Bernoulli(), Categorical(2), Categorical(5), LogisticMixture(levels=7, components=2)]


@pytest.mark.parametrize("seed", range(60))
def test_wavefront_and_raster_sample_the_same_pixels(seed):
    likelihood, temperature = LIKELIHOODS[seed // 3 % 4], (1.0, 0.7, 1.3)[seed % 5 % 3]
    options = {"largest": 5, "parameters": likelihood.parameters_per_value, "batch": 64 if seed % 10 == 0 else 2}
    drawn = case(seed, image_channels=(1, 3)[seed % 2], **options)
    p = Autoregressive(drawn.network, likelihood, drawn.context, drawn.x.shape[1:], temperature)
    u = torch.rand(drawn.x.shape, dtype=torch.float64)
    x = p.sample(uniforms=u)
    assert torch.equal(x, p.sample(uniforms=u, method="raster"))
    assert torch.isin(x, torch.arange(likelihood.levels).double() / (likelihood.levels - 1)).all()


def poisoned(monkeypatch, poison):
    """Canvases whose cells hold `poison` until they are written; the margin is zero. Gives the list of them."""
    made = []

    class Poisoned(Canvas):
        def __init__(self, schedule, kernel, *rest):
            super().__init__(schedule, kernel, *rest)
            self.inside = torch.zeros(kernel.up + schedule.height, self.row // self.cell, dtype=torch.bool)
            self.inside[kernel.up :, kernel.left : kernel.left + schedule.width] = True
            self.cells = self.data.view(*self.inside.shape, self.cell)
            self.cells[self.inside] = poison
            made.append(self)

    monkeypatch.setattr(cached, "Canvas", Poisoned)
    return made


@pytest.mark.parametrize("seed", range(36))
def test_no_cell_is_read_before_it_is_written_and_the_margin_is_never_written(monkeypatch, seed):
    drawn = case(seed, largest=8, batch=2)
    # A plain layer multiplies what it must not see by a weight of zero, and NaN would survive that: there, a huge
    # number, which does not survive any other weight.
    poison = 1e30 if drawn.options["kind"] == "plain" else torch.nan
    canvases = poisoned(monkeypatch, poison)
    assert error(drawn) < 1e-10
    assert len(canvases) == drawn.options["layers"] * (1 if poison == 1e30 else 2) + 1
    for canvas in canvases:
        assert (canvas.cells[~canvas.inside] == 0).all()
        assert (canvas.cells[canvas.inside].abs() < 1e6).all()  # and every cell has been written


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [0, 2])
def test_a_slope_that_is_too_small_reads_cells_that_are_not_known(monkeypatch, kind, layers):
    # The negative control of the test above, and of the slope.
    drawn = case(0, kind=kind, layers=layers, kernel_size=3, height=6, width=9, batch=2, weight_norm=False)
    poisoned(monkeypatch, 1e30 if kind == "plain" else torch.nan)
    assert error(drawn) < 1e-10
    assert not error(drawn, Schedule.of(6, 9, drawn.schedule.slope - 1)) < 1e-3


@pytest.mark.parametrize("precomputed", [0, 2**40])
@pytest.mark.parametrize("seed", range(18))
def test_every_activation_is_computed_once(monkeypatch, seed, precomputed):
    """Of each weight matrix, the rows that it is multiplied with are all pixels of all images, once."""
    drawn = case(seed, largest=6, layers=3, pointwise_blocks=2, tied=False, batch=3)
    rows, weights = Counter(), []
    addmm, addmm_, linear = torch.addmm, torch.Tensor.addmm_, F.linear

    def count(matrix, weight):
        weights.append(weight)  # kept alive, so that no two have the same address
        rows[weight.data_ptr(), tuple(weight.shape)] += len(matrix)

    def counting_addmm(bias, matrix, weight, **options):
        count(matrix, weight)
        return addmm(bias, matrix, weight, **options)

    def counting_addmm_(bias, matrix, weight):
        count(matrix, weight)
        return addmm_(bias, matrix, weight)

    def counting_linear(matrix, weight, bias=None):
        count(matrix, weight)
        return linear(matrix, weight, bias)

    monkeypatch.setattr(cached, "PRECOMPUTED", precomputed)
    exact = expected(drawn.network, drawn.x, drawn.context)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "addmm", counting_addmm)
        patch.setattr(F, "linear", counting_linear)
        patch.setattr(torch.Tensor, "addmm_", counting_addmm_)
        result = parameters_along(drawn.network, drawn.context, drawn.x, drawn.schedule)
    torch.testing.assert_close(result, exact)
    batch, channels, height, width = drawn.x.shape
    assert set(rows.values()) == {batch * height * width}
    head = 1 + channels + (channels - 1)
    trunk = 1 + 3 + 2 * 2 if drawn.options["kind"] == "plain" else 2 + 3 * 4
    # Of the context: an input map made of it by a convolution needs no product here, a bias map one for each gate.
    gates = {"none": 0, "input": 0, "bias": 4 if drawn.options["kind"] == "plain" else 2 * 3}
    assert len(rows) == head + trunk + gates[drawn.options["mode"]]


class Unknown(nn.Module):
    """One causal layer that reaches two to the right: nothing that the evaluators know, with a slope of 3."""

    def __init__(self, parameters):
        super().__init__()
        self.above = CausalConv2d(2, 6, Kernel(up=1, rows=1, left=2, columns=5))
        self.left = CausalConv2d(2, 6, Kernel(up=0, rows=1, left=2, columns=2))
        self.context = nn.Conv2d(1, 6, 1)
        self.output = nn.Conv2d(6, 2 * parameters, 1)
        self.calls = 0

    @property
    def receptive_field(self):
        return self.above.kernel.field | self.left.kernel.field

    def forward(self, x, context):
        self.calls += 1
        h = torch.tanh(self.above(x) + self.left(x) + self.context(context))
        return 5 * self.output(h).unflatten(1, (2, -1))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda likelihood: type(likelihood).__name__)
def test_a_network_that_is_not_known_is_sampled_on_the_wavefront_too(likelihood):
    network, context = Unknown(likelihood.parameters_per_value).double(), torch.randn(3, 1, 5, 6).double()
    p = Autoregressive(network, likelihood, context, (2, 5, 6))
    schedule = p.schedule()
    assert schedule.slope == 3
    u = torch.rand(3, 2, 5, 6, dtype=torch.float64)
    network.calls = 0
    x = p.sample(uniforms=u)
    assert network.calls == 2 * len(schedule) == 2 * (6 + 4 * 3)
    assert torch.equal(x, p.sample(uniforms=u, method="raster"))
    result = parameters_along(network, context, x, schedule)
    assert torch.equal(result, expected(network, x, context))


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel(1, 1, 1, 3),
        Kernel(2, 3, 2, 5),
        Kernel(0, 1, 2, 2),
        Kernel(0, 1, 1, 2),
        Kernel(2, 2, 4, 5, slanted=True),
        Kernel(2, 3, 4, 5, slanted=True),
        Kernel(1, 1, 3, 4),
        Kernel(3, 2, 4, 2, slanted=True),
    ],
)
def test_convolution_of_a_kernel_is_the_sum_over_its_field(kernel):
    layer = CausalConv2d(2, 3, kernel).double()
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    offsets = [
        (u, c, -kernel.up + u, c - kernel.left + (kernel.up - u) * kernel.slanted)
        for u, c in itertools.product(range(kernel.rows), range(kernel.columns))
    ]
    assert kernel.field == ReceptiveField.from_offsets((a, b) for _, _, a, b in offsets)
    assert kernel.right == max(0, *(b for _, _, _, b in offsets))
    y = layer.bias[:, None, None].expand(2, 3, 5, 6).clone()
    for (u, c, a, b), i, j in itertools.product(offsets, range(5), range(6)):
        if i + a >= 0 and 0 <= j + b < 6:
            y[:, :, i, j] += x[:, :, i + a, j + b] @ layer.weight[:, :, u, c].T
    torch.testing.assert_close(layer(x), y)
