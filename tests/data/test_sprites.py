import hashlib
import math

import numpy as np
import pytest
import torch

from vlae.data import load
from vlae.data import sprites as module
from vlae.data.sprites import BACKGROUNDS, COLOURS, FACTORS, PLACES, SCALES, render
from vlae.errors import VlaeError

SIZES = tuple(FACTORS.values())
COLUMN = {name: i for i, name in enumerate(FACTORS)}


@pytest.fixture(scope="module")
def whole():
    return load("sprites", "test", whole=True)


@pytest.fixture(scope="module")
def covered(whole):
    """What the shape covers, from the red images on black alone, [shape, scale, orientation, x, y, row, column]."""
    red = whole.images.reshape(*SIZES, 3, 32, 32)[:, 0, 0, :, :, :, :, 0]
    return red.double() / 255


def test_every_combination_once_in_order(whole):
    assert len(whole) == math.prod(SIZES) == 31_104
    numbers = np.ravel_multi_index(whole.factors.T.numpy(), SIZES)
    assert np.array_equal(numbers, np.arange(31_104))
    assert (whole.image_shape, whole.levels, whole.images.dtype) == ((3, 32, 32), 256, torch.uint8)
    assert whole.factor_names == ("shape", "colour", "background", "scale", "orientation", "x", "y")
    assert whole.factor_sizes == SIZES == (4, 6, 3, 3, 4, 6, 6)
    assert torch.equal(whole.labels, whole.factors[:, 0])
    assert whole.protocol == "sprites, test (all of the grid 4x6x3x3x4x6x6): 31104 images, 256 levels"


@pytest.mark.parametrize("size", [16, 32])
def test_no_two_combinations_look_the_same(size):
    rows = load("sprites", size=size, whole=True).images.flatten(1).numpy()
    assert len(np.unique(rows.view(f"V{rows.shape[1]}"))) == len(rows)


def test_the_splits_share_out_the_grid(whole):
    parts = [load("sprites", split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [24_884, 3_110, 3_110]
    numbers = [torch.from_numpy(np.ravel_multi_index(part.factors.T.numpy(), SIZES)) for part in parts]
    assert torch.equal(torch.cat(numbers).sort().values, torch.arange(31_104))
    for part, number in zip(parts, numbers, strict=True):
        assert torch.equal(part.images, whole.images[number])
        assert part.protocol.startswith(f"sprites, {part.split} (a fixed part of the grid")
    both = load("sprites", "train+validation")
    assert torch.equal(both.factors, torch.cat([parts[0].factors, parts[1].factors]))
    with pytest.raises(VlaeError, match="whole=True gives all images in every split"):
        load("sprites", "train+validation", whole=True)


def test_images_are_a_function_of_their_factors(whole):
    rows = torch.randperm(31_104)[:500]
    assert torch.equal(render(whole.factors[rows]), whole.images[rows])
    module._coverage.cache_clear()
    assert torch.equal(render(whole.factors[rows]), whole.images[rows])


def test_the_images_are_pinned(whole):
    # The same bits on every machine: only sums, products and comparisons make them.
    assert (
        hashlib.sha256(whole.images.numpy().tobytes()).hexdigest()
        == "30e0459e6ac6704e21e6367cb6897da51aa969bc4976f79d21eef76731504604"
    )


def test_what_a_caller_changes_is_not_handed_to_the_next():
    data = load("sprites", size=16, whole=True)
    before = data.images.clone()
    data.images.zero_()
    assert torch.equal(load("sprites", size=16, whole=True).images, before)


def test_the_centre_of_mass_is_at_x_and_y(covered):
    area = covered.sum((-2, -1))
    pixels = (torch.arange(32, dtype=torch.float64) + 0.5) / 32 - 0.5
    across, down = covered.sum(-2) @ pixels / area, covered.sum(-1) @ pixels / area
    places = torch.tensor(PLACES, dtype=torch.float64)
    assert (across - places[:, None]).abs().max() < 0.15 / 32  # [..., x, y], in sides of the image; x to the right
    assert (down - places).abs().max() < 0.15 / 32  # y downwards


def test_the_area_grows_with_the_square_of_the_scale(covered):
    area = covered.sum((-2, -1)) / 32**2
    radius = torch.tensor(SCALES, dtype=torch.float64)[:, None, None, None]
    # Closed forms, the heart's by quadrature, each of radius 1.
    for shape, unit in enumerate((1.05, math.pi / 2, 3 * 0.7**2, 3.66198 / 1.25**2)):
        ratio = area[shape] / (unit * radius**2)
        assert (ratio - 1).abs().max() < 0.12
        assert abs(ratio.mean() - 1) < 0.02


def test_orientations_are_quarter_turns(covered):
    # A turn about the middle of the image takes (x, y) to (y, 5 - x), anticlockwise, and every pixel with it.
    turned = torch.rot90(covered, 1, (-2, -1))
    expected = covered.roll(-1, 2).flip(4).transpose(3, 4)
    assert torch.equal(turned, expected)


def test_shapes_are_upright_at_orientation_0(covered):
    triangle, half_disc, angle, heart = covered[:, 2, 0, 2, 2]
    for shape in (triangle, half_disc, heart):
        rows = shape.sum(1).nonzero()[:, 0]
        top, bottom = shape[rows[0] : rows[0] + 2].sum(), shape[rows[-1] - 1 : rows[-1] + 1].sum()
        assert (top > bottom) == (shape is heart)
    assert angle.sum(1).argmax() > 13.5  # the foot of the L, below the middle of the object
    assert angle.sum(0).argmax() < 13.5  # and its stem on the left


def test_colour_and_background_are_mixed_by_what_is_covered(whole, covered):
    # A corner of the grid is enough: the other positions are of other coverages, but mixed by the same table.
    x = whole.images.reshape(*SIZES, 3, 32, 32)[..., :2, :2, :, :, :].double()
    for c, colour in enumerate(COLOURS):
        for b, background in enumerate(BACKGROUNDS):
            front, back = (torch.tensor(rgb, dtype=torch.float64)[:, None, None] for rgb in (colour, background))
            part = (covered[..., :2, :2, :, :] * 16).round()[..., None, :, :] / 16
            assert (x[:, c, b] - (part * front + (1 - part) * back)).abs().max() <= 0.5
    assert len({*COLOURS, *BACKGROUNDS}) == 9


@pytest.mark.parametrize("name", FACTORS)
def test_one_factor_alone_changes_the_image(whole, name):
    x = whole.images.reshape(*SIZES, -1).movedim(COLUMN[name], 0)
    assert (x[1:] != x[:-1]).any(-1).all()


def test_other_sizes():
    data = load("sprites", "test", size=17)
    assert data.image_shape == (3, 17, 17)
    assert torch.equal(data.factors, load("sprites", "test").factors)
    small = torch.nn.functional.avg_pool2d(render(data.factors[:200], 32).double(), 2)
    assert (small - render(data.factors[:200], 16).double()).abs().mean() < 1
    for size in (15, 129, 32.0, "32", True):
        with pytest.raises(VlaeError, match=r"sprites: size=.*, expected an integer from 16 to 128"):
            load("sprites", size=size)


def test_options():
    with pytest.raises(VlaeError, match="sprites has no option variant; expected size, whole"):
        load("sprites", variant="x")
    with pytest.raises(VlaeError, match="whole=1"):
        load("sprites", whole=1)
    assert load("sprites", "test", binarize="static").effective_levels == 2
