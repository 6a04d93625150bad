"""The groups that are of the code: what z says of an image, of its label and of its factors."""

from __future__ import annotations

import math

import torch

from vlae.data import ImageDataset
from vlae.distributions.iaf import IAFHead
from vlae.errors import VlaeError
from vlae.evaluation.aggregate import SATURATED, information
from vlae.evaluation.codes import code_means
from vlae.evaluation.disentanglement import disentanglement
from vlae.evaluation.groups import Groups
from vlae.evaluation.information import ACTIVE_VARIANCE
from vlae.evaluation.probes import probe, why_no_classes

MOST_DIMENSIONS = 500  # of a code that disentanglement is measured of: its forests read every one
FAST_PAIRS, SLOW_PAIRS = 2000, 300  # images whose posteriors are compared with one another; an IAF's by inversion


class CodeGroups(Groups):
    """Groups that are of codes."""

    def information(self) -> None:
        """The rate, cut in two: the mutual information of x and z, and how far the codes are from the prior."""
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
        """What simple predictors make of the posterior means."""
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
        """Whether single dimensions of z follow single factors of the data."""
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
