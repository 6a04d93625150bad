"""A rate that is led along a rising capacity."""

from __future__ import annotations

from torch import Tensor

from vlae.errors import require_numbers
from vlae.models.base import Bound
from vlae.objectives.elbo import Objective
from vlae.objectives.schedules import Linear, Schedule, as_weight


class Capacity(Objective):
    """distortion + gamma * |rate - C|, C rising over training (Burgess et al. 2018, arXiv 1804.03599, equation 8).

    The rate inside the bars is the batch's mean. With a large gamma the rate follows C closely, up as well as down.

    Args:
        max_nats: where C ends, in nats per image; or a schedule of C itself.
        gamma: how strongly the rate is held; a number or a schedule.
        finish: C rises linearly from 0 until this share of the training, then stays. Not used with a schedule.
    """

    needs_rate = raises_rate = True

    def __init__(self, max_nats: float | Schedule = 25.0, gamma: float | Schedule = 100.0, finish: float = 0.5):
        super().__init__()
        as_weight("max_nats", max_nats)
        require_numbers("Capacity", finish=finish)
        self.capacity = max_nats if isinstance(max_nats, Schedule) else Linear(0.0, max_nats, finish=finish)
        self.gamma = as_weight("gamma", gamma)

    def forward(self, bound: Bound, progress: float) -> Tensor:
        """The loss at this progress."""
        off = (bound.rate.mean() - self.capacity(progress)).abs()
        return bound.distortion.mean() + self.gamma(progress) * off
