"""vlae: Variational Lossy Autoencoders in PyTorch."""

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
