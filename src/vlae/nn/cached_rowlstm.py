"""The PixelRNN evaluated along a wavefront: a pixel's states follow from those of the row above, known by then."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.nn.cached import CachedPixelCNN, Canvas, Context, bias_of, matrix, transposed
from vlae.nn.receptive import Kernel
from vlae.nn.rowlstm import PixelRNN, RowLSTM, lstm
from vlae.nn.wavefront import Schedule, Step


class CachedRNN(CachedPixelCNN):
    """`PixelRNN` along a wavefront."""

    def __init__(self, network: PixelRNN, context: Tensor, schedule: Schedule):
        super().__init__(network.head, network.input.kernel, context, schedule)
        steps = Context(context, schedule)
        self.input = 2 * matrix(network.input), steps.biases_of(bias_of(network.input), network.input_context)
        self.layers = [CachedRowLSTM(cast(RowLSTM, layer), context, steps) for layer in network.layers]

    def features(self, step: Step) -> Tensor:
        """The residual stream after the last layer."""
        weight, bias = self.input
        h = torch.addmm(bias[step.index], self.image.patches(step), weight)
        for layer in self.layers:
            h = layer(step, h)
        return h


class CachedRowLSTM:
    """`RowLSTM` at the pixels of a step.

    With a memory of R rows a pixel has R + 1 states: S_0, which starts there, to S_R, which is put out. S_t needs
    S_t-1 of the row above alone, so all of them are computed at once; they stand beside the images of the batch. A
    memory that reaches the top of the image, or has no end, is one state that needs itself.
    """

    def __init__(self, layer: RowLSTM, context: Tensor, steps: Context):
        schedule, self.batch, self.states = steps.schedule, len(context), layer.states
        self.restarts = layer.memory is not None and layer.memory < schedule.height - 1
        self.kept = cast(int, layer.memory) if self.restarts else 1  # the states that the row below reads
        self.x = Canvas(schedule, layer.input.kernel, self.batch, layer.input.in_channels, context)
        self.h = Canvas(schedule, layer.above, self.batch * self.kept, self.states, context)
        self.c = Canvas(schedule, Kernel(1, 1, 0, 1), self.batch * self.kept, self.states, context)
        self.input = matrix(layer.input)
        weight = None if layer.context is None else transposed(cast(nn.Conv2d, layer.context))
        self.bias = steps.biases(bias_of(layer.input), weight)
        self.state = layer.state.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        self.output, self.output_bias = transposed(layer.output), bias_of(layer.output)

    def __call__(self, step: Step, x: Tensor) -> Tensor:
        """The residual stream x [count * B, channels] -> the same after this layer."""
        self.x.at(step).copy_(x.view(step.count, self.batch, -1))
        own = torch.addmm(self.bias[step.index], self.x.patches(step), self.input).unsqueeze(1)
        gates = own + torch.mm(self.h.patches(step), self.state).view(len(x), self.kept, -1)
        c = self.c.patches(step).view(len(x), self.kept, -1)
        if self.restarts:  # S_0 remembers nothing
            gates, c = torch.cat([own, gates], dim=1), F.pad(c, (0, 0, 1, 0))
        h, c = lstm(gates, c, dim=2)
        for canvas, states in ((self.h, h), (self.c, c)):
            canvas.at(step).copy_(states[:, : self.kept].reshape(step.count, -1, self.states))
        return torch.addmm(self.output_bias, h[:, -1], self.output).add_(x)
