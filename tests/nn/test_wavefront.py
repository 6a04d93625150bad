"""The schedule: valid, shortest, and inverse to itself; against loops over the pixels."""

import itertools

import pytest
import torch

from vlae.nn import GatedPixelCNN, PlainPixelCNN, ReceptiveField
from vlae.nn.wavefront import Schedule

SIZES = [(5, 7), (7, 5), (1, 6), (6, 1), (1, 1), (9, 3), (4, 2)]
DEPTHS = [(0, 3), (1, 3), (4, 3), (0, 5), (2, 5), (1, 7)]  # layers, kernel size


def two(layers, kernel_size=3):
    return GatedPixelCNN(1, 1, layers, kernel_size, channels=1).receptive_field


def slanted(layers, kernel_size=3):
    return GatedPixelCNN(1, 1, layers, kernel_size, channels=1, slanted=True).receptive_field


def plain(layers, kernel_size=3):
    return PlainPixelCNN(1, 1, layers, kernel_size, channels=1).receptive_field


def steps_of(height, width, slope):
    """The number of the step at which each pixel is visited, by site; each exactly once."""
    schedule, numbers = Schedule.of(height, width, slope), {}
    assert [step.index for step in schedule.steps] == list(range(len(schedule.steps)))
    for step in schedule.steps:
        sites = list(zip(step.rows.tolist(), step.columns.tolist(), strict=True))
        assert len(sites) == step.count
        assert sites[:1] in ([], [(step.row, step.column)])
        for (i, j), (k, m) in itertools.pairwise(sites):
            assert (k - i, m - j) == (1, -slope)
        assert not numbers.keys() & set(sites)
        numbers.update(dict.fromkeys(sites, step.index))
    assert numbers.keys() == {(i, j) for i in range(height) for j in range(width)}
    return numbers


def needed(offsets, site, width):
    """The pixels of the image that the one at `site` sees."""
    seen = [(site[0] + a, site[1] + b) for a, b in offsets]
    return [(i, j) for i, j in seen if i >= 0 and 0 <= j < width]


def longest_chain(offsets, height, width):
    """The number of pixels in the longest chain in which each sees the one before it: no schedule has fewer steps."""
    longest = {}
    for site in [(i, j) for i in range(height) for j in range(width)]:
        longest[site] = 1 + max((longest[other] for other in needed(offsets, site, width)), default=0)
    return max(longest.values())


@pytest.mark.parametrize("kind", [two, slanted, plain])
@pytest.mark.parametrize(("layers", "kernel_size"), DEPTHS)
def test_schedule_is_valid_and_none_is_shorter(kind, layers, kernel_size):
    field = kind(layers, kernel_size)
    for height, width in SIZES:
        numbers = steps_of(height, width, field.slope)
        assert all(numbers[o] < numbers[s] for s in numbers for o in needed(field.offsets, s, width))
        assert len(Schedule.of(height, width, field.slope)) == longest_chain(field.offsets, height, width)


@pytest.mark.parametrize("layers", range(4))
def test_steps_of_two_stacks_at_28x28(layers):
    reach = layers + 1
    assert two(layers).slope == reach + 1
    assert len(Schedule.of(28, 28, two(layers).slope)) == [82, 109, 136, 163][layers] == 28 + 27 * (reach + 1)


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("layers", [0, 1, 2, 5, 8])
def test_steps_of_the_slanted_and_the_plain_stacks_at_28x28_do_not_depend_on_the_depth(layers, kernel_size):
    fields = [slanted(layers, kernel_size)] + [plain(layers, kernel_size)] * (kernel_size == 3)
    for field in fields:
        assert field.slope == 2
        assert len(Schedule.of(28, 28, field.slope)) == 82


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("slope", [1, 2, 3, 100])
def test_number_of_steps(size, slope):
    (height, width), schedule = size, Schedule.of(*size, slope)
    assert len(schedule) == sum(count > 0 for count in schedule.counts) == width + (height - 1) * min(slope, width)
    assert len(schedule.steps) == width + (height - 1) * slope


@pytest.mark.parametrize("size", SIZES)
def test_a_slope_of_the_width_or_more_is_one_pixel_at_a_time_in_reading_order(size):
    height, width = size
    for slope in (width, width + 1, width + 5):
        assert steps_of(height, width, slope) == {(i, j): i * slope + j for i in range(height) for j in range(width)}
        assert Schedule.of(height, width, slope).order.tolist() == list(range(height * width))


@pytest.mark.parametrize("field", [ReceptiveField.from_offsets([(-1, 2), (0, -1)]), two(1), slanted(2, 5), plain(1)])
def test_a_slope_that_is_too_small_is_not_valid(field):
    # The negative control: the declared slope is not larger than it must be.
    numbers = steps_of(4, 12, field.slope - 1)
    assert any(numbers[o] >= numbers[s] for s in numbers for o in needed(field.offsets, s, 12))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("slope", [1, 2, 3, 8])
def test_arrange_and_restore(size, slope):
    schedule, images = Schedule.of(*size, slope), torch.randn(2, 3, *size)
    arranged = schedule.arrange(images)
    assert len(arranged) == len(schedule.steps)
    for step, values in zip(schedule.steps, arranged, strict=True):
        assert torch.equal(values, images[:, :, step.rows, step.columns])
    assert torch.equal(schedule.restore(arranged), images)
    assert torch.equal(schedule.restore([values for values in arranged if values.numel()]), images)
    flags = images[0, 0] > 0  # any dtype, no batch
    assert torch.equal(schedule.restore(schedule.arrange(flags)), flags)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("slope", [1, 2, 8])
def test_arrange_maps(size, slope):
    schedule, maps = Schedule.of(*size, slope), torch.randn(2, 3, *size)
    blocks = schedule.arrange_maps(maps)
    assert len(blocks) == len(schedule.steps)
    for step, block in zip(schedule.steps, blocks, strict=True):
        rows = [maps[b, :, i, j] for i, j in zip(step.rows, step.columns, strict=True) for b in range(2)]
        assert torch.equal(block, torch.stack(rows) if rows else maps.new_zeros(0, 3))
        assert block.is_contiguous()


def test_a_schedule_made_in_inference_mode_serves_training_too():
    # Schedules are kept: the first one to ask may be a sampler, the next one a gradient.
    Schedule.of.cache_clear()
    with torch.inference_mode():
        Schedule.of(3, 4, 2).restore(Schedule.of(3, 4, 2).arrange(torch.zeros(3, 4)))
    schedule, images = Schedule.of(3, 4, 2), torch.ones(3, 4, requires_grad=True)
    sum(values.square().sum() for values in schedule.arrange(images)).backward()
    sum(images[step.rows, step.columns].square().sum() for step in schedule.steps).backward()
    assert (images.grad == 4).all()
