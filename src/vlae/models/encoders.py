"""Encoders: images [B, C, H, W] to feature vectors [B, out_features], at any size; with `maps`, to feature maps
[B, out_features, h, w] at the resolution after the last stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlae import processes
from vlae.errors import VlaeError, require_positive
from vlae.nn.residual import ResidualBlock, downsample, halved

ImageShape = tuple[int, int, int]


def sizes_of(image_shape: ImageShape, widths: Sequence[int]) -> list[tuple[int, int]]:
    """The image size before each stride-2 stage and after the last; refuses stages that have nothing left to halve."""
    stages = len(widths)
    if not stages:
        raise VlaeError("the encoder needs at least one stride-2 stage: give one width or more")
    require_positive("the widths of the encoder", *widths)
    sizes = [(image_shape[1], image_shape[2])]
    for _ in range(stages):
        if max(sizes[-1]) == 1:
            raise VlaeError(
                f"{stages} stride-2 stages are too many for {image_shape[1]}x{image_shape[2]} images: give fewer widths"
            )
        sizes.append(halved(sizes[-1]))
    return sizes


class MLPEncoder(nn.Module):
    """Flattens the image; one hidden layer per width, ELU."""

    def __init__(self, image_shape: ImageShape, out_features: int, widths: Sequence[int] = (400,)):
        super().__init__()
        if widths:
            require_positive("the widths of the encoder", *widths)
        channels, height, width = image_shape
        layers: list[nn.Module] = [nn.Flatten()]
        features = channels * height * width
        for hidden in widths:
            layers += [nn.Linear(features, hidden), nn.ELU()]
            features = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] in [0, 1] -> [B, out_features]."""
        return self.layers(2 * x - 1)


class ConvEncoder(nn.Module):
    """One strided convolution, batch normalisation and ELU per width."""

    def __init__(
        self, image_shape: ImageShape, out_features: int, widths: Sequence[int] = (32, 64), maps: bool = False
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = image_shape[0]
        height, width = sizes_of(image_shape, widths)[-1]
        self.smallest = height * width
        for wide in widths:
            layers += [downsample(channels, wide), nn.BatchNorm2d(wide), nn.ELU()]
            channels = wide
        flat = [nn.Flatten(), nn.Linear(channels * height * width, out_features)]
        self.layers = nn.Sequential(*layers, *([nn.Conv2d(channels, out_features, 1)] if maps else flat))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] in [0, 1] -> [B, out_features], or maps [B, out_features, h, w]."""
        if self.training and len(x) * self.smallest < 2 and processes.count() == 1:
            raise VlaeError(
                "architecture 'conv' normalises over the batch in training, and its last maps have one number each: "
                f"give 2 images or more, or fewer widths; got {len(x)}"
            )
        return self.layers(2 * x - 1)


@contextmanager
def running_averages_kept(network: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation leaves its running averages as they are, and works as always besides."""
    tracking = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


class ResNetEncoder(nn.Module):
    """The residual encoder of Kingma et al. 2016 (arXiv 1606.04934), which the paper uses, without normalisation.

    One stride-2 residual block per width with a stride-1 block between them, then a fully connected layer. With the
    default widths and hidden=450 it is the paper's encoder for binary images. With `maps` there is no such layer.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        out_features: int,
        widths: Sequence[int] = (16, 32, 32),
        hidden: int = 450,
        maps: bool = False,
    ):
        super().__init__()
        channels = image_shape[0]
        height, width = sizes_of(image_shape, widths)[-1]
        blocks: list[nn.Module] = []
        for index, wide in enumerate(widths):
            if index:
                blocks.append(ResidualBlock.same(channels))
            blocks.append(ResidualBlock.down(channels, wide))
            channels = wide
        self.blocks = nn.Sequential(*blocks, nn.ELU(), *([] if maps else [nn.Flatten()]))
        self.head: nn.Module = nn.Conv2d(channels, out_features, 1)
        if not maps:
            self.head = nn.Sequential(
                nn.Linear(channels * height * width, hidden), nn.ELU(), nn.Linear(hidden, out_features)
            )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] in [0, 1] -> [B, out_features], or maps [B, out_features, h, w]."""
        return self.head(self.blocks(2 * x - 1))
