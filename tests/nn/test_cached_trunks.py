"""The row LSTM and attention along a wavefront: the whole network's parameters, each activation computed once."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from vlae.distributions import Autoregressive, Bernoulli, Categorical, LogisticMixture
from vlae.nn import MaskedConv2d, apply_weight_norm, cached, cached_attention, cached_rowlstm
from vlae.nn.attention import LocalAttention
from vlae.nn.cached import Canvas, evaluator
from vlae.nn.cached_attention import CachedTransformer
from vlae.nn.cached_rowlstm import CachedRNN
from vlae.nn.pixelcnn import make_trunk
from vlae.nn.wavefront import Schedule

KINDS = ("row_lstm", "attention")
MODES = ("none", "bias", "input")


@dataclass
class Case:
    """A random network with parameters of a few nats, its context maps and images of any values in [0, 1]."""

    options: dict
    network: nn.Module
    context: Tensor
    x: Tensor

    @property
    def schedule(self):
        return Schedule.of(*self.x.shape[2:], self.network.receptive_field.slope)


def case(seed, largest=12, parameters=None, dtype=torch.float64, image_channels=None, **given):
    """Kind, image channels and conditioning go through all 12 combinations; the rest is drawn."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    image_channels = image_channels or (1, 3)[seed // 2 % 2]
    options = {
        "kind": KINDS[seed % 2],
        "mode": MODES[seed // 4 % 3],
        "layers": draw.randint(0, 4),
        "kernel_size": draw.choice([3, 3, 5, 7]),
        "channels": draw.choice([4, 6]),
        "hidden": draw.choice([None, 4]),
        "heads": draw.choice([1, 2]),
        "memory": draw.choice([None, None, 1, 2, 3, 5, 20]),
        "height": draw.randint(1, largest),
        "width": draw.randint(1, largest),
        "batch": draw.choice([1, 1, 2, 5, 32]),
        "weight_norm": draw.random() < 0.3,
        **given,
    }
    options["width"] -= options["width"] == options["height"] > 1  # square images hide swapped axes
    batch, height, width = options["batch"], options["height"], options["width"]
    own = {"row_lstm": {"memory": options["memory"]}, "attention": {"heads": options["heads"]}}[options["kind"]]
    own |= {"context_channels": 0} if options["mode"] == "none" else {"context_channels": 2}
    own |= {"conditioning": options["mode"]} if options["mode"] != "none" else {}
    own |= {name: options[name] for name in ("layers", "kernel_size", "channels", "hidden")}
    own |= {"image_channels": image_channels, "parameters": parameters or draw.randint(1, 4), "image_height": height}
    network = make_trunk(options["kind"], **own).to(dtype)
    context = torch.randn(batch, own["context_channels"], height, width).to(dtype)
    x = torch.rand(batch, image_channels, height, width).to(dtype)
    enliven(network, x, context)
    if options["weight_norm"]:
        apply_weight_norm(network)
        for name, p in network.named_parameters():
            if name.endswith("original0"):  # the gains: from here on, a weight is not the direction that is stored
                p.data.mul_(1.1)
    return Case(options, network, context, x)


@torch.no_grad()
def enliven(network, x, context):
    """Weights 2.5 times PyTorch's, so that nothing is nearly linear, and parameters of standard deviation 3."""
    for p in network.parameters():
        p.mul_(2.5)
    for layer in network.modules():
        if isinstance(layer, MaskedConv2d):  # what is masked starts at zero, but nothing may rely on it
            layer.weight.add_((1 - layer.mask) * torch.randn_like(layer.weight))
        if isinstance(layer, LocalAttention):
            layer.position.normal_()
        if isinstance(layer, nn.LayerNorm):
            layer.weight.normal_()
            layer.bias.normal_()
    output = network(x, context)
    factor = 3 / output.std() if output.numel() > 1 else 1
    network.head.output.weight.mul_(factor)
    network.head.output.bias.mul_(factor)


@torch.no_grad()
def parameters_along(network, context, x, schedule):
    """What the evaluator hands out for each site when the image turns out to be x, [B, C, P, H, W]."""
    steps, result = evaluator(network, context, x.shape[1:], schedule), None
    assert type(steps) in (CachedRNN, CachedTransformer)
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
def error(drawn, schedule=None):
    """The largest difference from the whole network's parameters, after their scale."""
    exact = drawn.network(drawn.x, drawn.context)
    assert exact.abs().max() < 100
    result = parameters_along(drawn.network, drawn.context, drawn.x, schedule or drawn.schedule)
    return (result - exact).abs().max() / exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("seed", range(72))
def test_parameters_are_those_of_the_whole_network(monkeypatch, seed):
    drawn = case(seed)
    monkeypatch.setattr(cached, "PRECOMPUTED", 0)  # the context's biases at each step
    assert error(drawn) < 1e-10
    monkeypatch.setattr(cached, "PRECOMPUTED", 2**40)  # and all at once
    assert error(drawn) < 1e-10


@pytest.mark.parametrize("seed", range(12))
def test_parameters_are_those_of_the_whole_network_in_single_precision(seed):
    assert error(case(seed, dtype=torch.float32)) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 12), (12, 1), (2, 12), (12, 2), (3, 4)])
@pytest.mark.parametrize("memory", [None, 1])
def test_images_smaller_than_the_window(kind, size, memory):
    options = {"kind": kind, "height": size[0], "width": size[1], "layers": 3, "kernel_size": 5, "memory": memory}
    drawn = case(9, **options, batch=2, weight_norm=False, mode="bias")
    assert tuple(drawn.x.shape[2:]) == size
    assert error(drawn) < 1e-10


@pytest.mark.parametrize("memory", [1, 2, 3, 4, 5])
def test_a_memory_shorter_or_longer_than_the_image(memory):
    drawn = case(0, kind="row_lstm", memory=memory, height=5, width=6, layers=2, batch=2, kernel_size=3)
    assert error(drawn) < 1e-10
    steps = evaluator(drawn.network, drawn.context, drawn.x.shape[1:], drawn.schedule)
    assert [layer.kept for layer in steps.layers] == [memory if memory < 4 else 1] * 2


@pytest.mark.parametrize("seed", range(12))
def test_any_larger_slope_gives_the_same(seed):
    drawn = case(seed, largest=7, batch=2)
    for slope in (drawn.schedule.slope + extra for extra in (1, 2, 5)):
        assert error(drawn, Schedule.of(*drawn.x.shape[2:], slope)) < 1e-10


LIKELIHOODS = [Bernoulli(), Categorical(2), Categorical(5), LogisticMixture(levels=7, components=2)]


@pytest.mark.parametrize("seed", range(32))
def test_wavefront_and_raster_sample_the_same_pixels(seed):
    likelihood, temperature = LIKELIHOODS[seed // 2 % 4], (1.0, 0.7, 1.3)[seed % 3]
    options = {"largest": 5, "parameters": likelihood.parameters_per_value, "batch": 64 if seed % 10 == 0 else 2}
    drawn = case(seed, image_channels=(1, 3)[seed % 3 % 2], **options)
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
            # The image's canvas is read by a masked convolution: NaN would survive its weights of zero.
            self.cells[self.inside] = 1e30 if not made else poison
            made.append(self)

    for module in (cached, cached_attention, cached_rowlstm):
        monkeypatch.setattr(module, "Canvas", Poisoned)
    return made


@pytest.mark.parametrize("seed", range(24))
def test_no_cell_is_read_before_it_is_written_and_the_margin_is_never_written(monkeypatch, seed):
    drawn = case(seed, largest=8, batch=2)
    canvases = poisoned(monkeypatch, torch.nan)
    assert error(drawn) < 1e-10
    assert len(canvases) == 1 + drawn.options["layers"] * {"row_lstm": 3, "attention": 1}[drawn.options["kind"]]
    for canvas in canvases:
        assert (canvas.cells[~canvas.inside] == 0).all()
        assert (canvas.cells[canvas.inside].abs() < 1e6).all()  # and every cell has been written


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", [None, 2])
@pytest.mark.parametrize("layers", [0, 2])
def test_a_slope_that_is_too_small_reads_cells_that_are_not_known(monkeypatch, kind, memory, layers):
    # The negative control of the test above, and of the slope.
    options = {"kernel_size": 3, "height": 6, "width": 9, "batch": 2, "weight_norm": False}
    drawn = case(0, kind=kind, layers=layers, memory=memory, **options)
    poisoned(monkeypatch, torch.nan)
    assert error(drawn) < 1e-10
    assert not error(drawn, Schedule.of(6, 9, drawn.schedule.slope - 1)) < 1e-3


@pytest.mark.parametrize("precomputed", [0, 2**40])
@pytest.mark.parametrize("seed", range(12))
def test_every_activation_is_computed_once(monkeypatch, seed, precomputed):
    """Of each weight matrix, the rows that it is multiplied with are all pixels of all images, once."""
    drawn = case(seed, largest=6, height=5, layers=3, batch=3, memory=(None, 2)[seed // 2 % 2])
    rows, weights = Counter(), []
    addmm, mm = torch.addmm, torch.mm

    def count(matrix, weight):
        weights.append(weight)  # kept alive, so that no two have the same address
        rows[weight.data_ptr(), tuple(weight.shape)] += len(matrix)

    def counting_addmm(bias, matrix, weight):
        count(matrix, weight)
        return addmm(bias, matrix, weight)

    def counting_mm(matrix, weight):
        count(matrix, weight)
        return mm(matrix, weight)

    monkeypatch.setattr(cached, "PRECOMPUTED", precomputed)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "addmm", counting_addmm)
        patch.setattr(torch, "mm", counting_mm)
        parameters_along(drawn.network, drawn.context, drawn.x, drawn.schedule)
    batch, channels, height, width = drawn.x.shape
    pixels, kind = batch * height * width, drawn.options["kind"]
    restarts = kind == "row_lstm" and drawn.options["memory"] == 2
    # With a memory of 2 rows, S_0 and S_1 are each multiplied with the state-to-state weight.
    assert Counter(rows.values()) == Counter({pixels: len(rows) - 3 * restarts}) + Counter({2 * pixels: 3 * restarts})
    trunk = 1 + 3 * {"row_lstm": 3, "attention": 4}[kind]
    gates = {"none": 0, "input": 0, "bias": 1 + 3 * {"row_lstm": 1, "attention": 2}[kind]}[drawn.options["mode"]]
    assert len(rows) == trunk + gates + 1 + channels
