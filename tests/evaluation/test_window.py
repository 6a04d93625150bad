"""The measured window equals the declared one, of every kind of decoder; planted leaks and lies are found."""

import pytest
import torch

from vlae import VlaeError
from vlae.evaluation.window import declared_window, measure_window
from vlae.models import ConditionalVAE, PixelCNN
from vlae.nn.receptive import ReceptiveField

KINDS = [
    {"stacks": "two"},
    {"stacks": "slanted"},
    {"stacks": "plain", "decoder_layers": 3},
    {"stacks": "plain", "tied": True, "pointwise_blocks": 1},
    {"stacks": "row_lstm"},
    {"stacks": "attention", "channels": 4, "trunk_options": {"heads": 2}},
    {"stacks": "two", "kernel_size": 5},
    {"stacks": "two", "conditioning": "input"},
    {"stacks": "two", "classes": 3},
    {"stacks": "two", "attributes": 2},
]


@pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_window_is_the_declared_one(tiny_vlae, options):
    model = tiny_vlae((1, 12, 13), **options)
    found = measure_window(model)
    assert found.agrees and not found.leaks and found.seen.size > 0
    field = model.decoder.receptive_field
    inside = {(i, j) for i, j in field.offsets if 0 <= found.pixel[0] + i < 12 and 0 <= found.pixel[1] + j < 13}
    assert found.seen.offsets == inside and found.cut is (inside != set(field.offsets))


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_colours_see_the_earlier_ones_of_their_own_pixel_which_is_no_leak(tiny_vlae, likelihood):
    options = {"levels": 4} if likelihood == "categorical" else {}
    model = tiny_vlae((3, 6, 7), likelihood=likelihood, likelihood_options=options)
    assert measure_window(model).agrees


def test_a_model_without_z_is_measured_too():
    model = PixelCNN((1, 8, 9), decoder_layers=2, channels=4)
    before = [parameter.clone() for parameter in model.parameters()]
    found = measure_window(model)
    assert found.agrees and found.declared == model.decoder.receptive_field and not found.cut
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))  # and left as it was
    assert next(model.parameters()).dtype == torch.float32


def test_a_window_that_the_image_cuts_is_compared_inside_it(tiny_vlae):
    found = measure_window(tiny_vlae((1, 4, 3), decoder_layers=2))
    assert found.cut and found.agrees


def test_a_lie_about_the_window_is_found():
    model = PixelCNN((1, 9, 9), decoder_layers=1, channels=4)
    true = model.decoder.receptive_field

    class Liar(type(model.decoder)):
        receptive_field = ReceptiveField.from_offsets(true.offsets - {(-1, 0)})

    model.decoder.__class__ = Liar
    found = measure_window(model)
    assert not found.agrees and found.seen == true and found.seen.offsets - found.declared.offsets == {(-1, 0)}


@pytest.mark.parametrize(("shift", "leak"), [((0, 0), (0, 0)), ((0, -1), (0, 1)), ((-1, 0), (1, 0))])
def test_a_leak_is_found(shift, leak):
    model = PixelCNN((1, 7, 7), decoder_layers=0, channels=4)

    class Leaking(type(model.decoder)):
        def forward(self, x, context=None):
            return super().forward(x, context) + x.roll(shift, (2, 3))[:, :, None]

    model.decoder.__class__ = Leaking
    found = measure_window(model)
    assert not found.agrees and found.leaks == (leak,) and found.seen == found.declared


def test_a_later_colour_of_the_own_pixel_is_a_leak():
    model = PixelCNN((3, 7, 7), decoder_layers=0, channels=6)
    assert measure_window(model).agrees

    class Leaking(type(model.decoder)):
        def forward(self, x, context=None):
            return super().forward(x, context) + x[:, [2, 2, 2]][:, :, None]

    model.decoder.__class__ = Leaking
    assert measure_window(model).leaks == ((0, 0),)


def test_factorised_decoders_have_no_window(tiny_vae):
    for model in (tiny_vae(), ConditionalVAE((1, 5, 4), classes=2, architecture="mlp")):
        with pytest.raises(VlaeError, match="factorised"):
            declared_window(model)
