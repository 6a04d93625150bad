"""The groups that are of images: reconstructions and samples, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vlae.errors import VlaeError
from vlae.evaluation import pictures, quality
from vlae.evaluation.groups import Groups
from vlae.evaluation.metrics import JUDGED
from vlae.evaluation.standard import (
    load_inception,
    load_lpips,
    perceptual_distance,
    standard_sample_quality,
)

NO_INSIDE = "it is of pixels with neighbours on all sides, and the images are less than 3 high or wide"


@dataclass
class ImageGroups(Groups):
    """Groups that are of images which the model makes; samples are made once for all of them."""

    _samples: tuple[Tensor, pictures.Pictures] | None = field(default=None, init=False)

    def reconstruction(self) -> None:
        """Images decoded from their own codes, beside the images."""
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
        names = [name for name in ("lpips", "drawn_lpips") if name in self.settings.metrics]
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
        """Images decoded from the prior's codes: how sharp, and what the small classifier says of them."""
        x, made = self.sampled()
        kinds = {"sample_": made.decoded} if self.model.latent_size else {}
        kinds["drawn_sample_"] = made.drawn
        for prefix, images in kinds.items() if quality.has_inside(x) else ():
            self.found.values[f"{prefix}sharpness"] = quality.sharpness(images).mean().item()
        self.found.images["samples"] = self.settings.quality_images
        self.judged(x, kinds)

    def standard(self) -> None:
        """Samples by the field's standard network."""
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
        if JUDGED.isdisjoint(self.settings.metrics):
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
