"""The smallest rate at a distortion that is good enough."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlae.errors import VlaeError, require_numbers
from vlae.models.base import Bound, LatentVariableModel
from vlae.objectives.elbo import Objective


class GECO(Objective):
    r"""rate + lambda * (distortion - target), lambda moved so that the distortion reaches its target and no less.

    Generalised ELBO with constrained optimisation (Rezende and Viola 2018, arXiv 1810.00597). After each step

    .. math:: \log \lambda \mathrel{+}= speed \cdot \mathrm{clip}(\bar c, -1, 1), \quad
        \bar c = decay \, \bar c + (1 - decay)(\overline{distortion} - target)

    The clip is ours: at the start of training the distortion is hundreds of nats off, and lambda would explode. lambda
    stays in [1/limit, limit]. A target that the model can't reach drives it to the limit.

    Args:
        target_nats: the distortion to reach, in nats per image; give this, or
        target_per_dim: in nats per sub-pixel.
        speed: of log lambda, per step and nat, and at most per step.
        decay: of the constraint's moving average, which starts at its first value.
        limit: of lambda and of its inverse.
    """

    needs_rate = True
    log_multiplier: Tensor
    average: Tensor
    started: Tensor

    def __init__(
        self,
        target_nats: float | None = None,
        target_per_dim: float | None = None,
        speed: float = 0.01,
        decay: float = 0.9,
        limit: float = 1e4,
    ):
        super().__init__()
        if (target_nats is None) == (target_per_dim is None):
            raise VlaeError("GECO needs one distortion to reach: give target_nats (per image) or target_per_dim")
        target = {"target_per_dim": target_per_dim} if target_nats is None else {"target_nats": target_nats}
        require_numbers("GECO", **target, speed=speed, decay=decay, limit=limit)
        if not speed > 0 or not 0 <= decay < 1 or not limit > 1:
            raise VlaeError(
                f"GECO needs speed > 0, 0 <= decay < 1 and limit > 1; got {speed}, {decay} and {limit} in this order"
            )
        self.target_nats, self.target_per_dim = target_nats, target_per_dim
        self.speed, self.decay, self.log_limit = speed, decay, math.log(limit)
        self.register_buffer("log_multiplier", torch.zeros((), dtype=torch.float64))
        self.register_buffer("average", torch.zeros((), dtype=torch.float64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @property
    def multiplier(self) -> float:
        """lambda."""
        return float(self.log_multiplier.exp())

    def compute(
        self, model: LatentVariableModel, x: Tensor, progress: float, context: Tensor | None = None
    ) -> tuple[Tensor, Bound]:
        """The loss of images x [B, C, H, W], and their bound."""
        if self.target_per_dim is not None:
            self.target_nats = self.target_per_dim * x[0].numel()
        return super().compute(model, x, progress, context)

    def floor(self, progress: float) -> None:
        """None: the rate is not what the bound alone asks for."""

    def forward(self, bound: Bound, progress: float) -> Tensor:
        """The loss with the present lambda."""
        return bound.rate.mean() + self.multiplier * self.constraint(bound)

    def constraint(self, bound: Bound) -> Tensor:
        """How far the batch's distortion is above its target, in nats."""
        if self.target_nats is None:
            raise VlaeError("a target per sub-pixel needs the images: call compute(model, x, progress)")
        return bound.distortion.mean() - self.target_nats

    @torch.no_grad()
    def update(self, bound: Bound) -> None:
        """Moves the average and lambda."""
        constraint = self.constraint(bound).to(self.average)
        if self.started:
            self.average.lerp_(constraint, 1 - self.decay)
        else:
            self.average.copy_(constraint)
            self.started.fill_(True)
        self.log_multiplier.add_(self.speed * self.average.clamp(-1, 1)).clamp_(-self.log_limit, self.log_limit)
