"""Sets with ground-truth factors: their grids, and the fixed cut of sets that come without official splits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlae.data.seeds import Stream, generator
from vlae.errors import VlaeError


def grid(sizes: Sequence[int]) -> Tensor:
    """All combinations of the classes 0..size-1 of each factor, the last factor fastest.

    Returns:
        int64 [product of sizes, F].

    Example:
        >>> grid([2, 3]).tolist()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    """
    return torch.from_numpy(np.indices(sizes).reshape(len(sizes), -1).T.astype(np.int64))


def rows_of(split: str, count: int, whole: bool) -> Tensor | slice:
    """Which of `count` images a split holds: with `whole` all of them in their order, whatever the split.

    Else one fixed permutation is cut: its first tenth is the test split, the next tenth validation, the rest training.

    Args:
        split: "train", "validation" or "test".
        count: how many images there are.
        whole: whether to leave the set uncut.

    Returns:
        int64 [n], positions; or the slice of all.

    Raises:
        VlaeError: `whole` is not a boolean.
    """
    if not isinstance(whole, bool):
        raise VlaeError(f"whole={whole!r}: expected true (all images in their order) or false (the split's)")
    if whole:
        return slice(None)
    order = torch.randperm(count, generator=generator(Stream.SPLIT, 0))
    held = count // 10
    return order[{"train": slice(2 * held, None), "validation": slice(held, 2 * held), "test": slice(held)}[split]]
