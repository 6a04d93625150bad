"""The wavefront: which pixels of an image are visited at which step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """The pixels of one step: `count` of them, the first at (`row`, `column`).

    Each further one is a row down and `slope` columns back. `rows` and `columns` are their coordinates as index tensors
    [count].
    """

    index: int
    row: int
    column: int
    count: int
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """The order in which the pixels of an image are visited: (i, j) at step j + slope * i. Made by `Schedule.of`.

    A slope of the image's width is the raster order, one pixel a step; beyond it, some steps hold no pixel.

    Example:
        >>> schedule = Schedule.of(2, 2, slope=1)
        >>> [list(zip(step.rows.tolist(), step.columns.tolist())) for step in schedule.steps]
        [[(0, 0)], [(0, 1), (1, 0)], [(1, 1)]]
        >>> len(Schedule.of(28, 28, slope=2))
        82
    """

    height: int
    width: int
    slope: int
    steps: tuple[Step, ...]

    @staticmethod
    @lru_cache(maxsize=64)
    @torch.inference_mode(False)  # what is kept must serve training too, whoever asks first
    def of(height: int, width: int, slope: int) -> Schedule:
        """The schedule of an image of this size."""
        steps = []
        for index in range(width + (height - 1) * slope):
            first, last = max(0, -(-(index - width + 1) // slope)), min(height - 1, index // slope)
            rows = torch.arange(first, max(first, last + 1))
            steps.append(Step(index, first, index - slope * first, len(rows), rows, index - slope * rows))
        return Schedule(height, width, slope, tuple(steps))

    def __len__(self) -> int:
        """How many steps hold a pixel."""
        return sum(step.count > 0 for step in self.steps)

    @cached_property
    @torch.inference_mode(False)
    def order(self) -> Tensor:
        """The pixels' positions in a flattened image, in the order of their visits, [H * W]."""
        return torch.cat([step.rows * self.width + step.columns for step in self.steps])

    @cached_property
    def counts(self) -> list[int]:
        """The number of pixels of each step."""
        return [step.count for step in self.steps]

    def arrange(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [..., H, W] to the values at each step's pixels, [..., count], in one piece of work for all steps."""
        return images.flatten(-2).index_select(-1, self.order.to(images.device)).split(self.counts, dim=-1)

    def restore(self, values: Sequence[Tensor]) -> Tensor:
        """What `arrange` took apart, [..., H, W]; empty steps may be left out."""
        position = torch.argsort(self.order).to(values[0].device)
        return torch.cat(list(values), dim=-1).index_select(-1, position).unflatten(-1, (self.height, self.width))

    def arrange_maps(self, maps: Tensor) -> list[Tensor]:
        """Maps [B, C, H, W] to one contiguous matrix [count * B, C] per step."""
        ordered = maps.flatten(2).permute(2, 0, 1).index_select(0, self.order.to(maps.device)).contiguous()
        return [block.flatten(0, 1) for block in ordered.split(self.counts)]
