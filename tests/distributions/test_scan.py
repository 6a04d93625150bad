import pytest
import torch

from vlae import VlaeError
from vlae.distributions import wavefront
from vlae.distributions.scan import slope_of
from vlae.nn import GatedPixelCNN, PlainPixelCNN, ReceptiveField

SIZES = [(5, 7), (7, 5), (1, 6), (6, 1), (1, 1), (9, 3)]
FIELDS = {
    "two, reach 1": GatedPixelCNN(1, 1, 0, channels=1).receptive_field,
    "two, reach 2": GatedPixelCNN(1, 1, 1, channels=1).receptive_field,
    "two, reach 4": GatedPixelCNN(1, 1, 1, 5, channels=1).receptive_field,
    "plain, 3 layers": PlainPixelCNN(1, 1, 2, channels=1).receptive_field,
    "plain, 5x5": PlainPixelCNN(1, 1, 1, 5, channels=1).receptive_field,
}


def steps_of(height, width, slope):
    """The step at which each pixel is visited, [H][W]; each exactly once."""
    steps = {}
    for step, (rows, columns) in enumerate(wavefront(height, width, slope)):
        assert len(rows) > 0
        for site in zip(rows.tolist(), columns.tolist(), strict=True):
            assert site not in steps
            steps[site] = step
    assert steps.keys() == {(i, j) for i in range(height) for j in range(width)}
    return steps


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("size", SIZES)
def test_wavefront_is_valid_and_no_schedule_is_shorter(name, size):
    offsets = FIELDS[name].offsets
    steps = steps_of(*size, FIELDS[name].slope)
    longest = {}  # of the chains of pixels that depend on one another, ending at each pixel
    for i in range(size[0]):
        for j in range(size[1]):
            needed = [(i + a, j + b) for a, b in offsets if i + a >= 0 and 0 <= j + b < size[1]]
            assert all(steps[site] < steps[i, j] for site in needed)
            longest[i, j] = 1 + max((longest[site] for site in needed), default=0)
    assert max(steps.values()) + 1 == max(longest.values())


@pytest.mark.parametrize(("layers", "steps"), [(0, 82), (1, 109), (2, 136), (3, 163)])
def test_steps_of_two_stacks_at_28x28(layers, steps):
    field = GatedPixelCNN(1, 1, layers, channels=1).receptive_field
    assert len(list(wavefront(28, 28, field.slope))) == steps == 28 + 27 * (layers + 2)


@pytest.mark.parametrize("layers", [0, 1, 5])
def test_steps_of_the_plain_stack_at_28x28_at_any_depth(layers):
    field = PlainPixelCNN(1, 1, layers, channels=1).receptive_field
    assert len(list(wavefront(28, 28, field.slope))) == 82


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("slope", [1, 2, 3, 100])
def test_every_slope_visits_each_pixel_once(size, slope):
    height, width = size
    steps = steps_of(height, width, slope)
    assert max(steps.values()) + 1 == width + (height - 1) * min(slope, width)


@pytest.mark.parametrize("size", SIZES)
def test_raster_is_one_pixel_at_a_time_in_reading_order(size):
    height, width = size
    steps = steps_of(height, width, slope_of("raster", width, 2))
    assert steps == {(i, j): i * width + j for i in range(height) for j in range(width)}


def test_a_slope_that_is_too_small_is_not_valid():
    # The negative control: the declared slope is not larger than it must be.
    field = ReceptiveField.from_offsets([(-1, 2), (0, -1)])
    steps = steps_of(4, 6, field.slope - 1)
    assert any(steps[i - 1, j + 2] >= steps[i, j] for i in range(1, 4) for j in range(4))


def test_unknown_order_is_refused():
    with pytest.raises(VlaeError, match="method must be"):
        slope_of("spiral", 4, 2)


def test_index_of_pixels_agrees_with_loops(tiny_vlae):
    visited = []
    p = tiny_vlae((2, 3, 4)).decode(torch.randn(2, 3, dtype=torch.float64))

    def visit(sites, conditional):
        assert conditional.batch_shape == (2, len(sites.rows))
        visited.append(sites)
        return torch.full((2, len(sites.rows)), len(visited) / 100, dtype=torch.float64)

    x = p.scan(visit)
    for number, sites in enumerate(visited, 1):
        for row, column in zip(sites.rows, sites.columns, strict=True):
            assert (x[:, sites.channel, row, column] == number / 100).all()
