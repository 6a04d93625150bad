"""Rows of a batch and pieces of work: each falls to exactly one process."""

import itertools

import pytest
import torch

from vlae import processes
from vlae.data import Batches, ImageDataset
from vlae.errors import VlaeError


@pytest.mark.parametrize(("total", "count"), [(7, 2), (7, 3), (8, 4), (3, 3), (100, 7)])
def test_rows_are_dealt_out_once_and_evenly(total, count):
    parts = [list(range(total))[processes.rows(total, index, count)] for index in range(count)]
    assert list(itertools.chain(*parts)) == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_everything_is_handed_back():
    x = torch.randn(3, 2, requires_grad=True)
    with processes.batch_of(3):
        assert processes.whole(x) is processes.own(x) is processes.summed(x) is x
        assert processes.total(3) == 3
        assert processes.samples(3) == processes.samples(4) == 1
    assert processes.in_turn(lambda: [1, 2]) == [1, 2]
    assert processes.after_first(lambda: 5) == 5
    assert processes.first_to_fail()


@pytest.mark.parametrize("binarize", [None, "dynamic"])
def test_shares_of_a_batch_are_the_batch(binarize):
    """With the draws that one process makes, whichever share an image is in; two epochs."""
    images = ImageDataset(torch.randint(256, (11, 1, 4, 4), dtype=torch.uint8), binarize=binarize)
    images.labels = torch.arange(11)
    one = Batches(images, 5, shuffle=True, seed=3, drop_last=True)
    shares = [Batches(images, 5, shuffle=True, seed=3, drop_last=True, share=(index, 3)) for index in range(3)]
    for _ in range(2):
        for whole, *parts in zip(one, *shares, strict=True):
            assert [part.total for part in parts] == [5, 5, 5] and whole.total is None
            for name in ("images", "labels", "indices"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    images = ImageDataset(torch.zeros(11, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(VlaeError, match="2 images in a batch for 3 processes"):
        Batches(images, 2, drop_last=True, share=(0, 3))
    with pytest.raises(VlaeError, match="1 images in a batch"):
        Batches(images, 5, share=(0, 3))
