"""Known facts of the real data sets."""

import hashlib

import numpy as np
import pytest
import torch

from vlae.data import formats, load
from vlae.data.files import AMAT_FILES, DSPRITES_FACTORIAL, OMNIGLOT_ZIPS
from vlae.data.seeds import Stream, generator
from vlae.data.sources import find

SIZES = {
    "mnist": (50_000, 10_000, 10_000),
    "fashion_mnist": (50_000, 10_000, 10_000),
    "binarized_mnist": (50_000, 10_000, 10_000),
    "omniglot": (17_352, 1_928, 13_180),
    "caltech101_silhouettes": (4_100, 2_264, 2_307),
}


def in_file_order(mixed: torch.Tensor) -> torch.Tensor:
    """Undoes the fixed permutation of sets whose files are sorted."""
    return mixed[torch.randperm(len(mixed), generator=generator(Stream.SPLIT, 0)).argsort()]


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
    x = in_file_order(load("binarized_mnist", split, real).images).flatten(1).numpy()
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
    assert np.array_equal(in_file_order(test.images)[:, 0], images)
    alphabets = np.unique([name.split("/")[1] for name in names], return_inverse=True)[1]
    assert np.array_equal(in_file_order(test.labels), alphabets + 30)


DSPRITES_GRID = (3, 6, 10, 16, 16)


@pytest.mark.parametrize(("variant", "count"), [("factorial", 46_080), ("random", 20_000)])
def test_dsprites(real, variant, count):
    parts = [load("dsprites", split, real, variant=variant) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [count - 2 * (count // 10), count // 10, count // 10]
    whole = load("dsprites", "test", real, variant=variant, whole=True)
    assert whole.image_shape == (1, 64, 64)
    assert (whole.levels, len(whole)) == (2, count)
    assert whole.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert torch.equal(whole.labels, whole.factors[:, 0])
    # The parts are the whole: every combination as often, with its own image.
    sizes = torch.tensor(whole.factor_sizes)
    weights = torch.cat([sizes.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.int64)])
    number = torch.cat([part.factors for part in parts]) @ weights
    order, in_order = number.argsort(stable=True), (whole.factors @ weights).argsort(stable=True)
    assert torch.equal(number[order], (whole.factors @ weights)[in_order])
    if variant == "factorial":
        assert torch.equal(torch.cat([part.images for part in parts])[order], whole.images[in_order])


def test_dsprites_images_follow_their_factors(real):
    data = load("dsprites", "test", real, whole=True)
    assert data.factor_sizes == DSPRITES_GRID
    x = data.images.reshape(*DSPRITES_GRID, 64, 64)
    columns, rows = (x.sum(dim, dtype=torch.int32).double() for dim in (-2, -1))
    area = columns.sum(-1)
    pixels = torch.arange(64, dtype=torch.float64)
    across, down = columns @ pixels / area, rows @ pixels / area
    for centre, along, other in ((across, 3, 4), (down, 4, 3)):
        steps = centre.diff(dim=along)
        assert steps.min() > 1.4
        assert steps.max() < 2.6
        assert centre.diff(dim=other).abs().max() < 0.5  # pixels: they are drawn without smooth edges
    assert area.mean((2, 3, 4)).diff(dim=1).min() > 20  # larger with every scale


def test_the_two_subsets_of_dsprites_number_the_same_grid(real):
    # What every variant that is made from the official file rests on: which of its images the factorial file holds.
    factorial = load("dsprites", "test", real, whole=True)
    random = load("dsprites", "test", real, variant="random", whole=True)
    assert random.factor_sizes == (3, 6, 40, 32, 32)
    steps = torch.tensor([1, 1, 4, 2, 2])
    shared = (random.factors % steps == 0).all(1)
    assert 1000 < shared.sum() < 1500  # of 20,000 one in sixteen: 1,250
    number = np.ravel_multi_index((random.factors[shared] // steps).T.numpy(), DSPRITES_GRID)
    assert torch.equal(random.images[shared], factorial.images[number])
    assert not torch.equal(random.images[shared], factorial.images[number - 1])
    path = find(DSPRITES_FACTORIAL, real)
    original = formats.read_npz(path, "original_dataset_indices")[0]
    expected = np.arange(737_280).reshape(3, 6, 40, 32, 32)[:, :, ::4, ::2, ::2]
    assert np.array_equal(original, expected.ravel())


def test_kodak_crops(real):
    sizes = [
        len(load("folder", split, real, path="kodak", crop=32, crops_per_epoch=500)) for split in ("train", "test")
    ]
    assert sizes == [500, 500]
