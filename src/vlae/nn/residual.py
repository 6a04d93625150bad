"""Residual blocks that halve, keep or double the resolution at any image size.

Their `dropout` is a place for `vlae.nn.dropout`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """The size after a stride-2 layer: each side halved and rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def downsample(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3x3 convolution of stride 2: [B, in, H, W] -> [B, out, ceil(H/2), ceil(W/2)]."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)


def upsample(in_channels: int, out_channels: int, size: tuple[int, int]) -> nn.ConvTranspose2d:
    """The mirror of `downsample` onto an image of the given size, even or odd."""
    # A transposed 3x3 convolution of stride 2 gives 2n - 1 rows; the output padding restores an even size.
    padding = (1 - size[0] % 2, 1 - size[1] % 2)
    return nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=padding)


class ResidualBlock(nn.Module):
    """y = shortcut(x) + conv(elu(conv(elu(x)))), 3x3, pre-activation (He et al. 2016, arXiv 1603.05027).

    Made by `same`, `down` or `up`, which choose the first convolution and the shortcut.
    [B, in, H, W] -> [B, out, H', W'].
    """

    def __init__(self, first: nn.Module, shortcut: nn.Module, channels: int):
        super().__init__()
        self.first, self.shortcut = first, shortcut
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.dropout: nn.Module = nn.Identity()

    @classmethod
    def same(cls, channels: int) -> ResidualBlock:
        """Keeps resolution and width."""
        return cls(nn.Conv2d(channels, channels, 3, padding=1), nn.Identity(), channels)

    @classmethod
    def down(cls, in_channels: int, out_channels: int) -> ResidualBlock:
        """Halves the resolution."""
        return cls(downsample(in_channels, out_channels), downsample(in_channels, out_channels), out_channels)

    @classmethod
    def up(cls, in_channels: int, out_channels: int, size: tuple[int, int]) -> ResidualBlock:
        """Doubles the resolution, onto the given size."""
        first, shortcut = upsample(in_channels, out_channels, size), upsample(in_channels, out_channels, size)
        return cls(first, shortcut, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        return self.shortcut(x) + self.second(self.dropout(F.elu(self.first(F.elu(x)))))


class PointwiseBlock(nn.Module):
    """y = x + conv(elu(conv(elu(x)))) with 1x1 convolutions: depth without a wider receptive field."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 1)
        self.dropout: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        return x + self.second(self.dropout(F.elu(self.first(F.elu(x)))))
