"""Trunks on one image under many contexts, as importance sampling asks for, without gradients.

What depends on the image alone is computed once: the input convolutions and, of the gated trunk, the image's share of
the first layer's gates. Up to there everything is linear, so that the context's share of those gates is a single
convolution, whose weights are composed of those of the layers.

The rest is bound by memory as much as by arithmetic: a few contexts at a time, whose activations stay in the cache,
with sums in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.nn.inference import CACHED, applies, channels_last, elu, in_pieces
from vlae.nn.pixelcnn import ChannelHead, GatedLayer, GatedPixelCNN, network_input
from vlae.nn.receptive import Kernel


def on_one_image(network: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The fastest function that there is for this trunk from contexts [B, F, H, W] to parameters [B, C, P, H, W].

    Args:
        network: a trunk.
        x: the image, [1, C, H, W] in [0, 1].
    """
    if type(network) is GatedPixelCNN and applies(x) and GatedOnOneImage.serves(network):
        return GatedOnOneImage(network, x)

    def broadcast(context: Tensor) -> Tensor:
        # Trunks add the context to what they make of x first: before that there is but one image.
        parameters = network(x, context)
        return parameters.expand(len(context), *parameters.shape[1:])

    return broadcast


# -- maps and weights -------------------------------------------------------------------------------------------------


def flat(maps: Tensor) -> Tensor:
    """Maps [B, C, H, W], channels last, or some of their channels, as the matrix [B H W, C] that they are in memory.

    For 1x1 convolutions, which then are products that can be added in place.
    """
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def like(matrix: Tensor, maps: Tensor) -> Tensor:
    """The inverse of `flat`, in the size of these maps."""
    return matrix.unflatten(0, (len(maps), *maps.shape[2:])).permute(0, 3, 1, 2)


def matrix(weight: Tensor) -> Tensor:
    """A 1x1 convolution's weight for `flat` maps, [in, out]."""
    return weight.flatten(1).t()


def bias_of(layer: nn.Conv2d) -> Tensor:
    """The bias, which the layers here all have."""
    return cast(Tensor, layer.bias)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The weight of one convolution after another, one of which is 1x1 (the outer, if both are), without biases."""
    if outer.shape[2:] == (1, 1):
        return torch.einsum("om,mihw->oihw", outer.flatten(1), inner)
    return torch.einsum("omhw,mi->oihw", outer, inner.flatten(1))


class Canvas:
    """Maps with the zeros around them that a causal convolution reads: what it puts out then needs no cutting.

    `inside` [B, channels, H, W] is to be written to.
    """

    def __init__(self, kernel: Kernel, channels: int, maps: Tensor):
        batch, _, height, width = maps.shape
        size = (batch, channels, kernel.up + height, kernel.left + width + kernel.right)
        self.data = channels_last(maps.new_zeros(size))
        self.inside = self.data[:, :, kernel.up :, kernel.left : kernel.left + width]


# -- the gated trunk --------------------------------------------------------------------------------------------------


def product(gate: Tensor, out: Tensor | None = None) -> Tensor:
    """2 tanh(a) sigmoid(b) of t = tanh(a) beside u = tanh(b / 2): t + t u, [B, 2C, H, W] -> `out` [B, C, H, W], or t.

    So the tanh is one over all channels, which must not be sliced before it: that takes three times as long. The
    halving of b is in the weights that make it, that of the result in the weights that read it.
    """
    t, u = gate.chunk(2, dim=1)
    return torch.addcmul(t, t, u, out=t if out is None else out)


class Canvases:
    """Where the layers find what they read: context, 2 v and h of some contexts."""

    def __init__(self, layer: GatedLayer, context: Tensor):
        channels = layer.output.in_channels
        self.context = Canvas(layer.vertical.kernel, context.shape[1], context)
        self.v = Canvas(layer.vertical.kernel, channels, context)
        self.h = Canvas(layer.horizontal.kernel, channels, context)


def of_image(network: GatedPixelCNN, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What the image x [B, C, H, W] in [-1, 1] adds to the first layer's gates, [B, 2 channels, H, W], and to h."""
    layer = cast(GatedLayer, network.layers[0])
    v = network.input_above(x)
    h = v + network.input_left(x)
    above = layer.vertical(v)
    gates = [layer.horizontal(h) + layer.across(above), above][: len(layer.gates)]
    return gates, h + bias_of(layer.output)[:, None, None]


def of_context(network: GatedPixelCNN) -> tuple[list[Tensor], Tensor]:
    """What the context adds to the same: the weights of convolutions, without biases.

    Those of the gates have the size of the vertical stack's kernel, and the pixel itself in its place.
    """
    layer = cast(GatedLayer, network.layers[0])
    kernel, whole = layer.vertical.kernel, layer.vertical.rectangle

    def placed(weight: Tensor) -> Tensor:
        """In a kernel of the vertical one's size, a weight whose last entry is that of the pixel itself."""
        left = kernel.left + 1 - weight.shape[3]
        return F.pad(weight, (left, whole.shape[3] - weight.shape[3] - left, kernel.up, 0))

    for_v, for_h = cast(nn.Conv2d, network.input_context).weight.chunk(2)
    from_above = compose(whole, for_v)
    from_left = placed(compose(layer.horizontal.rectangle, for_h)) + compose(layer.across.weight, from_above)
    biases = cast(nn.Conv2d, layer.context).weight.split(layer.gates)
    return [w + placed(b) for w, b in zip([from_left, from_above], biases, strict=False)], for_h


class FirstLayer:
    """The input layer and the first gated layer, which read the image as it is and the context linearly."""

    def __init__(self, network: GatedPixelCNN, layer: GatedLayer, x: Tensor, half: Tensor):
        self.gates = layer.gates
        gates, h = of_image(network, x)
        self.of_image = channels_last(torch.cat([half.transpose(0, 1) * gate for gate in gates], dim=1))
        self.h_of_image = channels_last(h)
        weights, for_h = of_context(network)
        self.of_context = channels_last(torch.cat([half * weight for weight in weights]))
        self.h_of_context, self.output = matrix(for_h), matrix(layer.output.weight / 2)

    def __call__(self, canvases: Canvases, context: Tensor) -> None:
        """Context [B, F, H, W] -> 2 v and h, on their canvases."""
        canvases.context.inside.copy_(context)
        gates = F.conv2d(canvases.context.data, self.of_context).add_(self.of_image).tanh_()
        left, *above = gates.split(self.gates, dim=1)
        h = (flat(context) @ self.h_of_context).addmm_(flat(product(left)), self.output)
        torch.add(like(h, context), self.h_of_image, out=canvases.h.inside)
        if above:
            product(above[0], out=canvases.v.inside)


class Layer:
    """A further gated layer."""

    def __init__(self, layer: GatedLayer, half: Tensor):
        scale, across = half.flatten(), layer.across.weight
        biases = cast(nn.Conv2d, layer.context).weight.split(layer.gates)
        self.for_left, *for_above = (matrix(half * bias) for bias in biases)
        self.for_above = for_above[0] if for_above else None
        # v comes doubled. In the last layer nothing but `across` reads the vertical convolution: the two are one.
        vertical, bias = layer.vertical.rectangle / 2, bias_of(layer.vertical)
        if self.for_above is None:
            vertical, bias = compose(across, vertical), across.flatten(1) @ bias
        self.vertical = channels_last(half * vertical), scale * bias
        self.horizontal = channels_last(half * layer.horizontal.rectangle), scale * bias_of(layer.horizontal)
        self.across = matrix(half * across / half.transpose(0, 1))
        self.output = bias_of(layer.output), matrix(layer.output.weight / 2)

    def __call__(self, canvases: Canvases, context: Tensor) -> None:
        """2 v and h on their canvases -> the same after this layer."""
        above, left = F.conv2d(canvases.v.data, *self.vertical), F.conv2d(canvases.h.data, *self.horizontal)
        flat(left).addmm_(flat(context), self.for_left)
        if self.for_above is None:
            left.add_(above)
        else:
            flat(left).addmm_(flat(above), self.across)
            flat(above).addmm_(flat(context), self.for_above)
            product(above.tanh_(), out=canvases.v.inside)
        bias, weight = self.output
        canvases.h.inside.add_(like(torch.addmm(bias, flat(product(left.tanh_())), weight), context))


class Head:
    """`ChannelHead` on one image."""

    def __init__(self, head: ChannelHead, x: Tensor):
        self.head = head
        self.of_image = None if head.own is None else head.own(x)

    def __call__(self, h: Tensor) -> Tensor:
        """Features [B, channels, H, W] -> parameters [B, C, P, H, W]."""
        hidden = self.head.hidden(elu(h))
        if self.of_image is not None:
            hidden.add_(self.of_image)
        return self.head.output(elu(hidden)).unflatten(1, self.head.shape)


class GatedOnOneImage:
    """`GatedPixelCNN` on the image x [1, C, H, W] in [0, 1], for networks that it `serves`."""

    def __init__(self, network: GatedPixelCNN, x: Tensor):
        first, *others = (cast(GatedLayer, layer) for layer in network.layers)
        channels = first.output.in_channels
        x = network_input(x)
        half = torch.cat([x.new_ones(channels), x.new_full((channels,), 0.5)])[:, None, None, None]
        self.layers: list[FirstLayer | Layer] = [FirstLayer(network, first, x, half)]
        self.layers += [Layer(layer, half) for layer in others]
        self.head = Head(network.head, x)
        self.size = max(1, CACHED // (4 * channels * x.shape[2] * x.shape[3]))
        self.first = first

    @staticmethod
    def serves(network: GatedPixelCNN) -> bool:
        """Whether z is a bias in every layer, and there are layers."""
        return len(network.layers) > 0 and cast(GatedLayer, network.layers[0]).context is not None

    def __call__(self, context: Tensor) -> Tensor:
        """Contexts [B, F, H, W] -> parameters [B, C, P, H, W]."""
        canvases: dict[int, Canvases] = {}  # by their number of contexts

        def piece(context: Tensor) -> Tensor:
            """So few contexts that the activations stay in the cache."""
            context = channels_last(context)
            if len(context) not in canvases:
                canvases[len(context)] = Canvases(self.first, context)
            on = canvases[len(context)]
            for layer in self.layers:
                layer(on, context)
            return self.head(on.h.inside)

        return in_pieces(piece, context, self.size)
