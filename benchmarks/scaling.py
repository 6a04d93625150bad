"""Training speed at one and more processes that share each batch, one thread each: a Markdown table.

    python benchmarks/scaling.py                                   # MNIST's quick model, 1 and 2 processes
    python benchmarks/scaling.py --config digits --processes 1 2 4 --rounds 3

Each measurement is a training of its own, by torchrun; the speed is that of its last epoch, without validation, as
`metrics.csv` has it. Rounds alternate between the numbers of processes, so that a busy machine slows all of them; the
table has their medians. The batch is the same, so the work is: with n processes each has an n-th of it.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from vlae.machine import machine
from vlae.models import load

EPOCHS = 2  # the first one warms up


def images_per_second(processes: int, config: str, images: int, batch_size: int, directory: Path) -> float:
    """The speed of one short training."""
    name = f"with-{processes}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    options = {
        "data.limit": images,
        "data.validation_limit": batch_size,
        "data.batch_size": batch_size,
        "trainer.max_epochs": EPOCHS,
        "trainer.accelerator": "cpu",
        "trainer.compile": "false",
        "trainer.progress_bar": "false",
        "run.root": directory,
        "run.name": name,
        "run.overwrite": "true",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [*launch, "-m", "--", "vlae", "train", "--config", config, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    with (directory / name / "logs" / "metrics.csv").open(newline="") as file:
        return float(list(csv.DictReader(file))[-1]["train/images_per_second"])


def table(speeds: dict[int, list[float]], batch_size: int, parameters: int) -> str:
    """The medians, as Markdown."""
    medians = {count: statistics.median(values) for count, values in speeds.items()}
    fewest = min(medians)
    lines = [
        "| processes | images/s | speed-up | of the ideal | batch of each | sent by each per step |",
        "|--:" * 6 + "|",
    ]
    for count, speed in medians.items():
        ratio = speed / medians[fewest]
        sent = 2 * (count - 1) / count * 4 * parameters / 2**20  # a ring's all-reduce of float32 gradients
        lines.append(
            f"| {count} | {speed:.0f} | {ratio:.2f} | {ratio * fewest / count:.0%} | {batch_size / count:g} | "
            f"{sent:.1f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mnist", help="a configuration's name or file, without batch normalisation")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=2560, help="of an epoch")
    parser.add_argument("--batch_size", type=int, default=128, help="of all processes together")
    parser.add_argument("--rounds", type=int, default=3)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    speeds: dict[int, list[float]] = {count: [] for count in sorted(settings.processes)}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(settings.rounds):
            for count, values in speeds.items():
                sizes = (settings.config, settings.images, settings.batch_size)
                values.append(images_per_second(count, *sizes, Path(directory)))
                print(f"{count} processes: {values[-1]:.0f} images/s", file=sys.stderr)
        model = load(Path(directory) / f"with-{min(speeds)}" / "model")
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"`{settings.config}` ({parameters:,} parameters), batches of {settings.batch_size}, one thread each, "
        f"not compiled; median of {settings.rounds}\n{machine()}\n"
    )
    print(table(speeds, settings.batch_size, parameters))


if __name__ == "__main__":
    main()
