"""The images that a model's quality is measured on: what it makes of given images, and what it makes by itself.

Images come from a decoder in two ways. *Decoded* is deterministic: the mean image of a factorised p(x|z), the greedy
image of an autoregressive one. *Drawn* is x ~ p(x|z); where the pixels are independent that is the mean image with
noise on every pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vlae.models.base import LatentVariableModel
from vlae.models.context import given

Progress = Callable[[str, int], None]

CHUNK = 100  # images decoded at a time, always: the noise is drawn chunk by chunk


class Pictures(NamedTuple):
    """The same codes decoded in the two ways, each [N, C, H, W] in [0, 1], on the CPU."""

    decoded: Tensor
    drawn: Tensor


@torch.no_grad()
def reconstructions(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, images: None,
) -> Pictures:
    """Reconstructions of images x [N, C, H, W]: decoded from the posterior mean; drawn from z ~ q(z|x).

    Args:
        model: used in eval mode.
        x: images in the model's precision, on its device.
        context: of conditional models, one for each image.
        seed: of all noise.
        progress: told "reconstruction" and how many images have been made since it was last told.
    """
    generator = torch.Generator().manual_seed(seed)
    context, parts = model.check_context(context, len(x)), []
    with model.evaluating():
        for start in range(0, len(x), CHUNK):
            part = x[start : start + CHUNK]
            model.check(part)
            told = given(None if context is None else context[start : start + CHUNK])
            q = model.encode(part, **told)
            drawn = model.decode(q.sample(generator=generator), **told).sample(generator=generator)
            parts.append((model.decode(q.mean, **told).reconstruction, drawn))
            progress("reconstruction", len(part))
    return _joined(parts)


@torch.no_grad()
def samples(
    model: LatentVariableModel,
    count: int,
    context: Tensor | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, images: None,
) -> Pictures:
    """Exactly `count` images of codes z ~ p(z), both ways; arguments as above.

    A conditional model is given the contexts of `context` in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    if context is not None:
        context = context.repeat(-(-count // len(context)), *[1] * (context.ndim - 1))[:count]
    context, parts = model.check_context(context, count), []
    with model.evaluating():
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            told = given(None if context is None else context[start:stop])
            z = model.prior(**told).sample((stop - start,), generator=generator)
            p = model.decode(z, **told)
            parts.append((p.reconstruction, p.sample(generator=generator)))
            progress("samples", stop - start)
    return _joined(parts)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> Pictures:
    return Pictures(*(torch.cat(images).clamp(0, 1).cpu() for images in zip(*parts, strict=True)))
