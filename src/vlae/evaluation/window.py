"""The window of an autoregressive decoder, measured: which pixels the conditionals of one pixel depend on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from vlae.distributions.autoregressive import Autoregressive
from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.nn.receptive import Offset, ReceptiveField


@dataclass(frozen=True)
class MeasuredWindow:
    """What one pixel was found to see, beside what the decoder declares.

    Attributes:
        pixel: (row, column) that was looked at.
        declared: the window as the decoder declares it, as far as it lies inside the image.
        seen: the earlier pixels whose values change the pixel's logits.
        leaks: offsets of pixels that come later, or (0, 0) for a value of its own that is not known yet: none must be.
        cut: whether the image is too small for the whole window around that pixel.
    """

    pixel: Offset
    declared: ReceptiveField
    seen: ReceptiveField
    leaks: tuple[Offset, ...]
    cut: bool

    @property
    def agrees(self) -> bool:
        """Whether the pixel sees exactly what is declared."""
        return self.seen == self.declared and not self.leaks


def declared_window(model: LatentVariableModel) -> ReceptiveField:
    """The receptive field that the decoder declares.

    Raises:
        VlaeError: the decoder is factorised, and no pixel sees any other.
    """
    if not model.autoregressive:
        raise VlaeError(
            f"the decoder of this {type(model).__name__} is factorised: given z no pixel sees another, so it has no "
            "receptive field"
        )
    return cast(ReceptiveField, cast(Any, model.decoder).receptive_field)


def measure_window(model: LatentVariableModel, images: int = 4, seed: int = 0) -> MeasuredWindow:
    """The pixels on which the logits of one in the middle of the image depend, by gradients.

    The gradient of a random combination of a pixel's logits, in float64, on random images under random z: it is zero on
    all images where a pixel is not seen, and elsewhere with probability 0. Channel by channel, since a later channel
    may see the earlier ones of its own pixel.

    Args:
        model: with an autoregressive decoder; not changed.
        images: how many.
        seed: of images, z and combinations.
    """
    field = declared_window(model)
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model).double().cpu().eval()
    channels, height, width = model.image_shape
    # The middle, or lower where that shows more of the window; a row below it is left, which it must not see.
    pixel = (min(max(height // 2, len(field.mask) - 1), max(height - 2, 0)), width // 2)
    p = model.decode(model.prior().sample((images,), generator=generator), **given(_any_context(model, images)))
    assert isinstance(p, Autoregressive)
    x = torch.rand(images, *model.image_shape, generator=generator, dtype=torch.float64).requires_grad_()
    logits = p.network(x, p.context.detach())[..., pixel[0], pixel[1]]  # [images, C, P]
    weights = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    depends = torch.zeros(height, width, dtype=torch.bool)
    for channel in range(channels):
        combination = (weights * logits)[:, channel].sum()
        (gradient,) = torch.autograd.grad(combination, x, retain_graph=True)
        nonzero = (gradient != 0).any(0)  # [C, H, W]
        nonzero[:channel, pixel[0], pixel[1]] = False  # known by then
        depends |= nonzero.any(0)
    found = [(i - pixel[0], j - pixel[1]) for i, j in depends.nonzero().tolist()]
    inside = [(i, j) for i, j in field.offsets if 0 <= pixel[0] + i < height and 0 <= pixel[1] + j < width]
    return MeasuredWindow(
        pixel,
        ReceptiveField.from_offsets(inside),
        ReceptiveField.from_offsets(offset for offset in found if offset < (0, 0)),
        tuple(sorted(offset for offset in found if offset >= (0, 0))),
        len(inside) < field.size,
    )


def _any_context(model: LatentVariableModel, count: int) -> Tensor | None:
    """Some context, for a conditional model: what is seen does not depend on it."""
    if model.condition is None:
        return None
    classes, attributes = model.condition.classes, model.condition.attributes
    return torch.zeros(count, dtype=torch.int64) if classes else torch.zeros(count, attributes, dtype=torch.float64)
