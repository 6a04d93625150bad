"""Dropout of whole maps: its law, where it acts, and that nothing but training ever sees it."""

import pytest
import torch

from vlae import VLAE, VlaeError
from vlae.models import PixelCNN
from vlae.nn.dropout import MapDropout, apply_dropout
from vlae.nn.pixelcnn import GatedLayer
from vlae.training.speed import compile_networks

SMALL = {"latent_dim": 3, "encoder_widths": [4], "encoder_hidden": 8, "channels": 4, "flow_hidden": (8,)}
TRUNKS = [
    {"stacks": "two"},
    {"stacks": "slanted"},
    {"stacks": "plain", "pointwise_blocks": 1},  # one place for all of its masked layers, one of the pointwise block
    {"stacks": "row_lstm", "trunk_options": {"memory": 1}},
    {"stacks": "attention", "trunk_options": {"heads": 2}},  # attention and pointwise network, in both blocks
]


def vlae(seed=0, **options):
    torch.manual_seed(seed)
    return VLAE((1, 6, 5), **{"decoder_layers": 2, **SMALL, **options})


def images(count=5):
    return torch.randint(0, 2, (count, 1, 6, 5), generator=torch.Generator().manual_seed(1)).float()


def test_whole_maps_are_zero_or_scaled_so_that_the_mean_stays():
    torch.manual_seed(0)
    x = torch.rand(200, 50, 3, 2) + 1
    ratio = MapDropout(0.3)(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    dropped = ratio[:, :, 0, 0] == 0
    torch.testing.assert_close(ratio[:, :, 0, 0][~dropped], torch.full((int((~dropped).sum()),), 1 / 0.7))
    # Of 10,000 maps the share is within five standard deviations, 5 x sqrt(0.3 x 0.7 / 10000).
    assert abs(dropped.double().mean() - 0.3) < 0.023
    # Every map of every image is drawn for itself: the variances over images and over maps are those of a coin.
    for dim in (0, 1):
        means = dropped.double().mean(dim)
        expected = 0.3 * 0.7 / dropped.shape[dim]
        assert 0.6 * expected < means.var() < 1.6 * expected


def test_it_acts_in_training_alone_and_only_with_gradients():
    x, dropout = torch.rand(3, 4, 2, 2) + 1, MapDropout(0.5)
    assert (dropout(x) == 0).any()
    with torch.no_grad():
        assert torch.equal(dropout(x), x)
    assert torch.equal(dropout.eval()(x), x)


def test_bfloat16_has_the_rate_that_was_asked_for():
    """As a share of bfloat16's own uniforms, multiples of 1/256, 0.001 would be 0.004."""
    torch.manual_seed(0)
    dropped = MapDropout(0.001)(torch.ones(1000, 500, 1, 1, dtype=torch.bfloat16)) == 0
    assert abs(dropped.double().mean() - 0.001) < 5 * (0.001 / 500_000) ** 0.5


@pytest.mark.parametrize("options", TRUNKS, ids=lambda options: options["stacks"])
def test_a_vlae_drops_in_every_residual_branch_and_is_otherwise_the_same(options):
    plain, dropping = vlae(**options).train(), vlae(dropout=0.5, **options).train()
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    encoder, features, pixels = (
        sum(isinstance(module, MapDropout) for module in network.modules()) for network in dropping.networks()
    )
    # A block that halves, and one that doubles, per encoder width; the trunk's branches by its kind.
    assert (encoder, features, pixels) == (1, 1, 4 if options["stacks"] == "attention" else 2)
    x = images()

    def bound(model):
        return model.elbo(x, generator=torch.Generator().manual_seed(2)).elbo

    with torch.no_grad():
        assert torch.equal(bound(dropping), bound(plain))
    torch.manual_seed(3)
    first = bound(dropping)
    assert not torch.equal(first, bound(dropping))
    torch.manual_seed(3)
    assert torch.equal(first, bound(dropping))
    assert torch.equal(bound(dropping.eval()), bound(plain))


def test_evaluation_sampling_and_coding_do_not_see_it_in_training_mode():
    plain, dropping = vlae().train(), vlae(dropout=0.5).train()
    x = images()
    for use in (
        lambda m: m.log_likelihood(x, 3, generator=torch.Generator().manual_seed(0)),
        lambda m: m.log_likelihood(x, 200, generator=torch.Generator().manual_seed(0)),
        lambda m: m.sample(4, generator=torch.Generator().manual_seed(0)),
        lambda m: m.reconstruct(x),
    ):
        assert torch.equal(use(dropping), use(plain))


def test_without_dropout_nothing_is_drawn():
    model, x = vlae(dropout=0.0).train(), images()
    torch.manual_seed(0)
    model.decoder.pixels(x, model.decoder(model.encode(x).mean))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)


def test_a_dropped_branch_adds_only_its_bias():
    torch.manual_seed(0)
    layer = apply_dropout(GatedLayer(4, 3, 0), 0.999999).train()
    v, h = torch.randn(2, 2, 4, 5, 5)
    torch.testing.assert_close(layer(v, h, None)[1], h + layer.output.bias[:, None, None])


def test_the_pixelcnn_has_it_too():
    model, x = PixelCNN((1, 6, 5), decoder_layers=2, channels=4, dropout=0.5).train(), images()
    assert not torch.equal(model.log_prob(x), model.log_prob(x))


def test_compiled_layers_draw_each_for_itself_and_go_back_through_what_they_drew():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = MapDropout(0.5), MapDropout(0.5)

        def forward(self, x):
            return self.first(x), self.second(x)

    two = Two()
    two.compile(dynamic=False)
    x = torch.ones(20, 30, 2, 2, requires_grad=True)

    def drawn():
        torch.manual_seed(0)
        return two(x)

    first, second = drawn()
    assert not torch.equal(first, second)
    for one, again in zip((first, second), drawn(), strict=True):
        assert torch.equal(one, again)
        assert 0.4 < (one == 0).double().mean() < 0.6
        (gradient,) = torch.autograd.grad(one.sum(), x, retain_graph=True)
        assert torch.equal(gradient, one.detach())  # x is one: both are the factors


def test_compiled_networks_have_no_seam():
    """A piece that the compiler can't see through would cost half of the speed."""
    model = vlae(dropout=0.5).train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_networks(model)
    (-model.elbo(images()).elbo.mean()).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(model.networks())
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(VlaeError, match=r"dropout is the share of maps .* from 0 to below 1; got"):
        vlae(dropout=rate)
    with pytest.raises(VlaeError, match="dropout is the share"):
        MapDropout(rate)
