import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlae.nn import ResidualBlock, inference


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-7)])
def test_elu_is_elu_up_to_a_rounding_of_1(dtype, tolerance):
    x = torch.cat(
        [torch.linspace(-40, 40, 4001), 10 ** torch.linspace(-30, 30, 100), -(10 ** torch.linspace(-30, 30, 99))]
    )
    x = x.to(dtype).view(1, 3, -1, 1400)
    before = x.clone()
    torch.testing.assert_close(inference.elu(x), F.elu(x), atol=tolerance, rtol=0)
    assert torch.equal(x, before)
    assert inference.elu(torch.tensor([torch.nan])).isnan()


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 4, 1, 1)])
@torch.no_grad()
def test_evaluation_is_the_module(shape):
    up = ResidualBlock.up(4, 3, (2 * shape[2], 2 * shape[3] - 1))
    network = nn.Sequential(
        ResidualBlock.same(4), nn.Sequential(up, nn.ELU()), nn.ELU(alpha=0.5), nn.Conv2d(3, 2, 3), nn.Flatten()
    )
    network = (network if shape[2] > 1 else network[:1]).double()
    x = torch.randn(shape, dtype=torch.float64)
    before = x.clone()
    torch.testing.assert_close(inference.evaluate(network, x), network(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(inference.evaluate(network, inference.channels_last(x)), network(x), atol=1e-12, rtol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_are_as_many_per_thread(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    sizes = []

    def function(x):
        sizes.append(len(x))
        return 2 * x

    x = torch.arange(7.0)
    assert torch.equal(inference.in_pieces(function, x, 2), 2 * x)
    assert sizes == {1: [2, 2, 2, 1], 2: [4, 3]}[threads]
    assert inference.in_pieces(function, x[:0], 2).shape == (0,)


@torch.no_grad()
def test_where_it_applies():
    x = torch.zeros(1)
    assert inference.applies(x)
    with torch.enable_grad():
        assert not inference.applies(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not inference.applies(x)
    assert not inference.applies(x.to("meta"))
