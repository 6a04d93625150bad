"""Decoder networks: latent vectors [B, in_features] to maps [B, channels, H, W], the encoders' mirrors.

With `maps`, from latent maps [B, in_features, h, w] at the resolution after the encoder's last stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from vlae.errors import VlaeError
from vlae.models.encoders import ConvEncoder, ImageShape, MLPEncoder, ResNetEncoder, sizes_of
from vlae.nn import inference
from vlae.nn.fused_decoder import FusedDecoder
from vlae.nn.pixelcnn import GatedPixelCNN, Trunk, make_trunk
from vlae.nn.receptive import ReceptiveField
from vlae.nn.residual import ResidualBlock, upsample

PIECE = 64  # codes at a time in `AutoregressiveDecoder.evaluate`: more do not stay in the cache, fewer cost in calls


class MLPDecoder(nn.Module):
    """One hidden layer per width, ELU; the widths are the encoder's and are used in reverse."""

    def __init__(self, in_features: int, image_shape: ImageShape, widths: Sequence[int] = (400,)):
        super().__init__()
        layers: list[nn.Module] = []
        features = in_features
        for hidden in reversed(widths):
            layers += [nn.Linear(features, hidden), nn.ELU()]
            features = hidden
        channels, height, width = image_shape
        self.layers = nn.Sequential(
            *layers, nn.Linear(features, channels * height * width), nn.Unflatten(1, image_shape)
        )

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, in_features] -> [B, C, H, W]."""
        return self.layers(z)


class ConvDecoder(nn.Module):
    """One transposed convolution, batch normalisation and ELU per width, then a 3x3 convolution."""

    def __init__(self, in_features: int, image_shape: ImageShape, widths: Sequence[int] = (32, 64), maps: bool = False):
        super().__init__()
        sizes = sizes_of(image_shape, widths)
        channels = widths[-1]
        layers: list[nn.Module] = [
            nn.Linear(in_features, channels * sizes[-1][0] * sizes[-1][1]),
            nn.Unflatten(1, (channels, *sizes[-1])),
        ]
        if maps:
            layers = [nn.Conv2d(in_features, channels, 3, padding=1), nn.ELU()]
        for wide, size in zip(reversed(widths), reversed(sizes[:-1]), strict=True):
            layers += [upsample(channels, wide, size), nn.BatchNorm2d(wide), nn.ELU()]
            channels = wide
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, image_shape[0], 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, in_features] -> [B, C, H, W]."""
        return self.layers(z)


class ResNetDecoder(nn.Module):
    """The mirror of `ResNetEncoder`, with transposed convolutions."""

    def __init__(
        self,
        in_features: int,
        image_shape: ImageShape,
        widths: Sequence[int] = (16, 32, 32),
        hidden: int = 450,
        maps: bool = False,
    ):
        super().__init__()
        sizes = sizes_of(image_shape, widths)
        channels, (height, width) = widths[-1], sizes[-1]
        self.head: nn.Module = nn.Conv2d(in_features, channels, 3, padding=1)
        if not maps:
            self.head = nn.Sequential(
                nn.Linear(in_features, hidden),
                nn.ELU(),
                nn.Linear(hidden, channels * height * width),
                nn.Unflatten(1, (channels, height, width)),
            )
        # The encoder went widths[0] -> ... -> widths[-1]; the way back ends with widths[0] maps at full size.
        targets = [widths[max(i - 1, 0)] for i in range(len(widths))]
        blocks: list[nn.Module] = []
        for index in reversed(range(len(widths))):
            blocks.append(ResidualBlock.up(channels, targets[index], sizes[index]))
            channels = targets[index]
            if index:
                blocks.append(ResidualBlock.same(channels))
        self.blocks = nn.Sequential(*blocks, nn.ELU(), nn.Conv2d(channels, image_shape[0], 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, in_features], or maps [B, in_features, h, w] -> [B, C, H, W]."""
        return self.blocks(self.head(z))

    def evaluate(self, z: Tensor) -> Tensor:
        """As `forward`, faster: for where `inference.applies`."""
        low = inference.evaluate(self.blocks[:-3], inference.channels_last(inference.evaluate(self.head, z)))
        # The last block, ELU and convolution are at full size, where fewer images fill the cache.
        return inference.in_pieces(partial(inference.evaluate, self.blocks[-3:]), low, max(1, PIECE // 8))


# Encoder, its mirror, and the widths of the stages if none are given.
ARCHITECTURES: dict[str, tuple[type[nn.Module], type[nn.Module], tuple[int, ...]]] = {
    "mlp": (MLPEncoder, MLPDecoder, (400,)),
    "conv": (ConvEncoder, ConvDecoder, (32, 64)),
    "resnet": (ResNetEncoder, ResNetDecoder, (16, 32, 32)),
}


def trunk(
    stacks: str, trunk_options: Mapping[str, Any] | None, pointwise_blocks: int, tied: bool, **sizes: Any
) -> Trunk:
    """`make_trunk` for a model's own arguments; refuses trunk options that are the model's to set, or unknown."""
    options = dict(trunk_options or {})
    own = ("memory", "heads", "hidden")
    if unknown := [name for name in options if name not in own]:
        raise VlaeError(f"trunk_options has no option {unknown[0]!r}: its options are {', '.join(own)}")
    return make_trunk(stacks, pointwise_blocks=pointwise_blocks, tied=tied, **options, **sizes)


class AutoregressiveDecoder(nn.Module):
    """z to context maps at full resolution, and the PixelCNN that reads them beside the image.

    Args:
        features: z -> context [B, F, H, W].
        pixels: (x, context) -> parameters [B, C, P, H, W]; has a `receptive_field`.
    """

    def __init__(self, features: nn.Module, pixels: Trunk):
        super().__init__()
        self.features, self.pixels = features, pixels

    @property
    def receptive_field(self) -> ReceptiveField:
        """The earlier pixels that a pixel's conditional can see."""
        return self.pixels.receptive_field

    def forward(self, z: Tensor) -> Tensor:
        """z, a vector or maps -> context [B, F, H, W]."""
        return self.features(z)

    def evaluate(self, z: Tensor) -> Tensor:
        """As `forward`, faster where there are no gradients."""
        if isinstance(self.features, ResNetDecoder) and inference.applies(z):
            return inference.in_pieces(self.features.evaluate, z, PIECE)
        return self.features(z)

    def fused(self, like: Tensor) -> Callable[[Tensor], Callable[[Tensor], Tensor]] | None:
        """x -> (z -> parameters [B, C, H, W, P]) of one image x [1, C, H, W] under many z, compiled.

        For tensors `like` this one, and while the weights do not change; None where they, or the networks, are not
        served.
        """
        features = self.features
        if not isinstance(features, ResNetDecoder) or not FusedDecoder.serves(self.pixels, like):
            return None
        decoder = FusedDecoder(features.blocks, cast(GatedPixelCNN, self.pixels))

        def of_image(x: Tensor) -> Callable[[Tensor], Tensor]:
            parameters = decoder.on(x)
            return lambda z: parameters(inference.evaluate(features.head, z))

        return of_image
