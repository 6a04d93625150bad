import pytest
import torch

from vlae.nn import ReceptiveField


def test_composition_is_that_of_convolutions():
    first = ReceptiveField.from_offsets([(-1, 1), (0, -1)])
    second = ReceptiveField.from_offsets([(-1, 0), (0, 0)])
    assert first.then(second).offsets == {(-2, 1), (-1, -1), (-1, 1), (0, -1)}
    assert (first | second).offsets == {(-1, 1), (0, -1), (-1, 0), (0, 0)}
    assert first.then(second).offsets == second.then(first).offsets


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
