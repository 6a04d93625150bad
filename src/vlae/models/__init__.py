"""Models: the compositions of posterior, likelihood and prior, and their bound."""

from vlae.models.base import Bound, LatentVariableModel
from vlae.models.denoising import DenoisingAutoencoder
from vlae.models.ladder import LadderBound, LadderVAE
from vlae.models.pixelcnn import PixelCNN
from vlae.models.saving import load, pretrained_names
from vlae.models.vae import VAE, VLAE, ConditionalVAE
from vlae.models.vqvae import VQVAE

__all__ = [
    "VAE",
    "VLAE",
    "VQVAE",
    "Bound",
    "ConditionalVAE",
    "DenoisingAutoencoder",
    "LadderBound",
    "LadderVAE",
    "LatentVariableModel",
    "PixelCNN",
    "load",
    "pretrained_names",
]
