"""The receptive field: the Jacobian of every logit against the declared window, and the window against the promise."""

import pytest
import torch
from torch.autograd.functional import jacobian

from vlae import VlaeError
from vlae.nn import GatedPixelCNN, PlainPixelCNN

CONFIGURATIONS = [
    ({"stacks": "two", "decoder_layers": 0}, (4, 5)),
    ({"stacks": "two", "decoder_layers": 1}, (6, 8)),
    ({"stacks": "two", "decoder_layers": 3}, (7, 6)),
    ({"stacks": "two", "decoder_layers": 1, "kernel_size": 5}, (7, 5)),
    ({"stacks": "two", "decoder_layers": 2, "conditioning": "input"}, (5, 8)),
    ({"stacks": "slanted", "decoder_layers": 0}, (5, 7)),
    ({"stacks": "slanted", "decoder_layers": 1}, (6, 8)),
    ({"stacks": "slanted", "decoder_layers": 3}, (7, 9)),
    ({"stacks": "slanted", "decoder_layers": 0, "kernel_size": 5}, (5, 9)),
    ({"stacks": "slanted", "decoder_layers": 1, "kernel_size": 5}, (6, 11)),
    ({"stacks": "slanted", "decoder_layers": 2, "conditioning": "input"}, (5, 8)),
    ({"stacks": "slanted", "decoder_layers": 1, "weight_norm": True}, (5, 6)),
    ({"stacks": "slanted", "decoder_layers": 1}, (1, 6)),
    ({"stacks": "slanted", "decoder_layers": 1}, (6, 1)),
    ({"stacks": "plain", "decoder_layers": 0}, (4, 5)),
    ({"stacks": "plain", "decoder_layers": 2}, (5, 8)),
    ({"stacks": "plain", "decoder_layers": 5}, (8, 7)),
    ({"stacks": "plain", "decoder_layers": 1, "kernel_size": 5}, (6, 7)),
    ({"stacks": "plain", "decoder_layers": 3, "tied": True, "pointwise_blocks": 2}, (6, 7)),
    ({"stacks": "plain", "decoder_layers": 2, "conditioning": "input"}, (6, 5)),
    ({"stacks": "two", "decoder_layers": 1}, (1, 6)),
    ({"stacks": "two", "decoder_layers": 1}, (6, 1)),
    ({"stacks": "plain", "decoder_layers": 1, "weight_norm": True}, (5, 4)),
]


def window(mask, height, width):
    """The declared mask around every pixel, clipped at the border: bool [H, W, H, W]."""
    rows, columns = mask.shape
    seen = torch.zeros(height, width, height, width, dtype=torch.bool)
    for i in range(height):
        for j in range(width):
            for a in range(rows):
                for b in range(columns):
                    k, m = i - (rows - 1) + a, j - columns // 2 + b
                    if 0 <= k < height and 0 <= m < width:
                        seen[i, j, k, m] = mask[a, b]
    return seen


@pytest.mark.parametrize(("options", "size"), CONFIGURATIONS)
@pytest.mark.parametrize("training", [False, True])
def test_jacobian_is_nonzero_exactly_on_the_declared_window(tiny_vlae, options, size, training):
    model = tiny_vlae((1, *size), **options).train(training)
    context = model.decoder(torch.randn(1, 3, dtype=torch.float64)).detach()
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    seen = jacobian(lambda x: model.decoder.pixels(x, context)[0, 0, 0], x, vectorize=True)[:, :, 0, 0] != 0
    assert torch.equal(seen, window(model.decoder.receptive_field.mask, *size))


@pytest.mark.parametrize("stacks", ["two", "slanted", "plain"])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_channels_see_the_earlier_channels_of_their_own_pixel(tiny_vlae, stacks, weight_norm):
    options = {"likelihood": "categorical", "likelihood_options": {"levels": 3}, "weight_norm": weight_norm}
    model = tiny_vlae((3, 4, 5), stacks=stacks, **options)
    context = model.decoder(torch.randn(1, 3, dtype=torch.float64)).detach()
    x = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    full = jacobian(lambda x: model.decoder.pixels(x, context)[0], x, vectorize=True)[:, :, :, :, 0] != 0
    around = window(model.decoder.receptive_field.mask, 4, 5)
    own = torch.eye(20, dtype=torch.bool).view(4, 5, 4, 5)
    for channel in range(3):
        for other in range(3):
            expected = around | own if other < channel else around
            for parameter in range(3):
                assert torch.equal(full[channel, parameter, :, :, other], expected)


@pytest.mark.parametrize("stacks", ["two", "slanted", "plain"])
@pytest.mark.parametrize("channels", [1, 3])
def test_perturbing_one_subpixel_changes_later_ones_only(tiny_vlae, stacks, channels):
    height, width = 4, 3
    model = tiny_vlae((channels, height, width), stacks=stacks)
    with torch.no_grad():
        context = model.decoder(torch.randn(1, 3, dtype=torch.float64))
        x = torch.randint(0, 2, (1, channels, height, width)).double()
        before = model.decoder.pixels(x, context)[0].movedim(0, -1).flatten()  # raster order, channels innermost
        mask = model.decoder.receptive_field.mask
        for site in range(channels * height * width):
            i, j, c = site // (width * channels), site // channels % width, site % channels
            y = x.clone()
            y[0, c, i, j] = 1 - y[0, c, i, j]
            changed = (model.decoder.pixels(y, context)[0].movedim(0, -1).flatten() != before).view(height, width, -1)
            assert not changed.flatten()[: site + 1].any()
            expected = window(mask, height, width)[:, :, i, j][..., None].repeat(1, 1, channels)
            expected[i, j, c + 1 :] = True
            assert torch.equal(changed, expected)


@pytest.mark.parametrize("stacks", ["two", "slanted", "plain"])
@pytest.mark.parametrize("conditioning", ["bias", "input"])
def test_z_reaches_every_pixel(tiny_vlae, stacks, conditioning):
    model = tiny_vlae(stacks=stacks, conditioning=conditioning)
    x = torch.rand(1, 1, 5, 4, dtype=torch.float64)
    gradients = jacobian(lambda z: model.decoder.pixels(x, model.decoder(z))[0, 0, 0], torch.randn(1, 3).double())
    assert (gradients != 0).all()  # pixel (0, 0) too, which has nothing else to go by


@pytest.mark.parametrize("stacks", ["two", "slanted", "plain"])
def test_with_bias_conditioning_z_enters_every_layer(tiny_vlae, stacks):
    model = tiny_vlae(stacks=stacks, decoder_layers=2)
    with torch.no_grad():
        model.decoder.pixels.input_context.weight.zero_()
        x, z = torch.zeros(1, 1, 5, 4).double(), torch.randn(2, 1, 3).double()
        a, b = (model.decoder.pixels(x, model.decoder(each)) for each in z)
    assert (a != b).all()


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_two_stacks_have_no_blind_spot(layers, kernel_size):
    reach = (layers + 1) * (kernel_size // 2)
    mask = GatedPixelCNN(1, 1, layers, kernel_size, channels=2).receptive_field.mask
    assert mask.shape == (reach + 1, 2 * reach + 1)
    assert mask[:-1].all()
    assert mask[-1].tolist() == [True] * reach + [False] * (reach + 1)


@pytest.mark.parametrize("layers", [0, 1, 3, 6])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_window_of_the_slanted_stacks(layers, kernel_size):
    """a rows above: a contiguous range of columns, from the two stacks' left end or further left up to +a."""
    reach = (layers + 1) * (kernel_size // 2)
    two, slanted = (
        GatedPixelCNN(1, 1, layers, kernel_size, channels=1, slanted=leaning).receptive_field
        for leaning in (False, True)
    )
    above = {(-a, b) for a in range(1, reach + 1) for b in range(-2 * reach + a, a + 1)}
    assert slanted.offsets == above | {(0, -b) for b in range(1, reach + 1)}
    assert {(a, b) for a, b in two.offsets if b <= 0} <= slanted.offsets
    assert {(a, b) for a, b in slanted.offsets if b > 0} <= two.offsets
    assert (two.slope, slanted.slope) == (reach + 1, 2)
    if reach > 1:  # of one row above, both see three pixels
        assert two.offsets != slanted.offsets


def test_window_of_the_slanted_stacks_is_as_drawn():
    field = GatedPixelCNN(1, 1, layers=1, channels=2, slanted=True).receptive_field
    assert field.mask.int().tolist() == [
        [0, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("layers", [0, 1, 4])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_slanted_stacks_have_the_parameters_of_two(layers, kernel_size):
    two, slanted = (
        GatedPixelCNN(3, 2, layers, kernel_size, channels=4, context_channels=2, slanted=leaning)
        for leaning in (False, True)
    )
    shapes = [{name: p.shape for name, p in network.named_parameters()} for network in (two, slanted)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("options", [{"tied": True}, {"pointwise_blocks": 1}])
@pytest.mark.parametrize("stacks", ["two", "slanted"])
def test_options_of_the_plain_stack_are_refused_elsewhere(tiny_vlae, stacks, options):
    with pytest.raises(VlaeError, match="plain stack"):
        tiny_vlae(stacks=stacks, **options)


def test_unknown_stacks_are_refused(tiny_vlae):
    with pytest.raises(VlaeError, match="slanted"):
        tiny_vlae(stacks="three")


def test_blind_spot_of_six_plain_layers():
    field = PlainPixelCNN(1, 1, layers=5, kernel_size=3, channels=2).receptive_field
    expected = {(0, j) for j in range(-6, 0)} | {(-k, j) for k in range(1, 7) for j in range(-6, k + 1)}
    assert field.offsets == expected
    assert field.size == 69


@pytest.mark.parametrize("tied", [False, True])
def test_blocks_share_weights_only_where_they_are_tied(tied):
    network = PlainPixelCNN(1, 1, layers=4, channels=2, tied=tied)
    assert len({id(network.layer(i).weight) for i in range(4)}) == (1 if tied else 4)
    assert len(list(network.masked)) == (1 if tied else 4)


def test_gated_layers_do_not_share_weights():
    network = GatedPixelCNN(1, 1, layers=4, channels=2, context_channels=2)
    names = dict(network.named_parameters(remove_duplicate=False))
    assert len({p.data_ptr() for p in names.values()}) == len(names)
    assert not torch.equal(network.layers[0].vertical.weight, network.layers[1].vertical.weight)


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_every_pointwise_block_is_used(blocks, layers):
    network = PlainPixelCNN(1, 1, layers, channels=3, pointwise_blocks=blocks)
    network(torch.rand(2, 1, 4, 4)).square().sum().backward()
    assert all((p.grad != 0).any() for p in network.pointwise.parameters())


@pytest.mark.parametrize("kind", [GatedPixelCNN, PlainPixelCNN])
@pytest.mark.parametrize(
    "options",
    [
        {"layers": -1},
        {"kernel_size": 4},
        {"kernel_size": 1},
        {"channels": 0},
        {"conditioning": "film"},
    ],
)
def test_impossible_networks_are_refused(kind, options):
    with pytest.raises(VlaeError):
        kind(1, 1, **{"layers": 1, **options})


@pytest.mark.parametrize("options", [{"layers": 0, "pointwise_blocks": 1}, {"layers": 1, "pointwise_blocks": -1}])
def test_pointwise_blocks_without_a_place_are_refused(options):
    with pytest.raises(VlaeError, match="pointwise_blocks"):
        PlainPixelCNN(1, 1, **options)
