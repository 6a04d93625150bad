"""Passes over a data set: batches with the positions of their images, which key their noise, and choices among them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vlae.data import Batches, ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation.information import BITS
from vlae.models.base import LatentVariableModel

# Images [B, C, H, W], their positions in the data set, and for conditional models their context.
Batch = tuple[Tensor, Sequence[int]] | tuple[Tensor, Sequence[int], Tensor | None]
# The same, always with a context, which is None where the model is told nothing.
Parts = tuple[Tensor, Sequence[int], Tensor | None]


def keyed_generators(indices: Iterable[int], seed: int, stream: int = 0) -> list[torch.Generator]:
    """One CPU generator per image, seeded by the image's position: its noise does not depend on the batch it is in."""
    first = (seed * 1_000_003 + stream) * 100_000_007
    return [torch.Generator().manual_seed((first + int(i)) % 2**63) for i in indices]


def batches_of(model: LatentVariableModel, dataset: ImageDataset, batch_size: int = 250) -> Iterator[Parts]:
    """The images in order, in the model's precision and on its device, with their positions and their context.

    What is drawn anew at each visit is drawn once here, so that the batch size is memory, not the result.
    """
    for batch in Batches(dataset.drawn(), min(batch_size, len(dataset))):
        context = model.context_of(batch.labels, batch.factors, dataset.name)
        yield model.placed(batch.images), batch.indices.tolist(), context


def parts(batch: Batch) -> Parts:
    """Images, positions and context (None where there is none) of a batch."""
    return batch if len(batch) == 3 else (*batch, None)


def first_images(batches: Iterable[Batch], images: int | None) -> Iterator[Parts]:
    """The parts of the first `images` images (None: all) of a pass, batch by batch."""
    if images is not None and images < 1:
        raise VlaeError(f"the number of images must be 1 or more; got {images}")
    remaining = math.inf if images is None else images
    for x, positions, context in map(parts, batches):
        count = int(min(len(x), remaining))
        if count:
            yield x[:count], list(positions)[:count], None if context is None else context[:count]
        remaining -= count
        if remaining <= 0:
            return


def chosen_images(batches: Iterable[Batch], chosen: Collection[int] | None, size: int) -> Iterator[Parts]:
    """The parts of the images at the chosen positions (None: all) of a pass, in pieces of `size`, the last smaller.

    Pieces are filled across batches, so that they do not depend on the batch size.
    """
    waiting: list[tuple[Tensor, int, Tensor | None]] = []

    def piece() -> Parts:
        images, positions, context = zip(*waiting, strict=True)
        return torch.stack(images), positions, None if context[0] is None else torch.stack(context)

    for x, positions, context in map(parts, batches):
        for row, position in enumerate(positions):
            if chosen is None or position in chosen:
                waiting.append((x[row], position, None if context is None else context[row]))
            if len(waiting) == size:
                yield piece()
                waiting.clear()
    if waiting:
        yield piece()


def places_of(batches: Iterable[Batch]) -> list[int]:
    """The positions of all images of a pass, in its order."""
    return [position for batch in batches for position in batch[1]]


def digest(batches: Iterable[Batch]) -> str:
    """128 bits that stand for the images of a pass and their contexts, whatever the batch size."""
    sums = [hashlib.sha256(), hashlib.sha256()]
    for x, _, context in map(parts, batches):
        for tensor, each in zip((x, context), sums, strict=True):
            if tensor is not None:
                each.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashlib.sha256(b"".join(each.digest() for each in sums)).hexdigest()[:32]


def fixed_order(total: int) -> list[int]:
    """All positions of a data set in an order that is drawn once for ever: the first so many stand for all.

    Data sets are often sorted, by class or by where the images came from: MNIST's first 5,000 test images are easier
    than the rest. A larger choice contains the smaller ones.

    Example:
        >>> fixed_order(5)
        [4, 0, 1, 3, 2]
    """
    return torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()


def bits_per_value(model: LatentVariableModel) -> float | None:
    """What nats per image are multiplied by for bits per sub-pixel; None where the likelihood is a density."""
    return BITS / math.prod(model.image_shape) if model.likelihood.levels else None


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of [N] values; NaN for a single one, which tells nothing of others."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
