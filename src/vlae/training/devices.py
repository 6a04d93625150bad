"""On how many devices, of how many machines, a training runs; Lightning and torchrun do the rest."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlae import processes
from vlae.errors import VlaeError

STRATEGIES = ("auto", "ddp")


class Layout(NamedTuple):
    """Where a training runs.

    Attributes:
        accelerator: "cpu" or "cuda".
        devices: processes on each machine, one for each device.
        num_nodes: machines.
    """

    accelerator: str
    devices: int
    num_nodes: int

    @property
    def processes(self) -> int:
        """How many there are in all; each has a share of every batch."""
        return self.devices * self.num_nodes


def layout(accelerator: str, devices: int, num_nodes: int) -> Layout:
    """The layout that was asked for. What torchrun has started goes before the numbers of a configuration.

    Raises:
        VlaeError: there are not as many GPUs, or torchrun started another number than was asked for.
    """
    # "auto" never means Apple's MPS, which lacks the float64 that sums and statistics are kept in.
    kind = accelerator if accelerator != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if (started := processes.launched()) > 1:
        here = processes.per_machine()
        for name, asked, given in (("devices", devices, here), ("num_nodes", num_nodes, started // here)):
            if asked not in (1, given):
                raise VlaeError(f"torchrun's trainer.{name} is {given} and the configuration's {asked}: leave it out")
        devices, num_nodes = here, started // here
    if kind == "cuda" and devices > (there := torch.cuda.device_count()):
        raise VlaeError(
            f"{devices} processes on a machine with {there} GPU{'s' * (there != 1)}: each needs one of its own; start "
            "fewer, or set trainer.accelerator=cpu"
        )
    return Layout(kind, devices, num_nodes)


def check_model(where: Layout, model: nn.Module) -> None:
    """Refuses a model whose batch statistics can't be those of the whole batch."""
    if where.processes > 1 and where.accelerator == "cpu" and any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise VlaeError(
            "this model has batch normalisation, which PyTorch synchronises between GPUs only: train it in one "
            "process, or without it (architecture=resnet or mlp, no mean_norm)"
        )


def strategy_for(where: Layout, name: str) -> Strategy | str:
    """Lightning's strategy: one process as it is, several by DistributedDataParallel.

    "auto" learns in the first step which parameters get no gradient, such as those of a prior that the objective leaves
    alone; "ddp" looks in every step, for objectives under which that changes.
    """
    if where.processes == 1:
        return "auto"
    search: dict[str, Any] = {"static_graph": True} if name == "auto" else {"find_unused_parameters": True}
    # Buffers are functions of the whole batch, so they are the same everywhere without being sent around.
    return DDPStrategy(broadcast_buffers=False, **search)
