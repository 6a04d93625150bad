"""One model and all that the page does with it: plain values in and out, no web."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlae.codec import compress
from vlae.codec.bitsback import ModelCoder
from vlae.errors import VlaeError
from vlae.explorer import pictures
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.latents import Latents
from vlae.sampling import complete, decode, dimension_rates, interpolate, posterior_means
from vlae.sampling.decoding import from_noise_rows, noise_rows, one_row

BITS = 1 / math.log(2)
DRAWS = 16  # of z, that rate and distortion of an image are averages of
TAIL = 0.005  # of the prior, that a slider leaves out at either end
MOST_DIMENSIONS = 64  # that the page has sliders and bars for
OWN_IMAGES = 32  # drawn to measure rates on where there are no others

Told = int | list[float] | None


class Workbench:
    """What the page does with one model.

    Codes come and go as rows of the prior's noise eps, z = f(eps), a ladder's levels in one row, z_1 first: each number
    is standard normal under the prior whatever the prior is, and what depends on the one that a slider moves follows
    it. Discrete codes come as they are. Images are base64 (`vlae.explorer.pictures`). Everything random takes a seed.

    Args:
        model: trained.
        name: what the page calls it.
    """

    def __init__(self, model: LatentVariableModel, name: str):
        self.model, self.name = model.eval(), name

    # -- what there is ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The model in plain values; of each panel why it is not there, or None."""
        model, condition = self.model, self.model.condition
        context: dict[str, Any] | None = None
        if condition is not None and condition.classes:
            context = {"classes": condition.classes}
        elif condition is not None:
            context = {"attributes": [float(value) for value in condition.mean]}
        return {
            "name": self.name,
            "kind": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "protocol": model.metadata.get("protocol"),
            "shape": list(model.image_shape),
            "levels": model.likelihood.levels,
            "latent": model.latent_size,
            "bound": model.has_bound,
            "autoregressive": model.autoregressive,
            "context": context,
            "range": float(torch.special.ndtri(torch.tensor(1 - TAIL, dtype=torch.float64))),
            "missing": {
                "latents": self.without_sliders(),
                "interpolation": self.without_sliders(),
                "completion": None
                if model.has_bound
                else f"The codes of a {type(model).__name__} have no probability to be weighed by.",
            },
        }

    def without_sliders(self) -> str | None:
        """Why there is nothing to slide, or None."""
        kind = type(self.model).__name__
        if not self.model.latent_size:
            return f"A {kind} has no latent code: its images are drawn pixel by pixel."
        if self.model.discrete:
            return f"The code of a {kind} is discrete: there is nothing between two codes to slide through."
        return None

    def dimensions(self, images: Tensor | None, context: Tensor | None = None) -> dict[str, Any]:
        """The dimensions of z in the order of their rate on images [N, C, H, W], and the rates in bits.

        Without images it is measured on images that the model draws itself; without a rate the order is that of z.
        """
        model = self.model
        if self.without_sliders():
            return {"order": [], "bits": []}
        if not model.has_bound:
            return {"order": list(range(min(MOST_DIMENSIONS, model.latent_size))), "bits": []}
        if images is None or (context is None and model.condition is not None):
            context = self._any_context(OWN_IMAGES)
            images = model.sample(OWN_IMAGES, generator=torch.Generator().manual_seed(0), context=context)
            images = pictures.at_levels(images, model)
        rates = dimension_rates(model, images, context) * BITS
        order = torch.argsort(rates, descending=True, stable=True)[:MOST_DIMENSIONS]
        return {"order": order.tolist(), "bits": rates[order].tolist()}

    # -- codes and images ---------------------------------------------------------------------------------------------

    def draw(self, seed: int, told: Told = None, pixels_seed: int = 0) -> dict[str, Any]:
        """A code from the prior, and the image drawn from it with the noise of `pixels_seed`."""
        context = self.context(told)
        prior = self.model.prior(**given(context))
        with torch.no_grad():
            z = prior.sample((1,), generator=torch.Generator().manual_seed(seed))
            image = decode(self.model, z, True, pixels_seed, context)
        return {"code": self.row_of(z, context), "image": self._page(image)[0]}

    def decode(self, code: Sequence[float], drawn: bool, seed: int, told: Told = None) -> dict[str, Any]:
        """The image of a code; `drawn` with the noise of the seed, else greedily or the mean."""
        context = self.context(told)
        return {"image": self._page(decode(self.model, self.code(code, context), drawn, seed, context))[0]}

    def interpolate(
        self,
        first: Sequence[float],
        second: Sequence[float],
        steps: int,
        path: str,
        drawn: bool,
        seed: int,
        told: Told = None,
    ) -> dict[str, Any]:
        """Images along a path between two codes, all drawn with the same noise."""
        context = self.context(told)
        ends = [self._unbatched(self.code(row, context)) for row in (first, second)]
        z = interpolate(self.model, ends[0], ends[1], steps, path, context)
        return {"images": self._page(decode(self.model, z, drawn, seed, context))}

    def complete(
        self, image: str, rows: int, count: int, candidates: int, seed: int, told: Told = None
    ) -> dict[str, Any]:
        """Completions of an image whose first rows are given, each with how many candidates for z had a say."""
        known = pictures.from_page(image, self.model).expand(count, -1, -1, -1)
        mask = torch.zeros(known.shape[2:], dtype=torch.bool)
        mask[:rows] = True
        done = complete(self.model, known, mask, candidates, seed=seed, context=self.context(told))
        return {"images": self._page(done.images), "effective": done.effective_candidates.tolist()}

    # -- what an image costs ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(self, image: str, told: Told = None, seed: int = 0) -> dict[str, Any]:
        """The code of an image, and what it costs: nats, averages over z ~ q(z|x), and bits per dimension."""
        model, x, context = self.model, pictures.from_page(image, self.model), self.context(told)
        model.check(x)
        code = self.row_of(posterior_means(model, x, context), context)
        many = 1 if model.discrete or not model.latent_size else DRAWS
        noise = [torch.Generator().manual_seed(seed + k) for k in range(many)]
        with model.evaluating():
            bound = model.elbo(x.expand(many, -1, -1, -1), generator=noise, context=context)
        bits = bound.rate_per_dimension.flatten(1).mean(0) * BITS
        return {
            "code": code,
            "distortion": float(bound.distortion.mean()),
            "rate": float(bound.rate.mean()) if model.has_bound else None,
            "bits": bits.tolist() if model.has_bound else [],
        }

    def file(self, image: str, told: Told = None) -> dict[str, Any]:
        """How many bytes an image takes: of a .vlae file with it alone, really written, where the codec can.

        `bytes` is None where it can't, and `why` says so; `png` is the size of the picture as a PNG file.
        """
        x = pictures.from_page(image, self.model)
        result: dict[str, Any] = {"bytes": None, "why": None, "png": _png_size(x)}
        try:
            ModelCoder(self.model)
        except VlaeError as error:
            return {**result, "why": str(error)}
        return {**result, "bytes": len(compress(self.model, x))}

    def upload(self, data: bytes, invert: str) -> dict[str, Any]:
        """An uploaded picture as an image of the model, and what was done to it."""
        image, note = pictures.read_upload(data, self.model, invert)  # type: ignore[arg-type]
        return {"image": self._page(image)[0], "note": note}

    # -- between page and model ---------------------------------------------------------------------------------------

    def context(self, told: Told) -> Tensor | None:
        """A label or attributes as a context that stands for any number of images, [] or [attributes]."""
        checked = self.model.check_context(None if told is None else torch.tensor(told), 1)
        return None if checked is None else checked[0]

    def code(self, row: Sequence[float], context: Tensor | None = None) -> Latents:
        """A row of numbers as a code [1, *latent_shape]."""
        model = self.model
        if len(row) != model.latent_size:
            raise VlaeError(f"a code of this model has {model.latent_size} numbers; got {len(row)}")
        if model.discrete:
            return torch.tensor([row], device=next(model.parameters()).device).long().unflatten(1, model.latent_shape)
        values = model.placed(torch.tensor([row], dtype=torch.float64))
        return from_noise_rows(model, values, context) if row else values

    def row_of(self, z: Latents, context: Tensor | None = None) -> list[float]:
        """The reverse of `code`."""
        if self.model.discrete or not self.model.latent_size:
            return one_row(z)[0].tolist()
        with torch.no_grad():
            return noise_rows(self.model, z, context)[0].tolist()

    def _unbatched(self, z: Latents) -> Latents:
        return tuple(level[0] for level in z) if isinstance(z, tuple) else z[0]

    def _any_context(self, count: int) -> Tensor | None:
        condition = self.model.condition
        if condition is None:
            return None
        return torch.arange(count) % condition.classes if condition.classes else condition.mean.expand(count, -1)

    def _page(self, x: Tensor) -> list[str]:
        return pictures.to_page(x)


def _png_size(x: Tensor) -> int | None:
    """Bytes of one image [1, C, H, W] as a PNG file, None where it has neither one channel nor three."""
    pixels = (x[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    if pixels.shape[2] not in (1, 3):
        return None
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if bool(((x == 0) | (x == 1)).all()) and pixels.shape[2] == 1:
        picture = picture.convert("1")
    with io.BytesIO() as file:
        picture.save(file, "PNG", optimize=True)
        return file.tell()
