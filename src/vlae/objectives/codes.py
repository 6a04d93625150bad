"""What objectives ask of the codes of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel
from vlae.models.latents import Latents


def in_rows(z: Latents) -> Tensor:
    """Latents of any shape, or a ladder's tuple of them, as one row per image, [B, D]."""
    return torch.cat([level.flatten(1) for level in z], 1) if isinstance(z, tuple) else z.flatten(1)


def require_continuous(model: LatentVariableModel, what: str) -> None:
    """Refuses discrete codes, through which no gradient passes, and models without any; `what` needs them."""
    if model.discrete or not model.latent_size:
        kind = "discrete codes" if model.latent_size else "no code"
        raise VlaeError(f"{what} needs a continuous z, and a {type(model).__name__} has {kind}: leave it out")
