"""MIG and SAP: by how much one dimension of the code tells more of a factor than any other dimension does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vlae.errors import require_positive
from vlae.evaluation.known_factors import codes_and_classes

BINS = 20


def mig(codes: Tensor, factors: Tensor, bins: int = BINS) -> float:
    r"""Mutual information gap (Chen et al. 2018, arXiv 1802.04942, eq. 6), 0 to 1.

    .. math:: \frac{1}{F} \sum_k \frac{1}{H(v_k)} \left( I(z_{j(k)}; v_k) - \max_{j \ne j(k)} I(z_j; v_k) \right),
        \quad j(k) = \arg\max_j I(z_j; v_k)

    The codes are given, one for each image: posterior means, as Locatello et al. take them, where eq. 6 draws
    z ~ q(z|x). A dimension at the prior has means that hardly move and yet may follow a factor: make it constant.

    Mutual information and entropy are those of the images themselves (the plug-in estimate), with the dimensions cut
    into bins of equal width between their least and greatest value (Locatello et al. 2019, arXiv 1811.12359). A
    dimension with no more distinct values than that, or than the factor with the most classes has, is not cut where its
    values repeat: each value is a class. So the factors themselves as code have a gap of exactly 1, and a code that
    holds each of them twice, or is constant, exactly 0. Mutual information of N images is too large by about
    (bins - 1) (classes - 1) / 2N nats: give thousands.

    Args:
        codes: [N, D]. Where D = 1, the second best dimension is one that tells nothing.
        factors: classes [N, F]; those that do not vary are left out.
        bins: 1 or more, of each dimension.

    Raises:
        VlaeError: no bins; and see `codes_and_classes`.

    Example:
        >>> from vlae.data.factors import grid
        >>> v = grid([2, 3])
        >>> mig(v, v), mig(v[:, [0, 1, 0, 1]], v)
        (1.0, 0.0)
    """
    require_positive("bins", bins)
    z, classes = codes_and_classes(codes, factors)
    most = max(bins, int(classes.max()) + 1)
    cells = [discretised(dimension, bins, most) for dimension in z.T]
    gaps = [
        gap([mutual_information(cell, v) for cell in cells], guess=0.0) / mutual_information(v, v) for v in classes.T
    ]
    return math.fsum(gaps) / len(gaps)


def sap(codes: Tensor, factors: Tensor) -> float:
    """Separated attribute predictability (Kumar et al. 2018, arXiv 1711.00848, section 3), 0 to 1.

    Of each factor the gap between the two dimensions that predict it best, alone; the mean over factors. As the factors
    are classes, the score of a dimension is the paper's: thresholds are put on it so that the balanced accuracy (the
    mean over classes of the share that is told rightly) is greatest on these images; see `threshold_accuracy`. A
    dimension that says nothing scores 1 / classes, and so the factors themselves as code have a gap of the mean of
    1 - 1 / classes, which is the most there is.

    disentanglement_lib trains a linear support vector machine for each class instead. It gets other numbers: it has no
    thresholds that would single out a class between others.

    Args:
        codes: [N, D]. Where D = 1, the second best dimension is a guess.
        factors: classes [N, F]; those that do not vary are left out.

    Raises:
        VlaeError: see `codes_and_classes`.

    Example:
        >>> from vlae.data.factors import grid
        >>> v = grid([2, 4])
        >>> sap(v, v), sap(v[:, [0, 1, 0, 1]], v)  # (1/2 + 3/4) / 2
        (0.625, 0.0)
    """
    z, classes = codes_and_classes(codes, factors)
    scores = [[threshold_accuracy(dimension, v) for v in classes.T] for dimension in z.T]
    gaps = [gap(of, guess=1 / (v.max() + 1)) for of, v in zip(zip(*scores, strict=True), classes.T, strict=True)]
    return math.fsum(gaps) / len(gaps)


def gap(scores: Sequence[float], guess: float) -> float:
    """The best score less the second best; of a single one, less a guess, which no score is below."""
    second, first = sorted([guess, *scores])[-2:]
    return first - second


def discretised(dimension: np.ndarray, bins: int, most: int) -> np.ndarray:
    """Classes of the values of one dimension [N]: the values themselves, or bins.

    Bins where there are more values than `most`, and where they hardly repeat: few images have few values.
    """
    values, inverse = np.unique(dimension, return_inverse=True)
    if len(values) <= min(most, len(dimension) // 2):
        return inverse
    low, high = values[0], values[-1]
    return np.minimum((dimension - low) / (high - low) * bins, bins - 1).astype(np.int64)


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) of two lists of classes, int64 [N] from 0, in nats; with a = b the entropy.

    Ratios of counts are correctly rounded and their sum is exact, whatever the order of the classes: for independent
    classes it is exactly 0, and for classes that name each other exactly their entropy.

    Example:
        >>> a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
        >>> mutual_information(a, a) == math.log(2), mutual_information(a, b)
        (True, 0.0)
    """
    table = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(a.max() + 1, -1)
    total, rows, columns = len(a), table.sum(1).tolist(), table.sum(0).tolist()
    cells = zip(*(part.tolist() for part in table.nonzero()), table[table > 0].tolist(), strict=True)
    return max(0.0, math.fsum(n * math.log(n * total / (rows[i] * columns[j])) for i, j, n in cells) / total)


def threshold_accuracy(dimension: np.ndarray, classes: np.ndarray) -> float:
    """The best balanced accuracy with which thresholds on one dimension tell the classes, 1 / classes to 1.

    The classes stand on the line in the order of their mean values, or in the reverse order, each with one interval,
    which may be empty. Where the thresholds between them lie best is found exactly: the most that the first k classes
    can score on the values up to one of them is, with S_k the share of class k up to there,

        best_k(i) = max over j <= i of best_{k-1}(j) + S_k(i) - S_k(j)

    Args:
        dimension: values [N].
        classes: int64 [N], from 0 without gaps.

    Example:
        >>> threshold_accuracy(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1, 1, 1, 0]))
        1.0
        >>> threshold_accuracy(np.array([0.1, 0.2, 0.2, 0.4]), np.array([1, 1, 0, 0]))  # equal values stay together
        0.75
    """
    values, place = np.unique(dimension, return_inverse=True)
    sizes = np.bincount(classes)
    order = np.argsort(np.bincount(classes, dimension) / sizes, kind="stable")
    # [classes, values + 1]: the share of each class that lies before each possible threshold.
    shares = [np.cumsum(np.bincount(place[classes == k] + 1, minlength=len(values) + 1)) / sizes[k] for k in order]
    scores = []
    for direction in (shares, shares[::-1]):
        best = np.zeros(len(values) + 1)
        for share in direction:
            best = share + np.maximum.accumulate(best - share)
        scores.append(best[-1] / len(sizes))
    return float(max(scores))
