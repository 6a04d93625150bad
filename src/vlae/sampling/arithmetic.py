"""Latent arithmetic: what one set of images has and another has not, added to a third."""

from __future__ import annotations

import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel
from vlae.models.latents import Latents, each
from vlae.sampling.decoding import posterior_means, require_continuous


@torch.no_grad()
def arithmetic(
    model: LatentVariableModel, base: Tensor, plus: Tensor, minus: Tensor, context: Tensor | None = None
) -> Latents:
    """mean(base) + mean(plus) - mean(minus) of the codes of three sets of images, [1, *latent_shape] (Radford 2016).

    Args:
        model: with a continuous code.
        base: images [N, C, H, W] to start from.
        plus: images that have what is to be added.
        minus: images like those, without it.
        context: of conditional models: one for all images, or one for each of base, plus and minus, in this order.
    """
    sets = {"base": base, "plus": plus, "minus": minus}
    require_continuous(model, "arithmetic")
    for name, x in sets.items():
        if not len(x):
            raise VlaeError(f"there are no images in {name}: give one or more")
    sizes = [len(x) for x in sets.values()]
    context = model.check_context(context, sum(sizes))
    told = [None] * 3 if context is None else context.split(sizes)
    means = [mean_code(model, x, own) for x, own in zip(sets.values(), told, strict=True)]
    return combine(*means)


def mean_code(model: LatentVariableModel, x: Tensor, context: Tensor | None = None) -> Latents:
    """The mean of the codes of images x [N, C, H, W], [1, *latent_shape]."""
    return each(lambda level: level.mean(0, keepdim=True), posterior_means(model, x, context))


def combine(base: Latents, plus: Latents, minus: Latents) -> Latents:
    """base + plus - minus, of codes of one shape."""
    if isinstance(base, tuple):
        return tuple(a + b - c for a, b, c in zip(base, plus, minus, strict=True))
    assert isinstance(plus, Tensor) and isinstance(minus, Tensor)
    return base + plus - minus
