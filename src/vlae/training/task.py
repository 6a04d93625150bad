"""One training step and one validation pass, as a Lightning module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from vlae import processes
from vlae.data import Batch
from vlae.errors import VlaeError
from vlae.evaluation import LatentStatistics, bits_of_groups, keyed_generators, noise_means
from vlae.models.base import Bound, LatentVariableModel
from vlae.models.saving import entered_as
from vlae.nn.quantise import Codebook
from vlae.objectives import Objective
from vlae.objectives.parts import Part
from vlae.training.checkpoints import FORMAT


class OptimizerSettings:
    """How the weights move.

    Args:
        name: "adam", "adamw" or "adamax" (the paper's).
        lr: the highest learning rate.
        warmup_steps: steps of a linear rise to it.
        schedule: after the warm-up: "constant", "cosine" (to `final_lr` at the end of training) or "plateau" (halved
            when the validation bound has not improved by 0.01 nats for `patience` epochs).
        final_lr: where the cosine ends, as a fraction of lr.
        patience: epochs, for "plateau".
        weight_decay: of the optimiser.
        betas: of the optimiser.
        frozen: parts of the model that stay as they are, such as encoder and decoder while a new prior is learned.
            Running statistics and dropout, where a part has them, are those of any training.
    """

    def __init__(
        self,
        name: str = "adamax",
        lr: float = 2e-3,
        warmup_steps: int = 0,
        schedule: str = "cosine",
        final_lr: float = 0.0,
        patience: int = 5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        frozen: Sequence[str] = (),
    ):
        kinds: dict[str, Callable[..., Optimizer]] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "adamax": torch.optim.Adamax,
        }
        if name not in kinds:
            raise VlaeError(f"optimizer.name must be one of {', '.join(kinds)}; got {name!r}")
        if schedule not in ("constant", "cosine", "plateau"):
            raise VlaeError(f"optimizer.schedule must be 'constant', 'cosine' or 'plateau'; got {schedule!r}")
        if not 0 < lr < math.inf:
            raise VlaeError(f"optimizer.lr must be positive; got {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise VlaeError(f"optimizer.betas must be in [0, 1); got {betas}")
        for key, value in (("warmup_steps", warmup_steps), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise VlaeError(f"optimizer.{key} must not be negative; got {value}")
        if patience < 1:
            raise VlaeError(f"optimizer.patience must be at least 1; got {patience}")
        if not 0 <= final_lr <= 1:
            raise VlaeError(f"optimizer.final_lr is a fraction of optimizer.lr, from 0 to 1; got {final_lr}")
        if isinstance(frozen, str):
            raise VlaeError(f"optimizer.frozen is a list of names, such as [{frozen}]; got {frozen!r}")
        self.name, self.lr, self.schedule, self.patience = name, lr, schedule, patience
        self.warmup_steps, self.final_lr = warmup_steps, final_lr
        self.weight_decay, self.betas, self.frozen = weight_decay, tuple(betas), tuple(frozen)
        self.make = partial(kinds[name], lr=lr, weight_decay=weight_decay, betas=tuple(betas), foreach=True)

    def freeze(self, model: nn.Module) -> list[nn.Parameter | Codebook]:
        """Takes the parts of a model that are `frozen` out of its training, and returns what it switched off."""
        learned = {name for name, part in model.named_children() if any(True for _ in part.parameters())}
        # A codebook of moving averages has no parameters, and is trained all the same.
        parts = {name: part for name, part in model.named_children() if name in learned or isinstance(part, Codebook)}
        if unknown := [name for name in self.frozen if name not in parts]:
            raise VlaeError(f"optimizer.frozen names parts of the model, {', '.join(parts)}; got {', '.join(unknown)}")
        if learned and not learned - set(self.frozen):
            raise VlaeError("optimizer.frozen names all parts of the model: leave out what is to be trained")
        frozen = [parts[name] for name in self.frozen]
        stopped: list[nn.Parameter | Codebook] = [p for part in frozen for p in part.parameters() if p.requires_grad]
        stopped += [part for part in frozen if isinstance(part, Codebook) and not part.still]
        for each in stopped:
            each.requires_grad_(False)
        return stopped

    def factor(self, step: int, total: int) -> float:
        """The learning rate at a step of `total`, as a fraction of `lr`."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule != "cosine":
            return warmup
        share = min(max(step - self.warmup_steps, 0) / max(total - self.warmup_steps, 1), 1.0)
        return warmup * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))

    @property
    def bad_epochs(self) -> int:
        """What PyTorch calls the patience of a plateau: it acts one epoch after it."""
        return self.patience - 1

    def apply(self, checkpoint: dict[str, Any]) -> None:
        """Sets the optimiser and the schedules of a checkpoint, which are of the same kinds, to these settings.

        They would come with the settings of their time otherwise, and a lower rate would be asked for in vain. What a
        plateau has made of the rate is kept. Nothing changes where the settings are the same.
        """
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group["lr"] *= self.lr / group["initial_lr"]
                group |= {"initial_lr": self.lr, "weight_decay": self.weight_decay, "betas": self.betas}
        for state in checkpoint["lr_schedulers"]:
            if "base_lrs" in state:
                state["base_lrs"] = [self.lr] * len(state["base_lrs"])
            if "patience" in state:
                state["patience"] = self.bad_epochs


class Diverged(VlaeError):
    """A training has come to NaN or infinity: its settings are to blame, and its log tells how it came about."""


class BadStepGuard:
    """Counts steps whose loss or gradient is NaN or infinite, and stops training after `limit` of them in a row."""

    def __init__(self, limit: int):
        self.limit, self.total, self.in_a_row = limit, 0, 0

    def good(self) -> None:
        """A step that could be taken."""
        self.in_a_row = 0

    def bad(self, step: int, lr: float) -> None:
        """A step that was skipped; raises at the limit."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            self.stop(step, lr)

    def stop(self, step: int, lr: float) -> NoReturn:
        """Ends a training whose latest steps were all skipped."""
        steps = "1 step" if self.in_a_row == 1 else f"{self.in_a_row} steps in a row"
        raise Diverged(
            f"training stopped at step {step}: the loss or its gradient was NaN or infinite in {steps}; lower "
            f"optimizer.lr (now {lr:g}), add optimizer.warmup_steps, lower trainer.gradient_clip or set "
            "trainer.precision=32-true, then --resume from the last checkpoint, or train again where there is none"
        )


class Task(pl.LightningModule):
    """Trains a model under an objective. Its validation is of the model's own bound, whatever the objective.

    The noise of a step is a function of (seed, epoch, batch) alone, so that a resumed run repeats the original bit for
    bit without any stored generator state. Several processes share each batch (`vlae.processes`): loss, noise and
    gradient are those of the whole batch.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        objective: Objective,
        optimizer: OptimizerSettings,
        seed: int = 0,
        gradient_clip: float = 100.0,
        max_bad_steps: int = 20,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.stopped = optimizer.freeze(model) if optimizer.frozen else []
        objective.prepare(model)
        self.model, self.objective, self.settings = model, objective, optimizer
        self.seed, self.gradient_clip = seed, gradient_clip
        self.guard = BadStepGuard(max_bad_steps)
        self.training_terms: list[Tensor] = []
        self.validated: list[tuple[Tensor, LatentStatistics]] = []  # of this process's batches

    def configure_optimizers(self) -> Any:
        """The optimiser and its per-step schedule; a plateau schedule is stepped after validation."""
        optimizer = self.settings.make(self.trained)
        total = int(self.trainer.estimated_stepping_batches)
        schedules: list[Any] = [LambdaLR(optimizer, partial(self.settings.factor, total=total))]
        if self.settings.schedule == "plateau":
            schedules.append(
                ReduceLROnPlateau(
                    optimizer,
                    mode="max",
                    factor=0.5,
                    patience=self.settings.bad_epochs,
                    threshold=0.01,
                    threshold_mode="abs",
                )
            )
        return [optimizer], schedules

    def teardown(self, stage: str) -> None:
        """Leaves the model as it was found: another training of it may train what this one did not."""
        for each in self.stopped:
            each.requires_grad_(True)

    @property
    def parts(self) -> list[Part]:
        """The objective and all parts within it."""
        return [part for part in self.objective.modules() if isinstance(part, Part)]

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimiser trains: the model, and what the objective has learned beside it."""
        return [*self.model.parameters(), *(parameter for part in self.parts for parameter in part.learned())]

    @property
    def progress(self) -> float:
        """How much of the training is done, 0 to 1."""
        return min(self.global_step / max(int(self.trainer.estimated_stepping_batches), 1), 1.0)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step, or none where it would do harm."""
        with processes.batch_of(batch.total or len(batch.images)):
            self._step(batch, batch_idx)

    def _step(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(step_seed(self.seed, self.current_epoch, batch_idx))
        optimizer: Any = self.optimizers()
        images = batch.images.contiguous(memory_format=torch.channels_last)
        context = self.model.context_of(batch.labels, batch.factors)
        loss, bound = self.objective.compute(self.model, images, self.progress, context)
        optimizer.zero_grad()
        # The gradients of all processes add up to that of the whole batch's loss, and Lightning takes their mean.
        self.manual_backward(loss * self.trainer.world_size)
        for parameter in self.objective.frozen(self.model, self.global_step, self.progress):
            parameter.grad = None  # the optimiser passes over it
        clip = self.gradient_clip or math.inf  # which gives the norm and changes nothing
        norm = torch.nn.utils.clip_grad_norm_(self.trained, clip, foreach=True)
        if not torch.isfinite(loss + norm):
            self.guard.bad(self.global_step, self.settings.lr)
            return
        self.guard.good()
        optimizer.step()
        schedulers: Any = self.lr_schedulers()
        if not isinstance(schedulers, list):
            schedulers.step()
        elif self.global_step <= self.settings.warmup_steps:
            # After the warm-up the plateau schedule alone owns the rate: this one would set it back at every step.
            schedulers[0].step()
        self.objective.update(bound)
        self.training_terms.append(terms_of(bound))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The bound of a batch, with noise keyed by image; processes take batches in turn."""
        if not processes.mine(batch_idx):
            return
        context = self.model.context_of(batch.labels, batch.factors)
        generators = keyed_generators(batch.indices.tolist(), self.seed)
        bound = self.model.elbo(batch.images, generator=generators, context=context)
        statistics = LatentStatistics.of(bound.rate_per_dimension, noise_means(self.model, batch.images, context))
        self.validated.append((terms_of(bound).cpu(), statistics))

    def on_validation_epoch_start(self) -> None:
        """Starts the validation's sums."""
        self.validated = []

    def on_validation_epoch_end(self) -> None:
        """Logs validation means."""
        validated, every = processes.in_turn(lambda: self.validated), LatentStatistics()
        for _, statistics in validated:
            every.merge(statistics)
        metrics = mean_terms("validation", [terms for terms, _ in validated])
        for name in ("active_units", "perplexity"):  # perplexity is of discrete codes, active units of all others
            if (value := getattr(every, name)) is not None:
                metrics[f"validation/{name}"] = float(value)
        if every.count:
            groups = bits_of_groups(self.model, every.bits_per_dimension)
            metrics |= {f"validation/bits_{name}": bits for name, bits in groups.items()}
        self.log_dict(metrics)  # the same in all processes

    def refuse_nonsense(self) -> None:
        """Stops a training whose bound on the validation images is no number, before these weights are kept."""
        names = ["distortion", "rate"] if self.model.has_bound else ["distortion"]
        metrics = self.trainer.callback_metrics
        if all(math.isfinite(metrics.get(f"validation/{name}", 0.0)) for name in names):
            return
        advice = "train again with" if self.current_epoch == 0 else "--resume from the epoch before, with"
        raise Diverged(
            f"training stopped after epoch {self.current_epoch + 1}: the bound on the validation images is NaN or "
            f"infinite, so these weights are of no use and are not kept; {advice} a lower optimizer.lr (now "
            f"{self.settings.lr:g}), more optimizer.warmup_steps or a lower trainer.gradient_clip"
        )

    def on_train_start(self) -> None:
        """Sets the data and the rate to the epoch at hand.

        Lightning restores a loader only within an epoch, not between two. A checkpoint's rate is of the schedule of its
        time, which may have been over.
        """
        loader: Any = self.trainer.train_dataloader
        loader.set_epoch(self.current_epoch)
        schedule: Any = self.lr_schedulers()
        if not isinstance(schedule, list):  # a plateau's rate is what the checkpoint says
            groups = schedule.optimizer.param_groups
            for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["lr"] = base * factor(schedule.last_epoch)

    def on_train_end(self) -> None:
        """Stops a training that has come to its end without a single step."""
        if self.guard.in_a_row and not self.global_step:
            self.guard.stop(self.global_step, self.settings.lr)

    def on_train_epoch_start(self) -> None:
        """Starts the epoch's sums."""
        self.training_terms = []

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's training metrics and steps a plateau schedule.

        The epoch has been reported by now and its weights have not been kept: a training that is of no use stops here.
        """
        self.refuse_nonsense()
        self.log_dict(self.training_metrics())
        schedulers: Any = self.lr_schedulers()
        if isinstance(schedulers, list):
            schedulers[1].step(self.trainer.callback_metrics["validation/elbo"])

    def training_metrics(self) -> dict[str, float]:
        """Means over the epoch's training steps, the learning rate, and the number of steps skipped so far."""
        optimizer: Any = self.optimizers()
        extra = {"train/lr": float(optimizer.param_groups[0]["lr"]), "train/bad_steps": float(self.guard.total)}
        return {**mean_terms("train", self.training_terms), **extra}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to rebuild the model without a configuration, and the count of bad steps.

        The metadata say how many nats of the rate were free when these weights were kept.
        """
        checkpoint["vlae"] = {
            "format": FORMAT,
            "model": entered_as(type(self.model)),
            "arguments": self.model.config,
            "metadata": {**self.model.metadata, "free_nats_at_end": self.objective.floor(self.progress)},
            "bad_steps": self.guard.total,
            "training": self.kinds,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the count of bad steps back; the optimiser goes on with the settings that are asked for now."""
        self.guard.total = checkpoint["vlae"]["bad_steps"]
        self.settings.apply(checkpoint)

    @property
    def kinds(self) -> dict[str, str]:
        """What can't be another when a training goes on."""
        return {
            "optimizer.name": self.settings.name,
            "optimizer.schedule": self.settings.schedule,
            "objective": type(self.objective).__name__,
            "objective.parts": ", ".join(type(part).__name__ for part in self.parts),
            "seed": str(self.seed),
        }


def step_seed(seed: int, epoch: int, batch: int) -> int:
    """A seed for one training step, the same in all processes, another one for every step of a training.

    PyTorch's CPU generator takes the low 32 bits of it: of some 65,000 steps two may share their noise.
    """
    return ((seed * 1_000_003 + epoch) * 1_000_003 + batch) * 1_009 % 2**63


def terms_of(bound: Bound) -> Tensor:
    """Sums of distortion and rate over a batch, and its size, [3], detached."""
    terms = torch.stack([bound.distortion.sum(), bound.rate.sum()]).detach().double()
    return torch.cat([terms, terms.new_tensor([len(bound.rate)])])


def mean_terms(stage: str, terms: list[Tensor]) -> dict[str, float]:
    """Means per image of distortion, rate and the bound over batches, named `<stage>/...`; empty without batches."""
    if not terms:
        return {}
    distortion, rate, count = torch.stack(terms).sum(0).tolist()
    means = {"distortion": distortion / count, "rate": rate / count, "elbo": -(distortion + rate) / count}
    return {f"{stage}/{name}": value for name, value in means.items()}
