"""A Transformer with a true receptive field: a trunk of causal local self-attention.

It has the interface of the PixelCNN trunks: x [B, C, H, W] and context [B, F, H, W] or None to the parameters of each
sub-pixel's conditional [B, C, P, H, W].
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.errors import VlaeError, require_positive
from vlae.nn.masked import MaskedConv2d, reach_of
from vlae.nn.pixelcnn import ChannelHead, check_trunk, network_input
from vlae.nn.receptive import Kernel, ReceptiveField


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel alone: [B, C, H, W] -> the same shape."""

    def forward(self, input: Tensor) -> Tensor:
        """Pixels do not see each other here, so the receptive field is kept."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class LocalAttention(nn.Module):
    """Multi-head self-attention of each pixel over the window of its past (Vaswani et al. 2017, arXiv 1706.03762).

    The window is `reach` rows above and as many columns to both sides, and of the own row what lies left and the pixel
    itself. What lies outside of the image gets no weight. Each head adds a learned number for each place of the window
    to its scores. Keys and values are shifted views, so that only the scores take memory, H W times the window.
    [B, channels, H, W] -> the same shape.
    """

    def __init__(self, channels: int, heads: int, reach: int, context_channels: int):
        super().__init__()
        self.heads, self.reach = heads, reach
        self.kernel = Kernel(up=reach, rows=reach + 1, left=reach, columns=2 * reach + 1)
        self.size = reach * (2 * reach + 1) + reach + 1  # of the kernel's entries in raster order: up to the pixel
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.context = nn.Conv2d(context_channels, 3 * channels, 1, bias=False) if context_channels else None
        self.position = nn.Parameter(0.02 * torch.randn(heads, self.size))
        self.output = nn.Conv2d(channels, channels, 1)
        self.dropout: nn.Module = nn.Identity()

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The places of the window, in raster order; the last one is the pixel itself."""
        entries = [(a, b) for a in range(-self.reach, 1) for b in range(-self.reach, self.reach + 1)]
        return entries[: self.size]

    @property
    def field(self) -> ReceptiveField:
        """The offsets that the layer sees."""
        return ReceptiveField.from_offsets(self.offsets)

    def shifted(self, maps: Tensor) -> list[Tensor]:
        """What maps [..., H, W] hold at each place of every pixel's window, zero outside of the image: views."""
        height, width = maps.shape[-2:]
        padded = F.pad(maps, (self.reach, self.reach, self.reach, 0))
        return [padded[..., self.reach + a :, self.reach + b :][..., :height, :width] for a, b in self.offsets]

    def inside(self, height: int, width: int, like: Tensor) -> Tensor:
        """Which places of each pixel's window lie in the image: bool [places, H, W]; the last one always does."""
        return torch.stack(self.shifted(like.new_ones(height, width))) > 0

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        qkv = self.qkv(x)
        if self.context is not None:
            qkv = qkv + self.context(context)
        q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)  # each [B, heads, channels / heads, H, W]
        scores = torch.stack([(q * key).sum(2) for key in self.shifted(k)], dim=2)
        scores = self.scale * scores + self.position[:, :, None, None]
        inside = self.inside(x.shape[2], x.shape[3], like=x)
        weights = scores.masked_fill(~inside, -torch.inf).softmax(dim=2)
        mixed = torch.zeros_like(q)
        for weight, value in zip(weights.unbind(2), self.shifted(v), strict=True):
            mixed = torch.addcmul(mixed, weight.unsqueeze(2), value)
        return self.output(self.dropout(mixed.flatten(1, 2)))


class TransformerBlock(nn.Module):
    """Local attention, then a two-layer pointwise network, each on normalised input and added to it (pre-norm).

    Xiong et al. 2020, arXiv 2002.04745. The context enters queries, keys and values, and the hidden layer, as a bias.
    [B, channels, H, W] -> the same shape.
    """

    def __init__(self, channels: int, heads: int, reach: int, context_channels: int):
        super().__init__()
        self.attention_norm = ChannelNorm(channels)
        self.attention = LocalAttention(channels, heads, reach, context_channels)
        self.hidden_norm = ChannelNorm(channels)
        self.hidden = nn.Conv2d(channels, 4 * channels, 1)
        self.context = nn.Conv2d(context_channels, 4 * channels, 1, bias=False) if context_channels else None
        self.output = nn.Conv2d(4 * channels, channels, 1)
        self.dropout: nn.Module = nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        x = x + self.attention(self.attention_norm(x), context)
        hidden = self.hidden(self.hidden_norm(x))
        if self.context is not None:
            hidden = hidden + self.context(context)
        return x + self.output(self.dropout(F.gelu(hidden)))


class LocalTransformer(nn.Module):
    """Transformer whose pixels attend to a local window of their past: a type-A convolution, then `layers` blocks.

    Its window is (layers + 1) * (kernel_size // 2) pixels to the left, to the right and above, like a PixelCNN's. A row
    higher up is seen no more than kernel_size // 2 columns further right than the one below it, so that the wavefront's
    slope is 1 + kernel_size // 2 at any depth. With `conditioning="bias"` the context enters every block as a bias map;
    with "input" it is concatenated with x once.

    Example:
        >>> LocalTransformer(1, 1, layers=1, channels=4).receptive_field.mask.int()
        tensor([[1, 1, 1, 1, 1],
                [1, 1, 1, 1, 0],
                [1, 1, 0, 0, 0]], dtype=torch.int32)
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
        heads: int = 4,
    ):
        super().__init__()
        check_trunk(layers, channels, conditioning)
        require_positive("heads", heads)
        if channels % heads:
            raise VlaeError(f"heads must divide the channels of attention; got {heads} heads and {channels} channels")
        if channels < 3:
            raise VlaeError(f"attention needs 3 channels or more: normalised, 2 keep but a sign; got {channels}")
        self.input = MaskedConv2d(image_channels, channels, kernel_size, "A")
        self.input_context = None
        if context_channels:
            size = kernel_size if conditioning == "input" else 1
            self.input_context = nn.Conv2d(context_channels, channels, size, padding="same", bias=False)
        per_layer = context_channels if conditioning == "bias" else 0
        reach = reach_of(kernel_size)
        self.layers = nn.ModuleList(TransformerBlock(channels, heads, reach, per_layer) for _ in range(layers))
        self.head = ChannelHead(channels, hidden or channels, image_channels, parameters)

    @property
    def receptive_field(self) -> ReceptiveField:
        """The pixels that the parameters at a pixel can see, composed from the windows of the layers."""
        field = self.input.field
        for layer in (cast(TransformerBlock, layer) for layer in self.layers):
            field = field | field.then(layer.attention.field)
        return field

    def extra_repr(self) -> str:
        """The window, for the model's repr."""
        return f"(receptive_field): {self.receptive_field}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W] in [0, 1] -> parameters [B, C, P, H, W]."""
        x = network_input(x)
        h = self.input(x)
        if self.input_context is not None:
            h = h + self.input_context(context)
        for layer in self.layers:
            h = layer(h, context)
        return self.head(h, x)
