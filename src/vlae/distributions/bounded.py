"""Numbers that a network puts out, kept in a range without a clamp that would stop their gradient."""

from __future__ import annotations

import math

from torch import Tensor

LOG_RANGE = math.log(1e3)


def soft_bounded_log(s: Tensor) -> Tensor:
    """s / (1 + |s| / log 1000): near 0 the identity, never beyond 1/1000 and 1000 as a scale (zuko's bound)."""
    return s / (1 + s.abs() / LOG_RANGE)
