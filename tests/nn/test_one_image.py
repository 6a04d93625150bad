"""Trunks on one image under many contexts against the network itself."""

import pytest
import torch

from vlae.nn import apply_weight_norm, inference, one_image
from vlae.nn.one_image import GatedOnOneImage, on_one_image
from vlae.nn.pixelcnn import make_trunk

FUSED = [
    ("two", {"layers": 1}),
    ("two", {"layers": 2}),
    ("two", {"layers": 4, "hidden": 7}),
    ("two", {"layers": 2, "kernel_size": 5}),
    ("two", {"layers": 2, "image_channels": 3, "parameters": 4}),
    ("slanted", {"layers": 1}),
    ("slanted", {"layers": 3}),
    ("slanted", {"layers": 2, "kernel_size": 5, "image_channels": 2}),
]
BROADCAST = [
    ("two", {"layers": 0}),
    ("two", {"layers": 2, "conditioning": "input"}),
    ("slanted", {"layers": 2, "conditioning": "input", "kernel_size": 5}),
    ("plain", {"layers": 2}),
    ("plain", {"layers": 3, "tied": True, "pointwise_blocks": 1, "conditioning": "input"}),
    ("row_lstm", {"layers": 1}),
    ("row_lstm", {"layers": 2, "memory": 1, "image_channels": 2}),
    ("attention", {"layers": 2}),
]
SIZES = [(6, 5), (1, 6), (6, 1)]


def trunk(stacks, size, contexts=7, weight_norm=False, **options):
    """A network in float64 with random weights, an image, and context maps."""
    given = {"image_channels": 1, "parameters": 1, "channels": 4, "image_height": size[0], **options}
    network = make_trunk(stacks, context_channels=3, **given).double().eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    if weight_norm:
        apply_weight_norm(network)
        for name, p in network.named_parameters():
            if "original" in name:
                p.data.mul_(1 + 0.3 * torch.rand_like(p))
    x = torch.rand(1, given["image_channels"], *size, dtype=torch.float64)
    return network, x, torch.randn(contexts, 3, *size, dtype=torch.float64)


def assert_same(network, x, context):
    expected = network(x.expand(len(context), -1, -1, -1), context)
    torch.testing.assert_close(on_one_image(network, x)(context), expected, atol=1e-10, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the context matters, else nothing would be shown


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("stacks", "options"), FUSED + BROADCAST)
@torch.no_grad()
def test_it_is_the_network_on_copies_of_the_image(stacks, options, size):
    network, x, context = trunk(stacks, size, **options)
    assert isinstance(on_one_image(network, x), GatedOnOneImage) == ((stacks, options) in FUSED)
    assert_same(network, x, context)


@pytest.mark.parametrize("stacks", ["two", "slanted"])
@torch.no_grad()
def test_weights_may_be_normalised(stacks):
    assert_same(*trunk(stacks, (6, 5), layers=3, weight_norm=True))


@pytest.mark.parametrize("cached", [1, 2 * 4 * 4 * 30, 3 * 4 * 4 * 30, 2**30])
@torch.no_grad()
def test_any_number_of_contexts_at_a_time(monkeypatch, cached):
    """1, 2, 3 and all 7 at a time: nothing of one piece is left on the canvases of the next."""
    monkeypatch.setattr(one_image, "CACHED", cached)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    network, x, context = trunk("two", (6, 5), layers=3)
    function = on_one_image(network, x)
    assert function.size == max(1, cached // 480)
    for _ in range(2):
        torch.testing.assert_close(function(context), network(x.expand(7, -1, -1, -1), context), atol=1e-10, rtol=0)


@torch.no_grad()
def test_what_depends_on_the_image_alone_is_computed_once(monkeypatch):
    monkeypatch.setattr(one_image, "CACHED", 1)
    network, x, context = trunk("two", (6, 5), layers=2)
    seen = []
    for layer in (network.input_above, network.input_left, *network.layers[0].children()):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    on_one_image(network, x)(context)
    assert seen == [1] * 5  # two input convolutions, and the first layer's vertical, horizontal and across


@torch.no_grad()
def test_inputs_are_left_as_they_are():
    network, x, context = trunk("two", (6, 5), layers=2)
    before = [t.clone() for t in (x, context, *network.parameters())]
    on_one_image(network, x)(context)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, context, *network.parameters()), strict=True))


def test_with_gradients_they_are_those_of_the_network():
    network, x, context = trunk("two", (6, 5), layers=2)
    context.requires_grad_()

    def gradients(parameters):
        return torch.autograd.grad(parameters.square().sum(), [context, *network.parameters()])

    mine, theirs = gradients(on_one_image(network, x)(context)), gradients(network(x.expand(7, -1, -1, -1), context))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_mixed_precision_takes_the_network_itself():
    network, x, _ = trunk("two", (6, 5), layers=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert not inference.applies(x)
        assert not isinstance(on_one_image(network.float(), x.float()), GatedOnOneImage)
    assert inference.applies(x)


@torch.no_grad()
def test_without_context_all_contexts_are_the_same():
    network = make_trunk("two", image_channels=1, parameters=2, layers=1, channels=4).double()
    x = torch.rand(1, 1, 4, 5, dtype=torch.float64)
    parameters = on_one_image(network, x)(x.new_zeros(3, 0, 4, 5))
    assert parameters.shape == (3, 1, 2, 4, 5)
    torch.testing.assert_close(parameters, network(x, None).expand(3, -1, -1, -1, -1))
