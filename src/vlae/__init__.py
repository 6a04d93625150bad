"""vlae: Variational Lossy Autoencoders in PyTorch."""

from vlae import codec, data, distributions, nn, sampling
from vlae.errors import VlaeError
from vlae.models import VAE, VLAE, Bound, LatentVariableModel, PixelCNN, load

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "VLAE",
    "Bound",
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
