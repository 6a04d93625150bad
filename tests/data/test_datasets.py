import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from vlae.data import Batches, ImageDataset, load, names
from vlae.errors import VlaeError


def grey(n=2000, split="train", binarize=None):
    """Every image is the same ramp of all 256 levels."""
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(n, 1, 1, 1)
    return ImageDataset(x, split=split, binarize=binarize)


def test_dynamic_draws_have_the_grey_level_as_their_frequency():
    data = grey(binarize="dynamic")
    x = data.tensor(torch.Generator().manual_seed(1))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = torch.arange(256).reshape(1, 16, 16) / 255
    error = (x.mean(0) - p) / (p * (1 - p) / len(x)).sqrt().clamp(min=1e-9)
    assert error.abs().max() < 5
    assert x[:, 0, 0, 0].sum() == 0  # black and white are certain
    assert x[:, 0, 15, 15].sum() == len(x)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_static_is_one_fixed_draw(split):
    data = grey(50, split, "static")
    assert torch.equal(data.tensor(), grey(50, split, "static").tensor())
    assert torch.equal(data.tensor(), torch.stack(list(data)))
    assert torch.equal(data.epoch_images(1, 2), data.epoch_images(3, 4))
    assert abs(data.tensor().mean() - 0.5) < 0.02


def test_splits_and_images_have_draws_of_their_own():
    draws = [grey(2, split, "static").tensor() for split in ("train", "validation", "test")]
    draws = [image for draw in draws for image in draw]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_the_static_draw_is_pinned():
    # Published numbers depend on these bits: a change of them is a change of the data set.
    bits = "001110101101101100010101001001"
    assert "".join(str(int(x)) for x in grey(3, "test", "static").tensor().flatten()[100:130]) == bits


@pytest.mark.parametrize("split", ["validation", "test"])
def test_dynamic_is_static_where_nothing_is_trained(split):
    dynamic = grey(20, split, "dynamic")
    assert torch.equal(dynamic.tensor(), grey(20, split, "static").tensor())
    assert torch.equal(dynamic[3], dynamic[3])
    assert "fixed draw" in dynamic.protocol


def test_dynamic_training_images_change_at_each_visit():
    data = grey(20, binarize="dynamic")
    assert not torch.equal(data[3], data[3])
    assert torch.equal(data.tensor(), data.tensor())
    assert not torch.equal(data.tensor(), data.tensor(torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("levels", [3, 4, 17, 256])
def test_threshold_is_at_one_half(levels):
    x = torch.arange(levels, dtype=torch.uint8).reshape(1, 1, 1, levels)
    data = ImageDataset(x, levels, binarize="threshold")
    assert torch.equal(data.tensor(), (x.double() / (levels - 1) >= 0.5).float())


def test_binarising_leaves_the_levels_in_place():
    data = grey(4)
    assert (data.levels, data.effective_levels) == (256, 256)
    static = data.binarized("static")
    assert (static.levels, static.effective_levels) == (256, 2)
    assert torch.equal(static.images, data.images)
    assert data.binarize is None
    assert torch.equal(static.binarized(None).tensor(), data.tensor())


def test_binary_images_are_not_binarised_again():
    binary = ImageDataset.from_any(torch.eye(4)[None])
    assert binary.effective_levels == 2
    for how in ("static", "dynamic", "threshold"):
        with pytest.raises(VlaeError, match="already binary"):
            binary.binarized(how)


def test_unknown_names_splits_binarisations_and_options():
    for call, message in [
        (lambda: load("minst"), "no data set 'minst'; expected one of digits, mnist"),
        (lambda: load("digits", split="holdout"), "split='holdout': expected one of train, validation"),
        (lambda: load("digits", split="test+train"), "expected one of"),
        (lambda: load("digits", binarize="sometimes"), 'expected "static", "dynamic" or "threshold", or null'),
        (lambda: load("digits", variant="x"), "digits has no option variant; expected none"),
        (lambda: load("omniglot", variants="x"), "omniglot has no option variants; expected variant"),
        (lambda: load("digits", root="/nowhere/at/all"), "root=/nowhere/at/all: no such directory"),
        (lambda: grey(4, split="eval"), "split='eval'"),
        (lambda: grey(4, binarize="yes"), "binarize='yes'"),
    ]:
        with pytest.raises(VlaeError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_subset_is_the_beginning():
    for binarize in (None, "static", "dynamic", "threshold"):
        data = load("digits", split="test", binarize=binarize)
        few = data.subset(7)
        assert type(few) is type(data)
        assert len(few) == 7
        assert len(data) == 300
        assert torch.equal(few.tensor(), data.tensor()[:7])
        assert torch.equal(few.labels, data.labels[:7])
    assert len(data.subset(np.int64(7))) == 7
    for n in (0, 301, 1.5, "7", True):
        with pytest.raises(VlaeError, match="expected 1 to 300"):
            data.subset(n)


def test_digits():
    parts = [load("digits", split) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [1197, 300, 300]
    assert [part.split for part in parts] == ["train", "validation", "test"]
    assert {part.levels for part in parts} == {17}
    every = torch.cat([part.images for part in parts]).flatten(1)
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().data).to(torch.uint8)
    assert sorted(every.tolist()) == sorted(original.tolist())  # each image once
    assert all(part.labels.bincount().min() > 15 for part in parts)
    assert torch.equal(load("digits").images, parts[0].images)


def test_training_and_validation_together_keep_their_fixed_draws():
    both = load("digits", "train+val", binarize="static")
    parts = [load("digits", split, binarize="static") for split in ("train", "validation")]
    assert both.split == "train+validation"
    assert torch.equal(both.tensor(), torch.cat([part.tensor() for part in parts]))
    assert torch.equal(both.labels, torch.cat([part.labels for part in parts]))


def test_training_and_validation_together_are_drawn_anew():
    both = load("digits", "train+validation", binarize="dynamic")
    assert both.training
    assert not torch.equal(both[1400], both[1400])
    assert "a new draw at each visit" in both.protocol


def test_protocol_is_one_line_that_says_split_and_binarisation():
    assert load("digits", "test").protocol == "digits, test: 300 images, 17 levels"
    assert load("digits", "test", binarize="threshold").protocol.endswith("binarised at 0.5")


def test_names():
    assert names()[0] == "digits"
    known = {"mnist", "fashion_mnist", "binarized_mnist", "omniglot", "cifar10", "dsprites", "sprites", "folder"}
    assert set(names()) >= known


def test_factors_stay_with_their_images():
    x, factors = torch.rand(6, 2, 2), torch.arange(12).reshape(6, 2)
    train, validation = (
        ImageDataset.from_any(x[rows], levels=256, split=split, factors=factors[rows])
        for rows, split in ((slice(4), "train"), (slice(4, 6), "validation"))
    )
    assert torch.equal(train.subset(3).factors, factors[:3])
    both = train.join(validation)
    assert torch.equal(both.factors, factors)
    assert torch.equal(both.binarized("dynamic").factors, factors)
    named = ImageDataset(
        validation.images, factors=factors[4:], factor_names=["a", "b"], factor_sizes=[11, 12], name="toy"
    )
    for data in (named, named.subset(1), named.join(train), named.binarized("static")):
        assert (data.factor_names, data.factor_sizes) == (("a", "b"), (11, 12))
    assert (train.factor_names, train.factor_sizes) == ((), ())
    assert load("digits").factors is None


def test_factors_of_any_origin():
    x = torch.rand(3, 2, 2)
    for given, dtype in [
        (np.arange(6, dtype=np.int16).reshape(3, 2), torch.int64),
        ([[0, 1], [2, 3], [4, 5]], torch.int64),
        (torch.arange(6.0, dtype=torch.float64).reshape(3, 2), torch.float64),
    ]:
        factors = ImageDataset.from_any(x, factors=given).factors
        assert factors.dtype == dtype
        assert factors.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_factors_that_are_no_numbers_are_refused_with_the_image_they_are_of(bad):
    factors = torch.ones(6, 2)
    factors[4, 1] = bad
    with pytest.raises(VlaeError, match=r"toy: .*image 4 .*NaN or infinite") as error:
        ImageDataset.from_any(torch.rand(6, 2, 2), factors=factors, name="toy")
    assert "\n" not in str(error.value)


def test_labels_of_any_origin():
    x = torch.rand(3, 2, 2)
    for given in ([2, 0, 1], np.array([2, 0, 1], np.uint8), torch.tensor([2.0, 0.0, 1.0])):
        labels = ImageDataset.from_any(x, labels=given).labels
        assert labels.dtype == torch.int64
        assert labels.tolist() == [2, 0, 1]
    for given in (
        [0, float("nan"), 1],
        3,
        [[0, 1], [1, 2], [2, 3]],
        [0.0, 1.5, 2.0],
        [0.0, float("inf"), 2.0],
        ["a", "b", "c"],
        [None, 1, 2],
    ):
        with pytest.raises(VlaeError, match="labels must be integers") as error:
            ImageDataset.from_any(x, labels=given)
        assert "\n" not in str(error.value)


def test_labels_of_a_dataset_are_held_to_the_same():
    x = torch.rand(3, 1, 2, 2)
    assert ImageDataset.from_any(TensorDataset(x, torch.tensor([2.0, 0.0, 1.0]))).labels.tolist() == [2, 0, 1]
    for given in (torch.tensor([0.5, 1.9, -2.7]), torch.zeros(3, 2)):
        with pytest.raises(VlaeError, match="labels must be integers"):
            ImageDataset.from_any(TensorDataset(x, given))


def test_one_draw_stands_for_all_visits():
    grey = ImageDataset.from_any(torch.rand(40, 1, 4, 4), split="train", binarize="dynamic")
    fixed = grey.drawn()
    assert torch.equal(fixed.tensor(), grey.tensor()) and "fixed draw" in fixed.protocol
    for size in (7, 40):
        images = torch.cat([batch.images for batch in Batches(fixed, size)])
        assert torch.equal(images, grey.tensor())
    held = ImageDataset.from_any(torch.rand(4, 1, 4, 4), split="test", binarize="dynamic")
    assert held.drawn() is held and grey.binarized(None).drawn().binarize is None


def test_factors_that_do_not_fit():
    x = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    for arguments, message in [
        ({"factors": torch.zeros(2, 4)}, "2 factors for 3 images"),
        ({"factors": torch.zeros(3)}, r"factors of shape \[3\]; expected \[N, F\]"),
        ({"factors": torch.zeros(())}, r"factors of shape \[\]; expected \[N, F\]"),
        ({"factors": torch.zeros(3, 2), "factor_names": ["a"]}, "1 factor_names for 2 factors"),
        ({"factors": torch.zeros(3, 2), "factor_sizes": [1, 2, 3]}, "3 factor_sizes for 2 factors"),
        ({"factor_names": ["a"]}, "1 factor_names for 0 factors"),
    ]:
        with pytest.raises(VlaeError, match=message):
            ImageDataset(x, **arguments)
    for given in ([["red"]] * 3, [[1], [2, 3], [4]], object()):
        with pytest.raises(VlaeError, match="factors must be numbers") as error:
            ImageDataset.from_any(x, factors=given)
        assert "\n" not in str(error.value)


def test_mismatched_labels_and_types():
    x = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(VlaeError, match="2 labels for 3 images"):
        ImageDataset(x, labels=torch.zeros(2))
    with pytest.raises(VlaeError, match="expected uint8"):
        ImageDataset(x.float())
    with pytest.raises(VlaeError, match=r"expected integers in 0..16"):
        ImageDataset(x + 17, levels=17)
