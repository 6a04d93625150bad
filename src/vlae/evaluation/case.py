"""What the checks of `doctor` are given, and what they give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from vlae.data import ImageDataset
from vlae.evaluation.aggregate import Information
from vlae.evaluation.bounds import Evaluation
from vlae.evaluation.collapse import innermost
from vlae.evaluation.evidence import Exchange, Outside
from vlae.evaluation.history import History
from vlae.models.base import LatentVariableModel
from vlae.objectives import ELBO, Objective

OK, NOTICE, PROBLEM = "ok", "notice", "problem"


class LeftOut(Exception):
    """A check does not apply; its message says why, and without one it is not worth a word."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the symptom.
        severity: "ok", "notice" or "problem".
        evidence: a sentence with the numbers and what they are held against.
        advice: what to change; empty where nothing is wrong.
        values: the numbers by name.
    """

    name: str
    severity: str
    evidence: str
    advice: str = ""
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Case:
    """All that is known of a model when the checks begin.

    Attributes:
        model, data: what is examined, and the images that it is examined on.
        evaluation: the bound.
        exchange, outside, information: see `vlae.evaluation.evidence` and `aggregate`; None where they don't apply.
        images: the data's; `expected` the images that a mean image is to be set beside: the greys of binarised data.
        reconstructions, samples: as the decoder is looked at: drawn if autoregressive, else mean images. None where
            there are none.
        history: of the run; None for a model without one.
    """

    model: LatentVariableModel
    data: ImageDataset
    evaluation: Evaluation
    exchange: Exchange | None = None
    outside: Outside | None = None
    information: Information | None = None
    images: Tensor | None = None
    expected: Tensor | None = None
    reconstructions: Tensor | None = None
    samples: Tensor | None = None
    history: History | None = None

    @property
    def kind(self) -> str:
        """The model's class."""
        return type(self.model).__name__

    @property
    def objective(self) -> Objective:
        """What the model was trained by, under all added terms; the plain ELBO where that is not known."""
        return innermost(self.whole_objective)[0]

    @property
    def whole_objective(self) -> Objective:
        """The objective with its terms."""
        known = self.history.objective if self.history else None
        return ELBO() if known is None else known

    @property
    def key(self) -> str:
        """The option that sets `objective`."""
        return innermost(self.whole_objective)[1]

    def trained(self) -> History:
        """The history; without one the check is left out."""
        if self.history is None:
            raise LeftOut("there is no run to read, only a model")
        if not self.history.rows:
            raise LeftOut("the run has no logs/metrics.csv, or no finished epoch in it")
        return self.history

    def coded(self) -> None:
        """Leaves the check out where there is no code."""
        if not self.model.latent_size:
            raise LeftOut(f"a {self.kind} has no latent code")

    @property
    def is_finite(self) -> bool:
        """Whether the bound is a number: where it is not, what else is measured is none either."""
        return math.isfinite(self.evaluation.distortion + (self.evaluation.rate or 0))

    def finite(self) -> None:
        """Leaves the check out where the bound is not a number."""
        if not self.is_finite:
            raise LeftOut("the bound is not a finite number")

    @property
    def made(self) -> dict[str, Tensor]:
        """The pictures that there are, by their kind, where all their pixels are numbers."""
        pictures = {"reconstructions": self.reconstructions, "samples": self.samples}
        return {name: x for name, x in pictures.items() if x is not None and bool(x.isfinite().all())}


def times(count: int, what: str) -> str:
    """A number of things, in the singular or the plural."""
    return f"{count} {what}{'s' * (count != 1)}"
