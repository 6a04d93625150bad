"""Layers that know no probability."""

from vlae.nn.attention import LocalTransformer
from vlae.nn.masked import MADE, MaskedConv2d
from vlae.nn.pixelcnn import GatedPixelCNN, PlainPixelCNN
from vlae.nn.receptive import ReceptiveField
from vlae.nn.residual import PointwiseBlock, ResidualBlock
from vlae.nn.rowlstm import PixelRNN
from vlae.nn.spectralnorm import apply_spectral_norm
from vlae.nn.weightnorm import apply_weight_norm, data_dependent_init

__all__ = [
    "MADE",
    "GatedPixelCNN",
    "LocalTransformer",
    "MaskedConv2d",
    "PixelRNN",
    "PlainPixelCNN",
    "PointwiseBlock",
    "ReceptiveField",
    "ResidualBlock",
    "apply_spectral_norm",
    "apply_weight_norm",
    "data_dependent_init",
]
