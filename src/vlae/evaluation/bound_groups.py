"""The groups that are of bounds: the ELBO with its terms, and the NLL."""

from __future__ import annotations

from functools import partial

from vlae.evaluation.bounds import evaluate
from vlae.evaluation.groups import Groups
from vlae.evaluation.likelihood import likelihoods, nll_rows
from vlae.evaluation.passes import bits_per_value


class BoundGroups(Groups):
    """Groups that several processes measure together."""

    def bound(self) -> None:
        """The ELBO of all images, its terms, and whether z is used."""
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
        """The importance-weighted bound on -log p(x) of some images, and by difference of all."""
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
