"""How useful the code is: what a linear model and the nearest neighbours make of the posterior means.

All of it is deterministic: no probe draws anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vlae.data import ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation.codes import code_means, flattened
from vlae.models.base import LatentVariableModel

NEIGHBOURS = 5


@dataclass(frozen=True)
class ProbeResult:
    """What probes trained on `train_images` codes make of `test_images` others.

    Attributes:
        linear: accuracy of the linear probe, 0 to 1; None without labels, or where the test has classes of its own.
        knn: accuracy of the nearest neighbours, 0 to 1; None where `linear` is.
        r2: of each factor, its share of variance that a linear model explains, at most 1; None without factors.
    """

    train_images: int
    test_images: int
    linear: float | None = None
    knn: float | None = None
    r2: list[float] | None = None


def probe(model: LatentVariableModel | None, train: ImageDataset, test: ImageDataset) -> ProbeResult:
    """Probes of the posterior means; of the pixels themselves where there is no model."""
    codes, others = (pixels(part) if model is None else code_means(model, part) for part in (train, test))
    linear = knn = r2 = None
    if shares_classes(train, test):
        assert train.labels is not None and test.labels is not None
        linear = linear_probe(codes, train.labels, others, test.labels)
        knn = knn_accuracy(codes, train.labels, others, test.labels)
    if train.factors is not None and test.factors is not None:
        r2 = factor_r2(codes, train.factors, others, test.factors)
    return ProbeResult(len(train), len(test), linear, knn, r2)


def shares_classes(train: ImageDataset, test: ImageDataset) -> bool:
    """Whether both have labels, and all classes of the test, two at least, are trained on."""
    return not why_no_classes(train, test)


def why_no_classes(train: ImageDataset, test: ImageDataset) -> str:
    """Why no probe can learn the test images' classes; empty where one can."""
    if train.labels is None or test.labels is None:
        return "there are no labels"
    known = set(train.labels.tolist())
    if len(known) < 2:
        return "the images to learn from are all of one class: take more of them"
    return "" if set(test.labels.tolist()) <= known else "the test images have classes that the others have not"


def pixels(dataset: ImageDataset) -> Tensor:
    """The images themselves, float64 [N, C H W]: what a code is to beat, or to keep."""
    return flattened(dataset.tensor())


def linear_probe(codes: Tensor, labels: Tensor, test_codes: Tensor, test_labels: Tensor) -> float:
    """Accuracy on test codes [M, D] of logistic regression on standardised codes [N, D], 0 to 1.

    Args:
        codes, labels: what it is trained on, [N, D] and integers [N] of two classes or more.
        test_codes, test_labels: what it is tested on, [M, D] and [M].
    """
    _check(codes, labels, test_codes, test_labels)
    if len(labels.unique()) < 2:
        raise VlaeError("a probe needs images of two classes or more to learn from: give it more training images")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(model.fit(codes.numpy(), labels.numpy()).score(test_codes.numpy(), test_labels.numpy()))


def knn_accuracy(
    codes: Tensor, labels: Tensor, test_codes: Tensor, test_labels: Tensor, neighbours: int = NEIGHBOURS
) -> float:
    """Accuracy on test codes [M, D] of a vote of the nearest codes [N, D], 0 to 1.

    Distances are Euclidean in the code's own scale, so that dimensions which hardly move do not count.
    """
    _check(codes, labels, test_codes, test_labels)
    model = KNeighborsClassifier(min(neighbours, len(codes)), algorithm="brute")
    return float(model.fit(codes.numpy(), labels.numpy()).score(test_codes.numpy(), test_labels.numpy()))


def factor_r2(codes: Tensor, factors: Tensor, test_codes: Tensor, test_factors: Tensor) -> list[float]:
    """R^2 on test codes of linear regression from standardised codes to each factor [N, F]: F numbers, at most 1.

    NaN for a factor that does not vary among the test images.
    """
    _check(codes, factors, test_codes, test_factors)
    model = make_pipeline(StandardScaler(), LinearRegression())
    predicted = model.fit(codes.numpy(), factors.double().numpy()).predict(test_codes.numpy())
    truth = test_factors.double().numpy()
    residual, spread = ((truth - predicted) ** 2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
    varies = np.ptp(truth, 0) > 0  # the mean of equal numbers may be off by rounding
    return np.where(varies, 1 - residual / np.where(varies, spread, 1), np.nan).tolist()


def _check(codes: Tensor, targets: Tensor, test_codes: Tensor, test_targets: Tensor) -> None:
    for z, y in ((codes, targets), (test_codes, test_targets)):
        if z.ndim != 2 or len(z) != len(y) or not len(z):
            raise VlaeError(f"expected codes [N, D] and one label each; got {list(z.shape)} and {list(y.shape)}")
        if not z.isfinite().all():
            raise VlaeError("the codes hold NaN or infinite values: there is nothing to probe")
    if codes.shape[1] != test_codes.shape[1]:
        raise VlaeError(f"codes have {codes.shape[1]} dimensions in training and {test_codes.shape[1]} in the test")
