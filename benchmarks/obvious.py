"""The obvious implementation of the model that `benchmarks/training.py` times ours against.

The same architecture, written as a tutorial would: every masked convolution is a full k x k one whose mask is
multiplied in at each forward pass, images become floats and are binarised one by one in a `Dataset`, and the bound is
made of `torch.distributions` objects. Encoder, the maps that z is decoded to, and flow steps have only one way to be
written and are vlae's and zuko's own. `check_same` shows that both compute the same bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from vlae import VLAE
from vlae.errors import VlaeError
from vlae.models.decoders import ResNetDecoder
from vlae.models.encoders import ResNetEncoder


class FullMaskedConv2d(nn.Conv2d):
    """Convolution with a kernel of full odd size (rows, columns), multiplied by its mask at each forward pass.

    The mask keeps the rows above the middle one and, in the middle row, the columns left of the middle; `own_row` and
    `own` add the rest of the middle row, or its middle.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], own_row: bool = False, own: bool = False):
        rows, columns = size[0] // 2, size[1] // 2
        super().__init__(inputs, outputs, size, padding=(rows, columns))
        mask = torch.zeros(size)
        mask[:rows] = 1
        if size[0] == 1:
            mask[0, : columns + own] = 1
        elif own_row:
            mask[rows] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class ObviousLayer(nn.Module):
    """A gated layer: vertical and horizontal stack (van den Oord et al. 2016, arXiv 1606.05328)."""

    def __init__(self, channels: int, k: int, context_channels: int, last: bool):
        super().__init__()
        self.last = last
        self.vertical = FullMaskedConv2d(channels, 2 * channels, (k, k), own_row=True)
        self.horizontal = FullMaskedConv2d(channels, 2 * channels, (1, k), own=True)
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.context = nn.Conv2d(context_channels, (2 if last else 4) * channels, 1, bias=False)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both stacks [B, channels, H, W] -> the same."""
        vertical = self.vertical(v)
        horizontal = self.horizontal(h) + self.across(vertical)
        if self.last:
            horizontal = horizontal + self.context(context)
        else:
            for_left, for_above = self.context(context).chunk(2, dim=1)
            horizontal = horizontal + for_left
            tanh, sigmoid = (vertical + for_above).chunk(2, dim=1)
            v = torch.tanh(tanh) * torch.sigmoid(sigmoid)
        tanh, sigmoid = horizontal.chunk(2, dim=1)
        return v, h + self.output(torch.tanh(tanh) * torch.sigmoid(sigmoid))


class ObviousVLAE(nn.Module):
    """A VLAE for binary one-channel images with two gated stacks, z as a bias in every layer, from a model's `config`.

    Raises:
        VlaeError: the configuration asks for anything else.
    """

    def __init__(self, config: dict):
        super().__init__()
        check_supported(config)
        image_shape, latent_dim = tuple(config["image_shape"]), config["latent_dim"]
        channels, k, maps = config["channels"], config["kernel_size"], config["context_channels"]
        stages = {"widths": config["encoder_widths"], "hidden": config["encoder_hidden"]}
        self.encoder = ResNetEncoder(image_shape, 2 * latent_dim, **stages)
        self.features = ResNetDecoder(latent_dim, (maps, *image_shape[1:]), **stages)
        self.input_above = FullMaskedConv2d(1, channels, (k, k))
        self.input_left = FullMaskedConv2d(1, channels, (1, k))
        self.input_context = nn.Conv2d(maps, 2 * channels, 1, bias=False)
        self.layers = nn.ModuleList(
            ObviousLayer(channels, k, maps, last=index == config["decoder_layers"] - 1)
            for index in range(config["decoder_layers"])
        )
        self.head = nn.Sequential(nn.ELU(), nn.Conv2d(channels, channels, 1), nn.ELU(), nn.Conv2d(channels, 1, 1))
        self.flow = nn.ModuleList(flow_step(config, index) for index in range(config["flow_steps"]))
        self.latent_dim = latent_dim

    def prior(self) -> torch.distributions.Distribution:
        """p(z)."""
        like = self.input_above.bias
        base = zuko.distributions.DiagNormal(like.new_zeros(self.latent_dim), like.new_ones(self.latent_dim))
        steps = [step() for step in self.flow]
        return zuko.distributions.NormalizingFlow(zuko.transforms.ComposedTransform(*steps), base) if steps else base

    def decode(self, z: Tensor, x: Tensor) -> Bernoulli:
        """p(x_i | z, the earlier pixels) for all pixels."""
        context, x = self.features(z), 2 * x - 1
        for_v, for_h = self.input_context(context).chunk(2, dim=1)
        v = self.input_above(x)
        h = v + self.input_left(x) + for_h
        v = v + for_v
        for layer in self.layers:
            v, h = layer(v, h, context)
        return Bernoulli(logits=self.head(h))

    def bound(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distortion and rate of images x [B, 1, H, W], nats per image, [B] each; noise [B, latent_dim] if given."""
        mean, s = self.encoder(x).chunk(2, dim=1)
        q = Normal(mean, torch.exp(s / (1 + s.abs() / math.log(1e3))))
        z = q.rsample() if noise is None else q.mean + q.stddev * noise
        distortion = -self.decode(z, x).log_prob(x).sum(dim=(1, 2, 3))
        if not self.flow:
            return distortion, kl_divergence(q, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(dim=1)
        return distortion, q.log_prob(z).sum(dim=1) - self.prior().log_prob(z)

    def weights_in_use(self) -> int:
        """The number of parameters that no mask of a convolution hides."""
        hidden = sum(
            int((1 - m.mask).sum()) * m.in_channels * m.out_channels
            for m in self.modules()
            if isinstance(m, FullMaskedConv2d)
        )
        return sum(p.numel() for p in self.parameters()) - hidden


def flow_step(config: dict, index: int) -> nn.Module:
    """One step of the flow prior."""
    size, reverse = config["latent_dim"], config["flow_order"] == "reversed" and index % 2
    order = torch.arange(size).flip(0) if reverse else torch.arange(size)
    kind: dict = {}  # zuko's default is affine
    if not config["flow_affine"]:
        kind = {"univariate": zuko.transforms.AdditiveTransform, "shapes": [()]}
    return zuko.flows.MaskedAutoregressiveTransform(size, hidden_features=config["flow_hidden"], order=order, **kind)


def check_supported(config: dict) -> None:
    """Refuses configurations that there is no obvious counterpart of here."""
    expected = {"stacks": "two", "conditioning": "bias", "likelihood": "bernoulli", "weight_norm": False}
    for key, value in expected.items():
        if config[key] != value:
            raise VlaeError(f"the obvious implementation is written for {key}={value!r}; got {config[key]!r}")
    if config["image_shape"][0] != 1:
        raise VlaeError(f"the obvious implementation is written for one channel; got {config['image_shape'][0]}")


def weights_of(model: VLAE, obvious: ObviousVLAE) -> dict[str, Tensor]:
    """The state dict of `obvious` that makes it the same function as `model`."""
    renamed = {
        "decoder.features.": "features.",
        "decoder.pixels.head.hidden.": "head.1.",
        "decoder.pixels.head.output.": "head.3.",
        "decoder.pixels.": "",
        "prior_module.steps.": "flow.",
    }
    state = obvious.state_dict()
    for name, value in model.state_dict().items():
        prefix = next((old for old in renamed if name.startswith(old)), "")
        target = renamed.get(prefix, "") + name.removeprefix(prefix)
        if state[target].shape != value.shape:
            # The stored kernels of vlae are the visible corner of the full ones: upper left.
            full = torch.zeros_like(state[target])
            full[:, :, : value.shape[2], : value.shape[3]] = value
            value = full
        state[target] = value
    return state


@torch.no_grad()
def check_same(model: VLAE, x: Tensor, tolerance: float = 1e-4) -> float:
    """The largest difference of the two implementations' terms on images x with the same weights and noise, in nats.

    Raises:
        VlaeError: it is over the tolerance, or the implementations have different numbers of weights in use.
    """
    # In float64, so that no rounding is mistaken for a difference, or hides one.
    mine = copy.deepcopy(model).double()
    theirs = ObviousVLAE(model.config).double()
    theirs.load_state_dict(weights_of(mine, theirs))
    size = sum(p.numel() for p in mine.parameters())
    if theirs.weights_in_use() != size:
        raise VlaeError(f"the obvious implementation uses {theirs.weights_in_use()} weights, and ours {size}")
    x = x.double()
    bound = mine.elbo(x, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(x), theirs.latent_dim, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    distortion, rate = theirs.bound(x, noise)
    worst = max(float((distortion - bound.distortion).abs().max()), float((rate - bound.rate).abs().max()))
    if not worst < tolerance:
        raise VlaeError(f"the obvious implementation's bound differs from ours by {worst:.2g} nats")
    return worst


class ItemDataset(Dataset):
    """Images uint8 [N, 1, H, W], converted and binarised one at a time."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """One image [1, H, W] of 0 and 1, drawn anew at each visit."""
        return torch.bernoulli(self.images[index].float() / 255)


def item_batches(images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Batches [B, 1, H, W] for ever."""
    loader = DataLoader(ItemDataset(images), batch_size, shuffle=True, drop_last=True, num_workers=0)
    while True:
        yield from loader
