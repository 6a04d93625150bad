"""All metrics of a model on a data set, in one run: which of them apply, what they are, and why others are missing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlae import processes
from vlae.data import ImageDataset
from vlae.distributions.iaf import IAFHead
from vlae.errors import VlaeError
from vlae.evaluation import pictures, quality
from vlae.evaluation.aggregate import SATURATED, information
from vlae.evaluation.bounds import Evaluation, evaluate
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.codes import code_means
from vlae.evaluation.disentanglement import disentanglement
from vlae.evaluation.information import ACTIVE_VARIANCE
from vlae.evaluation.kept import KeptLikelihoods
from vlae.evaluation.likelihood import likelihoods, nll_rows, sample_counts
from vlae.evaluation.metrics import JUDGED, METRICS, STANDARD, chosen
from vlae.evaluation.passes import Batch, batches_of, bits_per_value, digest
from vlae.evaluation.probes import probe, why_no_classes
from vlae.evaluation.standard import (
    load_inception,
    load_lpips,
    perceptual_distance,
    standard_sample_quality,
)
from vlae.models.base import LatentVariableModel
from vlae.models.saving import trained_on

Progress = Callable[[str, int, int], None]

SHARED = ("bound", "nll")  # groups that several processes measure together; the others are the first one's

NO_INSIDE = "it is of pixels with neighbours on all sides, and the images are less than 3 high or wide"
MOST_DIMENSIONS = 500  # of a code that disentanglement is measured of: its forests read every one
FAST_PAIRS, SLOW_PAIRS = 2000, 300  # images whose posteriors are compared with one another; an IAF's by inversion


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


def measure(
    model: LatentVariableModel,
    test: ImageDataset,
    train: ImageDataset | None = None,
    settings: Settings = Settings(),
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
    if not settings.nll_samples and {METRICS[name].group for name in settings.metrics} == {"nll"}:
        raise VlaeError("nothing is to be measured: the NLL alone is asked for, and with no samples; give nll_samples")
    return _Suite(model, test, train, settings, judge, progress, keep).run()


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
    if own.get("name") != dataset.name or _folder(options) != _folder(dataset.options):
        return False
    trained, measured = (set(str(split).split("+")) for split in (own.get("split", ""), dataset.split))
    return bool(trained & measured or options.get("whole") or dataset.options.get("whole"))


def _folder(options: Mapping[str, Any]) -> Path | None:
    """The folder that images were read from, where it is an option: folders all have one name."""
    return Path(options["path"]).resolve() if options.get("path") else None


class _Suite:
    """One measurement: each group is a method that fills in `found`."""

    def __init__(
        self,
        model: LatentVariableModel,
        test: ImageDataset,
        train: ImageDataset | None,
        settings: Settings,
        judge: Classifier | None,
        progress: Progress,
        keep: Path | None,
    ):
        self.model, self.test, self.train = model, test, train
        self.kept = None if keep is None else KeptLikelihoods(keep, model, test.protocol)
        self.settings, self.judge, self.progress = settings, judge, progress
        self.wanted = set(settings.metrics)
        self.found = Measurements(type(model).__name__, test.protocol)
        self._samples: tuple[Tensor, pictures.Pictures] | None = None

    def run(self) -> Measurements:
        groups = {
            "bound": self.bound,
            "nll": self.nll,
            "information": self.information,
            "reconstruction": self.reconstruction,
            "samples": self.samples,
            "standard": self.standard,
            "probes": self.probes,
            "disentanglement": self.disentanglement,
        }
        found = self.found
        self.open_kept()
        for group, method in groups.items():
            if not processes.first() and group not in SHARED:
                continue
            if group in self.groups_wanted:
                started = time.monotonic()
                try:
                    method()
                except VlaeError as error:  # one group's no is no reason to lose the others
                    found.skipped[group] = str(error)
                found.seconds[group] = time.monotonic() - started
        for name, value in found.values.items():
            if not math.isfinite(value):
                found.skipped[name] = f"it is {value}: the model's numbers are not finite"
        named = self.wanted.intersection(self.settings.only)
        for name in sorted(named - found.values.keys() - found.skipped.keys()):
            if METRICS[name].group not in found.skipped:
                found.skipped[name] = "it is none of this model's, or of these images"
        asked = self.wanted | self.groups_wanted
        found.skipped = {k: v for k, v in found.skipped.items() if k in asked}
        if left := [METRICS[name].label for name in chosen(self.settings.only) if name not in self.wanted]:
            found.skipped["standard"] = f"{', '.join(left)}: large networks to fetch, slow to run; ask with --standard"
        found.values = {k: v for k, v in found.values.items() if k in self.wanted and math.isfinite(v)}
        if were_trained_on(self.model, self.test):
            found.notes.insert(0, "the model was trained on these images: its numbers are no held-out ones")
        found.errors = {k: v for k, v in found.errors.items() if k in found.values and math.isfinite(v)}
        return found

    @property
    def groups_wanted(self) -> set[str]:
        """The groups that any of what is wanted is in."""
        return {METRICS[name].group for name in self.wanted}

    # -- bounds -------------------------------------------------------------------------------------------------------

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

    def bound(self) -> None:
        result = evaluate(
            self.model, self.batches, seed=self.settings.seed, progress=self.counting("bound", len(self.test))
        )
        found, values = self.found, self.found.values
        found.evaluation, found.images["bound"] = result, result.images
        values["parameters"] = float(sum(p.numel() for p in self.model.parameters()))
        for name in ("rate", "rate_bits", "negative_elbo", "bits_per_dim", "distortion", "shuffled_gap"):
            if (value := getattr(result, name)) is not None:
                values[name] = value
        if result.negative_elbo_error is not None:
            found.errors["negative_elbo"] = result.negative_elbo_error
        values["latent_size"] = float(result.latent_dim)
        for name in ("active_units", "perplexity", "codes_in_use"):
            if (value := getattr(result, name)) is not None:
                values[name] = float(value)
        if result.bits_per_latent:
            found.series["bits_per_latent"] = result.bits_per_latent
        if result.rate_per_level:
            found.series["rate_per_level"] = result.rate_per_level
        found.notes.append(f"bounds: {result.images:,} images; ± is one standard error over images")
        if result.codes is not None:
            found.notes.append(f"the codebook has {result.codes} codes")
        if not self.model.latent_size:
            values.pop("shuffled_gap", None)
            values.pop("active_units", None)
            found.notes.append(f"a {found.model} has no code: its rate is 0, and -ELBO is the exact -log p(x)")
        elif result.images < 2:
            del values["shuffled_gap"]
            found.skipped["shuffled_gap"] = found.skipped["active_units"] = "it takes two images or more"
        if not self.model.has_bound:
            found.skipped["rate"] = f"a {found.model} has no density of z, so there is neither a rate nor a bound"
        elif result.bits_per_dim is None:
            found.skipped["bits_per_dim"] = "a density of continuous data: bits would need dequantised images"

    def nll(self) -> None:
        settings, found = self.settings, self.found
        if not self.model.has_bound:
            found.skipped["nll"] = f"a {found.model} has no density of z, so there is no likelihood to bound"
            return
        if not settings.nll_samples:
            return
        images, fewer = min(settings.nll_images or len(self.test), len(self.test)), settings.nll_of_all_samples
        counting = self.counting("nll", images + (len(self.test) if fewer else 0))
        sampled = partial(likelihoods, self.model, self.batches, seed=settings.seed, progress=counting)
        measured = sampled(settings.samples, images, kept=self.kept)
        every = nll_rows(measured, bits_per_value(self.model))
        last = every[-1]
        found.values |= {"nll": last["nll"], "ess": last["ess"]}
        if last["error"] is not None:
            found.errors["nll"] = last["error"]
        if last["bits_per_dim"] is not None:
            found.values["nll_bits_per_dim"] = last["bits_per_dim"]
        found.series["nll_by_samples"], found.images["nll"] = every, images
        which = "all images" if images == len(self.test) else f"{images:,} images, a fixed random choice"
        found.notes.append(f"NLL: the importance-weighted bound on -log p(x) with K = {last['samples']:,}, of {which}")
        if images == len(self.test):
            found.values["nll_of_all"] = last["nll"]  # of these very images: no choice of some adds an error
        if (bound := found.evaluation) is not None:
            bound.add_nll(measured, every)
            if bound.nll_of_all is not None and bound.nll_of_all_error is not None and not fewer:
                found.values["nll_of_all"], found.errors["nll_of_all"] = bound.nll_of_all, bound.nll_of_all_error
                found.notes.append(
                    f"NLL of all {bound.images:,} images, by difference: their -ELBO less the mean gap between -ELBO "
                    "and NLL of those chosen; its ± is of the mean of these images, not of the population behind them"
                )
        if fewer and images < len(self.test) and (told := measured.of_all_by(sampled(fewer))) is not None:
            found.values["nll_of_all"], found.errors["nll_of_all"] = told
            found.notes.append(
                f"NLL of all {len(self.test):,} images: theirs with K = {fewer:,}, less what more samples take from "
                "that of those chosen; its ± is of the mean of these images, not of the population behind them"
            )
        if bound is not None:  # what of several ways was taken
            bound.nll_of_all, bound.nll_of_all_error = (d.get("nll_of_all") for d in (found.values, found.errors))
        if "nll_of_all" in settings.only and "nll_of_all" not in found.values:
            found.skipped["nll_of_all"] = (
                "it is told from the bound of all images and the NLL of some, with two samples at least: ask for these"
            )

    def open_kept(self) -> None:
        """Refuses a file of other likelihoods, or one that nothing would be kept in, before hours are spent."""
        if self.kept is None:
            return
        if not self.settings.nll_samples or not self.model.has_bound or "nll" not in self.groups_wanted:
            raise VlaeError(f"no NLL is measured that {self.kept.path} could keep: leave --keep out, or ask for nll")
        kept, counts = self.kept, sample_counts(self.settings.samples)
        processes.of_first(lambda: kept.open(digest(self.batches()), counts, self.settings.seed))

    # -- images -------------------------------------------------------------------------------------------------------

    def reconstruction(self) -> None:
        found, settings = self.found, self.settings
        if not self.model.latent_size:
            found.skipped["reconstruction"] = f"a {found.model} has no code to reconstruct images from"
            return
        part = self.test.subset(min(settings.quality_images, len(self.test)))
        x, found.images["reconstruction"] = part.tensor(), len(part)
        context, counting = self.model.context_of(part.labels, part.factors), self.counting("reconstruction", len(x))
        made = pictures.reconstructions(self.model, self.model.placed(x), context, settings.seed, counting)
        found.pictures |= {"data": x, "reconstructions": made.decoded, "drawn reconstructions": made.drawn}
        for prefix, images in (("", made.decoded), ("drawn_", made.drawn)):
            for name, value in quality.reconstruction_quality(x, images).items():
                found.values[f"{prefix}{name}"] = value
        if quality.has_inside(x):
            found.values["data_sharpness"] = quality.sharpness(x).mean().item()
        else:
            found.skipped["ssim"] = found.skipped["sharpness"] = NO_INSIDE
        found.notes.append(
            f"reconstructions: of the first {len(x):,} images, {self.decoded} of the posterior mean; drawn ones are "
            "x ~ p(x|z), z ~ q(z|x)"
        )
        self.perceptual(x, made)

    def perceptual(self, x: Tensor, made: pictures.Pictures) -> None:
        """LPIPS of reconstructions."""
        names = [name for name in ("lpips", "drawn_lpips") if name in self.wanted]
        if not names:
            return
        try:
            network = load_lpips()
            for name in names:
                distance = perceptual_distance(network, x, made.drawn if name.startswith("drawn_") else made.decoded)
                self.found.values[name] = distance.mean().item()
        except VlaeError as reason:
            self.found.skipped |= dict.fromkeys(names, str(reason))

    def sampled(self) -> tuple[Tensor, pictures.Pictures]:
        """Test images, and as many samples as were asked for; made once."""
        if self._samples is None:
            count = self.settings.quality_images
            part = self.test.subset(min(count, len(self.test)))
            context, counting = self.model.context_of(part.labels, part.factors), self.counting("samples", count)
            made = pictures.samples(self.model, count, context, self.settings.seed, counting)
            self._samples = part.tensor(), made
            self.found.pictures |= {"data": self._samples[0], "drawn samples": made.drawn}
            if self.model.latent_size:  # without a code the greedy image is one and the same
                self.found.pictures["samples"] = made.decoded
            greedy = f", {self.decoded}; drawn ones are x ~ p(x|z)" if self.model.latent_size else ", drawn"
            self.found.notes.append(f"samples: {count:,} of the prior{greedy}")
        return self._samples

    def samples(self) -> None:
        x, made = self.sampled()
        kinds = {"sample_": made.decoded} if self.model.latent_size else {}
        kinds["drawn_sample_"] = made.drawn
        for prefix, images in kinds.items() if quality.has_inside(x) else ():
            self.found.values[f"{prefix}sharpness"] = quality.sharpness(images).mean().item()
        self.found.images["samples"] = self.settings.quality_images
        self.judged(x, kinds)

    def standard(self) -> None:
        x, made = self.sampled()
        drawn = self.model.autoregressive
        self.progress("standard", 0, 1)
        self.found.values |= standard_sample_quality(load_inception(), x, made.drawn if drawn else made.decoded)
        self.progress("standard", 1, 1)
        self.found.images["standard"] = self.settings.quality_images
        self.found.notes.append(
            f"FID and Inception Score: of {self.settings.quality_images:,} {'drawn' if drawn else 'decoded'} samples "
            f"and {len(x):,} test images; published ones are of 50,000"
        )

    def judged(self, x: Tensor, kinds: dict[str, Tensor]) -> None:
        """What the small classifier says of samples, of the test images, and of training images as samples."""
        found, judge = self.found, self.judge
        if JUDGED.isdisjoint(self.wanted):
            return
        if judge is None:
            found.skipped["samples"] = "no classifier judges the samples: it needs a named data set with labels"
            return
        if self.train is not None:
            others = self.train.subset(min(self.settings.quality_images, len(self.train))).tensor()
            kinds = {"data_": others, **kinds}
        for prefix, images in kinds.items():
            found.values |= {f"{prefix}{k}": v for k, v in quality.sample_quality(judge, x, images).items()}
        found.notes.append(
            f"the judge is a small classifier trained on {self.test.name}, {judge.test_accuracy:.1%} right on its "
            "test; its Frechet distance is no FID, and like its Inception Score it is of "
            f"{len(x):,} test images and {self.settings.quality_images:,} samples: compare at equal numbers only. "
            f"Data: {len(kinds.get('data_', ())):,} training images, which it has learned from, in the samples' place"
        )

    @property
    def decoded(self) -> str:
        """What a decoded image is, in words."""
        return "greedy images" if self.model.autoregressive else "mean images"

    # -- the code -----------------------------------------------------------------------------------------------------

    def information(self) -> None:
        found, settings = self.found, self.settings
        if not self.model.has_bound:
            found.skipped["information"] = f"a {found.model} has no density of z, so there is no information to measure"
            return
        if not self.model.latent_size:
            found.skipped["information"] = f"a {found.model} has no code"
            return
        slow = isinstance(getattr(self.model, "posterior_module", None), IAFHead)
        images = min(settings.information_images or (SLOW_PAIRS if slow else FAST_PAIRS), len(self.test))
        if images < 2:
            found.skipped["information"] = "it needs two images or more"
            return
        result = information(
            self.model, self.batches, images, settings.seed, progress=self.counting("information", images)
        )
        found.images["information"] = images
        found.values["mutual_information"] = result.mutual_information
        found.errors["mutual_information"] = result.mutual_information_error
        found.values["marginal_kl"] = result.marginal_kl
        found.errors["marginal_kl"] = result.marginal_kl_error
        found.values["information_ceiling"] = result.ceiling
        found.notes.append(
            f"mutual information: among {images} images, so at most log {images} = {result.ceiling:.3f} nats"
            + (
                f". {result.saturated:.0%} of them are within 1 nat of it: the true information may be far above "
                "this one, and the marginal KL as much below"
                if result.saturated > SATURATED
                else ""
            )
            + f"; it and the marginal KL are {result.rate:.3f} nats, the rate of these images"
        )

    def probes(self) -> None:
        found = self.found
        if not self.model.latent_size:
            found.skipped["probes"] = f"a {found.model} has no code to predict from"
            return
        if self.train is None:
            found.skipped["probes"] = "there are no training images to learn from"
            return
        if self.test.options.get("whole") or self.train.options.get("whole"):
            found.skipped["probes"] = "whole=True gives all images in every split: none are left to test on"
            return
        if self.test.training:
            found.skipped["probes"] = f"the images measured are of the {self.test.split} split, which probes learn from"
            return
        train = self.train.subset(min(self.settings.train_images, len(self.train)))
        if train.labels is None and train.factors is None:
            found.skipped["probes"] = f"{train.name} has neither labels nor factors to predict"
            return
        self.progress("probes", 0, 1)
        result = probe(self.model, train, self.test)
        for name, value in {"linear_probe": result.linear, "knn": result.knn}.items():
            if value is not None:
                found.values[name] = value
            elif train.labels is not None:
                found.skipped[name] = why_no_classes(train, self.test)
        if result.r2 is not None:
            varying = [value for value in result.r2 if not math.isnan(value)]
            found.series["factor_r2"] = dict(zip(self.factor_names(train), result.r2, strict=True))
            if varying:
                found.values["factor_r2"] = sum(varying) / len(varying)
        found.images["probes"] = result.test_images
        found.notes.append(
            f"probes learn from {result.train_images:,} training images, tested on {result.test_images:,}"
        )
        self.progress("probes", 1, 1)

    def factor_names(self, dataset: ImageDataset) -> tuple[str, ...]:
        """The factors' names, or their numbers where they have none."""
        assert dataset.factors is not None
        return dataset.factor_names or tuple(f"factor {k}" for k in range(dataset.factors.shape[1]))

    def disentanglement(self) -> None:
        found, test = self.found, self.test
        if test.factors is None:
            found.skipped["disentanglement"] = f"{test.name} has no known factors"
            return
        if not self.model.latent_size:
            found.skipped["disentanglement"] = f"a {found.model} has no code"
            return
        if self.model.latent_size > MOST_DIMENSIONS:
            found.skipped["disentanglement"] = (
                f"a code of {self.model.latent_size:,} numbers is too long for measures of single ones; the most is "
                f"{MOST_DIMENSIONS}"
            )
            return
        self.progress("disentanglement", 0, 1)
        codes = code_means(self.model, test)
        idle = torch.zeros(codes.shape[1], dtype=torch.bool)
        if self.model.has_bound and not self.model.discrete:
            # At the prior: what is left of them is too faint to be read from z. As for active units it is the prior's
            # noise that tells, in which z has no scale of its own.
            idle = code_means(self.model, test, "noise").var(0) <= ACTIVE_VARIANCE
            codes[:, idle] = 0.0
        try:
            found.values |= disentanglement(codes, test.factors, self.settings.seed)
        except VlaeError as reason:  # too few images, or factors that are no classes
            found.skipped["disentanglement"] = str(reason)
            return
        names, found.images["disentanglement"] = ", ".join(self.factor_names(test)), len(test)
        found.notes.append(
            f"disentanglement: of the posterior means of {len(test):,} images, {int((~idle).sum())} of their "
            f"dimensions varying; factors {names}; SAP by thresholds (Kumar et al. 2018)"
        )
        self.progress("disentanglement", 1, 1)
