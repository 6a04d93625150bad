"""PixelRNN: a trunk of Row LSTM layers, whose memory may be cut to a number of rows.

It has the interface of the PixelCNN trunks: x [B, C, H, W] and context [B, F, H, W] or None to the parameters of each
sub-pixel's conditional [B, C, P, H, W].
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from vlae.errors import VlaeError, require_positive
from vlae.nn.masked import MaskedConv2d, reach_of
from vlae.nn.pixelcnn import CausalConv2d, ChannelHead, check_trunk, network_input
from vlae.nn.receptive import Kernel, ReceptiveField


def lstm(gates: Tensor, c: Tensor | None, dim: int = 1) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: c' = f c + i g and h' = o tanh(c'), from the four gates o, f, i, g in this order.

    The gates, before their nonlinearities, have 4n channels along `dim`, the memory cells c have n; None is zeros.
    Returns (h', c').
    """
    n = gates.shape[dim] // 4
    squashed, g = gates.split([3 * n, n], dim=dim)
    o, f, i = torch.sigmoid(squashed).chunk(3, dim=dim)
    new = i * torch.tanh(g)
    if c is not None:
        new = new + f * c
    return o * torch.tanh(new), new


class RowLSTM(nn.Module):
    """One Row LSTM layer (van den Oord et al. 2016, arXiv 1601.06759, sections 3.1 and 3.3), from the top row down.

    The gates of a pixel are the sum of the input-to-state convolution, 1 x k in the pixel's own row and masked with
    type B, of the state-to-state convolution, 1 x k over the hidden states of the row above, unmasked, and of the
    context. The states are half as wide as the layer, which a 1x1 convolution widens again to add its input.

    With `memory` R a pixel's state is that of an LSTM which starts R rows above it. All rows take their t-th step at
    once, S_t[i] = lstm(input[i], S_t-1[i - 1]), and the outcome is S_R: R + 1 times the arithmetic but no loop over the
    image, and exactly R rows above are seen. Rows that start at the top are done early and leave the loop.
    """

    def __init__(self, channels: int, kernel_size: int, context_channels: int, memory: int | None):
        super().__init__()
        self.memory = memory
        self.states = (channels + 1) // 2
        reach = reach_of(kernel_size)
        self.input = CausalConv2d(channels, 4 * self.states, Kernel(0, 1, reach, reach + 1))
        # Its bias is the input's. Of the row above it sees both sides: the wavefront's slope is 1 + reach.
        self.state = nn.Conv2d(self.states, 4 * self.states, (1, kernel_size), padding=(0, reach), bias=False)
        self.above = Kernel(1, 1, reach, kernel_size)
        self.context = nn.Conv2d(context_channels, 4 * self.states, 1, bias=False) if context_channels else None
        self.output = nn.Conv2d(self.states, channels, 1)
        self.dropout: nn.Module = nn.Identity()
        with torch.no_grad():  # at the start remember rather than forget, or nothing is learned from rows far above
            cast(Tensor, self.input.bias)[self.states : 2 * self.states] += 1

    def field(self, rows: int) -> ReceptiveField:
        """The offsets that the layer sees where its memory holds `rows` rows above: a triangle, widening upwards."""
        left, reach = self.input.kernel.left, self.above.left
        return ReceptiveField.from_offsets(
            (-a, b) for a in range(rows + 1) for b in range(-left - a * reach, a * reach + 1)
        )

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        gates = self.input(x)
        if self.context is not None:
            gates = gates + self.context(context)
        h = self.rows(gates) if self.memory is None else self.restarted(gates, self.memory)
        return x + self.output(self.dropout(h))

    def rows(self, gates: Tensor) -> Tensor:
        """One row after another, remembering all of them: the input's share of the gates to h [B, states, H, W]."""
        first, *others = gates.split(1, dim=2)
        h, c = lstm(first, None)
        hidden = [h]
        for row in others:
            h, c = lstm(row + self.state(h), c)
            hidden.append(h)
        return torch.cat(hidden, dim=2)

    def restarted(self, gates: Tensor, memory: int) -> Tensor:
        """All rows at once, `memory` steps after the first one."""
        h, c = lstm(gates, None)
        done = []
        for step in range(1, min(memory, gates.shape[2] - 1) + 1):
            done.append(h[:, :, :1])  # the topmost of the rows from step - 1 on: nothing lies above what it has seen
            h, c = lstm(gates[:, :, step:] + self.state(h[:, :, :-1]), c[:, :, :-1])
        return torch.cat([*done, h], dim=2)


class PixelRNN(nn.Module):
    """PixelRNN with Row LSTMs: a convolution of type A, then `layers` Row LSTM layers with residual connections.

    Unrestricted (`memory` None) the window is a triangle that reaches the top of the image, kernel_size // 2 columns
    wider on both sides with each row, and the network has to know its `image_height`. With `memory` each layer
    remembers that many rows above, and the window reaches kernel_size // 2 + layers * memory rows up. The wavefront's
    slope is 1 + kernel_size // 2 at any depth. With `conditioning="bias"` the context enters all gates as a bias map;
    with "input" it is concatenated with x once.

    Example:
        >>> PixelRNN(1, 1, layers=1, channels=4, memory=1).receptive_field.mask.int()
        tensor([[1, 1, 1, 1, 1, 1, 0],
                [1, 1, 1, 1, 1, 0, 0],
                [0, 1, 1, 0, 0, 0, 0]], dtype=torch.int32)
    """

    def __init__(
        self,
        image_channels: int,
        parameters: int,
        layers: int,
        kernel_size: int = 3,
        channels: int = 32,
        context_channels: int = 0,
        conditioning: str = "bias",
        hidden: int | None = None,
        memory: int | None = None,
        image_height: int | None = None,
    ):
        super().__init__()
        check_trunk(layers, channels, conditioning)
        if memory is None and image_height is None:
            raise VlaeError("a row LSTM that remembers all rows needs image_height to know its window; or set memory")
        for name, number in (("memory", memory), ("image_height", image_height)):
            if number is not None:
                require_positive(f"{name} of a row LSTM", number)
        self.memory, self.image_height = memory, image_height
        self.input = MaskedConv2d(image_channels, channels, kernel_size, "A")
        self.input_context = None
        if context_channels:
            size = kernel_size if conditioning == "input" else 1
            self.input_context = nn.Conv2d(context_channels, channels, size, padding="same", bias=False)
        per_layer = context_channels if conditioning == "bias" else 0
        self.layers = nn.ModuleList(RowLSTM(channels, kernel_size, per_layer, memory) for _ in range(layers))
        self.head = ChannelHead(channels, hidden or channels, image_channels, parameters)

    @cached_property
    def receptive_field(self) -> ReceptiveField:
        """The pixels that the parameters at a pixel can see, composed from the layers; within the image's height."""
        above = None if self.image_height is None else self.image_height - 1
        field = self.input.field
        for layer in (cast(RowLSTM, layer) for layer in self.layers):
            rows = min(rows for rows in (layer.memory, above) if rows is not None)
            field = field | field.then(layer.field(rows))
            if above is not None:
                field = ReceptiveField.from_offsets((a, b) for a, b in field.offsets if a >= -above)
        return field

    def extra_repr(self) -> str:
        """The window, for the model's repr."""
        return f"(receptive_field): {self.receptive_field}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W] in [0, 1] -> parameters [B, C, P, H, W]."""
        if self.memory is None and self.image_height is not None and x.shape[2] > self.image_height:
            raise VlaeError(f"this row LSTM was made for images of {self.image_height} rows at most; got {x.shape[2]}")
        x = network_input(x)
        h = self.input(x)
        if self.input_context is not None:
            h = h + self.input_context(context)
        for layer in self.layers:
            h = layer(h, context)
        return self.head(h, x)
