"""Layers that know no probability."""

from vlae.nn.masked import MADE, MaskedConv2d
from vlae.nn.pixelcnn import GatedPixelCNN, PlainPixelCNN
from vlae.nn.receptive import ReceptiveField
from vlae.nn.residual import PointwiseBlock, ResidualBlock
from vlae.nn.weightnorm import apply_weight_norm, data_dependent_init

__all__ = [
    "MADE",
    "GatedPixelCNN",
    "MaskedConv2d",
    "PlainPixelCNN",
    "PointwiseBlock",
    "ReceptiveField",
    "ResidualBlock",
    "apply_weight_norm",
    "data_dependent_init",
]
