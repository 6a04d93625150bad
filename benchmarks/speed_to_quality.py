"""Minutes of `vlae train` until the NLL of the test images is under so many nats.

    python benchmarks/speed_to_quality.py                    # mnist-static to 80 nats: more than an hour on two cores
    python benchmarks/speed_to_quality.py --evaluate-only    # of the training that is there

The training is `vlae train` as it is, in a process of its own; the clock runs from its start, so that imports,
compilation and validation count. After every epoch a copy of the checkpoint is kept, and when all is done, the first
epoch whose averaged weights are good enough is searched for by bisection. The NLL is that of all test images, by
difference: their -ELBO, less the gap to the NLL of some (`vlae.evaluation.Likelihoods.of_all`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from training import table

from vlae import VlaeError, cli
from vlae.evaluation.report import evaluate_dataset
from vlae.files import replacing, write_text
from vlae.training.checkpoints import model_of
from vlae.training.settings import DataSettings
from vlae.training.speed import machine

POLL = 1.0  # seconds


@dataclass
class Quality:
    """What an epoch's averaged weights are worth, nats, after so many minutes."""

    epoch: int
    minutes: float
    negative_elbo: float
    nll: float
    error: float


# -- training ---------------------------------------------------------------------------------------------------------


def train(config: str, run: Path, options: list[str]) -> None:
    """Trains, and keeps a copy of each epoch's checkpoint in `run/epochs`; its modification time is the epoch's end."""
    command = [sys.executable, "-m", "vlae", "train", "--config", config]
    command += ["--run.root", str(run.parent), "--run.name", run.name, *options]
    started = time.time()
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            keep(run, started)
            time.sleep(POLL)
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        raise VlaeError(f"the training failed ({process.returncode}): see above")
    keep(run, started)


def keep(run: Path, started: float) -> None:
    """Copies the last checkpoint, if it is new since `started`; checkpoints are replaced whole."""
    last, epochs = run / "ckpts" / "last.ckpt", run / "epochs"
    if not last.is_file():
        return
    with last.open("rb") as stream:  # one file, even if another takes its name meanwhile
        ended = os.fstat(stream.fileno()).st_mtime_ns
        copy = epochs / f"{ended}.ckpt"
        if ended < started * 1e9 or copy.exists():
            return
        write_text(epochs / "started", repr(started))
        with replacing(copy) as temporary, temporary.open("wb") as target:
            shutil.copyfileobj(stream, target)
    os.utime(copy, ns=(ended, ended))


# -- evaluation -------------------------------------------------------------------------------------------------------


def quality(checkpoint: Path, started: float, samples: int, images: int) -> Quality:
    """Evaluates one epoch's weights on the whole test set."""
    model = model_of(checkpoint).eval()
    test = DataSettings(**model.metadata["data"]).load("test")
    result = evaluate_dataset(model, test, samples, images)
    assert result.negative_elbo is not None and result.nll is not None
    nll = (result.nll, 0.0) if result.nll_of_all is None else (result.nll_of_all, result.nll_of_all_error or 0.0)
    minutes = (checkpoint.stat().st_mtime - started) / 60
    return Quality(model.metadata["epochs"], minutes, result.negative_elbo, *nll)


def first_under(nats: float, run: Path, samples: int, images: int) -> tuple[list[Quality], Quality | None]:
    """All epochs that were looked at, and the first one under so many nats, taking the NLL to fall as training goes."""
    checkpoints = sorted((run / "epochs").glob("*.ckpt"))
    if not checkpoints:
        raise VlaeError(f"{run} has no epochs/*.ckpt: train it with this command, without --evaluate-only")
    started = float((run / "epochs" / "started").read_text())

    seen: dict[int, Quality] = {}

    def good(index: int) -> bool:
        seen[index] = found = quality(checkpoints[index], started, samples, images)
        about = f"-ELBO {found.negative_elbo:.2f}, NLL {found.nll:.2f} ± {found.error:.2f}"
        print(f"epoch {found.epoch}, {found.minutes:.1f} minutes: {about}", flush=True)
        return found.nll < nats

    low, high = 0, len(checkpoints) - 1
    if not good(high):
        return list(seen.values()), None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle + 1, high)
    return [seen[index] for index in sorted(seen)], seen[high]


def report(nats: float, run: Path, samples: int, images: int) -> str:
    """The table and the answer, as Markdown."""
    looked_at, first = first_under(nats, run, samples, images)
    rows = [
        (str(q.epoch), f"{q.minutes:.1f}", f"{q.negative_elbo:.2f}", f"{q.nll:.2f} ± {q.error:.2f}") for q in looked_at
    ]
    answer = (
        f"**Not under {nats:g} nats** after {looked_at[-1].minutes:.1f} minutes."
        if first is None
        else f"**Under {nats:g} nats after {first.minutes:.1f} minutes**, epoch {first.epoch}."
    )
    about = (
        f"Machine: {machine()}. NLL of all test images by difference, K = {samples:,}, the gap of {images:,} of them; "
        "± is of the mean of these test images."
    )
    return "\n\n".join([about, table(("epoch", "minutes", "-ELBO", "NLL"), rows), answer])


def main() -> int:
    parser = argparse.ArgumentParser(description="Minutes of training until the test NLL is under so many nats.")
    parser.add_argument("--config", default="mnist-static", help="a configuration's name or file")
    parser.add_argument("--nats", type=float, default=80.0)
    parser.add_argument("--run", type=Path, default=Path("outputs/speed-to-quality"), help="the run's directory")
    parser.add_argument("--evaluate-only", action="store_true", help="of the training that is there")
    parser.add_argument("--samples", type=int, default=1000, help="K")
    parser.add_argument("--images", type=int, default=100, help="whose gap between -ELBO and NLL is measured")
    parser.add_argument("--write", type=Path, help="also write the table to this Markdown file")
    options, others = parser.parse_known_args()
    if options.samples < 1 or options.images < 1:
        return cli.fail("--samples and --images must be positive")
    try:
        if not options.evaluate_only:
            if (options.run / "epochs").exists():
                raise VlaeError(f"{options.run} has epochs of another training: --evaluate-only, or another --run")
            train(options.config, options.run, others)
        elif others:
            return cli.fail(f"unknown option {others[0]}")
        text = report(options.nats, options.run, options.samples, options.images)
        print(text)
        if options.write:
            write_text(options.write, text + "\n")
    except (VlaeError, OSError) as error:
        return cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
