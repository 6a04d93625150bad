import sys
from pathlib import Path

import pytest
import torch

from vlae import VLAE, VlaeError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import obvious

SMALL = {"latent_dim": 3, "channels": 4, "context_channels": 2, "encoder_widths": [4], "encoder_hidden": 8}


def scrambled(**options):
    """A model whose weights are all far from zero."""
    torch.manual_seed(0)
    model = VLAE((1, 6, 5), **{**SMALL, "flow_hidden": [8], **options})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 5, "decoder_layers": 2},
        {"flow_steps": 0},
        {"flow_affine": False, "flow_order": "same"},
        {"decoder_layers": 0},
    ],
)
def test_the_obvious_implementation_is_the_same_function(options):
    x = torch.bernoulli(torch.full((5, 1, 6, 5), 0.4))
    assert obvious.check_same(scrambled(**options), x) < 1e-9


def test_a_difference_is_noticed(monkeypatch):
    weights_of = obvious.weights_of

    def off(model, other):
        state = weights_of(model, other)
        state["input_left.bias"] = state["input_left.bias"] + 0.01
        return state

    monkeypatch.setattr(obvious, "weights_of", off)
    with pytest.raises(VlaeError, match="differs from ours"):
        obvious.check_same(scrambled(), torch.zeros(2, 1, 6, 5))


@pytest.mark.parametrize(
    "options", [{"stacks": "plain"}, {"weight_norm": True}, {"conditioning": "input"}, {"likelihood": "gaussian"}]
)
def test_what_it_is_not_written_for_is_refused(options):
    with pytest.raises(VlaeError, match="is written for"):
        obvious.check_same(VLAE((1, 6, 5), **SMALL, **options), torch.zeros(2, 1, 6, 5))


def test_items_come_as_batches_of_0_and_1():
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(4)[:, None, None, None].expand(8, 1, 2, 2)
    batch = next(obvious.item_batches(images, 4))
    assert batch.shape == (4, 1, 2, 2)
    assert set(batch.unique().tolist()) <= {0.0, 1.0}
