import math

import numpy as np
import pytest
import torch

from vlae.errors import VlaeError
from vlae.figures import rate_per_dimension, receptive_field, training_curves

METRICS = {
    "train/distortion": [(0, 100.0), (1, 90.0)],
    "validation/distortion": [(0, 98.0), (1, 91.0)],
    "train/rate": [(0, 1.0), (1, 8.0)],
    "val/rate": [(0, 1.5), (1, 7.0)],
    "train_elbo": [(0, -101.0), (1, -98.0)],
    "val_elbo": [(1, -98.0), (0, -99.5)],
    "learning_rate": [(0, 1e-3)],
}


def test_training_curves_have_a_panel_per_term_with_units():
    figure = training_curves(METRICS, title="a run")
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "distortion [nats per image]",
        "rate [nats per image]",
        "−ELBO [nats per image]",
    ]
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["train", "validation"]
        assert len({line.get_linestyle() for line in axes.lines}) == 2  # read apart without colour


def test_elbo_is_drawn_as_a_cost_in_order_of_epochs():
    line = training_curves(METRICS).axes[2].lines[1]
    assert line.get_xydata().tolist() == [[0, 99.5], [1, 98]]


def test_rate_has_a_second_axis_in_bits():
    figure = training_curves(METRICS)
    figure.canvas.draw()
    rate = figure.axes[1]
    (bits,) = rate.child_axes
    assert "bits" in bits.get_ylabel()
    np.testing.assert_allclose(np.array(bits.get_ylim()) * math.log(2), rate.get_ylim())


def test_a_run_that_diverged_is_drawn_up_to_there():
    figure = training_curves({"train/rate": [(0, 1.0), (1, math.nan), (2, math.inf)]})
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0, 1]]


@pytest.mark.parametrize("metrics", [{}, {"lr": [(0, 1.0)]}, {"train/rate": [(0, math.nan)]}])
def test_nothing_to_draw_is_an_error(metrics):
    with pytest.raises(VlaeError, match="no curve"):
        training_curves(metrics)


def test_receptive_field_draws_the_mask_and_the_pixel_itself():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    axes = receptive_field(mask).axes[0]
    assert axes.collections[0].get_array().tolist() == [[1, 1, 0], [1, 2, 0]]
    assert "3 pixels" in axes.get_title()
    assert axes.get_ylim() == (0.5, -1.5)
    assert [t.get_position() for t in axes.texts] == [(0, 0)]


def test_receptive_field_numbers_the_wavefront():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    axes = receptive_field(mask, slope=2).axes[0]
    steps = {t.get_position(): int(t.get_text()) for t in axes.texts}
    assert steps == {(j, i): j + 2 * i for i in (-1, 0) for j in (-1, 0, 1)}
    offsets = [(int(j) - 1, int(i) - 1) for i, j in mask.nonzero()]
    assert all(steps[o] < 0 for o in offsets)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 4, dtype=torch.bool),
        torch.ones(3, dtype=torch.bool),
        torch.ones(2, 3),
        torch.ones(0, 3, dtype=torch.bool),
    ],
)
def test_receptive_field_refuses_other_masks(mask):
    with pytest.raises(VlaeError, match="columns odd"):
        receptive_field(mask)


def test_rate_per_dimension_sorts_names_and_sums():
    axes = rate_per_dimension(torch.tensor([0.5, 2.0, -0.25, 1.0])).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [2.0, 1.0, 0.5, -0.25]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "0", "2"]
    assert "3.25 bits = 2.25 nats" in axes.get_title()
    assert "bits per image" in axes.get_ylabel()


@pytest.mark.parametrize(
    "bits", [torch.zeros(2, 2), torch.zeros(0), torch.tensor([math.nan]), torch.tensor([math.inf])]
)
def test_rate_per_dimension_refuses_bad_bits(bits):
    with pytest.raises(VlaeError, match="bits has"):
        rate_per_dimension(bits)


def test_many_dimensions_still_make_a_picture_of_modest_width():
    figure = rate_per_dimension(torch.rand(4096))
    assert figure.get_figwidth() <= 10
    assert len(figure.axes[0].patches) == 4096


def test_a_measured_window_is_drawn_beside_and_differences_are_crossed():
    declared = torch.tensor([[True, True, True], [True, False, False]])
    measured = torch.tensor([[False] * 5, [False, True, True, False, True], [True, True, False, False, False]])
    figure = receptive_field(declared, measured=measured)
    first, second = figure.axes
    own = [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 2, 0, 0]]  # enlarged to the other's window
    assert first.collections[0].get_array().tolist() == own
    assert second.collections[0].get_array().tolist() == [[0] * 5, [0, 1, 1, 0, 1], [1, 1, 2, 0, 0]]
    crosses = {(int(x), int(y)) for line in second.lines for x, y in line.get_xydata()}
    assert crosses == {(1, -1), (2, -1), (-2, 0)} and not first.lines
    assert "4 pixels" in first.get_title() and "5 pixels" in second.get_title()
    assert not receptive_field(declared, measured=declared).axes[1].lines
