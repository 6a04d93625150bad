"""Encoders and decoders: any size, mirrors, and what they refuse."""

import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.models.decoders import ARCHITECTURES
from vlae.models.encoders import sizes_of
from vlae.nn import ResidualBlock

SHAPES = [(1, 8, 8), (3, 7, 5), (1, 1, 6), (2, 6, 1), (1, 2, 9), (1, 5, 13)]
WIDTHS = {"mlp": [[5], [5, 6], []], "conv": [[3], [3, 4]], "resnet": [[3], [3, 4]]}


@pytest.mark.parametrize(("name", "widths"), [(name, w) for name, options in WIDTHS.items() for w in options])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_size_goes_in_and_comes_out(name, widths, shape):
    if name != "mlp" and max(shape[1:]) < 2 ** (len(widths) - 1) + 1:
        pytest.skip("nothing left to halve")
    encoder, decoder, _ = ARCHITECTURES[name]
    code = encoder(shape, 7, widths=widths)(torch.rand(2, *shape))
    assert code.shape == (2, 7)
    assert decoder(7, shape, widths=widths)(code).shape == (2, *shape)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1)])
def test_a_single_pixel(shape):
    x = torch.ones(4, *shape)
    assert vlae.VAE(shape, latent_dim=2, architecture="mlp", widths=[4]).elbo(x).elbo.shape == (4,)
    with pytest.raises(VlaeError, match="stride-2 stages are too many for 1x1 images"):
        vlae.VAE(shape, latent_dim=2, architecture="conv", widths=[4])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stacks", ["two", "plain"])
def test_vlae_of_any_size(shape, stacks, tiny_vlae, binary):
    model, x = tiny_vlae(shape, stacks=stacks), binary(2, shape)
    assert model.elbo(x).elbo.isfinite().all()
    assert model.sample(2).shape == model.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("options", [{"widths": [5]}, {"widths": [3, 4], "architecture": "conv"}])
@pytest.mark.parametrize("levels", [2, 5])
def test_colours_and_levels_do_not_mix(options, levels, tiny_vae):
    options = {**options, "likelihood": "categorical", "likelihood_options": {"levels": levels}}
    model = tiny_vae((3, 7, 5), **options)
    z = torch.randn(2, 3).double()
    logits = model.decoder(z)  # [B, C * levels, H, W]
    x = torch.randint(0, levels, (2, 3, 7, 5)).double() / (levels - 1)
    total = torch.zeros(2).double()
    for c in range(3):
        own = logits[:, c * levels : (c + 1) * levels].log_softmax(1)
        total += own.gather(1, (x[:, c : c + 1] * (levels - 1)).round().long()).sum((1, 2, 3))
    torch.testing.assert_close(model.decode(z).log_prob(x), total)


@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_every_parameter_of_a_network_gets_a_gradient(name):
    first, second, _ = ARCHITECTURES[name]
    encoder, decoder = first((1, 9, 6), 4, widths=[3, 4]), second(4, (1, 9, 6), widths=[3, 4])
    decoder(encoder(torch.rand(8, 1, 9, 6))).square().sum().backward()
    for module in (encoder, decoder):
        for parameter_name, parameter in module.named_parameters():
            assert (parameter.grad != 0).any(), parameter_name


def test_blocks_of_a_network_do_not_share_weights():
    for *pair, _ in ARCHITECTURES.values():
        for kind, sizes in zip(pair, [((1, 9, 9), 4), (4, (1, 9, 9))], strict=True):
            names = dict(kind(*sizes, widths=[4, 4, 4]).named_parameters(remove_duplicate=False))
            assert len({p.data_ptr() for p in names.values()}) == len(names)


def test_sizes_are_halved_and_rounded_up():
    assert sizes_of((1, 28, 28), (1, 1, 1)) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert sizes_of((1, 1, 5), (1, 1)) == [(1, 5), (1, 3), (1, 2)]


@pytest.mark.parametrize(
    "options",
    [
        {"image_shape": (1, 8)},
        {"image_shape": (1, 0, 8)},
        {"image_shape": (1, 8, -8)},
        {"image_shape": (1.0, 8, 8)},
        {"image_shape": 8},
        {"latent_dim": 0},
        {"latent_dim": -3},
        {"latent_dim": 2.5},
        {"flow_steps": -1},
        {"flow_order": "random"},
        {"flow_order": "random", "flow_steps": 0},
        {"flow_steps": 1, "flow_hidden": (0,)},
        {"likelihood": "poisson"},
        {"likelihood_options": {"levels": 2}},
    ],
)
def test_what_no_model_can_be_is_refused_with_one_line(options):
    for kind in (vlae.VAE, vlae.VLAE):
        with pytest.raises(VlaeError) as caught:
            kind(**{"image_shape": (1, 8, 8), **options})
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "transformer"},
        {"architecture": "conv", "widths": [4] * 5},
        {"architecture": "conv", "widths": []},
        {"architecture": "resnet", "widths": [4, 0]},
        {"architecture": "mlp", "widths": [-1]},
        {"beta": "x"},
        {"beta": -1.0},
        {"beta": float("nan")},
        {"beta": None},
    ],
)
def test_what_no_vae_can_be_is_refused_with_one_line(options):
    with pytest.raises(VlaeError) as caught:
        vlae.VAE((1, 8, 8), **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 1},
        {"decoder_layers": -1},
        {"stacks": "three"},
        {"conditioning": "film"},
        {"channels": 0},
        {"context_channels": 0},
        {"encoder_hidden": 0},
        {"encoder_widths": (4,) * 5},
        {"encoder_widths": ()},
        {"encoder_widths": (4, -4)},
        {"tied": True},
        {"pointwise_blocks": 1},
        {"stacks": "plain", "pointwise_blocks": -1},
        {"stacks": "plain", "pointwise_blocks": 1, "decoder_layers": 0},
    ],
)
def test_what_no_vlae_can_be_is_refused_with_one_line(options):
    with pytest.raises(VlaeError) as caught:
        vlae.VLAE((1, 8, 8), **options)
    assert len(str(caught.value).splitlines()) == 1


def test_residual_networks_have_the_papers_blocks_and_are_mirrors():
    (first, second, _), halving, same = ARCHITECTURES["resnet"], (2, 2), (1, 1)
    encoder = first((1, 28, 28), 128, widths=(16, 32, 32), hidden=450)
    decoder = second(64, (4, 28, 28), widths=(16, 32, 32), hidden=450)
    blocks = [[m.first for m in net.modules() if isinstance(m, ResidualBlock)] for net in (encoder, decoder)]
    assert [(c.in_channels, c.out_channels, c.stride) for c in blocks[0]] == [
        (1, 16, halving),
        (16, 16, same),
        (16, 32, halving),
        (32, 32, same),
        (32, 32, halving),
    ]
    assert [(c.in_channels, c.out_channels, c.stride) for c in blocks[1]] == [
        (32, 32, halving),
        (32, 32, same),
        (32, 16, halving),
        (16, 16, same),
        (16, 16, halving),
    ]
    assert [(m.in_features, m.out_features) for m in encoder.head if isinstance(m, torch.nn.Linear)] == [
        (32 * 4 * 4, 450),
        (450, 128),
    ]


def test_normalisation_over_one_number_is_refused_with_one_line():
    model, x = vlae.VAE((1, 8, 8), latent_dim=2, widths=[4, 4, 4]), torch.zeros(1, 1, 8, 8)
    with pytest.raises(VlaeError, match="2 images or more") as caught:
        model.train().encode(x)
    assert len(str(caught.value).splitlines()) == 1
    model.encode(x.expand(2, -1, -1, -1))
    model.eval().encode(x)
    vlae.VAE((1, 8, 8), latent_dim=2, widths=[4, 4]).train().encode(x)  # of one image, but of 2x2 numbers
