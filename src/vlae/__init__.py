"""vlae: Variational Lossy Autoencoders in PyTorch."""

import importlib
from typing import Any

from vlae import codec, data, distributions, nn, sampling
from vlae.errors import VlaeError
from vlae.models import (
    VAE,
    VLAE,
    VQVAE,
    Bound,
    ConditionalVAE,
    DenoisingAutoencoder,
    LadderVAE,
    LatentVariableModel,
    PixelCNN,
    load,
)

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "VLAE",
    "VQVAE",
    "Bound",
    "ConditionalVAE",
    "DenoisingAutoencoder",
    "LadderVAE",
    "LatentVariableModel",
    "PixelCNN",
    "VlaeError",
    "codec",
    "data",
    "distributions",
    "load",
    "nn",
    "sampling",
]

# Imported when they are first used: they bring Lightning and matplotlib, which many a script does without.
_LATER = ("evaluation", "experiments", "explorer", "figures", "objectives", "training")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"vlae.{name}")
    raise AttributeError(f"module 'vlae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
