"""The two standard networks behind published image metrics, without their weights: Inception v3 and LPIPS's AlexNet.

Written out here, because the packages that hold them need torchvision, and a torchvision that does not fit the
installed torch stops torchmetrics and Lightning from being imported at all. Parameters are named as in the published
files of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# -- Inception v3 -----------------------------------------------------------------------------------------------------


class Inception(nn.Module):
    """Inception v3 as the Frechet Inception distance has it (Szegedy et al. 2015; Heusel et al. 2017).

    The graph that the TensorFlow weights of 2015-12-05 belong to, which differs from torchvision's: averages leave out
    the padding, the last block pools by the maximum, images are resized as TensorFlow 1 does, and there are 1,008
    classes. Logits are without the bias, as the Inception Score takes them (Salimans et al. 2016).
    """

    SIDE: ClassVar[int] = 299

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padding=0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (BlockC(768, c) for c in (128, 160, 160, 192))
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, average_without_padding), BlockE(2048, maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 2048] and logits [B, 1008] of images x, uint8 [B, 3, H, W] of any size."""
        x = (resized(x.to(self.fc.weight), self.SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


def resized(x: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] of any size as [B, C, side, side]: TensorFlow 1's bilinear interpolation.

    Output pixel i looks at input i H / side; the modern form would look at (i + 1/2) H / side - 1/2.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        where = torch.arange(side, device=x.device) * torch.tensor(size / side)
        low = where.long()
        share = (where - low).to(x).view(-1, *[1] * (3 - dim))
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=size - 1)), share)
    return x


def average_without_padding(x: Tensor) -> Tensor:
    """The mean of the 3 x 3 neighbours that are in the image."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    """The largest of the 3 x 3 neighbours."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class Convolution(nn.Module):
    """A convolution, batch normalisation and a ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | str = "same"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W], or smaller."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Branches side by side, put together from convolutions by name; their channels follow one another."""

    def __init__(self, **convolutions: Convolution) -> None:
        super().__init__()
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)

    def forward(self, x: Tensor) -> Tensor:
        """All branches of x [B, C, H, W]."""
        return torch.cat(self._branches(x), 1)

    def _branches(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def along(self, x: Tensor, *names: str) -> Tensor:
        """x through these convolutions, one after the other."""
        for name in names:
            x = self.get_submodule(name)(x)
        return x


class BlockA(Block):
    """35 x 35: branches of 1 x 1, 5 x 5 and twice 3 x 3."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__(
            branch1x1=Convolution(inputs, 64, 1),
            branch5x5_1=Convolution(inputs, 48, 1),
            branch5x5_2=Convolution(48, 64, 5),
            branch3x3dbl_1=Convolution(inputs, 64, 1),
            branch3x3dbl_2=Convolution(64, 96, 3),
            branch3x3dbl_3=Convolution(96, 96, 3),
            branch_pool=Convolution(inputs, pooled, 1),
        )

    def _branches(self, x: Tensor) -> list[Tensor]:
        return [
            self.along(x, "branch1x1"),
            self.along(x, "branch5x5_1", "branch5x5_2"),
            self.along(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            self.along(average_without_padding(x), "branch_pool"),
        ]


class BlockB(Block):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__(
            branch3x3=Convolution(inputs, 384, 3, stride=2, padding=0),
            branch3x3dbl_1=Convolution(inputs, 64, 1),
            branch3x3dbl_2=Convolution(64, 96, 3),
            branch3x3dbl_3=Convolution(96, 96, 3, stride=2, padding=0),
        )

    def _branches(self, x: Tensor) -> list[Tensor]:
        return [
            self.along(x, "branch3x3"),
            self.along(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            F.max_pool2d(x, 3, stride=2),
        ]


class BlockC(Block):
    """17 x 17: 7 x 7 windows, as rows and columns."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(
            branch1x1=Convolution(inputs, 192, 1),
            branch7x7_1=Convolution(inputs, width, 1),
            branch7x7_2=Convolution(width, width, (1, 7)),
            branch7x7_3=Convolution(width, 192, (7, 1)),
            branch7x7dbl_1=Convolution(inputs, width, 1),
            branch7x7dbl_2=Convolution(width, width, (7, 1)),
            branch7x7dbl_3=Convolution(width, width, (1, 7)),
            branch7x7dbl_4=Convolution(width, width, (7, 1)),
            branch7x7dbl_5=Convolution(width, 192, (1, 7)),
            branch_pool=Convolution(inputs, 192, 1),
        )

    def _branches(self, x: Tensor) -> list[Tensor]:
        return [
            self.along(x, "branch1x1"),
            self.along(x, "branch7x7_1", "branch7x7_2", "branch7x7_3"),
            self.along(x, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
            self.along(average_without_padding(x), "branch_pool"),
        ]


class BlockD(Block):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__(
            branch3x3_1=Convolution(inputs, 192, 1),
            branch3x3_2=Convolution(192, 320, 3, stride=2, padding=0),
            branch7x7x3_1=Convolution(inputs, 192, 1),
            branch7x7x3_2=Convolution(192, 192, (1, 7)),
            branch7x7x3_3=Convolution(192, 192, (7, 1)),
            branch7x7x3_4=Convolution(192, 192, 3, stride=2, padding=0),
        )

    def _branches(self, x: Tensor) -> list[Tensor]:
        return [
            self.along(x, "branch3x3_1", "branch3x3_2"),
            self.along(x, *(f"branch7x7x3_{i}" for i in range(1, 5))),
            F.max_pool2d(x, 3, stride=2),
        ]


class BlockE(Block):
    """8 x 8: 3 x 3 windows, as a row beside a column. `pool` is what the last branch starts with."""

    def __init__(self, inputs: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__(
            branch1x1=Convolution(inputs, 320, 1),
            branch3x3_1=Convolution(inputs, 384, 1),
            branch3x3_2a=Convolution(384, 384, (1, 3)),
            branch3x3_2b=Convolution(384, 384, (3, 1)),
            branch3x3dbl_1=Convolution(inputs, 448, 1),
            branch3x3dbl_2=Convolution(448, 384, 3),
            branch3x3dbl_3a=Convolution(384, 384, (1, 3)),
            branch3x3dbl_3b=Convolution(384, 384, (3, 1)),
            branch_pool=Convolution(inputs, 192, 1),
        )
        self.pool = pool

    def _branches(self, x: Tensor) -> list[Tensor]:
        single = self.along(x, "branch3x3_1")
        double = self.along(x, "branch3x3dbl_1", "branch3x3dbl_2")
        return [
            self.along(x, "branch1x1"),
            *(self.along(single, name) for name in ("branch3x3_2a", "branch3x3_2b")),
            *(self.along(double, name) for name in ("branch3x3dbl_3a", "branch3x3dbl_3b")),
            self.along(self.pool(x), "branch_pool"),
        ]


# -- LPIPS ------------------------------------------------------------------------------------------------------------


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity on AlexNet, version 0.1 (Zhang et al. 2018, eq. 1).

    Features of five layers, each position's scaled to length 1; their squared differences weighted channel by channel
    and averaged over positions, and the layers added up.
    """

    SIDE: ClassVar[int] = 31  # the least that leaves AlexNet's last layer a position
    LAYERS: ClassVar[dict[int, int]] = {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}  # where a ReLU is -> its channels

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        )
        self.weights = nn.ParameterList([torch.zeros(channels) for channels in self.LAYERS.values()])
        # ImageNet's mean and deviation, for values in [-1, 1].
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of RGB images x and y [B, 3, H, W] in [-1, 1], at least 31 x 31, [B]."""
        total = x.new_zeros(len(x))
        for weight, a, b in zip(self.weights, self.directions(x), self.directions(y), strict=True):
            total = total + ((a - b).square() * weight[:, None, None]).sum(1).mean((1, 2))
        return total

    def directions(self, x: Tensor) -> list[Tensor]:
        """The features of each layer, at every position of length 1."""
        x, found = (x - self.mean) / self.deviation, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.LAYERS:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found
