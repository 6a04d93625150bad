"""What there is to compute with, and what things were measured with: to be named beside every time and result."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from vlae import processes
from vlae.errors import VlaeError


def machine(device: torch.device | None = None) -> str:
    """What it runs on, in one line."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    device = device or torch.device("cpu")
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return f"{gpu}{name}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"


def find_device(name: str) -> torch.device:
    """Where to compute: "cpu", "cuda", "cuda:1" or another accelerator; "auto" is an accelerator if there is one.

    Without a number, each of several processes on a machine takes an accelerator of its own.

    Raises:
        VlaeError: there is none of this name here, or it has no float64, in which sums are kept.
    """
    here = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        name = "cpu" if here is None or here.type == "mps" else here.type
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) < 0:
        raise VlaeError(f"unknown device {name!r}: give auto, cpu, cuda or, with its number, cuda:1")
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if here is not None and here.type == device.type else 0
    if not (device.index or 0) < count:
        found = f"{here.type}, {count} of them" if count and here else f"{here.type}" if here else "none but the CPU"
        raise VlaeError(f"there is no device {name!r} here (found: {found}): leave --device out to compute on the CPU")
    if device.type == "mps":
        raise VlaeError("MPS lacks float64, in which sums are kept: leave --device out to compute on the CPU")
    return device if device.index is not None else torch.device(device.type, processes.index_on_machine() % count)


def versions() -> str:
    """The versions of what the numbers depend on, in one line."""
    found = [f"Python {platform.python_version()}"]
    for name in ("vlae", "torch", "zuko", "torchmetrics", "scikit-learn", "numpy"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def cpp_compiler() -> str | None:
    """The path of a C++ compiler that takes the options of GCC, `$CXX` before others; None where there is none."""
    names = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)
