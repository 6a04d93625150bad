"""Samples from the prior, in any number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.files import replacing
from vlae.models.base import LatentVariableModel


def prior_samples(
    model: LatentVariableModel,
    count: int,
    temperature: float = 1.0,
    pixel_temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
) -> Tensor:
    """Exactly `count` images [count, C, H, W] in [0, 1], x ~ p(x|z), z ~ p(z), drawn `batch_size` at a time.

    Args:
        model: trained.
        count: how many images.
        temperature: scales the prior's noise; above 0.
        pixel_temperature: sharpens each sub-pixel's distribution; above 0.
        seed: of all noise.
        batch_size: images at a time.
    """
    if count < 1:
        raise VlaeError(f"count must be at least 1; got {count}")
    if temperature < 0 or not pixel_temperature > 0:
        raise VlaeError(f"temperatures must be positive; got {temperature} (prior) and {pixel_temperature} (pixels)")
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    return torch.cat([model.sample(size, temperature, pixel_temperature, generator) for size in sizes])


def save_array(images: Tensor, path: Path) -> Path:
    """Writes images [N, C, H, W] in [0, 1] as uint8 under the name `images` in an .npz file, atomically; returns it."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=(images * 255).round().to(torch.uint8).cpu().numpy())
    return path
