"""Training objectives made from the bound's two terms. The bound itself is reported by the model, unclipped, always."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlae.errors import VlaeError, require_numbers, require_positive
from vlae.models.base import Bound, LatentVariableModel
from vlae.objectives.parts import Part
from vlae.objectives.schedules import Schedule, as_weight


class Objective(Part):
    """What training minimises: a scalar in nats per image, from a batch's bound and the progress of training.

    Simple ones are functions of the bound, `forward`. Those that need more than one z per image, or the images, have a
    `compute` of their own. `prepare` is called once before training, `update` after each step that was taken. What
    adapts is in buffers or in `get_extra_state`, so that it travels with checkpoints; parameters are trained with the
    model's (`learned`).
    """

    # Whether the loss weighs the rate in a way that needs one, and whether it may push the rate up.
    needs_rate = False
    raises_rate = False

    def check(self, model: LatentVariableModel) -> None:
        """Refuses a model that it can't train, before anything is written."""
        kind = type(self).__name__
        if self.needs_rate and not model.has_bound:
            raise VlaeError(f"{kind} weighs the rate, and a {type(model).__name__} has none: train it by a plain ELBO")
        if self.raises_rate and model.discrete:
            raise VlaeError(
                f"{kind} may raise the rate, which makes the prior of a {type(model).__name__} worse and its codes no "
                "better: train it by an ELBO without free bits"
            )

    def prepare(self, model: LatentVariableModel) -> None:
        """Called once before training, for what depends on the model's shapes."""

    def compute(
        self, model: LatentVariableModel, x: Tensor, progress: float, context: Tensor | None = None
    ) -> tuple[Tensor, Bound]:
        """The loss of images x [B, C, H, W], averaged over the batch, and the bound to report beside it.

        Where several processes train on rows of one batch, x are the own rows, and loss and bound are the whole
        batch's, the same in all of them; only the bound's z is that of x.
        """
        bound = model.elbo(x, context=context).whole()
        loss = self(bound, progress)
        return loss if bound.penalty is None else loss + bound.penalty.mean(), bound

    def frozen(self, model: LatentVariableModel, step: int, progress: float) -> list[nn.Parameter]:
        """The parameters that this training step leaves alone: none, unless inference and generation take turns."""
        return []

    def forward(self, bound: Bound, progress: float) -> Tensor:
        """The loss, averaged over the batch. progress: 0 at the start of training, 1 at its end."""
        raise NotImplementedError(f"{type(self).__name__} needs more than the bound: call compute(model, x, progress)")

    def update(self, bound: Bound) -> None:
        """Called after each training step, for objectives that adapt."""

    def floor(self, progress: float) -> float | None:
        """Nats that free bits hold the rate above, at this progress; None where it is held up in another way."""
        return None if self.raises_rate else 0.0


class ELBO(Objective):
    """distortion + beta * rate, with free bits: the rate of each group is not pushed below a floor.

    The loss is mean_x distortion + beta * sum_j max(free_nats, mean_x rate_j) over groups j (Kingma et al. 2016,
    appendix C.8; the mean over the batch comes before the maximum).

    Args:
        beta: multiplies the rate and nothing else; a number or a schedule.
        free_nats: the floor of each group in nats (the field's "free bits"); a number or a schedule. The paper's 0.01
            nats per data dimension is 7.84 per image at 28x28.
        per: the groups: "image" (one; the safe reading under a flow prior), "level" (of a ladder; else as "image"),
            "channel" (the first latent dimension; of a ladder, and of vectors, as "dimension"), or "dimension" (every
            latent number).
    """

    def __init__(self, beta: float | Schedule = 1.0, free_nats: float | Schedule = 0.0, per: str = "image"):
        super().__init__()
        if per not in ("image", "level", "channel", "dimension"):
            raise VlaeError(f"free bits are given per 'image', 'level', 'channel' or 'dimension'; got {per!r}")
        self.beta, self.free_nats, self.per = as_weight("beta", beta), as_weight("free_nats", free_nats), per
        self.raises_rate = free_nats != 0
        self.needs_rate = self.raises_rate or beta != 1

    def forward(self, bound: Bound, progress: float) -> Tensor:
        """The loss at this progress."""
        floor = self.free_nats(progress)
        rate = self.groups(bound).mean(0).clamp(min=floor).sum() if floor else bound.rate.mean()
        return bound.distortion.mean() + self.beta(progress) * rate

    def floor(self, progress: float) -> float | None:
        """The floor of each group, nats; None where a beta under 1 makes the rate cheaper than the bound does."""
        return None if self.beta(progress) < 1 else self.free_nats(progress)

    def groups(self, bound: Bound) -> Tensor:
        """The rate of each group in nats, [B, groups]."""
        rates = bound.rate_per_dimension
        if self.per == "level" and isinstance(bound.z, tuple):
            sizes = [level.shape[1:].numel() for level in bound.z]
            return torch.stack([level.sum(1) for level in rates.split(sizes, 1)], 1)
        if self.per in ("image", "level"):
            return bound.rate[:, None]
        return rates.flatten(2).sum(2) if self.per == "channel" and rates.ndim > 2 else rates.flatten(1)


class SoftFreeBits(Objective):
    """The paper's soft free bits: distortion + gamma * rate, gamma <= 1 moved by 10% steps to hold a target rate.

    After each `interval` steps, gamma goes up by 10% where the mean rate was more than 5% above the target, and down by
    10% where it was below it (Chen et al. 2017, appendix on CIFAR-10).

    Args:
        target_nats: the rate to hold, in nats per image.
        interval: training steps between moves.
        step: the relative size of a move.
        tolerance: how far above the target is still good.
        minimum: gamma never falls below it.
    """

    needs_rate = raises_rate = True
    gamma: Tensor
    total: Tensor
    count: Tensor

    def __init__(
        self,
        target_nats: float,
        interval: int = 20,
        step: float = 0.1,
        tolerance: float = 0.05,
        minimum: float = 1e-3,
    ):
        super().__init__()
        require_numbers("SoftFreeBits", target_nats=target_nats, step=step, tolerance=tolerance, minimum=minimum)
        require_positive("interval of soft free bits", interval)
        if not target_nats > 0:
            raise VlaeError(f"soft free bits need target_nats > 0; got {target_nats}")
        if not (0 < step < 1 and tolerance >= 0 and minimum > 0):
            raise VlaeError(
                "soft free bits need a step between 0 and 1, a tolerance of 0 or more and a minimum above 0; got "
                f"{step}, {tolerance} and {minimum}"
            )
        self.target_nats, self.interval, self.step = target_nats, interval, step
        self.tolerance, self.minimum = tolerance, minimum
        self.register_buffer("gamma", torch.ones((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, bound: Bound, progress: float) -> Tensor:
        """The loss with the present gamma."""
        return bound.distortion.mean() + float(self.gamma) * bound.rate.mean()

    @torch.no_grad()
    def update(self, bound: Bound) -> None:
        """Counts a step and moves gamma at the end of each interval."""
        self.total += bound.rate.mean()
        self.count += 1
        if self.count < self.interval:
            return
        rate = self.total / self.count
        if rate > (1 + self.tolerance) * self.target_nats:
            self.gamma.mul_(1 + self.step).clamp_(max=1)
        elif rate < self.target_nats:
            self.gamma.mul_(1 - self.step).clamp_(min=self.minimum)
        self.total.zero_()
        self.count.zero_()
