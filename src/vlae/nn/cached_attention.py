"""The local Transformer evaluated along a wavefront: each pixel's key and value are computed once and looked up."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.nn.attention import ChannelNorm, LocalAttention, LocalTransformer, TransformerBlock
from vlae.nn.cached import CachedPixelCNN, Canvas, Context, bias_of, matrix, transposed
from vlae.nn.wavefront import Schedule, Step


class CachedTransformer(CachedPixelCNN):
    """`LocalTransformer` along a wavefront."""

    def __init__(self, network: LocalTransformer, context: Tensor, schedule: Schedule):
        super().__init__(network.head, network.input.kernel, context, schedule)
        steps = Context(context, schedule)
        self.input = 2 * matrix(network.input), steps.biases_of(bias_of(network.input), network.input_context)
        self.layers = [CachedBlock(cast(TransformerBlock, layer), context, steps) for layer in network.layers]

    def features(self, step: Step) -> Tensor:
        """The residual stream after the last block."""
        weight, bias = self.input
        h = torch.addmm(bias[step.index], self.image.patches(step), weight)
        for layer in self.layers:
            h = layer(step, h)
        return h


def normalised(norm: ChannelNorm, x: Tensor) -> Tensor:
    """`ChannelNorm` on [n, channels]."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def context_weight(convolution: nn.Module | None) -> Tensor | None:
    """The matrix by which the context's maps enter a layer, if they do."""
    return None if convolution is None else transposed(cast(nn.Conv2d, convolution))


class CachedBlock:
    """`TransformerBlock` at the pixels of a step."""

    def __init__(self, block: TransformerBlock, context: Tensor, steps: Context):
        self.norms = block.attention_norm, block.hidden_norm
        self.attention = CachedAttention(block.attention, context, steps)
        self.hidden = transposed(block.hidden)
        self.hidden_bias = steps.biases(bias_of(block.hidden), context_weight(block.context))
        self.output, self.output_bias = transposed(block.output), bias_of(block.output)

    def __call__(self, step: Step, x: Tensor) -> Tensor:
        """The residual stream x [count * B, channels] -> the same after this block."""
        before_attention, before_hidden = self.norms
        x = x + self.attention(step, normalised(before_attention, x))
        hidden = torch.addmm(self.hidden_bias[step.index], normalised(before_hidden, x), self.hidden)
        return torch.addmm(self.output_bias, F.gelu(hidden), self.output).add_(x)


class CachedAttention:
    """`LocalAttention` at the pixels of a step."""

    def __init__(self, layer: LocalAttention, context: Tensor, steps: Context):
        schedule, self.batch, self.heads, self.size = steps.schedule, len(context), layer.heads, layer.size
        self.channels = layer.output.in_channels
        self.known = Canvas(schedule, layer.kernel, self.batch, 2 * self.channels, context)  # keys, then values
        # The scores' scale is in the queries.
        scale = context.new_ones(3 * self.channels)
        scale[: self.channels] = layer.scale
        self.qkv = transposed(layer.qkv) * scale
        weight = context_weight(layer.context)
        self.bias = steps.biases(bias_of(layer.qkv) * scale, None if weight is None else weight * scale)
        self.position = layer.position.t()  # [places, heads]
        inside = layer.inside(schedule.height, schedule.width, like=context)
        outside = torch.zeros_like(inside, dtype=context.dtype).masked_fill(~inside, -torch.inf)
        self.outside = schedule.arrange_maps(outside.unsqueeze(0))  # for each step [count, places]: 0 or -infinity
        self.output, self.output_bias = transposed(layer.output), bias_of(layer.output)

    def __call__(self, step: Step, x: Tensor) -> Tensor:
        """[count * B, channels] -> the same shape."""
        qkv = torch.addmm(self.bias[step.index], x, self.qkv)
        self.known.at(step).copy_(qkv[:, self.channels :].view(step.count, self.batch, -1))
        # In raster order the window's places come first, and behind them what lies right of the pixel, not known yet.
        entries = self.known.patches(step).view(len(x), -1, 2, self.heads, self.channels // self.heads)
        keys, values = entries[:, : self.size].unbind(2)  # each [count * B, places, heads, channels / heads]
        scores = (qkv[:, : self.channels].view(len(x), 1, self.heads, -1) * keys).sum(3) + self.position
        outside = self.outside[step.index].repeat_interleave(self.batch, dim=0)
        weights = (scores + outside.unsqueeze(2)).softmax(dim=1)
        mixed = (weights.unsqueeze(3) * values).sum(1).flatten(1)
        return torch.addmm(self.output_bias, mixed, self.output)
