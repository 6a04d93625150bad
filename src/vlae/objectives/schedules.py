"""Schedules: numbers that change over training, as functions of its progress from 0 (start) to 1 (end)."""

from __future__ import annotations

import math

from vlae.errors import VlaeError, is_number, require_numbers, require_positive


class Schedule:
    """A number as a function of progress in [0, 1]."""

    def __call__(self, progress: float) -> float:
        """The value at this progress."""
        raise NotImplementedError


class Constant(Schedule):
    """The same value throughout."""

    def __init__(self, value: float):
        require_numbers("Constant", value=value)
        self.value = value

    def __call__(self, progress: float) -> float:
        """The value."""
        return self.value


class Linear(Schedule):
    """From `start` to `end` while progress goes from `begin` to `finish`; constant before and after.

    Example:
        >>> off_at_the_end = Linear(start=8.0, end=0.0, begin=0.5, finish=0.75)
        >>> [off_at_the_end(p) for p in (0.0, 0.5, 0.625, 1.0)]
        [8.0, 8.0, 4.0, 0.0]
    """

    def __init__(self, start: float, end: float, begin: float = 0.0, finish: float = 1.0):
        require_numbers("Linear", start=start, end=end, begin=begin, finish=finish)
        if not 0 <= begin < finish <= 1:
            raise VlaeError(f"a linear schedule needs 0 <= begin < finish <= 1; got begin {begin} and finish {finish}")
        self.start, self.end, self.begin, self.finish = start, end, begin, finish

    def __call__(self, progress: float) -> float:
        """The value at this progress."""
        share = min(max((progress - self.begin) / (self.finish - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * share


class Cyclical(Schedule):
    """`cycles` ramps from `start` to `end`, each rising over its first `rising` share (Fu et al. 2019, 1903.10145).

    Example:
        >>> schedule = Cyclical(start=0.0, end=1.0, cycles=2, rising=0.5)
        >>> [schedule(p) for p in (0.0, 0.125, 0.25, 0.49, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """

    def __init__(self, start: float = 0.0, end: float = 1.0, cycles: int = 4, rising: float = 0.5):
        require_numbers("Cyclical", start=start, end=end, rising=rising)
        require_positive("cycles of a cyclical schedule", cycles)
        if not 0 < rising <= 1:
            raise VlaeError(f"a cyclical schedule needs 0 < rising <= 1; got {rising}")
        self.start, self.end, self.cycles, self.rising = start, end, cycles, rising

    def __call__(self, progress: float) -> float:
        """The value at this progress; training ends at the top of the last cycle."""
        within = 1.0 if progress >= 1 else progress * self.cycles % 1
        return self.start + (self.end - self.start) * min(within / self.rising, 1.0)


def as_schedule(value: float | Schedule) -> Schedule:
    """A number becomes a constant schedule."""
    return value if isinstance(value, Schedule) else Constant(float(value))


def as_weight(name: str, value: float | Schedule) -> Schedule:
    """As `as_schedule`; refuses what is or becomes negative or not finite, naming the argument that it came from."""
    if not isinstance(value, Schedule) and not is_number(value):
        raise VlaeError(f"{name} must be a number of 0 or more, or a schedule; got {value!r}")
    schedule = as_schedule(value)
    for progress in (k / 16 for k in range(17)):
        if not (0 <= (weight := schedule(progress)) < math.inf):
            when = f" at progress {progress:g}" if isinstance(value, Schedule) else ""
            raise VlaeError(f"{name} must be a number of 0 or more, or a schedule of such; got {weight}{when}")
    return schedule
