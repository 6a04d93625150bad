"""What is asked of one measurement, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vlae.errors import VlaeError
from vlae.evaluation.bounds import Evaluation
from vlae.evaluation.metrics import JUDGED, METRICS, STANDARD, chosen


@dataclass(frozen=True)
class Settings:
    """What is measured, and on how many images.

    Attributes:
        only: groups or metrics by name; empty: all that apply.
        standard: with the metrics of published networks, which are large to fetch and slow to run. They are measured
            anyway where `only` names them, or their group "standard".
        nll_samples: importance samples K per image; several give the bound at each.
        nll_images: NLL on so many images, the first of one fixed order; None: all.
        nll_of_all_samples: the NLL of all images is told from the NLL of all with so many samples, and the difference
            that more samples make for some of them; None: from -ELBO of all.
        information_images: mutual information among the first so many; their logarithm is its ceiling. None: 2,000, or
            300 where every pair takes the inversion of a flow.
        quality_images: reconstructions of the first so many, and exactly as many samples.
        train_images: probes learn from the first so many training images.
        batch_size: images at a time: memory, not the result.
        seed: of all noise.
    """

    only: tuple[str, ...] = ()
    standard: bool = False
    nll_samples: tuple[int, ...] = (1, 10, 100)
    nll_images: int | None = 500
    nll_of_all_samples: int | None = None
    information_images: int | None = None
    quality_images: int = 1000
    train_images: int = 5000
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        chosen(self.only)
        for name in ("information_images", "quality_images", "train_images"):
            if (count := getattr(self, name)) is not None and count < 2:
                raise VlaeError(f"{name} must be at least 2; got {count}")
        if self.batch_size < 1 or (self.nll_images is not None and self.nll_images < 1):
            raise VlaeError(f"batch_size and nll_images must be positive; got {self.batch_size} and {self.nll_images}")
        if any(k < 1 for k in self.nll_samples):
            raise VlaeError(f"nll_samples must be positive; got {', '.join(map(str, self.nll_samples))}")
        fewer, most = self.nll_of_all_samples, max(self.nll_samples, default=0)
        if fewer is not None and (not 1 <= fewer < most or self.nll_images is None):
            raise VlaeError(
                f"nll_of_all_samples is what all images are measured with where nll_images of them are with the most "
                f"samples: give a number from 1 to {most - 1}, and some of the images; got {fewer}"
            )

    @property
    def samples(self) -> list[int]:
        """The numbers of importance samples of the images chosen, rising."""
        fewer = self.nll_of_all_samples
        return sorted({*self.nll_samples, *([] if fewer is None else [fewer])})

    @property
    def metrics(self) -> list[str]:
        """What is measured, as far as it applies, in the order of tables."""
        if self.standard:
            return chosen(self.only)
        named = {n for n in STANDARD if n in self.only or (METRICS[n].group == "standard" and "standard" in self.only)}
        return [name for name in chosen(self.only) if name not in STANDARD or name in named]

    @property
    def groups(self) -> set[str]:
        """The groups that any of it is in."""
        return {METRICS[name].group for name in self.metrics}

    @property
    def needs_judge(self) -> bool:
        """Whether any of what is measured is what a classifier says."""
        return not JUDGED.isdisjoint(self.metrics)

    @property
    def needs_training_images(self) -> bool:
        """Whether any of what is measured is learned from training images, or read beside them."""
        return any(METRICS[n].group == "probes" or (n in JUDGED and n.startswith("data_")) for n in self.metrics)


@dataclass
class Measurements:
    """What `measure` found. Nats per image unless a name says otherwise.

    Attributes:
        model: its class.
        data: the data set's protocol.
        values: scalars by their name in `METRICS`; what does not apply is left out.
        errors: standard errors over images, by the same names.
        series: what is no scalar: bits_per_latent [D], rate_per_level, nll_by_samples, factor_r2 by factor.
        notes: what the numbers mean: ceilings, judges, how many images.
        skipped: group or metric -> why it is missing.
        images: that each group was measured on.
        seconds: that each group took.
        pictures: "data", "reconstructions", "drawn reconstructions", "samples", "drawn samples", [N, C, H, W].
        evaluation: the bound as `evaluate` gives it, with the NLL.
    """

    model: str
    data: str
    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    series: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict, repr=False)
    evaluation: Evaluation | None = field(default=None, repr=False)
