"""PixelCNN trunks with a restricted receptive field: gated with two stacks, and the paper's plain single stack.

Both map an image x [B, C, H, W] and the maps that z was decoded to (`context` [B, F, H, W] or None) to the parameters
of each sub-pixel's conditional distribution [B, C, P, H, W]. The parameters at a pixel depend on the pixels in the
receptive field, on the earlier channels of the pixel itself, and on the context everywhere, unmasked: pixel (0, 0) has
nothing else to go by.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.errors import VlaeError
from vlae.nn.masked import MaskedConv2d, reach_of
from vlae.nn.receptive import Kernel, ReceptiveField
from vlae.nn.residual import PointwiseBlock
from vlae.nn.weightnorm import set_to_zero

if TYPE_CHECKING:
    from vlae.nn.attention import LocalTransformer
    from vlae.nn.rowlstm import PixelRNN


def gate(x: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) of the two halves of the channels: [B, 2C, H, W] -> [B, C, H, W]."""
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def network_input(x: Tensor) -> Tensor:
    """Images in [0, 1] become [-1, 1], so that zero padding outside the image differs from every binary level."""
    return 2 * x - 1


class CausalConv2d(nn.Conv2d):
    """Convolution of a causal `Kernel`, zero outside the image; the output has the input's size.

    The kernel may reach no further to the right than to the left. [B, in, H, W] -> [B, out, H, W]. The weight is
    [out, in, kernel.rows, kernel.columns], of a slanted kernel too.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Kernel):
        super().__init__(in_channels, out_channels, (kernel.rows, kernel.columns), padding=(kernel.up, kernel.left))
        self.kernel = kernel

    @property
    def rectangle(self) -> Tensor:
        """The weight as a rectangle, [out, in, rows, columns]: if slanted, the row a above starts a columns later."""
        if not self.kernel.slanted:
            return self.weight
        up = self.kernel.up
        return torch.stack([F.pad(row, (up - u, u)) for u, row in enumerate(self.weight.unbind(2))], dim=2)

    def forward(self, input: Tensor) -> Tensor:
        """Rows below and columns to the right are cut off: what they would compute is not causal."""
        output = F.conv2d(input, self.rectangle, self.bias, padding=self.padding)
        return output[:, :, : input.shape[-2], : input.shape[-1]]


class EarlierChannels(nn.Conv2d):
    """1x1 convolution whose c-th group of `hidden` outputs sees the channels before c only.

    [B, C, H, W] -> [B, C * hidden, H, W].
    """

    earlier: Tensor

    def __init__(self, image_channels: int, hidden: int):
        super().__init__(image_channels, image_channels * hidden, 1, bias=False)
        before = torch.ones(image_channels, image_channels).tril(-1).repeat_interleave(hidden, dim=0)
        self.register_buffer("earlier", before[:, :, None, None], persistent=False)
        # The first channel's weights are all masked, yet must not be zero: weight normalisation divides by their norm.

    def forward(self, input: Tensor) -> Tensor:
        """The masked convolution."""
        return F.conv2d(input, self.weight * self.earlier)


class ChannelHead(nn.Module):
    """From features that see only earlier pixels to P parameters per sub-pixel, autoregressive over the channels.

    The parameters of channel c see the features and channels before c of the same pixel. With one channel it is a
    two-layer pointwise network. h: [B, features, H, W], x: [B, C, H, W] in [-1, 1] -> [B, C, P, H, W].
    """

    def __init__(self, features: int, hidden: int, image_channels: int, parameters: int):
        super().__init__()
        self.shape = (image_channels, parameters)
        self.hidden = nn.Conv2d(features, image_channels * hidden, 1)
        self.output = nn.Conv2d(image_channels * hidden, image_channels * parameters, 1, groups=image_channels)
        self.own = EarlierChannels(image_channels, hidden) if image_channels > 1 else None

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Features and image to parameters [B, C, P, H, W]."""
        hidden = self.hidden(F.elu(h))
        if self.own is not None:
            hidden = hidden + self.own(x)
        return self.output(F.elu(hidden)).unflatten(1, self.shape)


class GatedLayer(nn.Module):
    """One gated layer of the two-stack PixelCNN (van den Oord et al. 2016, arXiv 1606.05328, figure 2).

    The vertical stack at row i sees rows above i only (its input convolution starts there), so that the horizontal
    stack may take it at its own row without a blind spot; nothing flows from the horizontal stack into the vertical
    one. The context enters both gates as a bias map. The last layer has no vertical gate, since nothing would read it.
    """

    def __init__(
        self, channels: int, kernel_size: int, context_channels: int, last: bool = False, slanted: bool = False
    ):
        super().__init__()
        self.gates = [2 * channels] if last else [2 * channels, 2 * channels]
        reach = reach_of(kernel_size)
        above = Kernel(reach, reach + 1, (1 + slanted) * reach, kernel_size, slanted)
        self.vertical = CausalConv2d(channels, 2 * channels, above)
        self.horizontal = CausalConv2d(channels, 2 * channels, Kernel(0, 1, reach, reach + 1))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.context = nn.Conv2d(context_channels, sum(self.gates), 1, bias=False) if context_channels else None
        self.output = nn.Conv2d(channels, channels, 1)
        self.dropout: nn.Module = nn.Identity()

    def forward(self, v: Tensor, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Vertical and horizontal features [B, channels, H, W] each -> the same; the last layer hands v on as it is."""
        above = self.vertical(v)
        gates = [self.horizontal(h) + self.across(above), above][: len(self.gates)]
        if self.context is not None:
            gates = [g + bias for g, bias in zip(gates, self.context(context).split(self.gates, dim=1), strict=True)]
        left, *above_gate = map(gate, gates)
        return above_gate[0] if above_gate else v, h + self.output(self.dropout(left))


class GatedPixelCNN(nn.Module):
    """Two-stack gated PixelCNN without a blind spot: an input layer of type A, then `layers` gated layers.

    Its window is (layers + 1) * (kernel_size // 2) pixels to the left, to the right and above. With `slanted` the
    vertical stack leans: a rows above, it sees no more than a columns to the right and instead further to the left, so
    that the wavefront's slope stays 2 at any depth. With `conditioning="bias"` the context enters every layer as a
    bias map; with "input" it is concatenated with x once.
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
        slanted: bool = False,
    ):
        super().__init__()
        check_trunk(layers, channels, conditioning)
        reach = reach_of(kernel_size)
        above = Kernel(reach, reach, (1 + slanted) * reach, kernel_size, slanted)
        self.input_above = CausalConv2d(image_channels, channels, above)
        self.input_left = CausalConv2d(image_channels, channels, Kernel(0, 1, reach, reach))
        self.input_context = None
        if context_channels:
            size = kernel_size if conditioning == "input" else 1
            self.input_context = nn.Conv2d(context_channels, 2 * channels, size, padding="same", bias=False)
        per_layer = context_channels if conditioning == "bias" else 0
        self.layers = nn.ModuleList(
            GatedLayer(channels, kernel_size, per_layer, last=index == layers - 1, slanted=slanted)
            for index in range(layers)
        )
        self.head = ChannelHead(channels, hidden or channels, image_channels, parameters)

    @property
    def receptive_field(self) -> ReceptiveField:
        """The pixels that the parameters at a pixel can see, composed from the layers' kernels."""
        vertical = self.input_above.kernel.field
        field = vertical | self.input_left.kernel.field
        for layer in (cast(GatedLayer, layer) for layer in self.layers):
            vertical = vertical.then(layer.vertical.kernel.field)
            field = vertical | field.then(layer.horizontal.kernel.field)
        return field

    @torch.no_grad()
    def deepen(self, shallow: GatedPixelCNN) -> None:
        """Takes the weights of a trunk that differs in having as many layers or fewer, and computes the same.

        A further layer is a residual one whose last convolution starts at zero: it adds nothing before it is trained
        (as the identity layers of Net2Net, Chen et al. 2016, arXiv 1511.05641).
        """
        own = self.state_dict()
        for name, weight in shallow.state_dict().items():
            # The shallow one's last layer gets a vertical gate here, whose context comes after the horizontal one's.
            own[name][: len(weight)] = weight
        for layer in (cast(GatedLayer, layer) for layer in self.layers[len(shallow.layers) :]):
            set_to_zero(layer.output)

    def extra_repr(self) -> str:
        """The window, for the model's repr."""
        return f"(receptive_field): {self.receptive_field}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W] in [0, 1] -> parameters [B, C, P, H, W]."""
        x = network_input(x)
        v = self.input_above(x)
        h = v + self.input_left(x)
        if self.input_context is not None:
            for_v, for_h = self.input_context(context).chunk(2, dim=1)
            v, h = v + for_v, h + for_h
        for layer in self.layers:
            v, h = layer(v, h, context)
        return self.head(h, x)


class PlainPixelCNN(nn.Module):
    """The paper's single stack: a type-A convolution, then `layers` type-B convolutions in residual blocks.

    `pointwise_blocks` further 1x1 residual blocks are spread after every other masked layer; `tied` lets all type-B
    convolutions share their weights. Several 3x3 layers have the blind spot of a single stack: k rows above, columns
    further right than k are not seen.
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
        pointwise_blocks: int = 0,
        tied: bool = False,
    ):
        super().__init__()
        check_trunk(layers, channels, conditioning)
        self.input = MaskedConv2d(image_channels, channels, kernel_size, "A")
        distinct = min(1, layers) if tied else layers
        self.masked = nn.ModuleList(MaskedConv2d(channels, channels, kernel_size, "B") for _ in range(distinct))
        self.depth = layers
        self.dropout: nn.Module = nn.Identity()
        self.context = self.input_context = None
        if context_channels:
            # One convolution over [x, context], masked on x alone, is the sum of two.
            size = kernel_size if conditioning == "input" else 1
            self.input_context = nn.Conv2d(context_channels, channels, size, padding="same", bias=False)
        if context_channels and conditioning == "bias":
            self.context = nn.ModuleList(nn.Conv2d(context_channels, channels, 1, bias=False) for _ in range(layers))
        if pointwise_blocks < 0:
            raise VlaeError(f"pointwise_blocks must be 0 or more; got {pointwise_blocks}")
        if pointwise_blocks and not layers:
            raise VlaeError("pointwise_blocks follow masked layers: they need decoder_layers of 1 or more")
        self.pointwise = nn.ModuleList(PointwiseBlock(channels) for _ in range(pointwise_blocks))
        self.head = ChannelHead(channels, hidden or channels, image_channels, parameters)

    @property
    def receptive_field(self) -> ReceptiveField:
        """The pixels that the parameters at a pixel can see, composed from the layers' masks."""
        field = self.input.field
        for index in range(self.depth):
            field = field | field.then(self.layer(index).field)
        return field

    def layer(self, index: int) -> MaskedConv2d:
        """The type-B convolution of residual block `index`; the same one for all blocks where they are tied."""
        return self.masked[index % len(self.masked)]  # type: ignore[return-value]

    def pointwise_after(self) -> list[list[PointwiseBlock]]:
        """The 1x1 blocks that follow each residual block: spread over every other one, the first among them."""
        blocks = [cast(PointwiseBlock, block) for block in self.pointwise]
        per_slot = -(-len(blocks) // max((self.depth + 1) // 2, 1))
        # The input layer counts as the first masked layer: the blocks follow masked layers 2, 4, ...
        starts = [index // 2 * per_slot for index in range(self.depth)]
        return [blocks[start : start + per_slot] if i % 2 == 0 else [] for i, start in enumerate(starts)]

    def extra_repr(self) -> str:
        """The window, for the model's repr."""
        return f"(receptive_field): {self.receptive_field}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W] in [0, 1] -> parameters [B, C, P, H, W]."""
        x = network_input(x)
        h = self.input(x)
        if self.input_context is not None:
            h = h + self.input_context(context)
        for index, blocks in enumerate(self.pointwise_after()):
            bias = 0 if self.context is None else self.context[index](context)
            h = h + self.layer(index)(self.dropout(F.elu(h))) + bias
            for block in blocks:
                h = block(h)
        return self.head(h, x)


Trunk: TypeAlias = "GatedPixelCNN | PlainPixelCNN | PixelRNN | LocalTransformer"


def make_trunk(
    stacks: str,
    pointwise_blocks: int = 0,
    tied: bool = False,
    memory: int | None = None,
    heads: int | None = None,
    image_height: int | None = None,
    **options: Any,
) -> Trunk:
    """The trunk of a kind.

    Args:
        stacks: "two" (gated), "slanted" (gated, leaning), "plain" (the paper's single stack), "row_lstm" (PixelRNN) or
            "attention" (local Transformer).
        pointwise_blocks: of the plain stack.
        tied: of the plain stack.
        memory: of the row LSTM: how many rows above each layer remembers; None is all rows.
        heads: of attention; None is 4.
        image_height: rows of the images; a row LSTM that remembers all rows needs it, the others take no notice.
        options: of all kinds, see `GatedPixelCNN`.
    """
    # Imported here, since they are made of the pieces above.
    from vlae.nn.attention import LocalTransformer
    from vlae.nn.rowlstm import PixelRNN

    if stacks not in ("two", "slanted", "plain", "row_lstm", "attention"):
        raise VlaeError(
            "stacks must be 'two' or 'slanted' (gated), 'plain', 'row_lstm' (PixelRNN) or 'attention' "
            f"(local Transformer); got {stacks!r}"
        )
    if stacks != "plain" and (tied or pointwise_blocks):
        raise VlaeError(f"tied and pointwise_blocks belong to the plain stack: set stacks='plain'; got {stacks!r}")
    if stacks != "row_lstm" and memory is not None:
        raise VlaeError(f"memory belongs to the row LSTM: set stacks='row_lstm'; got {stacks!r}")
    if stacks != "attention" and heads is not None:
        raise VlaeError(f"heads belong to attention: set stacks='attention'; got {stacks!r}")
    shared = [name for name in inspect.signature(GatedPixelCNN).parameters if name != "slanted"]
    if unknown := sorted(options.keys() - set(shared)):
        known = [*shared, "pointwise_blocks", "tied", "memory", "heads", "image_height"]
        raise VlaeError(f"a trunk has no option {unknown[0]!r}; it has {', '.join(known)}")
    if stacks == "plain":
        return PlainPixelCNN(**options, pointwise_blocks=pointwise_blocks, tied=tied)
    if stacks == "row_lstm":
        return PixelRNN(**options, memory=memory, image_height=image_height)
    if stacks == "attention":
        return LocalTransformer(**options, heads=4 if heads is None else heads)
    return GatedPixelCNN(**options, slanted=stacks == "slanted")


def check_trunk(layers: int, channels: int, conditioning: str) -> None:
    """Refuses impossible sizes of a PixelCNN with one clear line."""
    if layers < 0:
        raise VlaeError(f"decoder_layers counts the layers after the input convolution: 0 or more; got {layers}")
    if channels < 1:
        raise VlaeError(f"the PixelCNN needs at least 1 channel; got {channels}")
    if conditioning not in ("bias", "input"):
        raise VlaeError(
            f"conditioning must be 'bias' (z in every layer) or 'input' (concatenated with x); got {conditioning!r}"
        )
