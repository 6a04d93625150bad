"""One epoch on each of several real data sets, against the untrained model: `python benchmarks/one_epoch.py`.

For each set: the -ELBO of the model at its random start and after one epoch of `vlae train` on held-out images, nats
per image, and the fraction that the epoch took off. Needs the data in $VLAE_DATA, or downloads them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from vlae import VlaeError, load
from vlae.cli import main as command_line
from vlae.data import Batches, ImageDataset
from vlae.evaluation import evaluate
from vlae.models import LatentVariableModel
from vlae.models.saving import build
from vlae.training.settings import DataSettings
from vlae.training.speed import machine

SMALL_SET = ["--data.batch_size", "32", "--optimizer.warmup_steps", "10"]
CROPS = "{path: kodak, crop: 32, crops_per_epoch: 5000}"
SETS: dict[str, list[str]] = {
    "fashion_mnist": ["--config", "mnist", "--data.name", "fashion_mnist"],
    "caltech101_silhouettes": [
        *("--config", "mnist", "--data.name", "caltech101_silhouettes", "--data.binarize", "null"),
        *SMALL_SET,
    ],
    "binarized_mnist": ["--config", "mnist", "--data.name", "binarized_mnist", "--data.binarize", "null"],
    "kodak": ["--config", "cifar10", "--data.name", "folder", "--data.options", CROPS, *SMALL_SET],
}


def bound(model: LatentVariableModel, dataset: ImageDataset) -> float:
    """-ELBO in nats per image."""
    batches = Batches(dataset, 100)
    return evaluate(model, lambda: ((b.images, b.indices.tolist()) for b in batches)).negative_elbo


def one_epoch(name: str, images: int, folder: Path) -> str:
    """Trains one epoch and returns the table's row."""
    started = time.monotonic()
    options = ["--trainer.max_epochs", "1", "--run.root", str(folder), "--run.name", name]
    if command_line(["train", *SETS[name], *options, "--trainer.progress_bar", "false"]):
        raise VlaeError(f"training on {name} failed")
    minutes = (time.monotonic() - started) / 60
    trained = load(folder / name)
    torch.manual_seed(0)
    untrained = build(type(trained).__name__, trained.config).eval()
    held_out = DataSettings(**trained.metadata["data"]).load("test").subset(images)
    before, after = bound(untrained, held_out), bound(trained, held_out)
    return (
        f"| {held_out.protocol} | {before:.2f} | {after:.2f} | {100 * (1 - after / before):.0f}% | {minutes:.1f} min |"
    )


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--images", type=int, default=500, help="held-out images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [one_epoch(name, arguments.images, Path(folder)) for name in arguments.sets]
    print(
        f"\n{machine()}\n\n| held-out data | -ELBO untrained | after one epoch | less | time |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
