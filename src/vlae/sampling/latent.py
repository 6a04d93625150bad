"""Samples from the prior in any number, and decompressions of given images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.files import replacing
from vlae.models.base import LatentVariableModel
from vlae.models.context import given


def prior_samples(
    model: LatentVariableModel,
    count: int,
    temperature: float = 1.0,
    pixel_temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
    context: Tensor | None = None,
) -> Tensor:
    """Exactly `count` images [count, C, H, W] in [0, 1], x ~ p(x|z), z ~ p(z), drawn `batch_size` at a time.

    Args:
        model: trained.
        count: how many images.
        temperature: scales the prior's noise; 0 or more.
        pixel_temperature: sharpens each sub-pixel's distribution; above 0.
        seed: of all noise.
        batch_size: images at a time.
        context: of conditional models: a label or attribute vector for all images, or one for each.
    """
    if count < 1:
        raise VlaeError(f"count must be at least 1; got {count}")
    generator = torch.Generator().manual_seed(seed)
    context = model.check_context(context, count)
    images = []
    for start in range(0, count, batch_size):
        part = slice(start, min(start + batch_size, count))
        told = None if context is None else context[part]
        images.append(model.sample(part.stop - start, temperature, pixel_temperature, generator, told))
    return torch.cat(images)


@torch.no_grad()
def decompressions(
    model: LatentVariableModel, x: Tensor, seed: int = 0, context: Tensor | None = None, drawn: bool = True
) -> Tensor:
    """Stochastic reconstructions x' ~ p(x|z), z ~ q(z|x) of images x [B, C, H, W]: what the code keeps, in new texture.

    The paper's "lossy decompressions" (Chen et al. 2017, section 4.1). In [0, 1]. Without `drawn`, z alone is drawn and
    decoded to its mean image, by an autoregressive decoder to the greedy one. That shows a factorised decoder best: its
    draws differ from the mean by the noise of single pixels.
    """
    model.check(x)
    generator = torch.Generator().manual_seed(seed)
    told = given(model.check_context(context, len(x)))
    with model.evaluating():
        z = model.encode(x, **told).sample(generator=generator)
        p = model.decode(z, **told)
        return (p.sample(generator=generator) if drawn else p.reconstruction).clamp(0, 1)


def save_array(images: Tensor, path: Path) -> Path:
    """Writes images [N, C, H, W], cut to [0, 1], as uint8 `images` in an .npz file, atomically; returns its path."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=(images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    return path
