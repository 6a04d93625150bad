"""Which classifier judges a data set's samples, if any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlae.data import ImageDataset
from vlae.data.sources import Root
from vlae.errors import VlaeError
from vlae.evaluation.classifier import Classifier, trained_classifier
from vlae.evaluation.probes import shares_classes


def judge_of(
    name: str,
    training: ImageDataset,
    test: ImageDataset,
    root: Root = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Classifier | None, str]:
    """The small classifier of a data set, from the cache or trained now; else None, and why there is none.

    Args:
        name: of the set, as in `vlae.data.load`.
        training, test: its images; their labels and their binarisation count.
        root: where the data are.
        options: that the set was loaded with: with any, its images are not those that are known by the name.
    """
    if options:
        return None, "no classifier judges the samples: this is a data set with options of its own"
    if not shares_classes(training, test):
        return None, "no classifier judges the samples: this is a data set without labels that training and test share"
    try:
        return trained_classifier(name, test.binarize, seed=0, root=root), ""
    except VlaeError as error:  # OMNIGLOT's test images are of other classes than those of training and validation
        return None, f"no classifier judges the samples: {error}"
