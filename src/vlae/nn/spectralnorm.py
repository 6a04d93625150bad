"""Spectral normalisation (Miyato et al. 2018, arXiv 1802.05957): every layer's largest singular value is 1."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def apply_spectral_norm(module: nn.Module) -> nn.Module:
    """Divides the weight of every convolution and linear layer by its largest singular value, in place.

    The value is that of the weight as a matrix [out, everything else], estimated by one power iteration at each
    training step (Miyato et al.'s; for a convolution it is not the operator's own norm).
    """
    for layer in module.modules():
        if isinstance(layer, LAYERS) and not is_parametrized(layer):
            spectral_norm(layer)
    return module
