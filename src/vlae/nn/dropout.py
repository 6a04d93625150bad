"""Dropout of whole feature maps, whose noise is that of the image's place in the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlae import noise, processes
from vlae.errors import VlaeError


class MapDropout(nn.Module):
    """Sets whole maps to zero with probability `rate`, and scales the others by 1 / (1 - rate).

    Neighbouring pixels of a map are too alike for one to be missed (Tompson et al. 2015, arXiv 1411.4280, section 3.2).
    In training mode, and there only where gradients are taken: sampling, coding and evaluation never see it.
    [B, C, H, W] -> the same shape.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> MapDropout(0.5)(torch.ones(1, 4, 2, 2)).mean((2, 3))
        tensor([[0., 2., 0., 0.]])
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = check_dropout(rate)

    def extra_repr(self) -> str:
        """The rate."""
        return f"{self.rate:g}"

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape; B may be several samples of each image of the batch, all first ones first."""
        if not self.training or not torch.is_grad_enabled():
            return x
        samples = processes.samples(len(x))
        like = x.new_empty(0, dtype=torch.float32)  # bfloat16 is too coarse for a rate
        uniforms = noise.rand((samples,), len(x) // samples, (x.shape[1], 1, 1), None, like).flatten(0, 1)
        return x * (uniforms >= self.rate).to(x.dtype) / (1 - self.rate)


def check_dropout(rate: float) -> float:
    """Refuses a rate that is no probability below 1."""
    if not 0 <= rate < 1:
        raise VlaeError(f"dropout is the share of maps that are set to zero in training, from 0 to below 1; got {rate}")
    return rate


def apply_dropout(module: nn.Module, rate: float) -> nn.Module:
    """Gives every block of `module` that has a place for it, its `dropout`, one of this rate; in place."""
    check_dropout(rate)
    if rate:
        for block in list(module.modules()):
            if isinstance(getattr(block, "dropout", None), nn.Identity):
                block.dropout = MapDropout(rate)
    return module
