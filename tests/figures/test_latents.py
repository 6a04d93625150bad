"""Pictures of the code, judged by what is drawn: offsets, heights, colours and their lightness."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from vlae import VlaeError
from vlae.figures import aggregate_posterior, bits_heatmap, latent_scatter
from vlae.figures.latents import CLASSES


def lightness(colour):
    """L* of CIELAB, 0 (black) to 100 (white): what is left of a colour in grey."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = np.dot(linear, [0.2126, 0.7152, 0.0722])
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


def marks(figure):
    return figure.axes[0].collections


# -- scatter ----------------------------------------------------------------------------------------------------------


def test_every_code_is_drawn_in_its_class():
    points, labels = torch.randn(50, 2), torch.arange(50) % 3
    figure = latent_scatter(points, labels, ("z_4 (2.1 bits)", "z_0 (1.0 bits)"), "a title")
    assert [c.get_label() for c in marks(figure)] == ["0", "1", "2"]
    for label, collection in enumerate(marks(figure)):
        np.testing.assert_allclose(collection.get_offsets(), points[labels == label])
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z_4 (2.1 bits)", "z_0 (1.0 bits)")
    assert figure.get_suptitle() == "a title"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["17", "17", "16"]


def test_classes_differ_in_mark_and_in_lightness():
    figure = latent_scatter(torch.randn(10, 2), torch.arange(10))
    paths = [collection.get_paths()[0].vertices for collection in marks(figure)]
    for first, second in itertools.combinations(paths, 2):
        assert first.shape != second.shape or not np.allclose(first, second)
    shades = [lightness(collection.get_facecolor()[0][:3]) for collection in marks(figure)]
    assert all(b - a > 4 for a, b in itertools.pairwise(shades)), shades
    assert shades[-1] < 80  # still to be seen on white


def test_the_mark_of_a_class_is_its_number():
    first, second = (marks(latent_scatter(torch.randn(4, 2), torch.full((4,), k)))[0].get_paths()[0] for k in (3, 8))
    assert first.vertices.shape != second.vertices.shape
    again = marks(latent_scatter(torch.randn(7, 2), torch.tensor([1, 3, 3, 3, 3, 3, 3])))[1].get_paths()[0]
    np.testing.assert_allclose(first.vertices, again.vertices)


def test_without_labels_all_codes_look_alike():
    points = torch.randn(20, 2)
    figure = latent_scatter(points)
    (collection,) = marks(figure)
    np.testing.assert_allclose(collection.get_offsets(), points)
    assert not figure.legends and len(collection.get_facecolor()) == 1


def test_more_classes_than_a_legend_holds_are_still_numbered():
    figure = latent_scatter(torch.randn(60, 2), torch.arange(60) % 30)
    assert len(marks(figure)) == 30 and not figure.legends
    high = [
        np.ptp(marks(figure)[k].get_paths()[0].vertices[:, 1]) * math.sqrt(marks(figure)[k].get_sizes()[0])
        for k in (4, 14)
    ]
    assert high[0] == pytest.approx(high[1], rel=0.1)  # one digit is as high as two
    assert marks(figure)[13].get_facecolor()[0][:3] == pytest.approx(to_rgb(CLASSES[3]))


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        (torch.randn(5, 3), None),
        (torch.randn(5), None),
        (torch.empty(0, 2), None),
        (torch.full((5, 2), math.nan), None),
        (torch.randn(5, 2), torch.arange(4)),
        (torch.randn(5, 2), torch.rand(5)),
    ],
)
def test_scatter_refuses_what_is_no_plane(points, labels):
    with pytest.raises(VlaeError, match=r"points|labels"):
        latent_scatter(points, labels)


# -- aggregate posterior ----------------------------------------------------------------------------------------------


def test_marginals_have_a_panel_each_and_the_first_two_a_plane():
    codes, prior = torch.randn(400, 3), torch.randn(300, 3)
    figure = aggregate_posterior(codes, prior, ["a", "b", "c"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["a", "b", "c", "a"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["density"] * 3 + ["b"]
    of_prior, of_codes = figure.axes[3].collections
    np.testing.assert_allclose(of_codes.get_offsets(), codes[:300, :2])  # as many of the one as of the other
    np.testing.assert_allclose(of_prior.get_offsets(), prior[:, :2])
    assert len(aggregate_posterior(codes[:, :1], prior[:, :1], ["a"]).axes) == 1


def test_histograms_are_densities_of_what_is_given():
    codes = torch.cat([torch.full((300, 1), -1.0), torch.full((100, 1), 1.0)])
    prior = torch.cat([torch.full((100, 1), -1.0), torch.full((300, 1), 1.0)])
    axes = aggregate_posterior(codes, prior, ["z"]).axes[0]
    q, p = (patch.get_data() for patch in axes.patches)
    for data, left in ((q, 0.75), (p, 0.25)):
        areas = data.values * np.diff(data.edges)
        assert areas.sum() == pytest.approx(1)
        assert areas[data.edges[1:] < 0].sum() == pytest.approx(left)
    assert axes.get_ylim()[1] > max(q.values.max(), p.values.max())


def test_the_exact_prior_is_the_standard_normal_density():
    axes = aggregate_posterior(torch.randn(500, 1), torch.randn(500, 1), ["z"], standard_normal=True).axes[0]
    (line,) = axes.lines
    z, density = line.get_data()
    np.testing.assert_allclose(density, np.exp(torch.distributions.Normal(0, 1).log_prob(torch.as_tensor(z)).numpy()))
    assert np.trapezoid(density, z) == pytest.approx(1, abs=1e-3)
    assert len(axes.patches) == 1  # and no histogram of draws beside it


def test_posterior_and_prior_differ_in_more_than_hue():
    figure = aggregate_posterior(torch.randn(50, 2), torch.randn(50, 2), ["a", "b"])
    q, p = figure.axes[0].patches
    assert q.get_fill() and not p.get_fill() and p.get_linestyle() == "--"
    assert abs(lightness(q.get_facecolor()[:3]) - lightness(p.get_edgecolor()[:3])) > 25
    of_prior, of_codes = figure.axes[2].collections
    assert len(of_prior.get_facecolor()) == 0 and len(of_codes.get_facecolor()) == 1  # rings, dots


@pytest.mark.parametrize("shapes", [((5, 2), (5, 3), 2), ((5, 2), (5, 2), 1), ((0, 2), (5, 2), 2), ((5,), (5, 2), 2)])
def test_aggregate_posterior_refuses_other_shapes(shapes):
    codes, prior, names = shapes
    with pytest.raises(VlaeError, match=r"codes|prior"):
        aggregate_posterior(torch.zeros(codes), torch.zeros(prior), [str(k) for k in range(names)])


# -- bits -------------------------------------------------------------------------------------------------------------


def test_heatmap_holds_every_number_sorted_by_mean_and_label():
    bits = torch.rand(6, 3, dtype=torch.float64) + torch.tensor([1.0, 3.0, 2.0])
    labels = torch.tensor([1, 0, 1, 0, 1, 0])
    figure = bits_heatmap(bits, ["a", "b", "c"], labels, "a model")
    heat, bars, scale = figure.axes
    order = [1, 3, 5, 0, 2, 4]
    np.testing.assert_array_equal(heat.images[0].get_array(), bits[order][:, [1, 2, 0]].T)
    assert [text.get_text() for text in heat.get_yticklabels()] == ["b", "c", "a"]
    assert [text.get_text() for text in heat.get_xticklabels()] == ["0", "1"]
    assert [line.get_xdata()[0] for line in heat.lines] == [2.5]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], bits.mean(0)[[1, 2, 0]])
    assert "bits" in bars.get_xlabel() and scale.get_ylabel() == "rate [bits]"
    total = bits.sum(1).mean()
    assert f"rate: {total:.2f} bits = {total * math.log(2):.2f} nats per image in 3 dimensions" in figure.get_suptitle()
    assert figure.get_suptitle().startswith("a model\n") and "below 0" not in figure.get_suptitle()


def shades(figure, values):
    image = figure.axes[0].images[0]
    return [lightness(colour[:3]) for colour in image.cmap(image.norm(np.array(values)))]


def test_more_bits_are_darker_and_none_is_white():
    figure = bits_heatmap(torch.linspace(0, 8, 40).view(10, 4))
    found = shades(figure, np.linspace(0, 8, 9))
    assert found[0] == pytest.approx(100, abs=0.1)
    assert all(a - b > 3 for a, b in itertools.pairwise(found)), found


def test_shares_below_zero_are_said_and_neither_hidden_nor_dark():
    bits = torch.linspace(-2, 8, 40).view(10, 4)
    figure = bits_heatmap(bits)
    assert "20% are below 0" in figure.get_suptitle()
    low, zero, high = figure.axes[0].images[0].cmap(figure.axes[0].images[0].norm([-2.0, 0.0, 8.0]))
    assert zero[:3] == pytest.approx((1, 1, 1), abs=0.02)
    assert low[0] - low[2] > 0.3 > high[0] - high[2]  # orange, against blue
    assert 80 < lightness(low[:3]) < 90
    rising = shades(figure, [0, 2, 4, 6, 8])
    assert rising == sorted(rising, reverse=True)


def test_many_dimensions_and_classes_are_drawn_without_their_names():
    figure = bits_heatmap(torch.rand(90, 200), labels=torch.arange(90) % 30)
    heat, bars, _ = figure.axes
    assert heat.images[0].get_array().shape == (200, 90) and len(bars.patches) == 200
    assert len(heat.get_yticks()) == 0 and "200" in heat.get_ylabel() and len(heat.get_xticks()) == 0


@pytest.mark.parametrize("bits", [torch.zeros(4), torch.zeros(0, 3), torch.full((2, 2), math.inf)])
def test_heatmap_refuses_what_is_no_table(bits):
    with pytest.raises(VlaeError, match="bits"):
        bits_heatmap(bits)


def test_heatmap_refuses_other_names_and_labels():
    with pytest.raises(VlaeError, match="3 dimensions and 2 names"):
        bits_heatmap(torch.rand(4, 3), ["a", "b"])
    with pytest.raises(VlaeError, match="labels"):
        bits_heatmap(torch.rand(4, 3), labels=torch.arange(3))


def test_zero_everywhere_is_drawn():
    assert shades(bits_heatmap(torch.zeros(3, 2)), [0.0]) == [pytest.approx(100, abs=0.1)]
