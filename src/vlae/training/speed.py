"""What makes training fast on this machine: number format, memory layout, compilation."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vlae.machine import cpp_compiler
from vlae.machine import machine as machine  # named beside every time here
from vlae.models.base import LatentVariableModel


def best_precision(device: torch.device) -> str:
    """Lightning's name for the fastest safe precision: bf16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return "bf16-mixed" if native else "32-true"


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: on the CPU a C++ compiler and Python's headers."""
    if device.type == "cpu":
        headers = Path(sysconfig.get_path("include")) / "Python.h"
        return headers.is_file() and cpp_compiler() is not None
    return device.type == "cuda"


def compile_networks(model: LatentVariableModel) -> None:
    """Compiles the parts of a model that hold nearly all its arithmetic, in place.

    Distributions stay plain Python, and names in the state dict stay as they are.
    """
    for network in model.networks():
        network.compile(dynamic=False)


@contextmanager
def eager() -> Iterator[None]:
    """Runs compiled modules uncompiled inside: for the odd batch sizes of evaluation, not worth a compilation."""
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")
