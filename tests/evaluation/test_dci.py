"""DCI from importances known by hand, and from codes whose importances are clear."""

import math

import numpy as np
import pytest
import torch

from vlae.data.factors import grid
from vlae.evaluation import dci as module
from vlae.evaluation.dci import DCI, dci, dci_from_importances

FULL = grid([4, 3, 5]).repeat(4, 1)


def entropy(*shares):
    return -sum(p * math.log(p) for p in shares)


def test_scores_of_importances_by_hand():
    importances = np.array([[0.8, 0.0], [0.2, 0.5], [0.0, 0.5]])
    first_two = 0.8 / 2 * 1 + 0.7 / 2 * (1 - entropy(2 / 7, 5 / 7) / math.log(2))
    completeness = ((1 - entropy(0.8, 0.2) / math.log(3)) + (1 - math.log(2) / math.log(3))) / 2
    assert dci_from_importances(importances) == pytest.approx((first_two + 0.5 / 2, completeness), rel=1e-12)
    # The dimensions' weights and the factors' mean are not the same: a factor with ten times the importance.
    scaled = importances * [10, 1]
    weighted = 8 / 11 + 2.5 / 11 * (1 - entropy(0.8, 0.2) / math.log(2)) + 0.5 / 11
    assert dci_from_importances(scaled) == pytest.approx((weighted, completeness), rel=1e-12)


def test_the_extremes():
    assert dci_from_importances(np.eye(4)) == pytest.approx((1, 1), rel=1e-12)
    assert dci_from_importances(np.ones((5, 3))) == pytest.approx((0, 0), abs=1e-12)
    assert dci_from_importances(np.zeros((5, 3))) == (0, 0)
    # Each factor in two dimensions: disentangled, not complete. Two factors in one dimension: the other way round.
    twice = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert dci_from_importances(twice) == pytest.approx((1, 1 / 2), rel=1e-12)
    assert dci_from_importances(twice.T) == pytest.approx((1 / 2, 1), rel=1e-12)
    assert dci_from_importances(np.ones((1, 3))) == pytest.approx((0, 1), abs=1e-12)  # one dimension alone
    assert dci_from_importances(np.array([[1.0, 0], [0, 0]])) == pytest.approx((1, 1 / 2))  # nothing tells the second


def test_the_factors_themselves_are_perfect():
    scores = dci(FULL.double(), FULL)
    assert [scores.disentanglement, scores.completeness, scores.informativeness] == pytest.approx([1, 1, 1], rel=1e-9)


def test_a_constant_code_tells_nothing():
    scores = dci(torch.full((len(FULL), 3), 0.7), FULL)
    assert (scores.disentanglement, scores.completeness) == (0, 0)
    assert scores.informativeness == pytest.approx(np.mean([1 / 4, 1 / 3, 1 / 5]), abs=0.06)


def test_copies_are_disentangled_but_not_complete():
    scores = dci(torch.cat([FULL, FULL], 1).double(), FULL)
    assert scores.disentanglement == pytest.approx(1, rel=1e-9) and scores.informativeness == 1
    # Half of each tree's splits are on either copy: log 2 of log 6, but that 25 trees are no perfect halves.
    assert scores.completeness == pytest.approx(1 - math.log(2) / math.log(6), abs=0.1)


def test_mixed_factors_are_neither():
    mix = torch.tensor([[1.0, 1, 0], [1, -1, 0], [0, 0, 1]], dtype=torch.float64)
    standard = (FULL - FULL.double().mean(0)) / FULL.double().std(0)
    scores = dci(standard @ mix, FULL)
    assert scores.disentanglement < 0.8 and scores.completeness < 0.8 and scores.informativeness > 0.9


def test_noise_order_scale_and_sign_hardly_matter():
    generator = torch.Generator().manual_seed(0)
    clean = FULL.double() + 0.1 * torch.randn(len(FULL), 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(FULL), 4, generator=generator, dtype=torch.float64)
    z = torch.cat([clean, noise], 1)
    reference = dci(z, FULL)
    assert reference.disentanglement > 0.97 and reference.informativeness > 0.97
    changed = dci(
        (z * torch.tensor([1, -1, 1e-3, 1, 1e4, -2, 1], dtype=torch.float64) + 1e3)[:, [6, 2, 0, 5, 1, 3, 4]], FULL
    )
    for name in ("disentanglement", "completeness", "informativeness"):
        assert getattr(changed, name) == pytest.approx(getattr(reference, name), abs=0.02)
    assert dci(z * 2.0**200, FULL) == reference  # beyond float32, in which trees compare


def test_informativeness_is_measured_on_other_images():
    generator = torch.Generator().manual_seed(0)
    v = torch.randint(2, (300, 2), generator=generator)
    noise = torch.randn(300, 6, generator=generator)  # what trees could learn by heart
    assert dci(noise, v).informativeness == pytest.approx(1 / 2, abs=0.12)


def test_the_seed_alone_decides():
    z = FULL.double() @ torch.randn(3, 4, dtype=torch.float64) + torch.randn(len(FULL), 4, dtype=torch.float64)
    assert dci(z, FULL) == dci(z, FULL, seed=0) != dci(z, FULL, seed=1)
    assert isinstance(dci(z, FULL, seed=-1), DCI)


def test_many_images_are_sampled_from(monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 90)
    seen = []
    fit = module.RandomForestClassifier.fit
    monkeypatch.setattr(
        module.RandomForestClassifier, "fit", lambda self, x, y: (seen.append(x[:, 0].tolist()), fit(self, x, y))[1]
    )
    count = torch.arange(len(FULL), dtype=torch.float64)[:, None]
    dci(torch.cat([count, FULL], 1), FULL)
    assert {len(rows) for rows in seen} == {60} and len(set(seen[0])) == 60  # two thirds of 90, each once
    assert seen[0] != sorted(seen[0])  # not the first of them
