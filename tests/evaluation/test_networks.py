"""The standard networks against torch-fidelity's numbers and torchmetrics' LPIPS, with weights made by a formula."""

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from vlae.evaluation.networks import LPIPS, Inception, resized


def waves(shape, frequency, phase=0.0):
    """Numbers in [-1, 1] that look random and are the same on any machine."""
    count = torch.Size(shape).numel()
    i = torch.arange(count, dtype=torch.float64) % 10007
    return torch.cos(frequency * i.square() + phase).reshape(shape)


def fill(module):
    """The module with weights by a formula, at a scale that keeps activations near 1."""
    state = module.state_dict()
    for k, name in enumerate(sorted(state)):
        old = state[name]
        if name.endswith("num_batches_tracked"):
            continue
        wave = waves(old.shape, 0.7, k)
        if old.ndim > 1:
            new = wave * 2 / old[0].numel() ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            new = 1 + 0.1 * wave
        else:
            new = 0.1 * wave
        state[name] = new.to(old.dtype)
    module.load_state_dict(state)
    return module.eval()


def test_inception_is_torch_fidelitys():
    x = (waves((2, 3, 20, 33), 0.3) * 127.5 + 127.5).round().to(torch.uint8)
    with torch.no_grad():
        features, logits = fill(Inception())(x)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    # FeatureExtractorInceptionV3 of torch-fidelity 0.4.0, "2048" and "logits_unbiased", with the same weights and x.
    expected = [
        [0.146214, 0.0, 1.170667, 0.002135, 1.947675, 2.482014, 0.209805, 0.003524],
        [0.163366, 0.0, 1.163987, 0.001635, 1.932812, 2.513753, 0.221007, 0.003216],
    ]
    torch.testing.assert_close(features[:, ::256], torch.tensor(expected), atol=2e-5, rtol=1e-4)
    expected = [
        [-1.112046, 1.083855, -2.318598, -1.751383, -1.170403, -1.989928, -1.472552, -1.481103],
        [-1.094083, 1.062883, -2.354164, -1.798298, -1.134445, -2.007964, -1.455218, -1.489525],
    ]
    torch.testing.assert_close(logits[:, ::126], torch.tensor(expected), atol=2e-5, rtol=1e-4)


def test_images_are_resized_as_tensorflow_1_did():
    x = torch.tensor([[0.0, 10.0], [20.0, 30.0]])[None, None]
    by_hand = [[0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30], [20, 25, 30, 30]]  # output i looks at input i / 2
    assert resized(x, 4)[0, 0].tolist() == by_hand
    large = torch.rand(2, 3, 6, 8)
    torch.testing.assert_close(resized(large, 2), large[..., ::3, ::4])  # no smoothing either
    assert torch.equal(resized(large[..., :6], 6), large[..., :6])


def alexnet_features():
    """AlexNet's convolutions as torchvision has them (Krizhevsky 2014)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


@pytest.mark.parametrize("shape", [(31, 31), (40, 64)])
def test_lpips_is_torchmetrics(shape, monkeypatch):
    alexnet = fill(alexnet_features())
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained: alexnet)
    reference = torchmetrics_lpips._LPIPS(net="alex", pretrained=True)  # its layers' weights are in the package
    mine = LPIPS()
    state = {f"features.{name}": value for name, value in alexnet.state_dict().items()}
    state |= {f"weights.{i}": layer.model[1].weight.flatten() for i, layer in enumerate(reference.lins)}
    mine.load_state_dict(state)
    x, y = torch.rand(2, 4, 3, *shape) * 2 - 1
    with torch.no_grad():
        found, expected = mine(x, y), reference(x, y).flatten()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert found.min() > 0.01 and found.std() > 1e-3
        assert mine(x, x).tolist() == [0.0] * 4


def test_the_least_image_of_lpips():
    network = fill(LPIPS())
    assert network(*torch.rand(2, 1, 3, LPIPS.SIDE, LPIPS.SIDE)).shape == (1,)
    with pytest.raises(RuntimeError, match="too small"):
        network(*torch.rand(2, 1, 3, LPIPS.SIDE - 1, LPIPS.SIDE))
