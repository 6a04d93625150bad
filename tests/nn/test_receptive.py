import pytest
import torch

from vlae.nn import ReceptiveField


def test_composition_is_that_of_convolutions():
    first = ReceptiveField.from_offsets([(-1, 1), (0, -1)])
    second = ReceptiveField.from_offsets([(-1, 0), (0, 0)])
    assert first.then(second).offsets == {(-2, 1), (-1, -1), (-1, 1), (0, -1)}
    assert (first | second).offsets == {(-1, 1), (0, -1), (-1, 0), (0, 0)}
    assert first.then(second).offsets == second.then(first).offsets


@pytest.mark.parametrize("seed", range(10))
def test_composition_is_the_sums_of_all_pairs(seed):
    torch.manual_seed(seed)
    drawn = [
        {(a, b) for a, b in torch.randint(-12, 13, (count, 2)).tolist()}
        for count in torch.randint(1, 60, (2,)).tolist()
    ]
    first, second = map(ReceptiveField.from_offsets, drawn)
    assert first.then(second).offsets == {(i + k, j + m) for i, j in drawn[0] for k, m in drawn[1]}


def test_composition_of_wide_fields():
    triangle = ReceptiveField.from_offsets((-a, b) for a in range(64) for b in range(-a, a + 1))
    expected = {(-a, b) for a in range(127) for b in range(-a, a + 1)}
    assert triangle.then(triangle).offsets == expected


def test_composition_with_nothing():
    nothing, left = ReceptiveField.from_offsets([]), ReceptiveField.from_offsets([(0, -1)])
    assert nothing.then(left) == left.then(nothing) == nothing


def test_mask_is_centred_on_the_pixels_column_and_ends_with_its_row():
    field = ReceptiveField.from_offsets([(-2, 1), (0, -3)])
    expected = torch.zeros(3, 7, dtype=torch.bool)
    expected[0, 4] = expected[2, 0] = True
    assert torch.equal(field.mask, expected)
    assert field.size == 2


def test_nothing_seen():
    field = ReceptiveField.from_offsets([])
    assert (field.size, field.mask.tolist(), field.slope) == (0, [[False]], 1)


@pytest.mark.parametrize(
    ("offsets", "slope"),
    [
        ([(0, -5)], 1),  # the own row never needs a lag
        ([(-1, -3)], 1),
        ([(-1, 0)], 1),
        ([(-1, 1)], 2),
        ([(-1, 4)], 5),
        ([(-2, 1)], 1),  # two steps of one are enough
        ([(-2, 2)], 2),
        ([(-2, 3)], 2),
        ([(-1, 1), (-3, 6)], 3),
    ],
)
def test_slope(offsets, slope):
    assert ReceptiveField.from_offsets(offsets).slope == slope
