"""DCI: disentanglement, completeness and informativeness, from how much each dimension matters to each factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from vlae.evaluation.known_factors import codes_and_classes

IMAGES = 6000  # forests are grown on two thirds of at most so many
TREES = 25
LEAF = 1 / 200  # of the training images: smaller leaves would learn noise, and call it important


@dataclass(frozen=True)
class DCI:
    """Three scores from 0 to 1 (Eastwood and Williams 2018, section 2).

    Attributes:
        disentanglement: whether each dimension tells of one factor only; the mean over dimensions, weighted by how much
            they matter.
        completeness: whether each factor is told by one dimension only; the mean over factors.
        informativeness: accuracy of the factors predicted from the whole code, on images of which it was not learnt.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(codes: Tensor, factors: Tensor, seed: int = 0) -> DCI:
    """DCI with one random forest per factor (Eastwood and Williams 2018, openreview By-7dz-AZ, section 2).

    The importance of a dimension is its share in what all splits lower the Gini impurity by. Trees see all dimensions
    at each split, so that one which says nothing is not chosen for want of a better. Disentanglement and completeness
    depend on how deep the trees are: the smaller their leaves, the more noise counts. Leaves of at least 1/200 of the
    images find about what the boosted trees of disentanglement_lib do, in a fraction of the time.

    Two thirds of the images, drawn by the seed, grow the forests, the others test them. Of more than 6,000 images so
    many are drawn.

    Args:
        codes: [N, D].
        factors: classes [N, F]; those that do not vary are left out.
        seed: of the draw of images and of the trees.

    Raises:
        VlaeError: see `codes_and_classes`.
    """
    z, classes = codes_and_classes(codes, factors)
    rng = np.random.default_rng([seed % 2**64, 0])
    rows = rng.permutation(len(z))[:IMAGES]
    z = (z - z.mean(0)) / np.where(z.std(0) > 0, z.std(0), 1)  # trees compare in float32
    train, test = np.split(rows, [len(rows) * 2 // 3])
    importances, accuracies = [], []
    for v in classes.T:
        forest = RandomForestClassifier(
            TREES, max_features=None, min_samples_leaf=LEAF, random_state=int(rng.integers(2**31))
        )
        forest.fit(z[train], v[train])
        importances.append(forest.feature_importances_)
        accuracies.append(forest.score(z[test], v[test]))
    return DCI(*dci_from_importances(np.stack(importances, 1)), float(np.mean(accuracies)))


def dci_from_importances(importances: np.ndarray) -> tuple[float, float]:
    r"""Disentanglement and completeness (Eastwood and Williams 2018, section 2) of a matrix of importances.

    .. math:: D = \sum_i \rho_i \left( 1 - H_F(R_i / \textstyle\sum_k R_{ik}) \right), \quad
        C = \frac{1}{F} \sum_k \left( 1 - H_D(R_{\cdot k} / \textstyle\sum_i R_{ik}) \right)

    with entropies to base F and D, and \rho_i the share of dimension i in the sum of all R. A factor to which nothing
    matters is not completely told at all: its term is 0.

    Args:
        importances: R, not negative, [D, F].

    Returns:
        disentanglement and completeness, 0 to 1.

    Example:
        >>> dci_from_importances(np.array([[1.0, 0.0], [0.0, 0.5], [0.0, 0.5]]))[0]
        1.0
    """
    total = importances.sum()
    weights = importances.sum(1) / (total if total > 0 else 1)
    return float(weights @ _concentration(importances)), float(_concentration(importances.T).mean())


def _concentration(rows: np.ndarray) -> np.ndarray:
    """1 less the entropy of each row's shares, to the base of their number: 1 where one has all, 0 where all equal."""
    totals = rows.sum(1, keepdims=True)
    shares = rows / np.where(totals > 0, totals, 1)
    entropies = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
    # One alone has all there is, and an entropy of 0 to any base.
    return np.where(totals[:, 0] > 0, 1 - entropies / np.log(max(rows.shape[1], 2)), 0.0)
