"""Plots of studies show the numbers that they are given."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from vlae import VlaeError
from vlae.figures.studies import Point, _round_step, bars, lines, rate_distortion


def rendered(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def points(*pairs, **options):
    return [Point(f"model {k}", y, x, **options) for k, (x, y) in enumerate(pairs)]


def test_lines_are_sorted_and_grouped():
    data = points((3, 5.0), (1, 7.0), (2, 6.0), group="on") + points((2, 1.0), (1, 2.0), group="off")
    figure = lines({"rate [nats]": data, "NLL": points((1, 80.0), (4, 70.0))}, "layers", "title")
    first, second = figure.axes
    drawn = {line.get_label(): line for line in first.get_lines()}
    assert first.get_ylabel() == "rate [nats]" and first.get_xlabel() == "layers" == second.get_xlabel()
    curves = [container.lines[0].get_xydata().tolist() for container in first.containers]
    assert curves == [[[1, 7], [2, 6], [3, 5]], [[1, 2], [2, 1]]]
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["on", "off"]
    assert second.get_legend() is None and drawn
    looks = {(c.lines[0].get_marker(), str(c.lines[0].get_linestyle())) for c in first.containers}
    assert len(looks) == 2  # told apart without colour
    assert rendered(figure).std() > 0


def test_lines_have_error_bars_and_published_stars():
    data = [Point("a", 80.0, 1, error=2.0, published=79.0), Point("b", 70.0, 4, error=1.0)]
    (axes,) = lines({"NLL": data}, "layers", log_x=True).axes
    (segments,) = axes.containers[0].lines[2]
    assert [part[:, 1].tolist() for part in segments.get_segments()] == [[78.0, 82.0], [69.0, 71.0]]
    (stars,) = [line for line in axes.get_lines() if line.get_label() == "published"]
    assert stars.get_xydata().tolist() == [[1, 79]]
    assert axes.get_xscale() == "log"
    assert axes.get_xticks().tolist() == [1, 4]


@pytest.mark.parametrize(
    ("data", "log"), [(points((0, 1.0)), True), (points((math.nan, 1.0)), False), (points((1, math.inf)), False)]
)
def test_lines_refuse_what_has_no_place(data, log):
    with pytest.raises(VlaeError, match="model 0"):
        lines({"rate": data}, "x", log_x=log)


def test_nothing_to_draw_is_said():
    for draw in (lambda: bars({}), lambda: bars({"rate": []}), lambda: rate_distortion([])):
        with pytest.raises(VlaeError, match="no points"):
            draw()


def test_bars_carry_their_numbers_and_published_ones():
    data = [Point("MLP", 90.0, error=1.5, published=0.0, text="90.00"), Point("CNN", 85.25)]
    figure = bars({"NLL": data, "rate": [Point("CNN", 3.0)]}, "title")
    nll, rate = figure.axes
    assert [patch.get_width() for patch in nll.patches] == [90.0, 85.25]
    assert [text.get_text().strip() for text in nll.texts] == ["90.00", "85.25"]
    assert [label.get_text() for label in nll.get_yticklabels()] == ["MLP", "CNN"]
    assert rate.patches[0].get_y() == pytest.approx(1 - 0.31)  # in the row of its name, though it is alone
    (stars,) = [line for line in nll.get_lines() if line.get_label() == "published"]
    assert stars.get_xydata().tolist() == [[0.0, 0]]  # zero is a number too
    rendered(figure)
    inside = nll.get_window_extent()
    for text in nll.texts:
        assert inside.x0 <= text.get_window_extent().x0 and text.get_window_extent().x1 <= inside.x1


def test_equal_elbo_lines_are_equal():
    data = [Point("a", 80.0, 5.0), Point("b", 70.0, 20.0, group="g"), Point("c", 60.0, 40.0, group="g")]
    (axes,) = rate_distortion(data).axes
    dashed = [line for line in axes.get_lines() if line.get_color() == "#999999"]
    assert len(dashed) >= 3
    totals = [{round(x + y, 9) for x, y in line.get_xydata()} for line in dashed]
    assert all(len(total) == 1 for total in totals)
    labels = [text.get_text() for text in axes.texts]
    assert set(labels) >= {"a", "b", "c"}
    values = {value for total in totals for value in total}
    written = [text for text in axes.texts if text.get_text().startswith("−ELBO")]
    assert written
    for text in written:
        x, y = text.xy
        assert x + y == pytest.approx(float(text.get_text().split()[1]))
        assert round(x + y, 9) in values
    assert "rate" in axes.get_xlabel() and "distortion" in axes.get_ylabel()


@pytest.mark.parametrize(("step", "round_one"), [(0.7, 1), (1.0, 1), (1.2, 2), (3, 5), (60, 100), (0.03, 0.05)])
def test_round_steps(step, round_one):
    assert _round_step(step) == pytest.approx(round_one)


def test_all_that_is_drawn_is_inside_and_close_numbers_are_points():
    data = [Point("a", 8.0, published=10.6), Point("b", 8.5), Point("c", 8.0, published=11.7)]
    near = [Point("a", 83.9, error=1.0, published=79.5), Point("b", 82.4, error=0.9)]
    figure = bars({"rate": data, "NLL": near})
    rate, nll = figure.axes
    assert rate.get_xlim()[0] == 0 and rate.get_xlim()[1] > 11.7 and len(rate.patches) == 3
    assert not nll.patches and 60 < nll.get_xlim()[0] < 79.5 and nll.get_xlim()[1] > 84.9


def test_names_of_neighbours_do_not_cover_each_other():
    near = [Point("PixelCNN", 76.85, 8.43), Point("PixelRNN (row LSTM)", 76.99, 9.81), Point("far", 69.3, 27.8)]
    figure = rate_distortion(near)
    rendered(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text() in {p.name for p in near}]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_one_point_in_the_rate_distortion_plane_sees_the_lines_fall():
    axes = rate_distortion([Point("a", 70.0, 10.0)]).axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert (left + right) / 2 == pytest.approx(10) and (bottom + top) / 2 == pytest.approx(70)
    assert right - left == pytest.approx(top - bottom) and right - left == pytest.approx(16)
