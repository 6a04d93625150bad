"""MIG and SAP against their definitions, on codes whose gaps are worked out by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, mutual_info_score

from vlae import VlaeError
from vlae.data.factors import grid
from vlae.evaluation.gaps import discretised, gap, mig, mutual_information, sap, threshold_accuracy

# Two binary factors, each combination twice; z_0 is the first factor but for one image of each class, and says nothing
# of the second; z_1 is the second factor.
PAIRS = grid([2, 2]).repeat_interleave(2, 0)
NOISY = torch.tensor([1, 0, 0, 0, 0, 1, 1, 1])
WORKED = torch.stack([NOISY, PAIRS[:, 1]], 1).double()


def test_mig_by_hand():
    known = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # of a table [[3, 1], [1, 3]] / 8
    assert mig(WORKED, PAIRS) == pytest.approx((known / math.log(2) + 1) / 2, rel=1e-12)
    # The second best counts, not the mean of the others: a copy of z_0 closes its gap.
    assert mig(WORKED[:, [0, 1, 0]], PAIRS) == pytest.approx(1 / 2, rel=1e-12)


def test_sap_by_hand():
    assert sap(WORKED, PAIRS) == pytest.approx(((3 / 4 - 1 / 2) + (1 - 1 / 2)) / 2, rel=1e-12)
    assert sap(WORKED[:, [0, 1, 0]], PAIRS) == pytest.approx(1 / 4, rel=1e-12)


@pytest.mark.parametrize("sizes", [[2, 3], [4, 3, 5], [32, 2, 3], [4, 6, 3, 3, 4]])
def test_on_the_full_grid_the_factors_have_the_full_gap_and_copies_none(sizes):
    v = grid(sizes)
    width = len(sizes)
    assert mig(v.double(), v) == 1.0  # exactly, 32 classes too, which are more than there are bins
    assert sap(v.double(), v) == pytest.approx(np.mean([1 - 1 / size for size in sizes]), rel=1e-12)
    for nothing in (torch.cat([v, v], 1), torch.full((len(v), width), 0.3), v.repeat_interleave(2, 1) * 0.1 - 7):
        assert mig(nothing.double(), v) == 0.0
        assert sap(nothing.double(), v) == 0.0


def test_a_single_dimension_is_compared_with_a_guess():
    v = grid([2, 4])
    first = v[:, :1].double()
    assert mig(first, v) == 1 / 2
    assert sap(first, v) == pytest.approx((1 / 2 + 0) / 2)
    assert sap(first, v) == sap(torch.cat([first, torch.zeros(8, 1)], 1), v)


def test_mixed_factors_have_a_smaller_gap():
    v = grid([4, 4])
    mixed = torch.stack([v[:, 0] + v[:, 1], v[:, 0] - v[:, 1]], 1).double()
    assert mig(mixed, v) == pytest.approx(0, abs=1e-12)  # both say as much of either factor
    assert sap(mixed, v) == pytest.approx(0, abs=1e-12)
    partly = torch.stack([v[:, 0] + 0.5 * v[:, 1], v[:, 1] - 0.5 * v[:, 0]], 1).double()
    assert mig(partly, v) == 0.0  # each sum names one pair alone, whichever factor has the greater part in it
    assert 0.01 < mig(partly, v, bins=4) < 0.9
    assert 0.01 < sap(partly, v) < 0.7


def test_order_scale_and_sign_of_dimensions_do_not_matter():
    v = grid([4, 3, 5]).repeat(4, 1)
    z = v.double() @ torch.randn(3, 6, dtype=torch.float64) + torch.randn(len(v), 6, dtype=torch.float64)
    other = z[:, [3, 0, 5, 1, 4, 2]] * torch.tensor([1, -2, 0.125, -1, 16, -0.5], dtype=torch.float64)
    assert mig(other, v) == mig(z, v) > 0.01
    assert sap(other, v) == pytest.approx(sap(z, v), rel=1e-12)
    assert sap(z, v) > 0.01
    shuffled = torch.randperm(len(v))
    assert mig(z[shuffled], v[shuffled]) == mig(z, v)
    assert sap(z[shuffled], v[shuffled]) == pytest.approx(sap(z, v), rel=1e-12)


def test_dimensions_that_say_nothing_change_nothing():
    full = grid([4, 3, 5, 7])
    v = full[:, :3]
    z = v.double() + 0.3 * torch.sin(17 * full[:, 3:].double())
    more = torch.cat([z, full[:, 3:], torch.ones(len(v), 1)], 1)  # independent of the factors, and constant
    assert mig(more, v) == mig(z, v) > 0.1
    assert sap(more, v) == pytest.approx(sap(z, v), abs=1e-12)
    many = v.repeat(4, 1)
    noise = torch.cat([many.double(), torch.randn(len(many), 5, dtype=torch.float64)], 1)
    assert 0.93 < mig(noise, many) < 1  # that noise seems to tell a little is the estimate's bias, 0.01 to 0.04 here
    assert sap(noise, many) == pytest.approx(sap(many, many), abs=0.05)


def test_constant_factors_are_left_out_and_class_numbers_do_not_matter():
    v = torch.cat([PAIRS, torch.full((8, 1), 3)], 1)
    assert mig(WORKED, v) == mig(WORKED, PAIRS) and sap(WORKED, v) == sap(WORKED, PAIRS)
    renamed = torch.tensor([40, -7])[PAIRS]
    assert mig(WORKED, renamed) == mig(WORKED, PAIRS) and sap(WORKED, renamed) == sap(WORKED, PAIRS)
    assert mig(WORKED.float(), PAIRS.float()) == mig(WORKED, PAIRS)


def test_mutual_information_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    for a_size, b_size in ((2, 2), (5, 3), (20, 32)):
        a = rng.integers(a_size, size=500)
        b = (a + rng.integers(2, size=500)) % b_size
        assert mutual_information(a, b) == pytest.approx(mutual_info_score(a, b), rel=1e-10)
        assert mutual_information(a, b) == mutual_information(b, a)
    shares = np.array([1, 2, 5]) / 8
    assert mutual_information(b := np.array([0, 1, 1, 2, 2, 2, 2, 2]), b) == pytest.approx(-shares @ np.log(shares))


def test_mig_agrees_with_the_definition_on_binned_codes():
    rng = np.random.default_rng(1)
    v = rng.integers([3, 4], size=(400, 2))
    z = v @ rng.normal(size=(2, 5)) + rng.normal(size=(400, 5))
    for bins in (20, 7):
        # numpy's own histogram and digitize, as disentanglement_lib cuts them
        cut = np.stack([np.digitize(d, np.histogram(d, bins)[1][:-1]) for d in z.T], 1)
        gaps = []
        for k in range(2):
            told = sorted(mutual_info_score(cut[:, j], v[:, k]) for j in range(5))
            gaps.append((told[-1] - told[-2]) / mutual_info_score(v[:, k], v[:, k]))
        assert mig(*map(torch.from_numpy, (z, v)), bins) == pytest.approx(np.mean(gaps), rel=1e-10)


def test_bins_have_equal_width_and_few_values_are_kept():
    values = np.array([0.0, 0.09, 0.11, 0.5, 0.95, 1.0])
    assert discretised(values, 10, 5).tolist() == [0, 0, 1, 5, 9, 9]
    assert discretised(values.repeat(2), 10, 6).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert discretised(values, 10, 6).tolist() == [0, 0, 1, 5, 9, 9]  # each value once: they name images, not classes


def test_threshold_accuracy_is_the_best_of_all_thresholds():
    """Every placing of the thresholds, both directions, scored by scikit-learn."""
    rng = np.random.default_rng(2)
    for classes, count in ((2, 12), (3, 9), (4, 5)):
        for _ in range(3):
            v = np.r_[np.arange(classes), rng.integers(0, classes, count) // rng.integers(1, 3, count)]
            z = np.round(v * rng.normal() + rng.normal(size=len(v)), 1)  # with ties
            order = sorted(range(classes), key=lambda k: z[v == k].mean())
            cuts = [-np.inf, *np.unique(z)]
            best = 0.0
            for thresholds in itertools.combinations_with_replacement(cuts, classes - 1):
                interval = (z[:, None] > np.array(thresholds)).sum(1)
                for names in (order, order[::-1]):
                    best = max(best, balanced_accuracy_score(v, np.array(names)[interval]))
            assert threshold_accuracy(z, v) == pytest.approx(best, rel=1e-12)


def test_thresholds_balance_rare_classes():
    v = np.array([0] * 98 + [1] * 2)
    z = np.r_[np.linspace(0, 1, 98), 0.9, 2.0]
    # one of two, and all but the ten above 0.9 of 98; or both of them and all but those
    assert threshold_accuracy(z, v) == pytest.approx((1 + 88 / 98) / 2)
    assert threshold_accuracy(np.zeros(100), v) == 1 / 2


def test_a_gap_is_between_the_two_best():
    assert gap([0.25, 1.0, 0.5], 0.0) == 0.5
    assert gap([0.75], 0.5) == 0.25


def test_bins_are_positive():
    with pytest.raises(VlaeError, match="bins must be 1 or more"):
        mig(WORKED, PAIRS, bins=0)


def test_few_images_with_a_value_each_do_not_name_the_factors():
    v = grid([2, 2]).repeat(5, 1)  # 20 images, as many as there are bins
    noise = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    assert mig(v + 0.01 * noise, v) == 1.0
