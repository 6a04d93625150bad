"""What there is to compute with, and what things were measured with: to be named beside every time and result."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def machine(device: torch.device | None = None) -> str:
    """What it runs on, in one line."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    device = device or torch.device("cpu")
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return f"{gpu}{name}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"


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
