"""The FactorVAE score: whether the dimension that varies least says which factor was held fixed."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vlae.errors import VlaeError, require_positive
from vlae.evaluation.known_factors import codes_and_classes

DEAD = 0.01
ELEMENTS = 2**22  # how many numbers are looked at at once


def factor_vae_score(
    codes: Tensor,
    factors: Tensor,
    seed: int = 0,
    *,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    images: int = 64,
    dead: float = DEAD,
) -> float:
    """The FactorVAE score (Kim and Mnih 2018, arXiv 1802.05983, section 4), 0 to 1.

    A vote is cast like this: a factor is drawn, and an image that has its value; of all images with this value some are
    drawn with replacement; and the dimension of the code that varies least among them, over its variance among all
    images, votes for the factor. Each dimension then stands for the factor that it has most votes for, and the score is
    the share of fresh votes that are right. A guess is right once in as many votes as there are factors.

    The paper generates the images of a vote; here they are drawn among those given, which on the full grid of factors
    is the same. Values that a single image has are left out: nothing could vary. Dimensions that hardly move beside the
    widest are too (the paper leaves out those that have collapsed to the prior, which codes alone do not show), and if
    all are constant, the score is 0. The numbers of votes and images are Locatello's et al.
    (2019).

    Args:
        codes: [N, D].
        factors: classes [N, F]; those that do not vary are left out.
        seed: of all draws.
        train_votes: how many votes are learnt from.
        test_votes: how many are then judged.
        images: how many are drawn for a vote, 2 or more.
        dead: dimensions whose standard deviation is at most so much of the greatest one's are left out.

    Raises:
        VlaeError: no votes, or fewer than two images for one; and see `codes_and_classes`.
    """
    require_positive("votes", train_votes, test_votes)
    if images < 2:
        raise VlaeError(f"a vote needs two images or more, whose codes could vary; got {images}")
    z, classes = codes_and_classes(codes, factors)
    spread = z.std(0)
    z = z[:, spread > dead * spread.max()] / spread[spread > dead * spread.max()]
    if not z.shape[1]:
        return 0.0
    rng = np.random.default_rng([seed % 2**64, 1])
    train, test = (votes(z, draws(classes, count, images, rng)) for count in (train_votes, test_votes))
    return majority_accuracy(train, test)


def draws(classes: np.ndarray, count: int, images: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which images votes look at: of each factor int64 [its votes, images], `count` votes in all.

    The images of one vote have the same value of the factor; it is that of an image drawn at random.
    """
    per_factor = np.bincount(rng.integers(classes.shape[1], size=count), minlength=classes.shape[1])
    return [_fixed(v, size, images, rng) for v, size in zip(classes.T, per_factor, strict=True)]


def _fixed(v: np.ndarray, votes: int, images: int, rng: np.random.Generator) -> np.ndarray:
    sizes = np.bincount(v)
    by_value, first = np.argsort(v, kind="stable"), np.cumsum(sizes) - sizes
    values = rng.choice(v[sizes[v] > 1], votes)[:, None]  # there are some: images are twice as many as values
    return by_value[first[values] + rng.integers(sizes[values], size=(votes, images))]


def votes(codes: np.ndarray, drawn: list[np.ndarray]) -> np.ndarray:
    """How often each dimension of the codes [N, D], of variance 1, varied least when each factor was fixed: [F, D]."""
    step = max(1, ELEMENTS // (drawn[0].shape[1] * codes.shape[1]))
    counts = np.zeros((len(drawn), codes.shape[1]), np.int64)
    for count, rows in zip(counts, drawn, strict=True):
        for start in range(0, len(rows), step):
            least = codes[rows[start : start + step]].var(1).argmin(1)
            count += np.bincount(least, minlength=len(count))
    return counts


def majority_accuracy(train: np.ndarray, test: np.ndarray) -> float:
    """The share of the test votes that are for the factor that the dimension has most training votes for; both [F, D].

    Example:
        >>> majority_accuracy(np.array([[3, 0], [1, 5]]), np.array([[4, 1], [2, 3]]))
        0.7
    """
    return float(test[train.argmax(0), np.arange(train.shape[1])].sum() / test.sum())
