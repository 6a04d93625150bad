"""What every trunk of `make_trunk` promises, for the row LSTM and for attention: the window, causality, mass, scans."""

import pytest
import torch
from torch.autograd.functional import jacobian

from vlae import VlaeError
from vlae.distributions import Autoregressive, Bernoulli, Categorical
from vlae.nn import apply_weight_norm, data_dependent_init
from vlae.nn.attention import LocalTransformer
from vlae.nn.pixelcnn import GatedPixelCNN, PlainPixelCNN, make_trunk
from vlae.nn.rowlstm import PixelRNN

CONFIGURATIONS = [
    ("row_lstm", {"layers": 0}, (4, 5)),
    ("row_lstm", {"layers": 1}, (6, 9)),
    ("row_lstm", {"layers": 3}, (5, 8)),
    ("row_lstm", {"layers": 1, "kernel_size": 5}, (5, 8)),
    ("row_lstm", {"layers": 2, "conditioning": "input"}, (4, 7)),
    ("row_lstm", {"layers": 1, "image_height": 9}, (5, 6)),
    ("row_lstm", {"layers": 1, "channels": 1}, (5, 6)),
    ("row_lstm", {"layers": 1, "memory": 1}, (6, 7)),
    ("row_lstm", {"layers": 1, "memory": 3}, (8, 9)),
    ("row_lstm", {"layers": 2, "memory": 2, "image_height": None}, (8, 7)),
    ("row_lstm", {"layers": 1, "memory": 1, "kernel_size": 5}, (6, 9)),
    ("row_lstm", {"layers": 2, "memory": 1, "conditioning": "input"}, (6, 5)),
    ("row_lstm", {"layers": 1, "memory": 20}, (5, 6)),
    ("row_lstm", {"layers": 1}, (1, 6)),
    ("row_lstm", {"layers": 2, "memory": 2}, (6, 1)),
    ("attention", {"layers": 0}, (4, 5)),
    ("attention", {"layers": 1}, (6, 8)),
    ("attention", {"layers": 3}, (7, 8)),
    ("attention", {"layers": 1, "kernel_size": 5}, (7, 9)),
    ("attention", {"layers": 2, "heads": 1}, (5, 7)),
    ("attention", {"layers": 1, "heads": 4}, (4, 5)),
    ("attention", {"layers": 2, "conditioning": "input"}, (5, 6)),
    ("attention", {"layers": 1, "channels": 3, "heads": 3}, (4, 5)),
    ("attention", {"layers": 1}, (1, 6)),
    ("attention", {"layers": 1}, (6, 1)),
]
KINDS = [("row_lstm", {}), ("row_lstm", {"memory": 1}), ("attention", {"heads": 2}), ("attention", {"kernel_size": 5})]


def trunk(stacks, size, context=True, **options):
    """A network in float64 with random weights, and context maps for it."""
    given = {"image_channels": 1, "parameters": 1, "layers": 1, "channels": 4, "image_height": size[0], **options}
    network = make_trunk(stacks, **given, context_channels=2 if context else 0).double()
    for p in network.parameters():
        p.data.mul_(2)
    return network, torch.randn(1, 2 if context else 0, *size, dtype=torch.float64)


def window(mask, height, width):
    """The declared mask around every pixel, clipped at the border: bool [H, W, H, W]."""
    rows, columns = mask.shape
    i, j, k, m = torch.meshgrid(*map(torch.arange, (height, width, height, width)), indexing="ij")
    a, b = k - i + rows - 1, m - j + columns // 2
    inside = (a >= 0) & (a < rows) & (b >= 0) & (b < columns)
    return inside & mask[a.clamp(0, rows - 1), b.clamp(0, columns - 1)]


@pytest.mark.parametrize(("stacks", "options", "size"), CONFIGURATIONS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_jacobian_is_nonzero_exactly_on_the_declared_window(stacks, options, size, training, given):
    network, context = trunk(stacks, size, given, **options)
    network.train(training)
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    seen = jacobian(lambda x: network(x, context if given else None)[0, 0, 0], x, vectorize=True)[:, :, 0, 0] != 0
    expected = window(network.receptive_field.mask, *size)
    assert torch.equal(seen, expected)
    assert expected.any() or size == (1, 1)


@pytest.mark.parametrize(("stacks", "options"), KINDS)
@pytest.mark.parametrize("weight_norm", [False, True])
def test_channels_see_the_earlier_channels_of_their_own_pixel(stacks, options, weight_norm):
    network, context = trunk(stacks, (4, 5), image_channels=3, parameters=2, **options)
    if weight_norm:
        apply_weight_norm(network)
        batch = torch.rand(4, 3, 4, 5, dtype=torch.float64)
        data_dependent_init(network, lambda: network(batch, context.expand(4, -1, -1, -1)))
    x = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    full = jacobian(lambda x: network(x, context)[0], x, vectorize=True)[:, :, :, :, 0] != 0
    around = window(network.receptive_field.mask, 4, 5)
    own = torch.eye(20, dtype=torch.bool).view(4, 5, 4, 5)
    for channel in range(3):
        for other in range(3):
            expected = around | own if other < channel else around
            for parameter in range(2):
                assert torch.equal(full[channel, parameter, :, :, other], expected)


@pytest.mark.parametrize(("stacks", "options"), KINDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [False, True])
@torch.no_grad()
def test_perturbing_one_subpixel_changes_later_ones_only(stacks, options, channels, given):
    height, width = 4, 3
    network, context = trunk(stacks, (height, width), given, image_channels=channels, **options)
    x = torch.randint(0, 2, (1, channels, height, width)).double()
    before = network(x, context)[0].movedim(0, -1).flatten()  # raster order, channels innermost
    for site in range(channels * height * width):
        i, j, c = site // (width * channels), site // channels % width, site % channels
        y = x.clone()
        y[0, c, i, j] = 1 - y[0, c, i, j]
        changed = (network(y, context)[0].movedim(0, -1).flatten() != before).view(height, width, -1)
        assert not changed.flatten()[: site + 1].any()
        expected = window(network.receptive_field.mask, height, width)[:, :, i, j][..., None].repeat(1, 1, channels)
        expected[i, j, c + 1 :] = True
        assert torch.equal(changed, expected)


@pytest.mark.parametrize(("stacks", "options"), KINDS)
@pytest.mark.parametrize("conditioning", ["bias", "input"])
def test_the_context_is_not_masked(stacks, options, conditioning):
    """Pixel (0, 0) sees its own context, and that right of it and below it where a kernel of the context reaches."""
    network, context = trunk(stacks, (4, 4), conditioning=conditioning, **options)
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    seen = jacobian(lambda c: network(x, c)[0, 0, 0, 0, 0], context)[0] != 0
    reach = options.get("kernel_size", 3) // 2 if conditioning == "input" else 0
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[: reach + 1, : reach + 1] = True
    assert torch.equal(seen, expected.expand(2, -1, -1))


@pytest.mark.parametrize(("stacks", "options"), KINDS)
def test_every_layer_takes_the_context_as_a_bias(stacks, options):
    network, context = trunk(stacks, (4, 4), layers=2, **options)
    enter = [m for name, m in network.named_modules() if name.endswith("context")]
    assert len(enter) == (5 if stacks == "attention" else 3)
    x, other = torch.rand(1, 1, 4, 4, dtype=torch.float64), torch.randn_like(context)
    for kept in enter:  # any one of them alone lets it through
        weights = [m.weight.detach().clone() for m in enter]
        with torch.no_grad():
            for m in enter:
                m.weight.mul_(m is kept)
            assert (network(x, context) != network(x, other)).all()
            for m, weight in zip(enter, weights, strict=True):
                m.weight.copy_(weight)


@pytest.mark.parametrize(("stacks", "options"), KINDS)
@pytest.mark.parametrize("conditioning", ["bias", "input"])
@torch.no_grad()
def test_binary_images_sum_to_one(all_images, stacks, options, conditioning):
    network, context = trunk(stacks, (3, 3), conditioning=conditioning, **options)
    p = Autoregressive(network, Bernoulli(), 3 * context.expand(512, -1, -1, -1), (1, 3, 3))
    mass = p.log_prob(all_images((1, 3, 3))).exp()
    assert mass.std() > 0.1 * mass.mean()
    torch.testing.assert_close(mass.sum().item(), 1.0, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("stacks", "options"), KINDS)
@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(3)], ids=["bernoulli", "categorical"])
@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 4, 5)])
def test_wavefront_and_raster_sample_the_same_pixels(stacks, options, likelihood, shape):
    given = {"image_channels": shape[0], "parameters": likelihood.parameters_per_value, "layers": 2, **options}
    network, _ = trunk(stacks, shape[1:], **given)
    network.head.output.weight.data.mul_(5)
    p = Autoregressive(network, likelihood, torch.randn(8, 2, *shape[1:], dtype=torch.float64), shape)
    u = torch.rand(8, *shape, dtype=torch.float64)
    assert p.schedule().slope == 1 + given.get("kernel_size", 3) // 2
    x = p.sample(uniforms=u)
    assert torch.equal(x, p.sample(uniforms=u, method="raster"))
    assert (x[1:] != x[:1]).any()


@pytest.mark.parametrize(("stacks", "options"), KINDS)
@pytest.mark.parametrize("weight_norm", [False, True])
def test_every_parameter_is_learned(stacks, options, weight_norm):
    network, _ = trunk(stacks, (6, 6), layers=2, image_channels=3, **options)
    if weight_norm:
        apply_weight_norm(network)
    network(torch.rand(3, 3, 6, 6).double(), torch.randn(3, 2, 6, 6).double()).square().sum().backward()
    assert all((p.grad != 0).any() for p in network.parameters())


@pytest.mark.parametrize(
    ("stacks", "kind"),
    [
        ("two", GatedPixelCNN),
        ("slanted", GatedPixelCNN),
        ("plain", PlainPixelCNN),
        ("row_lstm", PixelRNN),
        ("attention", LocalTransformer),
    ],
)
def test_one_call_makes_all_kinds(stacks, kind):
    options = {"image_channels": 3, "parameters": 2, "layers": 2, "kernel_size": 5, "channels": 8, "image_height": 6}
    options |= {"context_channels": 2, "conditioning": "bias", "hidden": 7}
    network = make_trunk(stacks, pointwise_blocks=0, tied=False, memory=None, heads=None, **options)
    assert type(network) is kind
    assert network(torch.rand(2, 3, 6, 5), torch.rand(2, 2, 6, 5)).shape == (2, 3, 2, 6, 5)
    assert f"(receptive_field): {network.receptive_field}" in repr(network)
    assert network.receptive_field.slope == {"two": 7, "slanted": 2}.get(stacks, 3)


def test_options_reach_the_trunk():
    options = {"image_channels": 1, "parameters": 1, "layers": 1, "channels": 6}
    assert make_trunk("row_lstm", memory=4, **options).layers[0].memory == 4
    assert make_trunk("attention", heads=3, **options).layers[0].attention.heads == 3
    assert make_trunk("attention", **options | {"channels": 8}).layers[0].attention.heads == 4
    assert len(make_trunk("plain", pointwise_blocks=2, **options).pointwise) == 2


@pytest.mark.parametrize(
    ("stacks", "options", "message"),
    [
        ("two", {"memory": 3}, "memory belongs to the row LSTM: set stacks='row_lstm'; got 'two'"),
        ("attention", {"memory": 0}, "memory belongs to the row LSTM"),
        ("plain", {"heads": 2}, "heads belong to attention: set stacks='attention'; got 'plain'"),
        ("row_lstm", {"heads": 2, "memory": 1}, "heads belong to attention"),
        ("row_lstm", {"tied": True, "memory": 1}, "the plain stack"),
        ("attention", {"pointwise_blocks": 1}, "the plain stack"),
        ("row_lstm", {"head": 2, "memory": 1}, "no option 'head'; it has .*heads"),
        ("two", {"slanted": True}, "no option 'slanted'"),
        ("lstm", {}, "'row_lstm' .* or 'attention' .*; got 'lstm'"),
        ("row_lstm", {}, "image_height"),
        ("row_lstm", {"memory": 0}, "memory of a row LSTM must be 1 or more; got 0"),
        ("row_lstm", {"memory": 1.5}, "memory of a row LSTM"),
        ("row_lstm", {"image_height": 0}, "image_height"),
        ("row_lstm", {"memory": 1, "kernel_size": 4}, "kernel_size"),
        ("row_lstm", {"memory": 1, "layers": -1}, "decoder_layers"),
        ("row_lstm", {"memory": 1, "conditioning": "film"}, "conditioning"),
        ("attention", {"heads": 3}, "heads must divide the channels of attention; got 3 heads and 8 channels"),
        ("attention", {"heads": 0}, "heads must be 1 or more; got 0"),
        ("attention", {"heads": 1, "channels": 2}, "3 channels or more"),
        ("attention", {"kernel_size": 1}, "kernel_size"),
        ("attention", {"layers": -1}, "decoder_layers"),
        ("attention", {"channels": 0}, "channel"),
        ("attention", {"conditioning": "film"}, "conditioning"),
    ],
)
def test_impossible_options_get_one_clear_line(stacks, options, message):
    with pytest.raises(VlaeError, match=message) as error:
        make_trunk(stacks, **{"image_channels": 1, "parameters": 1, "layers": 1, "channels": 8, **options})
    assert "\n" not in str(error.value)
