"""What every group of metrics is measured with; each group is a method that fills in `found`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vlae.data import ImageDataset
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.kept import KeptLikelihoods
from vlae.evaluation.measurements import Measurements, Settings
from vlae.evaluation.passes import Batch, batches_of
from vlae.models.base import LatentVariableModel

Progress = Callable[[str, int, int], None]


@dataclass
class Groups:
    """One measurement.

    Attributes:
        model: what is measured, in eval mode.
        test: on which images.
        train: what probes learn from; None leaves them out.
        settings: what, and on how many.
        judge: the small classifier that judges samples; None leaves that out.
        progress: told the group, images done and how many there are.
        kept: the NLL of images that were measured before; None keeps none.
        found: filled in.
    """

    model: LatentVariableModel
    test: ImageDataset
    train: ImageDataset | None
    settings: Settings
    judge: Classifier | None
    progress: Progress
    kept: KeptLikelihoods | None
    found: Measurements

    def batches(self) -> Iterable[Batch]:
        """The test images in order, with their positions and their context."""
        return batches_of(self.model, self.test, self.settings.batch_size)

    def counting(self, group: str, total: int) -> Callable[[str, int], None]:
        """A progress callback that adds up images."""
        done = 0
        self.progress(group, done, total)

        def count(stage: str, images: int) -> None:
            nonlocal done
            done += images
            self.progress(group, done, total)

        return count
