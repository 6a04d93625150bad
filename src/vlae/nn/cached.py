"""PixelCNNs evaluated along a wavefront: every activation is computed once, when all that it depends on is known.

A step of a wavefront of slope s holds the pixels (i, j) with j + s i = step. In a row-major layout those lie at equal
distances, so the inputs that a convolution reads for all of them are one strided view: a step of a layer is one copy
and one matrix product over [pixels x batch, inputs], without an index and without a loop.

The vertical stack of a two-stack network runs ahead of the pixels: where a layer reaches to the right in its own row,
the layer below it must already be known there. How far ahead each layer runs (its lead) follows from the kernels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.nn.attention import LocalTransformer
from vlae.nn.masked import MaskedConv2d
from vlae.nn.pixelcnn import CausalConv2d, ChannelHead, GatedLayer, GatedPixelCNN, PlainPixelCNN
from vlae.nn.receptive import Kernel
from vlae.nn.residual import PointwiseBlock
from vlae.nn.rowlstm import PixelRNN
from vlae.nn.wavefront import Schedule, Step


class Evaluator:
    """The conditionals of one step after another. For each step with pixels, in order: `advance(step)`, then for each
    channel `parameters(channel)` and `put(channel, values)`; for a step without pixels `advance` alone.
    """

    def advance(self, step: Step) -> None:
        """Goes on to this step: all earlier pixels are known now."""
        raise NotImplementedError

    def parameters(self, channel: int) -> Tensor:
        """The channel's parameters at the pixels of the step, [B, count, P]; earlier channels are known."""
        raise NotImplementedError

    def put(self, channel: int, values: Tensor) -> None:
        """The values [B, count] in [0, 1] that the channel took at the pixels of the step."""
        raise NotImplementedError


def evaluator(network: nn.Module, context: Tensor, image_shape: Sequence[int], schedule: Schedule) -> Evaluator:
    """The fastest evaluator that there is for this network; to be made and used without gradients.

    Subclasses may compute otherwise: they get the obvious one.

    The schedule's slope must be that of the network's receptive field, or larger.
    """
    if type(network) is GatedPixelCNN:
        return CachedGated(network, context, schedule)
    if type(network) is PlainPixelCNN:
        return CachedPlain(network, context, schedule)
    # Imported here, since they are made of the pieces below.
    from vlae.nn.cached_attention import CachedTransformer
    from vlae.nn.cached_rowlstm import CachedRNN

    if type(network) is PixelRNN:
        return CachedRNN(network, context, schedule)
    if type(network) is LocalTransformer:
        return CachedTransformer(network, context, schedule)
    return FullForward(network, context, image_shape)


class FullForward(Evaluator):
    """The obvious one: the whole network for each step and channel. Serves any network, and as the reference."""

    def __init__(self, network: nn.Module, context: Tensor, image_shape: Sequence[int]):
        self.network, self.context = network, context
        self.image = context.new_zeros(len(context), *image_shape)

    def advance(self, step: Step) -> None:
        """Nothing is computed before it is asked for."""
        self.step = step

    def parameters(self, channel: int) -> Tensor:
        """One forward pass, of which the pixels of the step are kept."""
        parameters = self.network(self.image, self.context)[:, channel]
        return parameters[:, :, self.step.rows, self.step.columns].movedim(1, -1)

    def put(self, channel: int, values: Tensor) -> None:
        """Into the image."""
        self.image[:, channel, self.step.rows, self.step.columns] = values


class Canvas:
    """One layer's activations at all pixels, row-major [rows, columns, B, channels], zero around the image.

    `kernel` is that of the layer which reads it: it decides how far the zeros go.
    """

    def __init__(self, schedule: Schedule, kernel: Kernel, batch: int, channels: int, like: Tensor):
        self.batch, self.channels, self.kernel = batch, channels, kernel
        self.cell = batch * channels
        self.row = (kernel.left + schedule.width + kernel.right) * self.cell
        self.data = like.new_zeros((kernel.up + schedule.height) * self.row)
        self.origin = kernel.up * self.row + kernel.left * self.cell
        # From one pixel of a step to the next: a row down, `slope` columns back. (A single pixel has no next one.)
        self.between = max(0, self.row - schedule.slope * self.cell)
        # From the pixel to the kernel's first entry, and from one of the kernel's rows to the one below it.
        self.first = -kernel.up * self.row - (kernel.left - kernel.up * kernel.slanted) * self.cell
        self.down = self.row - kernel.slanted * self.cell
        self.reads = kernel.rows * kernel.columns * channels

    def _start(self, step: Step) -> int:
        return self.origin + step.row * self.row + step.column * self.cell

    def at(self, step: Step) -> Tensor:
        """A view of the activations at the pixels of a step, [count, B, channels], to be written to."""
        shape = (step.count, self.batch, self.channels)
        return self.data.as_strided(shape, (self.between, self.channels, 1), self._start(step))

    def beside(self, step: Step, columns: int) -> Tensor:
        """What is left of each pixel of a step, `kernel.left` columns at most: [count * B, columns * channels]."""
        shape = (step.count, self.batch, columns, self.channels)
        strides = (self.between, self.channels, self.cell, 1)
        view = self.data.as_strided(shape, strides, self._start(step) - columns * self.cell)
        return view.reshape(step.count * self.batch, columns * self.channels)

    def patches(self, step: Step) -> Tensor:
        """What the kernel reads at the pixels of a step, [count * B, kernel.rows * kernel.columns * channels]."""
        shape = (step.count, self.batch, self.kernel.rows, self.kernel.columns, self.channels)
        strides = (self.between, self.channels, self.down, self.cell, 1)
        view = self.data.as_strided(shape, strides, self._start(step) + self.first)
        return view.reshape(step.count * self.batch, self.reads)


def matrix(convolution: CausalConv2d | MaskedConv2d) -> Tensor:
    """The weight for `Canvas.patches`, [rows * columns * in, out]."""
    weight = convolution.weight
    if isinstance(convolution, MaskedConv2d):
        weight = weight * convolution.mask
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()


def bias_of(layer: nn.Conv2d) -> Tensor:
    """The bias, which the layers here all have."""
    return cast(Tensor, layer.bias)


def lead(kernel: Kernel, slope: int) -> int:
    """How many steps before its reader a layer must be computed, because the kernel reaches to the right.

    The pixel a rows above and b columns to the right has its turn b - slope * a steps later.
    """
    return max(0, *(b + slope * a for a, b in kernel.field.offsets))


PRECOMPUTED = 2**18  # numbers: more than this is cheaper to compute anew from a few maps than to fetch from memory


class Context:
    """What z was decoded to, [B, F, H, W], as the layers' biases at each step.

    A layer that reads it pixel by pixel adds `weight @ context + bias`, weight [F, out]. For small batches that is
    computed once for all steps, where the number of operations counts; for large ones at each step, where memory does.
    """

    def __init__(self, maps: Tensor, schedule: Schedule):
        self.schedule, self.maps = schedule, maps
        self.steps = schedule.arrange_maps(maps)
        self.whole = torch.cat(self.steps)
        self.sizes = [count * len(maps) for count in schedule.counts]

    def biases(self, bias: Tensor, weight: Tensor | None = None) -> Sequence[Tensor]:
        """For each step what is added, [count * B, out] or, without a weight, [out]."""
        if weight is None:
            return [bias] * len(self.steps)
        if len(self.whole) * len(bias) > PRECOMPUTED:
            return LazyBiases(self.steps, weight, bias)
        return torch.addmm(bias, self.whole, weight).split(self.sizes)

    def biases_of(self, bias: Tensor, convolution: nn.Conv2d | None) -> Sequence[Tensor]:
        """The same for a convolution of the context: only one larger than 1x1 needs maps of what it puts out."""
        if convolution is None or convolution.kernel_size == (1, 1):
            return self.biases(bias, None if convolution is None else transposed(convolution))
        return self.schedule.arrange_maps(convolution(self.maps) + bias[:, None, None])


class LazyBiases(Sequence[Tensor]):
    """`weight @ context + bias`, computed when a step asks for it."""

    def __init__(self, steps: Sequence[Tensor], weight: Tensor, bias: Tensor):
        self.steps, self.weight, self.bias = steps, weight, bias

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return torch.addmm(self.bias, self.steps[index], self.weight)


def transposed(convolution: nn.Conv2d) -> Tensor:
    """A 1x1 convolution's weight as a matrix [in, out]."""
    return convolution.weight.flatten(1).t().contiguous()


class CachedHead:
    """`ChannelHead` at the pixels of a step."""

    def __init__(self, head: ChannelHead):
        channels, _ = head.shape
        self.weight, self.bias = transposed(head.hidden), bias_of(head.hidden)
        self.width = len(self.bias) // channels
        weights = [weight.t().contiguous() for weight in head.output.weight.flatten(1).chunk(channels)]
        bias = bias_of(head.output).chunk(channels)
        self.outputs = list(zip(weights, bias, strict=True))
        self.own = None if head.own is None else (head.own.weight * head.own.earlier).flatten(1).split(self.width)

    def start(self, h: Tensor) -> None:
        """Takes the features h [count * B, features] of a new step."""
        self.features = torch.addmm(self.bias, F.elu(h), self.weight)
        self.known: list[Tensor] = []  # the earlier channels' values, each [count * B] in [-1, 1]

    def parameters(self, channel: int) -> Tensor:
        """[count * B, P], given the channels that are known."""
        hidden = self.features[:, channel * self.width : (channel + 1) * self.width]
        if self.own is not None and channel:
            hidden = hidden + F.linear(torch.stack(self.known, 1), self.own[channel][:, :channel])
        weight, bias = self.outputs[channel]
        return torch.addmm(bias, F.elu(hidden), weight)


class CachedPixelCNN(Evaluator):
    """What the two networks share: the canvas of the image, and the head. `kernel` is what first reads the image."""

    def __init__(self, head: ChannelHead, kernel: Kernel, context: Tensor, schedule: Schedule):
        self.batch, self.schedule = len(context), schedule
        self.image = Canvas(schedule, kernel, self.batch, head.shape[0], context)
        self.head = CachedHead(head)
        self.half = context.new_full((), 0.5)  # as a tensor: a Python number takes three times as long

    def features(self, step: Step) -> Tensor:
        """The trunk's output at the pixels of the step, [count * B, channels]."""
        raise NotImplementedError

    def advance(self, step: Step) -> None:
        """Computes every layer of the trunk at this step."""
        self.step = step
        if step.count:
            self.head.start(self.features(step))

    def parameters(self, channel: int) -> Tensor:
        """From the head."""
        return self.head.parameters(channel).view(self.step.count, self.batch, -1).transpose(0, 1)

    def put(self, channel: int, values: Tensor) -> None:
        """Into the canvas."""
        # Like `network_input`, but in [-1/2, 1/2]: the factor 2 is in the weights that read the canvas.
        target = self.image.at(self.step)[:, :, channel]
        torch.sub(values.t(), self.half, out=target)
        if self.head.own is not None:
            self.head.known.append(2 * target.flatten())


class CachedPlain(CachedPixelCNN):
    """`PlainPixelCNN` along a wavefront."""

    def __init__(self, network: PlainPixelCNN, context: Tensor, schedule: Schedule):
        super().__init__(network.head, network.input.kernel, context, schedule)
        steps = Context(context, schedule)
        self.input = 2 * matrix(network.input), steps.biases_of(bias_of(network.input), network.input_context)
        self.layers: list[tuple[Canvas, Tensor, Sequence[Tensor]]] = []
        for index in range(network.depth):
            layer = network.layer(index)
            weight = None if network.context is None else transposed(cast(nn.Conv2d, network.context[index]))
            canvas = Canvas(schedule, layer.kernel, self.batch, layer.in_channels, context)
            self.layers.append((canvas, matrix(layer), steps.biases(bias_of(layer), weight)))
        self.pointwise = [[CachedPointwise(block) for block in blocks] for blocks in network.pointwise_after()]

    def features(self, step: Step) -> Tensor:
        """The residual stream after the last layer."""
        weight, bias = self.input
        h = torch.addmm(bias[step.index], self.image.patches(step), weight)
        for (canvas, weight, bias), blocks in zip(self.layers, self.pointwise, strict=True):
            canvas.at(step).copy_(F.elu(h).view(step.count, self.batch, -1))
            h = h + torch.addmm(bias[step.index], canvas.patches(step), weight)
            for block in blocks:
                h = block(h)
        return h


class CachedPointwise:
    """`PointwiseBlock` on [n, channels]."""

    def __init__(self, block: PointwiseBlock):
        self.layers = [(layer.weight.flatten(1), layer.bias) for layer in (block.first, block.second)]

    def __call__(self, x: Tensor) -> Tensor:
        """[n, channels] -> [n, channels]."""
        first, second = self.layers
        return x + F.linear(F.elu(F.linear(F.elu(x), *first)), *second)


class CachedGated(CachedPixelCNN):
    """`GatedPixelCNN` along a wavefront."""

    def __init__(self, network: GatedPixelCNN, context: Tensor, schedule: Schedule):
        above, left = network.input_above, network.input_left
        super().__init__(network.head, above.kernel, context, schedule)
        self.reach = left.kernel.columns
        # One product gives the vertical stack's first value and what the horizontal stack adds to it.
        self.above = 2 * matrix(above).repeat(1, 2)
        bias = torch.cat([bias_of(above), bias_of(above) + bias_of(left)])
        steps = Context(context, schedule)
        self.bias = steps.biases_of(bias, network.input_context)
        self.left = 2 * matrix(left)
        layers = [cast(GatedLayer, layer) for layer in network.layers]
        self.layers = [CachedGatedLayer(layer, context, steps, bool(index)) for index, layer in enumerate(layers)]
        self.waiting: deque[Tensor] = deque()  # what the horizontal stack adds, computed ahead of it
        leads = [0]  # of the last layer; each layer below runs ahead of its reader
        for layer in reversed(layers):
            leads.insert(0, leads[0] + lead(layer.vertical.kernel, schedule.slope))
        self.lead, *self.leads = leads
        for index in range(-self.lead, 0):  # before the first pixel, what lies ahead of it in the first rows
            self.run_ahead(index)

    def run_ahead(self, index: int) -> None:
        """One step of the vertical stack, each layer as far ahead of step `index` as its readers need."""
        step = self.ahead(index + self.lead)
        if step is not None:
            both = torch.addmm(self.bias[step.index], self.image.patches(step), self.above)
            v, h = both.chunk(2, dim=1)
            self.waiting.append(h)
            if self.layers:
                self.layers[0].v.at(step).copy_(v.view(step.count, self.batch, -1))
        for number, layer in enumerate(self.layers):
            step = self.ahead(index + self.leads[number])
            if step is not None:
                layer.vertical(step, None if layer is self.layers[-1] else self.layers[number + 1].v)

    def ahead(self, index: int) -> Step | None:
        """The step of that index, if there is one and it holds a pixel."""
        steps = self.schedule.steps
        return steps[index] if 0 <= index < len(steps) and steps[index].count else None

    def advance(self, step: Step) -> None:
        """The vertical stack first, at steps without a pixel too."""
        self.run_ahead(step.index)
        super().advance(step)

    def features(self, step: Step) -> Tensor:
        """The last layer's horizontal output."""
        h = self.waiting.popleft().addmm_(self.image.beside(step, self.reach), self.left)
        for layer in self.layers:
            h = layer.horizontal(step, h)
        return h


class CachedGatedLayer:
    """`GatedLayer` at the pixels of a step.

    tanh(a) sigmoid(b) = (t + t u) / 2 with t = tanh(a), u = tanh(b / 2): one tanh over both halves. The halving of b is
    in the weights that make it, that of the result in the weights that read it: `doubled` says that v holds 2 v.
    """

    def __init__(self, layer: GatedLayer, context: Tensor, steps: Context, doubled: bool):
        self.batch, channels = len(context), layer.output.in_channels
        self.v = Canvas(steps.schedule, layer.vertical.kernel, self.batch, channels, context)
        self.h = Canvas(steps.schedule, layer.horizontal.kernel, self.batch, channels, context)
        half = torch.cat([context.new_ones(channels), context.new_full((channels,), 0.5)])
        across = transposed(layer.across)
        for_h = for_v = None
        if layer.context is not None:
            for_h, *rest = transposed(layer.context).split(layer.gates, dim=1)
            if rest:
                for_v = rest[0] * half
                # The layer adds across(above) to the horizontal gate, with `above` before its context is added; here
                # it is made of the vertical gate, so the context's part is taken off again.
                for_h = for_h - rest[0] @ across
            for_h = for_h * half
        self.above = matrix(layer.vertical) * half * (0.5 if doubled else 1.0)
        self.above_bias = steps.biases(bias_of(layer.vertical) * half, for_v)
        self.across = across / half[:, None] * half
        self.across_bias = steps.biases(bias_of(layer.horizontal) * half, for_h)
        self.left = matrix(layer.horizontal) * half
        self.output, self.output_bias = 0.5 * transposed(layer.output), bias_of(layer.output)
        self.waiting: deque[Tensor] = deque()

    def vertical(self, step: Step, following: Canvas | None) -> None:
        """The vertical gate, into the next layer's canvas; what the horizontal gate needs of it waits there."""
        gate = torch.addmm(self.above_bias[step.index], self.v.patches(step), self.above)
        self.waiting.append(torch.addmm(self.across_bias[step.index], gate, self.across))
        if following is not None:
            t, u = gate.tanh_().view(step.count, self.batch, -1).chunk(2, dim=2)
            torch.addcmul(t, t, u, out=following.at(step))

    def horizontal(self, step: Step, h: Tensor) -> Tensor:
        """The residual stream h [count * B, channels] -> the same after this layer."""
        self.h.at(step).copy_(h.view(step.count, self.batch, -1))
        gate = self.waiting.popleft().addmm_(self.h.patches(step), self.left)
        t, u = gate.tanh_().chunk(2, dim=1)
        return torch.addmm(self.output_bias, torch.addcmul(t, t, u), self.output).add_(h)
