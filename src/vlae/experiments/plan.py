"""How long cells are trained: a number of training images, named in the study or found from a duration."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vlae.errors import VlaeError

RESERVE = 0.1  # of a duration: what calibration does not see
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Timing:
    """What a cell costs, measured by a training of a few steps.

    Attributes:
        start: seconds once: start of the process, loading, compilation, saving.
        image: seconds per training image.
        evaluation: seconds of its evaluation.
    """

    start: float = 0.0
    image: float = 0.0
    evaluation: float = 0.0

    def seconds(self, images: int) -> float:
        """The whole cell's, with the work of so many training images."""
        return self.start + self.image * images + self.evaluation


@dataclass(frozen=True)
class Load:
    """How many images a cell's configuration has.

    Attributes:
        available: training images of one epoch.
        validation: validation images of one epoch.
        epochs: that the configuration says.
        batch: images per step.
    """

    available: int
    validation: int
    epochs: int
    batch: int

    def budgeted(self, images: int | None) -> tuple[int, int]:
        """Images per epoch and epochs for a budget: one epoch of the first so many, else whole epochs of all.

        Example:
            >>> load = Load(available=50_000, validation=500, epochs=12, batch=64)
            >>> load.budgeted(6_000), load.budgeted(120_000), load.budgeted(None)
            ((6000, 1), (50000, 2), (50000, 12))
        """
        if images is None:
            return self.available, self.epochs
        return (images, 1) if images < self.available else (self.available, images // self.available)

    def shown(self, images: int | None) -> int:
        """Training images shown: an epoch's last batch, where it is not full, is left out."""
        each, epochs = self.budgeted(images)
        batch = min(self.batch, each)
        return each // batch * batch * epochs

    def work(self, images: int | None) -> int:
        """The same with validation, an image of which costs about half as much."""
        each, epochs = self.budgeted(images)
        return epochs * (each + self.validation // 2)


def duration(text: str) -> float | None:
    """Seconds of a duration such as 90s, 20m, 2h or 1h30m; None for other words.

    Example:
        >>> duration("1h30m"), duration("90s"), duration("hour")
        (5400.0, 90.0, None)
    """
    if not re.fullmatch(r"(\d+(\.\d+)?[smh])+", text):
        return None
    return sum(float(number) * UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smh])", text))


def chosen(budgets: Mapping[str, int | None], budget: str) -> int | None:
    """The number of training images of a named budget, or of one that is given as this number.

    Raises:
        VlaeError: no budget of that name.
    """
    if budget.isdecimal() and int(budget):
        return int(budget)
    if budget not in budgets:
        known = ", ".join(budgets)
        raise VlaeError(
            f"no budget {budget!r}: choose one of {known}, a duration such as 20m or 1h30m, or a number of images"
        )
    return budgets[budget]


def with_budget(config: Mapping[str, Any], load: Load, images: int | None) -> dict[str, Any]:
    """The configuration that shows about so many training images; None leaves it as it is."""
    result = copy.deepcopy(dict(config))
    if images is None:
        return result
    each, epochs = load.budgeted(images)
    result["data"] = dict(result.get("data") or {})
    if each < load.available:
        result["data"]["limit"] = each
    result["trainer"] = {**(result.get("trainer") or {}), "max_epochs": epochs}
    return result


def makespan(seconds: Collection[float], workers: int) -> float:
    """The most that cells of these lengths take on so many workers, whatever their order (Graham, 1969)."""
    if not seconds:
        return 0.0
    return sum(seconds) / workers + (1 - 1 / workers) * max(seconds)


def images_within(
    seconds: float, timings: Mapping[str, Timing], loads: Mapping[str, Load], workers: int = 1
) -> int | None:
    """The most training images for every cell with which all cells fit into so many seconds.

    Args:
        seconds: for training and evaluation of all cells.
        timings: of every cell.
        loads: of the cells that are trained.
        workers: cells at a time.

    Returns:
        The number; None where even the configurations' own epochs fit.

    Raises:
        VlaeError: not even one batch fits.
    """

    def total(images: int | None) -> float:
        work = {name: loads[name].work(images) if name in loads else 0 for name in timings}
        return makespan([timing.seconds(work[name]) for name, timing in timings.items()], workers)

    available = seconds * (1 - RESERVE)
    if total(None) <= available:
        return None
    low = min((load.batch for load in loads.values()), default=0)
    if not loads or total(low) > available:
        raise VlaeError(
            f"{max(seconds, 0):.0f} seconds are too few: {total(low or None) / (1 - RESERVE):.0f} go into starting and "
            "evaluating the cells alone; give a longer budget, more workers, or measure less"
        )
    # No cell is trained for longer than the longest says itself.
    high = max(load.available * load.epochs for load in loads.values())
    while high - low > 1:  # total grows with the images
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= available else (low, middle)
    return low
