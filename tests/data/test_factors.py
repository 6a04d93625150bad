import itertools

import pytest
import torch

from vlae.data.factors import grid, rows_of
from vlae.errors import VlaeError


@pytest.mark.parametrize("sizes", [(4,), (2, 3), (3, 1, 2, 2)])
def test_a_grid_is_the_product_of_its_classes(sizes):
    expected = [list(row) for row in itertools.product(*map(range, sizes))]
    assert grid(sizes).tolist() == expected
    assert grid(sizes).dtype == torch.int64


@pytest.mark.parametrize("count", [10, 99, 1000])
def test_the_splits_share_out_every_image_once(count):
    train, validation, test = (rows_of(split, count, False) for split in ("train", "validation", "test"))
    assert len(validation) == len(test) == count // 10
    assert torch.cat([train, validation, test]).sort().values.tolist() == list(range(count))
    assert torch.equal(rows_of("train", count, False), train)


def test_the_cut_is_pinned():
    # Numbers on the test split depend on it: another cut is another data set.
    assert rows_of("test", 100, False).tolist() == [88, 59, 57, 83, 19, 49, 70, 25, 41, 44]


def test_the_whole_is_in_order_whatever_the_split():
    for split in ("train", "validation", "test"):
        assert torch.arange(7)[rows_of(split, 7, True)].tolist() == list(range(7))
    for whole in (1, "yes", None):
        with pytest.raises(VlaeError, match=r"whole=.*: expected true .* or false"):
            rows_of("train", 7, whole)
