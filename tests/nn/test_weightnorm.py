import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from vlae import PixelCNN
from vlae.nn import MaskedConv2d, apply_weight_norm, data_dependent_init
from vlae.nn.weightnorm import LAYERS


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Linear(5, 3), 0),
        (nn.Conv2d(2, 3, 3), 0),
        (nn.ConvTranspose2d(2, 3, 3), 1),
        (MaskedConv2d(2, 3, 3, "A"), 0),
    ],
)
def test_weights_are_unchanged_and_have_one_gain_per_output_map(layer, dim):
    before = layer.weight.detach().clone()
    apply_weight_norm(layer)
    torch.testing.assert_close(layer.weight, before)
    gain = layer.parametrizations.weight.original0
    assert gain.numel() == 3
    norms = before.transpose(0, dim).flatten(1).norm(dim=1)
    torch.testing.assert_close(gain.flatten(), norms)


def test_masked_weights_stay_zero_in_training_under_weight_norm():
    layer = apply_weight_norm(MaskedConv2d(1, 2, 3, "A"))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(2, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    assert (layer.weight[:, :, ~layer.mask.bool()] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_initialisation_standardises_each_layer_in_turn(scale):
    module = apply_weight_norm(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ELU(), nn.ConvTranspose2d(4, 3, 3), nn.ELU(), nn.Flatten(), nn.Linear(75, 6)
        )
    ).double()
    x = 3 + 2 * torch.randn(32, 1, 5, 5, dtype=torch.float64)
    assert data_dependent_init(module, lambda: module(x), scale) == 3
    for layer in module:
        x = layer(x)
        if isinstance(layer, LAYERS):
            others = [d for d in range(x.ndim) if d != 1]
            torch.testing.assert_close(x.mean(others), torch.zeros(x.shape[1]).double(), atol=1e-10, rtol=0)
            torch.testing.assert_close(x.std(others), torch.full((x.shape[1],), scale).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("stacks", "channels"), [("two", 1), ("two", 3), ("plain", 1), ("plain", 3)])
@pytest.mark.parametrize("coded", [True, False], ids=["VLAE", "PixelCNN"])
def test_no_layer_of_a_model_is_left_out(tiny_vlae, binary, stacks, channels, coded):
    options = {"stacks": stacks, "decoder_layers": 2, "weight_norm": True}
    shape = (channels, 6, 5)
    model = tiny_vlae(shape, **options) if coded else PixelCNN(shape, channels=5, **options).double().eval()
    x, after = binary(64, (channels, 6, 5)), {}

    def note(name):
        return lambda layer, inputs, output: after.setdefault(name, output.detach())

    torch.manual_seed(1)
    model.initialise(x)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LAYERS)}
    normalised = {name: layer for name, layer in layers.items() if is_parametrized(layer, "weight")}
    wanted = {layer for network in model.networks() for layer in network.modules() if isinstance(layer, LAYERS)}
    assert set(normalised.values()) == wanted
    for name, layer in normalised.items():
        layer.register_forward_hook(note(name))
    torch.manual_seed(1)  # the noise of the pass that initialised
    model.elbo(x)
    assert after.keys() == normalised.keys()
    for name, output in after.items():
        dimension = 1 if output.ndim == 4 else output.ndim - 1
        others = [d for d in range(output.ndim) if d != dimension]
        spread, mean = output.std(others), output.mean(others)
        if name.endswith("own"):  # the first channel has none before it
            spread = spread[len(spread) // channels :]
        torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-9, rtol=0)
        if normalised[name].bias is not None:
            torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-9, rtol=0)


def test_a_layer_that_is_constant_on_the_batch_keeps_its_gain():
    layer = apply_weight_norm(nn.Linear(3, 2))
    gain = layer.parametrizations.weight.original0.clone()
    data_dependent_init(layer, lambda: layer(torch.zeros(4, 3)))
    assert torch.equal(layer.parametrizations.weight.original0, gain)
    torch.testing.assert_close(layer(torch.zeros(1, 3)), torch.zeros(1, 2))


def test_a_layer_used_twice_is_set_at_its_first_use():
    layer = apply_weight_norm(nn.Linear(4, 4))
    x = 1 + torch.randn(64, 4)
    assert data_dependent_init(layer, lambda: layer(layer(x))) == 1
    torch.testing.assert_close(layer(x).std(0), torch.ones(4))


def test_hooks_are_gone_afterwards_even_if_the_pass_fails():
    layer = apply_weight_norm(nn.Linear(4, 4))

    def fail():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        data_dependent_init(layer, fail)
    assert not layer._forward_hooks


def test_the_features_of_a_linear_layer_come_last():
    layer = apply_weight_norm(nn.Linear(4, 3))
    x = 1 + torch.randn(16, 5, 4)
    data_dependent_init(layer, lambda: layer(x))
    torch.testing.assert_close(layer(x).std((0, 1)), torch.ones(3))
