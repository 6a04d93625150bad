"""vlae: Variational Lossy Autoencoders in PyTorch."""

from vlae import data, distributions, nn
from vlae.errors import VlaeError
from vlae.models import VAE, VLAE, Bound, LatentVariableModel, load

__version__ = "0.1.0"

__all__ = ["VAE", "VLAE", "Bound", "LatentVariableModel", "VlaeError", "data", "distributions", "load", "nn"]
