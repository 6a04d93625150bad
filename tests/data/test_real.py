"""Known facts of the real data sets."""

import hashlib

import numpy as np
import pytest
import torch

from vlae.data import formats, load
from vlae.data.files import AMAT_FILES, OMNIGLOT_ZIPS
from vlae.data.sources import find

SIZES = {
    "mnist": (50_000, 10_000, 10_000),
    "fashion_mnist": (50_000, 10_000, 10_000),
    "binarized_mnist": (50_000, 10_000, 10_000),
    "omniglot": (17_352, 1_928, 13_180),
    "caltech101_silhouettes": (4_100, 2_264, 2_307),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(real, name):
    parts = [load(name, split, real) for split in ("train", "validation", "test")]
    assert tuple(len(part) for part in parts) == SIZES[name]
    assert {part.image_shape for part in parts} == {(1, 28, 28)}


def test_mnist(real):
    train, validation, test = (load("mnist", split, real) for split in ("train", "validation", "test"))
    # The whole training file has the well-known mean and deviation 0.1307 and 0.3081.
    both = torch.cat([train.images, validation.images]).double() / 255
    assert both.mean().item() == pytest.approx(0.1306604, abs=1e-6)
    assert both.std().item() == pytest.approx(0.3081079, abs=1e-6)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.cat([train.labels, validation.labels]).bincount()[:2].tolist() == [5923, 6742]


def test_mnist_binarised(real):
    test = load("mnist", "test", real)
    static = load("mnist", "test", real, binarize="static")
    # The draw's mean is the grey mean, to five standard errors.
    p = test.tensor().double()
    error = (static.tensor().double() - p).sum() / (p * (1 - p)).sum().sqrt()
    assert abs(error) < 5


def test_fashion_mnist(real):
    data = load("fashion_mnist", "train+validation", real)
    assert (data.images.double() / 255).mean().item() == pytest.approx(0.2860406, abs=1e-6)
    assert data.labels.bincount().tolist() == [6000] * 10


@pytest.mark.parametrize(("part", "split"), [(0, "train"), (1, "validation"), (2, "test")])
def test_binarized_mnist_is_larochelles(real, part, split):
    x = load("binarized_mnist", split, real).images.flatten(1).numpy()
    text = np.full((*x.shape, 2), ord(" "), np.uint8)
    text[:, :, 0] = x + ord("0")
    text[:, -1, 1] = ord("\n")
    assert "sha256:" + hashlib.sha256(text.tobytes()).hexdigest() == AMAT_FILES[part].checksum


def test_binarized_mnist_is_mnist(real):
    # Other order, other draw, the same pictures: the mean images are alike.
    static, grey = load("binarized_mnist", "test", real), load("mnist", "test", real)
    assert (static.tensor().mean(0) - grey.tensor().mean(0)).abs().max() < 0.02


def test_silhouettes_are_bright_and_upright(real):
    data = load("caltech101_silhouettes", "train", real)
    x = data.tensor()[:, 0]
    border = torch.cat([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], dim=1).mean()
    assert border < 0.3 < 0.7 < x[:, 12:16, 12:16].mean()
    # Upright: vertically the two halves of the average object differ more than left and right do.
    mean = x.mean(0)
    assert (mean - mean.flip(0)).abs().mean() > (mean - mean.flip(1)).abs().mean()
    assert (data.labels.min(), data.labels.max()) == (0, 100)


def test_omniglot_is_shrunk_as_the_prepared_file_is(real):
    test = load("omniglot", "test", real)
    path = find(OMNIGLOT_ZIPS[1], real)
    if path is None:
        pytest.skip("needs images_evaluation.zip")
    images, names = formats.read_png_zip(path, 28)
    assert len(names) == 13_180
    assert np.array_equal(test.images[:, 0], images)
    alphabets = np.unique([name.split("/")[1] for name in names], return_inverse=True)[1]
    assert np.array_equal(test.labels, alphabets + 30)


def test_kodak_crops(real):
    sizes = [
        len(load("folder", split, real, path="kodak", crop=32, crops_per_epoch=500)) for split in ("train", "test")
    ]
    assert sizes == [500, 500]
