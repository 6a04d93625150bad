"""All metrics of a model on a data set, in one run: which of them apply, what they are, and why others are missing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlae import processes
from vlae.data import ImageDataset
from vlae.data.folder import directory_of
from vlae.errors import VlaeError
from vlae.evaluation.bound_groups import BoundGroups
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.code_groups import CodeGroups
from vlae.evaluation.groups import Progress
from vlae.evaluation.image_groups import ImageGroups
from vlae.evaluation.kept import KeptLikelihoods
from vlae.evaluation.likelihood import sample_counts
from vlae.evaluation.measurements import Measurements, Settings
from vlae.evaluation.metrics import METRICS, chosen
from vlae.evaluation.passes import digest
from vlae.models.base import LatentVariableModel
from vlae.models.saving import trained_on

SHARED = ("bound", "nll")  # groups that several processes measure together; the others are the first one's


def measure(
    model: LatentVariableModel,
    test: ImageDataset,
    train: ImageDataset | None = None,
    settings: Settings = Settings(),  # noqa: B008 - it is frozen
    judge: Classifier | None = None,
    progress: Progress = lambda stage, done, total: None,
    keep: Path | None = None,
) -> Measurements:
    """Measures a model on the images of `test`.

    The same for any batch size, up to the rounding of the model's own precision: noise is keyed by image, or drawn in
    chunks of one size.

    Several connected processes (`vlae.processes`) all call this. They share the groups of `SHARED`, with the results
    that one would have; the first measures the others too, and what the rest return is of the shared groups alone.

    Args:
        model: of images like these; in eval mode inside.
        test: held-out images.
        train: what probes learn from; None leaves them out.
        settings: what, and on how many.
        judge: the small classifier that judges samples; None leaves that out.
        progress: told the group, images done and how many there are.
        keep: a file that the NLL of every image is kept in as it is measured, and not measured again.

    Raises:
        VlaeError: the images are of another shape or other levels than the model's.
    """
    check_images(model, test)
    if not settings.nll_samples and settings.groups == {"nll"}:
        raise VlaeError("nothing is to be measured: the NLL alone is asked for, and with no samples; give nll_samples")
    found = Measurements(type(model).__name__, test.protocol)
    kept = None if keep is None else KeptLikelihoods(keep, model, test.protocol)
    with_all = (model, test, train, settings, judge, progress, kept, found)
    bounds, images, codes = BoundGroups(*with_all), ImageGroups(*with_all), CodeGroups(*with_all)
    if kept is not None:
        _open(kept, bounds)
    methods = {
        "bound": bounds.bound,
        "nll": bounds.nll,
        "information": codes.information,
        "reconstruction": images.reconstruction,
        "samples": images.samples,
        "standard": images.standard,
        "probes": codes.probes,
        "disentanglement": codes.disentanglement,
    }
    for group, method in methods.items():
        if group in settings.groups and (processes.first() or group in SHARED):
            started = time.monotonic()
            try:
                method()
            except VlaeError as error:  # one group's no is no reason to lose the others
                found.skipped[group] = str(error)
            found.seconds[group] = time.monotonic() - started
    _settle(found, settings)
    if were_trained_on(model, test):
        found.notes.insert(0, "the model was trained on these images: its numbers are no held-out ones")
    return found


def check_images(model: LatentVariableModel, dataset: ImageDataset) -> None:
    """Refuses a data set of images that the model is not of."""
    if tuple(model.image_shape) != tuple(dataset.image_shape):
        mine, theirs = ("x".join(map(str, shape)) for shape in (model.image_shape, dataset.image_shape))
        raise VlaeError(
            f"the model is of {mine} images and those of {dataset.name} are {theirs}: choose a data set of such images"
        )
    model.check_levels(dataset.effective_levels, dataset.name)
    model.context_of(dataset.labels, dataset.factors, dataset.name)


def were_trained_on(model: LatentVariableModel, dataset: ImageDataset) -> bool:
    """Whether the model's metadata say that images like these were among those that it was trained on."""
    own = trained_on(model)
    options = own.get("options", {})
    if own.get("name") != dataset.name or _folder(options, own.get("root")) != _folder(dataset.options):
        return False
    trained, measured = (set(str(split).split("+")) for split in (own.get("split", ""), dataset.split))
    return bool(trained & measured or options.get("whole") or dataset.options.get("whole"))


def _folder(options: Mapping[str, Any], root: str | None = None) -> Path | None:
    """The folder that images were read from, where it is an option: folders all have one name."""
    if options.get("path") is None:
        return None
    try:
        return directory_of(options["path"], root)
    except VlaeError:  # it is not there any more
        return Path(str(options["path"]))


def _open(kept: KeptLikelihoods, groups: BoundGroups) -> None:
    """Refuses a file of other likelihoods, or one that nothing would be kept in, before hours are spent."""
    settings = groups.settings
    if not settings.nll_samples or not groups.model.has_bound or "nll" not in settings.groups:
        raise VlaeError(f"no NLL is measured that {kept.path} could keep: leave --keep out, or ask for nll")
    counts = sample_counts(settings.samples)
    processes.of_first(lambda: kept.open(digest(groups.batches()), counts, settings.seed))


def _settle(found: Measurements, settings: Settings) -> None:
    """Keeps the numbers that were asked for and are finite, and a reason for each that is missing."""
    wanted = set(settings.metrics)
    for name, value in found.values.items():
        if not math.isfinite(value):
            found.skipped[name] = f"it is {value}: the model's numbers are not finite"
    for name in sorted(wanted.intersection(settings.only) - found.values.keys() - found.skipped.keys()):
        if METRICS[name].group not in found.skipped:
            found.skipped[name] = "it is none of this model's, or of these images"
    found.skipped = {k: v for k, v in found.skipped.items() if k in wanted | settings.groups}
    if left := [METRICS[name].label for name in chosen(settings.only) if name not in wanted]:
        found.skipped["standard"] = f"{', '.join(left)}: large networks to fetch, slow to run; ask with --standard"
    found.values = {k: v for k, v in found.values.items() if k in wanted and math.isfinite(v)}
    found.errors = {k: v for k, v in found.errors.items() if k in found.values and math.isfinite(v)}
