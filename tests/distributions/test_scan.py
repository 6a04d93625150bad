import pytest
import torch

from vlae import VlaeError


def p_of(tiny_vlae, shape=(2, 3, 4), **options):
    return tiny_vlae(shape, **options).decode(torch.randn(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("size", [(5, 7), (7, 5), (1, 6), (6, 1), (9, 3)])
def test_raster_is_one_pixel_at_a_time_in_reading_order(tiny_vlae, size):
    schedule = p_of(tiny_vlae, (1, *size)).schedule("raster")
    sites = [(step.rows.tolist(), step.columns.tolist()) for step in schedule.steps]
    assert sites == [([i], [j]) for i in range(size[0]) for j in range(size[1])]


@pytest.mark.parametrize(("stacks", "slope"), [("two", 4), ("slanted", 2), ("plain", 2)])
def test_the_wavefront_has_the_slope_of_the_receptive_field(tiny_vlae, stacks, slope):
    assert p_of(tiny_vlae, stacks=stacks, decoder_layers=2).schedule().slope == slope


@pytest.mark.parametrize("call", ["schedule", "scan"])
def test_unknown_order_is_refused(tiny_vlae, call):
    p = p_of(tiny_vlae)
    with pytest.raises(VlaeError, match="method must be"):
        p.schedule("spiral") if call == "schedule" else p.scan(lambda sites, conditional: conditional.mode, "spiral")


@pytest.mark.parametrize("stacks", ["two", "slanted", "plain"])
@pytest.mark.parametrize("method", ["wavefront", "raster"])
def test_sites_of_pixels_agree_with_loops(tiny_vlae, stacks, method):
    visited, reference = [], torch.randn(2, 2, 3, 4)
    p = p_of(tiny_vlae, stacks=stacks, decoder_layers=4)  # deeper than the image is wide: there are empty steps
    arranged = p.schedule(method).arrange(reference)

    def visit(sites, conditional):
        assert conditional.batch_shape == (2, len(sites.rows))
        assert len(sites.rows) > 0
        assert torch.equal(arranged[sites.step][:, sites.channel], reference[sites.index])
        visited.append(sites)
        return torch.full((2, len(sites.rows)), len(visited) / 100, dtype=torch.float64)

    x = p.scan(visit, method)
    for number, sites in enumerate(visited, 1):
        for row, column in zip(sites.rows, sites.columns, strict=True):
            assert (x[:, sites.channel, row, column] == number / 100).all()
    # Of each step all channels in order, of the image all sub-pixels once.
    order = [(sites.step, sites.channel) for sites in visited]
    assert order == sorted(order)
    assert sum(len(sites.rows) for sites in visited) == 2 * 3 * 4
