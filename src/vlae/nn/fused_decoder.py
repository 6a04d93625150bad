"""A VLAE's decoder on one image under many codes as one `fused.Network`: the maps that codes are decoded to, and the
gated trunk that reads them beside the image.

As in `one_image`, what depends on the image alone is computed once and then added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from vlae.errors import VlaeError
from vlae.nn import fused
from vlae.nn.fused import Maps, Step, Term, gate_order, padded
from vlae.nn.inference import applies
from vlae.nn.one_image import bias_of, compose, of_context, of_image
from vlae.nn.pixelcnn import ChannelHead, GatedLayer, GatedPixelCNN, network_input
from vlae.nn.receptive import Kernel
from vlae.nn.residual import ResidualBlock


class FusedDecoder:
    """The parameters of every pixel of one image under many codes.

    The weights must not change while it is used: it keeps those of its first call.

    Args:
        blocks: the layers of `ResNetDecoder` after its head: residual blocks, an ELU, a convolution.
        trunk: one that it `serves`.
    """

    def __init__(self, blocks: nn.Sequential, trunk: GatedPixelCNN):
        self.blocks, self.trunk = blocks, trunk
        self.gates = gate_order(cast(GatedLayer, trunk.layers[0]).output.in_channels)
        self.network: fused.Network | None = None

    @staticmethod
    def serves(trunk: nn.Module, x: Tensor) -> bool:
        """Whether this can be used: a gated trunk in every layer of which z is a bias, float32, compiled code."""
        gated = isinstance(trunk, GatedPixelCNN) and len(trunk.layers) > 0
        biases = gated and cast(GatedLayer, cast(GatedPixelCNN, trunk).layers[0]).context is not None
        return biases and applies(x) and x.dtype == torch.float32 and fused.library() is not None

    def on(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Of the image x [1, C, H, W] in [0, 1]: maps [B, F, h, w] of codes, the head's -> [B, C, H, W, P]."""
        fixed = self._of_image(network_input(x))

        def parameters(maps: Tensor) -> Tensor:
            if self.network is None:
                self.network = self._network((x.shape[2], x.shape[3]), maps)
            return self.network(maps, fixed).unflatten(3, self.trunk.head.shape).movedim(3, 1)

        return parameters

    def _of_image(self, x: Tensor) -> list[Tensor]:
        """The fixed maps [channels, H, W] of the image x [1, C, H, W] in [-1, 1]."""
        if len(x) != 1:
            raise VlaeError(f"one image at a time; got {len(x)}")
        gates, h = of_image(self.trunk, x)
        own = self.trunk.head.own
        return [*(padded(gate[0])[self.gates] for gate in gates), h[0], *([] if own is None else [own(x)[0]])]

    def _network(self, size: tuple[int, int], maps: Tensor) -> fused.Network:
        read = Maps(maps.shape[2], maps.shape[3], maps.shape[1])
        steps, context = _features(self.blocks, read, size)
        first, *others = (cast(GatedLayer, layer) for layer in self.trunk.layers)
        channels = first.output.in_channels
        trunk = _Trunk(size, channels, context, self.gates)
        fixed = [Maps(*size, len(self.gates)) for _ in first.gates]
        h_of_image = Maps(*size, channels)
        trunk.first(first, of_context(self.trunk), fixed, h_of_image)
        for layer in others:
            trunk.further(layer)
        own = None
        if self.trunk.head.own is not None:
            own = Maps(*size, self.trunk.head.hidden.out_channels)
        parameters = trunk.head(self.trunk.head, own)
        fixed += [h_of_image, *([] if own is None else [own])]
        return fused.Network(read, steps + trunk.steps, parameters, fixed)


# -- the maps that a code is decoded to -------------------------------------------------------------------------------


def _features(blocks: nn.Sequential, x: Maps, size: tuple[int, int]) -> tuple[list[Step], Maps]:
    """The steps from the head's maps x to the context, and the context's maps."""
    *residual, _, last = blocks
    sizes = _sizes(residual, (x.rows, x.columns), size)
    active = Maps(x.rows, x.columns, x.channels)
    steps = [Step([], _zeros(x.channels), active=active, activation="elu", added=x)]
    for block, each in zip((cast(ResidualBlock, b) for b in residual), sizes, strict=True):
        channels = block.second.out_channels
        inner, y, next_active = (Maps(*each, channels) for _ in range(3))
        if isinstance(block.first, nn.ConvTranspose2d):
            shortcut = Maps(*each, channels)
            steps += _doubling(block.first, active, inner, "elu")
            steps += _doubling(cast(nn.ConvTranspose2d, block.shortcut), x, shortcut, "none")
        else:
            shortcut = x
            first = cast(nn.Conv2d, block.first)
            steps.append(Step([_centred(first, active)], bias_of(first), active=inner, activation="elu"))
        second = [_centred(block.second, inner)]
        bias = bias_of(block.second)
        steps.append(Step(second, bias, raw=y, active=next_active, activation="elu", added=shortcut))
        x, active = y, next_active
    steps[-1].raw = None  # what follows the last block is an ELU
    final = cast(nn.Conv2d, last)
    context = Maps(*size, final.out_channels)
    return [*steps, Step([_centred(final, active)], bias_of(final), raw=context)], context


def _sizes(blocks: list[nn.Module], size: tuple[int, int], last: tuple[int, int]) -> list[tuple[int, int]]:
    """The size after each block."""
    sizes = []
    for block in blocks:
        first = cast(ResidualBlock, block).first
        if isinstance(first, nn.ConvTranspose2d):
            rows, columns = cast(tuple[int, int], first.output_padding)
            size = 2 * size[0] - 1 + rows, 2 * size[1] - 1 + columns
        sizes.append(size)
    assert sizes[-1] == last
    return sizes


def _centred(layer: nn.Conv2d, source: Maps) -> Term:
    """A convolution that keeps the size."""
    return Term(source, layer.weight, layer.weight.shape[2] // 2, layer.weight.shape[3] // 2)


def _doubling(layer: nn.ConvTranspose2d, source: Maps, to: Maps, activation: str) -> list[Step]:
    """`residual.upsample` as four convolutions, of the even and odd rows and columns of the result.

    Pixel o of a row is the sum over k of weight k at pixel i of the source, where o = 2 i - 1 + k and k is 0, 1 or 2:
    an even one sees one pixel of the source, an odd one the same and the next.
    """
    weight, seen = layer.weight.transpose(0, 1), ([1], [2, 0])
    kept = {"raw": to} if activation == "none" else {"active": to}
    return [
        Step(
            [Term(source, weight[:, :, seen[row]][..., seen[column]])],
            bias_of(layer),  # type: ignore[arg-type]
            activation=activation,
            stride=2,
            phase=(row, column),
            **kept,
        )
        for row in range(min(2, to.rows))
        for column in range(min(2, to.columns))
    ]


# -- the gated trunk --------------------------------------------------------------------------------------------------


class _Trunk:
    """The steps of a gated trunk, layer by layer."""

    def __init__(self, size: tuple[int, int], channels: int, context: Maps, gates: Tensor):
        self.size, self.channels, self.context, self.gates = size, channels, context, gates
        self.steps: list[Step] = []
        self.v = self.h = context  # until the first layer has been

    def maps(self) -> Maps:
        """New maps of as many channels as a stack has."""
        return Maps(*self.size, self.channels)

    def gate(self, weight: Tensor) -> Tensor:
        """The weight, or the bias, of a gate's convolution, its outputs in the order of gates."""
        return padded(weight)[self.gates]

    def causal(self, source: Maps, weight: Tensor, kernel: Kernel) -> Term:
        """A causal convolution into a gate."""
        return Term(source, self.gate(weight), kernel.up, kernel.left)

    def gated(self, terms: list[Term], bias: Tensor, added: Maps | None = None) -> Maps:
        """tanh(a) sigmoid(b) of what the terms sum up to; the bias is in the order of gates."""
        result = self.maps()
        self.steps.append(Step(terms, bias, active=result, activation="gate", added=added))
        return result

    def first(self, layer: GatedLayer, weights: tuple[list[Tensor], Tensor], gates: list[Maps], h: Maps) -> None:
        """The first layer, whose gates and h are those of the image plus convolutions of the context."""
        none = _zeros(len(self.gates))
        of_context, for_h = weights
        kernel = layer.vertical.kernel
        left, *above = (
            self.gated([self.causal(self.context, weight, kernel)], none, gate)
            for weight, gate in zip(of_context, gates, strict=True)
        )
        self.v = above[0] if above else self.v
        terms = [Term(left, layer.output.weight), Term(self.context, for_h)]
        self._residual(terms, _zeros(self.channels), h)

    def further(self, layer: GatedLayer) -> None:
        """A layer that reads v, h and the context."""
        vertical, horizontal, across = layer.vertical, layer.horizontal, layer.across.weight
        for_left, *for_above = cast(nn.Conv2d, layer.context).weight.split(layer.gates)
        left = [
            self.causal(self.h, horizontal.rectangle, horizontal.kernel),
            Term(self.context, self.gate(for_left)),
        ]
        bias = bias_of(horizontal)
        if for_above:
            above = Maps(*self.size, len(self.gates))  # in the order of gates, which `across` reads it in as well
            terms = [self.causal(self.v, vertical.rectangle, vertical.kernel)]
            self.steps.append(Step(terms, self.gate(bias_of(vertical)), raw=above))
            left.append(Term(above, self.gate(padded(across.transpose(0, 1))[self.gates].transpose(0, 1))))
            self.v = self.gated([Term(self.context, self.gate(for_above[0]))], _zeros(len(self.gates)), above)
        else:  # nothing but `across` reads the vertical convolution: the two are one
            left.append(self.causal(self.v, compose(across, vertical.rectangle), vertical.kernel))
            bias = bias + across.flatten(1) @ bias_of(vertical)
        gate = self.gated(left, self.gate(bias))
        self._residual([Term(gate, layer.output.weight)], bias_of(layer.output), self.h)

    def _residual(self, terms: list[Term], bias: Tensor, added: Maps) -> None:
        """The next h."""
        self.h = self.maps()
        self.steps.append(Step(terms, bias, raw=self.h, added=added))

    def head(self, head: ChannelHead, own: Maps | None) -> Maps:
        """From h, and what the head sees of the image, to parameters."""
        active = self.maps()
        self.steps[-1].active, self.steps[-1].activation = active, "elu"  # h itself is not read again
        hidden = Maps(*self.size, head.hidden.out_channels)
        terms = [Term(active, head.hidden.weight)]
        self.steps.append(Step(terms, bias_of(head.hidden), active=hidden, activation="elu", added=own))
        parameters = Maps(*self.size, head.output.out_channels)
        self.steps.append(Step([Term(hidden, _ungrouped(head.output))], bias_of(head.output), raw=parameters))
        return parameters


def _zeros(outputs: int) -> Tensor:
    """No bias."""
    return torch.zeros(outputs, device="cpu")


def _ungrouped(layer: nn.Conv2d) -> Tensor:
    """The weight of a 1x1 convolution in groups, as one of all inputs."""
    blocks = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    return torch.block_diag(*blocks)[:, :, None, None]
