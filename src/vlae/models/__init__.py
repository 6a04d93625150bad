"""Models: the compositions of posterior, likelihood and prior, and their bound."""

from vlae.models.base import Bound, LatentVariableModel
from vlae.models.pixelcnn import PixelCNN
from vlae.models.saving import load, pretrained_names
from vlae.models.vae import VAE, VLAE

__all__ = ["VAE", "VLAE", "Bound", "LatentVariableModel", "PixelCNN", "load", "pretrained_names"]
