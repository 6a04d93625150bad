"""Receptive fields of causal networks, computed from the offsets that their layers can reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Offset = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that a causal layer, or a stack of them, can see from the pixel it computes.

    Kept as the set of offsets `(rows, columns)` from the pixel itself: `(-1, 0)` is the pixel above, `(0, -1)` the one
    on the left. Two layers in a row see the Minkowski sum of their offsets (`first.then(second)`), two in parallel the
    union (`first | second`).

    Example:
        >>> above = ReceptiveField.rectangle(rows=(-1, -1), columns=(-1, 1))
        >>> left = ReceptiveField.rectangle(rows=(0, 0), columns=(-1, -1))
        >>> field = above | left
        >>> field.mask.int()
        tensor([[1, 1, 1],
                [1, 0, 0]], dtype=torch.int32)
        >>> field.size, field.slope
        (4, 2)
    """

    offsets: frozenset[Offset]

    @classmethod
    def rectangle(cls, rows: tuple[int, int], columns: tuple[int, int]) -> ReceptiveField:
        """All offsets with both coordinates in the given closed ranges; empty where a range is."""
        return cls(frozenset((i, j) for i in range(rows[0], rows[1] + 1) for j in range(columns[0], columns[1] + 1)))

    @classmethod
    def from_offsets(cls, offsets: Iterable[Offset]) -> ReceptiveField:
        """The field that holds exactly these offsets."""
        return cls(frozenset(offsets))

    def then(self, following: ReceptiveField) -> ReceptiveField:
        """The field of `following` applied to the output of this layer."""
        if not self.offsets or not following.offsets:
            return ReceptiveField(frozenset())
        # The number of ways to reach each offset is a convolution, so that wide fields take no time pair by pair. It is
        # a whole number that the Fourier transform gives to 1e-9 or so.
        (first, (i, j)), (second, (k, m)) = self._grid(), following._grid()
        size = (first.shape[0] + second.shape[0] - 1, first.shape[1] + second.shape[1] - 1)
        ways = torch.fft.irfft2(torch.fft.rfft2(first, s=size) * torch.fft.rfft2(second, s=size), s=size)
        return ReceptiveField(frozenset((a + i + k, b + j + m) for a, b in (ways > 0.5).nonzero().tolist()))

    def _grid(self) -> tuple[Tensor, Offset]:
        """The offsets as ones in the smallest matrix that holds them, and which offset its first entry is."""
        offsets = torch.tensor(list(self.offsets), device="cpu")  # whatever the default: not all devices have float64
        least = offsets.min(0).values
        grid = torch.zeros(*(offsets.max(0).values - least + 1).tolist(), dtype=torch.float64, device="cpu")
        grid[tuple((offsets - least).t())] = 1
        return grid, (int(least[0]), int(least[1]))

    def __or__(self, other: ReceptiveField) -> ReceptiveField:
        return ReceptiveField(self.offsets | other.offsets)

    @property
    def size(self) -> int:
        """How many pixels are seen."""
        return len(self.offsets)

    @property
    def mask(self) -> Tensor:
        """bool [rows, columns], odd columns: the last row and the middle column are the pixel's own; True is seen."""
        rows = max((-i for i, _ in self.offsets), default=0)
        reach = max((abs(j) for _, j in self.offsets), default=0)
        mask = torch.zeros(rows + 1, 2 * reach + 1, dtype=torch.bool)
        if self.offsets:
            i, j = torch.tensor(list(self.offsets)).t()
            mask[rows + i, reach + j] = True
        return mask

    @property
    def slope(self) -> int:
        """The slope s of the wavefront: pixel (i, j) may be computed at step j + s i.

        A pixel needs (i - a, j + b) to be known one step earlier at least, j + b + s (i - a) < j + s i, so s > b / a
        for every offset above it: s = 1 + max_a floor(w_a / a), with w_a the reach to the right a rows above. An image
        of width W never needs more than s = W, which is the raster order.
        """
        return 1 + max((max(j, 0) // -i for i, j in self.offsets if i < 0), default=0)

    def __repr__(self) -> str:
        rows, columns = self.mask.shape
        return f"ReceptiveField({self.size} pixels in a window of {rows} x {columns}, wavefront slope {self.slope})"


@dataclass(frozen=True)
class Kernel:
    """The geometry of one causal convolution: which rows above and which columns it reads.

    The kernel's rows lie `up`, `up` - 1, ... above the pixel, `rows` of them; each is `columns` wide. The row that is a
    rows above begins `left` columns to the left of the pixel, or with `slanted` `left` - a: it leans to the right by
    one column a row.
    """

    up: int
    rows: int
    left: int
    columns: int
    slanted: bool = False

    @property
    def right(self) -> int:
        """How many columns to the right of the pixel the widest row reaches; 0 or more."""
        return max(0, self.columns - 1 - self.left + self.up * self.slanted)

    @property
    def field(self) -> ReceptiveField:
        """The offsets of all entries."""
        return ReceptiveField.from_offsets(
            (-a, c - self.left + a * self.slanted)
            for a in range(self.up - self.rows + 1, self.up + 1)
            for c in range(self.columns)
        )
