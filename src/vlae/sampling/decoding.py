"""Codes to images and back, as pictures of codes need them: one noise for all, so that what differs is the code."""

from __future__ import annotations

import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.latents import Latents, each, some

BATCH = 128  # images at a time: memory, not the result


@torch.no_grad()
def decode(
    model: LatentVariableModel,
    z: Latents,
    drawn: bool = True,
    seed: int = 0,
    context: Tensor | None = None,
    pixel_temperature: float = 1.0,
) -> Tensor:
    """Images of codes z [N, *latent_shape], a ladder's as a tuple of [N, d_l]: [N, C, H, W] in [0, 1].

    Args:
        model: trained.
        z: the codes.
        drawn: x ~ p(x|z) with the same uniform noise for every image, so that images differ by their codes alone, and
            equal codes give equal images. Else the mean image, of an autoregressive decoder the greedy one.
        seed: of that noise.
        context: of conditional models: a label or attribute vector for all codes, or one for each.
        pixel_temperature: sharpens each sub-pixel's distribution; above 0.
    """
    if not pixel_temperature > 0:
        raise VlaeError(f"the temperature of the pixels must be positive; got {pixel_temperature}")
    count = count_of(z)
    context = model.check_context(context, count)
    images = []
    with model.evaluating():
        for start in range(0, count, BATCH):
            stop = min(start + BATCH, count)
            told = given(None if context is None else context[start:stop])
            p = model.decode(some(z, start, stop), pixel_temperature, **told)
            noise = [torch.Generator().manual_seed(seed) for _ in range(start, stop)]
            images.append((p.sample(generator=noise) if drawn else p.reconstruction).clamp(0, 1))
    return torch.cat(images)


@torch.no_grad()
def posterior_means(model: LatentVariableModel, x: Tensor, context: Tensor | None = None) -> Latents:
    """The codes of images x [N, C, H, W] without noise, [N, *latent_shape]; a ladder's are a tuple of [N, d_l]."""
    model.check(x)
    told = given(model.check_context(context, len(x)))
    with model.evaluating():
        return model.encode(x, **told).mean


def count_of(z: Latents) -> int:
    """How many codes there are."""
    count = len(z[0] if isinstance(z, tuple) else z)
    if not count:
        raise VlaeError("there are no codes: give one or more")
    return count


def one_code(z: Latents, index: int) -> Latents:
    """One of the codes z [N, *latent_shape], [*latent_shape]; of a ladder a tuple of [d_l]."""
    return each(lambda level: level[index], z)


def require_continuous(model: LatentVariableModel, what: str) -> None:
    """Refuses models without a code, and those whose code is discrete, for `what` is to be done with it."""
    name = type(model).__name__
    if not model.latent_size:
        raise VlaeError(f"a {name} has no z: {what} needs a model with a latent code, such as VLAE or VAE")
    if model.discrete:
        raise VlaeError(f"z of a {name} is discrete codes with nothing between them: {what} needs a continuous code")


def require_autoregressive(model: LatentVariableModel, option: str) -> None:
    """Refuses an option that says how pixels are drawn where a factorised decoder is shown by its mean images."""
    if not model.autoregressive:
        raise VlaeError(
            f"a {type(model).__name__} has a factorised decoder, which is shown by its mean images: leave out {option}"
        )


def one_row(z: Latents) -> Tensor:
    """All numbers of codes [N, *latent_shape] in one row each, [N, D]: a ladder's levels z_1 first."""
    return torch.cat([level.flatten(1) for level in (z if isinstance(z, tuple) else (z,))], 1)


def of_row(row: Tensor, like: Latents) -> Latents:
    """The inverse of `one_row`: rows [N, D] in the shape of the codes `like`, of any number."""
    if not isinstance(like, tuple):
        return row.unflatten(1, like.shape[1:])
    return tuple(
        part.unflatten(1, level.shape[1:])
        for part, level in zip(row.split([level[0].numel() for level in like], 1), like, strict=True)
    )


def noise_rows(model: LatentVariableModel, z: Latents, context: Tensor | None = None) -> Tensor:
    """The prior's standard normal noise that codes z [N, *latent_shape] stand for, in one row each, [N, D]."""
    with model.evaluating():
        noise: Tensor = model.prior(**given(context)).noise_of(z)
    return noise.flatten(1)


@torch.no_grad()
def from_noise_rows(model: LatentVariableModel, rows: Tensor, context: Tensor | None = None) -> Latents:
    """The codes that rows of noise [N, D] stand for, [N, *latent_shape]: the inverse of `noise_rows`."""
    with model.evaluating():
        prior = model.prior(**given(context))
        return each(torch.Tensor.detach, prior.from_noise(rows.unflatten(1, prior.event_shape)))
