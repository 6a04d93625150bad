"""The script that tells how alike splits are, on sets made for it."""

import importlib.util
from pathlib import Path

import pytest
import torch

from vlae import VlaeError
from vlae.data import ImageDataset

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_splits.py"
specification = importlib.util.spec_from_file_location("compare_splits", SCRIPT)
compare_splits = importlib.util.module_from_spec(specification)
specification.loader.exec_module(compare_splits)


def images(values, labels):
    """2x1 images whose pixels are the digits of a number."""
    pixels = torch.tensor([[value // 10, value % 10] for value in values], dtype=torch.uint8)
    return ImageDataset(pixels[:, None, :, None], name="made", labels=labels and torch.tensor(labels))


def test_shares_and_images_in_common():
    """Class 2 is the test set's largest; its images 11 (twice) and 40 are trained on, 99 and 12 are not."""
    train = images([11, 40, 21, 55, 56], [0, 2, 1, 1, 1])
    test = images([11, 11, 40, 99, 12], [2, 2, 2, 0, 1])
    assert compare_splits.rows({"train": train, "test": test}, largest=1) == [
        "train: 5 images, at most 3 of a class; 20.0% in the 1 largest classes of the test set; "
        "3 test images are among them",
        "test: 5 images, at most 3 of a class; 60.0% in the 1 largest classes of the test set",
    ]
    assert "100.0% in the 3 largest" in compare_splits.rows({"train": train, "test": test}, largest=9)[0]


def test_without_labels_it_is_one_line():
    with pytest.raises(VlaeError, match="made has no labels"):
        compare_splits.rows({"test": images([11], None)})
