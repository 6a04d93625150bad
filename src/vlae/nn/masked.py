"""Masked layers: a convolution that respects the raster order, and the masked autoencoder (MADE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import zuko
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.errors import VlaeError, require_positive
from vlae.nn.receptive import Kernel, ReceptiveField


def reach_of(kernel_size: int) -> int:
    """How far an odd kernel reaches to each side; refuses even kernels and those under 3, which see no neighbour."""
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise VlaeError(
            f"kernel_size must be odd and at least 3, so that a pixel sees its neighbours; got {kernel_size}"
        )
    return kernel_size // 2


class MaskedConv2d(nn.Conv2d):
    """Convolution whose output at a pixel depends only on that pixel's past in raster order.

    Type "A" excludes the pixel itself (first layer, on the image), type "B" includes it (all later layers): van den
    Oord et al. 2016, arXiv 1601.06759. Rows below the pixel would always be masked, so they are not stored: the
    weight is [out_channels, in_channels, k // 2 + 1, k]. Input [B, in_channels, H, W], output [B, out_channels, H, W].

    Example:
        >>> layer = MaskedConv2d(1, 8, kernel_size=3, mask_type="A")
        >>> layer(torch.zeros(2, 1, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
        >>> layer.field.mask.int()
        tensor([[1, 1, 1],
                [1, 0, 0]], dtype=torch.int32)
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, mask_type: str = "B", bias: bool = True):
        if mask_type not in ("A", "B"):
            raise VlaeError(f"mask_type must be 'A' (without the pixel itself) or 'B' (with it); got {mask_type!r}")
        self.reach = reach_of(kernel_size)
        super().__init__(in_channels, out_channels, (self.reach + 1, kernel_size), bias=bias)
        mask = torch.ones(self.reach + 1, kernel_size)
        mask[-1, self.reach + (mask_type == "B") :] = 0
        self.mask_type = mask_type
        self.kernel = Kernel(up=self.reach, rows=self.reach + 1, left=self.reach, columns=kernel_size)
        self.register_buffer("mask", mask, persistent=False)
        with torch.no_grad():  # a masked weight that starts at zero stays there, under weight normalisation too
            self.weight *= mask

    @property
    def field(self) -> ReceptiveField:
        """The offsets that one such layer sees."""
        rows, columns = self.mask.nonzero(as_tuple=True)
        return ReceptiveField.from_offsets(
            zip((rows - self.reach).tolist(), (columns - self.reach).tolist(), strict=True)
        )

    def forward(self, input: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
        # Symmetric padding and a slice are faster than padding the top alone, which would copy the input.
        output = F.conv2d(input, self.weight * self.mask, self.bias, padding=self.reach)
        return output[:, :, : input.shape[-2]]


def masked_mlp(
    adjacency: Tensor, hidden: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU
) -> zuko.nn.MaskedMLP:
    """A network whose output i depends on input j only where adjacency[i, j], bool [outputs, inputs]."""
    network = zuko.nn.MaskedMLP(adjacency, list(hidden), activation=activation)
    spread_degrees(network, adjacency)
    return network


def spread_degrees(network: zuko.nn.MaskedMLP, adjacency: Tensor) -> None:
    """Gives layers that are narrower than there are kinds of outputs units of all kinds, instead of the first ones.

    A hidden unit belongs to a kind of output (in a MADE: its degree) and sees what that may see. zuko deals the kinds
    in order: with D dimensions and fewer units, no unit would see the later dimensions, and no output depend on them.
    Here the units are spread over all kinds, so that an output misses no more than the latest of its inputs, about D /
    units of them. Wider layers are left as they are.
    """
    kinds, of_output = adjacency.unique(dim=0, return_inverse=True)
    within = kinds.double() @ kinds.double().t() == kinds.sum(-1)  # [i, j]: i may see all that j may
    layers = [layer for layer in network if isinstance(layer, zuko.nn.MaskedLinear)]
    mask = kinds
    for layer in layers[:-1]:
        reachable = mask.sum(-1).nonzero()[:, 0]
        units, count = torch.arange(layer.out_features), len(reachable)
        # The last of each share: the widest kind is among them.
        dealt = units % count if len(units) >= count else (units + 1) * count // len(units) - 1
        layer.mask.copy_(mask[reachable[dealt]])
        mask = within[:, reachable[dealt]]
    layers[-1].mask.copy_(mask[of_output])


class MADE(nn.Module):
    """Masked autoencoder for distribution estimation (Germain et al. 2015, arXiv 1502.03509).

    `outputs` is a multiple of `inputs`; they come in blocks of outputs / inputs per input, and block i depends on
    inputs before i only: on all of them, if the hidden layers are at least as wide (see `spread_degrees`).
    [..., inputs] -> [..., outputs].

    Example:
        >>> made = MADE(10, 32, 10)
        >>> torch.autograd.functional.jacobian(made, torch.randn(10)).triu().abs().max()
        tensor(0.)
    """

    def __init__(
        self,
        inputs: int,
        hidden: int | Sequence[int],
        outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__()
        if inputs < 1 or outputs < 1 or outputs % inputs:
            raise VlaeError(
                f"MADE needs outputs to be a positive multiple of inputs; got {inputs} inputs and {outputs} outputs"
            )
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        require_positive("hidden widths of a MADE", *widths)
        self.inputs, self.outputs = inputs, outputs
        if inputs == 1:  # nothing comes before the only input: its block is a learned constant
            self.constant = nn.Parameter(torch.zeros(outputs))
            self.network = None
        else:
            before = torch.ones(inputs, inputs).tril(-1).bool().repeat_interleave(outputs // inputs, dim=0)
            self.network = masked_mlp(before, widths, activation)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        if self.network is None:
            return self.constant.expand(*x.shape[:-1], self.outputs)
        return self.network(x)
