"""Every model, likelihood, prior, posterior and objective after one small budget: `python benchmarks/family.py`.

For each row of `family.yaml`: writes its configuration, trains it with `vlae train`, loads the saved model again,
evaluates it on held-out images and draws samples. Training times are the CPU seconds of the whole `vlae train` command
with one thread, which other work on the machine hardly changes. What is done already is not done again, so that the
command can be stopped and repeated (`--again NAME` does one anew). Writes `table.md`, one JSON and one picture a row.
Needs the data in $VLAE_DATA, or downloads them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

import vlae
from vlae import VlaeError, figures
from vlae.evaluation.report import evaluate_dataset
from vlae.files import write_text
from vlae.sampling import prior_samples
from vlae.training.settings import DataSettings
from vlae.training.speed import machine

TABLE = ["model", "likelihood", "parameters", "distortion", "rate", "-ELBO", "NLL", "bits/dim", "training"]
TITLES = {
    "mnist": "MNIST, dynamic binarisation",
    "fashion": "Fashion-MNIST, 256 grey levels",
    "dsprites": "dSprites, binary 64x64",
    "kodak": "Kodak photographs, 32x32 RGB crops, 256 levels",
}


def configuration(plan: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The configuration of `vlae train` that a row means: budget, data set and the row's own settings."""
    result: dict[str, Any] = {}
    for part in (plan["budget"], plan["sets"][row["set"]]):
        for key, value in part.items():
            result[key] = {**result[key], **value} if isinstance(value, dict) and key in result else value
    for key, package in (("model", "vlae"), ("objective", "vlae.objectives")):
        if key in row:
            ((name, options),) = row[key].items()
            result[key] = {"class_path": f"{package}.{name}", "init_args": options}
    return result


def slug(row: dict[str, Any]) -> str:
    """A name for the row's files."""
    words = f"{row['set']} {row['name']} {row.get('likelihood') or likelihood(row)}".lower()
    return "-".join("".join(c if c.isalnum() else " " for c in words).split())


def likelihood(row: dict[str, Any]) -> str:
    """The row's likelihood in words."""
    (options,) = row["model"].values()
    return row.get("likelihood") or str(options.get("likelihood", "bernoulli")).replace("_", " ")


def train(row: dict[str, Any], plan: dict[str, Any], folder: Path) -> tuple[Path, float]:
    """Trains in a process of its own, with one thread, as a user would; the run's directory and the CPU seconds."""
    config = folder / f"{slug(row)}.yaml"
    write_text(config, yaml.safe_dump(configuration(plan, row), sort_keys=False))
    command = [sys.executable, "-m", "vlae", "train", "--config", str(config), "--run.root", str(folder / "runs")]
    command += ["--run.overwrite", "true"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / f"{slug(row)}.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise VlaeError(f"training failed: {(folder / f'{slug(row)}.log').read_text().strip().splitlines()[-1]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return folder / "runs" / slug(row), seconds


def measure(row: dict[str, Any], run: Path, folder: Path, images: int, nll_images: int, samples: int) -> dict[str, Any]:
    """Evaluates a trained row on the test split, and draws samples from it."""
    model = vlae.load(run)
    data = DataSettings(**model.metadata["data"]).load("test").subset(images)
    result = evaluate_dataset(model, data, samples, nll_images)
    context = model.context_of(data.labels, data.factors)
    context = None if context is None else context[:32]
    pictures = prior_samples(model, 32, context=context)
    figures.save(figures.image_grid(pictures), folder / f"{slug(row)}.png")
    return {
        "set": row["set"],
        "model": row["name"],
        "likelihood": likelihood(row),
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "protocol": data.protocol,
        "has_bound": model.has_bound,
        "steps": model.metadata["steps"],
        "samples_finite": bool(torch.isfinite(pictures).all()),
        **result.to_dict(),
    }


def one(row: dict[str, Any], plan: dict[str, Any], options: argparse.Namespace) -> None:
    """Trains and measures a row, unless it is done."""
    path = options.output / f"{slug(row)}.json"
    if path.exists() and slug(row) not in options.again:
        return
    started = time.monotonic()
    try:
        run, seconds = train(row, plan, options.output)
        values = measure(row, run, options.output, options.images, options.nll_images, options.nll_samples)
    except VlaeError as error:
        print(f"FAILED {slug(row)}: {error}", flush=True)
        return
    values["training_seconds"] = seconds
    write_text(path, json.dumps(values, indent=2) + "\n")
    print(f"{slug(row)}: {' | '.join(cells(values)[3:])}, {time.monotonic() - started:.0f} s in all", flush=True)


def cells(values: dict[str, Any]) -> list[str]:
    """A row of the table."""
    bound = values["has_bound"]
    nll = "–" if values["nll"] is None else f"{values['nll']:.2f} ± {values['nll_error']:.2f}"
    bits = values["nll_bits_per_dim"] if bound else None
    return [
        values["model"],
        values["likelihood"],
        f"{values['parameters']:,}",
        f"{values['distortion']:.2f}",
        f"{values['rate']:.2f}" if bound else "–",
        f"{values['negative_elbo']:.2f}" if bound else "–",
        nll if bound else "–",
        "–" if bits is None else f"{bits:.3f}",
        f"{values['training_seconds']:.0f} s",
    ]


def table(plan: dict[str, Any], folder: Path) -> str:
    """The tables of all data sets, of the rows that are done."""
    lines = []
    for name in plan["sets"]:
        rows = [row for row in plan["rows"] if row["set"] == name and (folder / f"{slug(row)}.json").exists()]
        if not rows:
            continue
        done = [json.loads((folder / f"{slug(row)}.json").read_text()) for row in rows]
        steps = sorted({values["steps"] for values in done})
        first = done[0]
        lines += [
            f"### {TITLES[name]}\n",
            f"{' or '.join(map(str, steps))} steps of {configuration(plan, rows[0])['data']['batch_size']} images; "
            f"{first['protocol']}; NLL of {first['nll_images']} with K = {first['nll_samples']}.\n",
            "| " + " | ".join(TABLE) + " |",
            "|" + "---|" * len(TABLE),
            *("| " + " | ".join(cells(values)) + " |" for values in done),
            "",
        ]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--output", type=Path, default=Path("outputs/family"))
    parser.add_argument("--only", nargs="*", default=[], help="rows whose file name holds one of these words")
    parser.add_argument("--again", nargs="*", default=[], help="rows (file names) to do again")
    parser.add_argument("--limit", type=int, default=0, help="train on so many images only: a trial, not the table")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--nll_images", type=int, default=200)
    parser.add_argument("--nll_samples", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time, one thread each")
    return parser.parse_args()


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    plan = yaml.safe_load(options.plan.read_text())
    if options.limit:
        for each in plan["sets"].values():
            each["data"]["limit"] = options.limit
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [row for row in plan["rows"] if not options.only or any(word in slug(row) for word in options.only)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(partial(one, plan=plan, options=options), rows))
    text = table(plan, options.output)
    write_text(options.output / "table.md", text + "\n")
    print(f"\n{machine()}, {options.jobs} rows at a time\n\n{text}")
    missing = [slug(row) for row in rows if not (options.output / f"{slug(row)}.json").exists()]
    print(f"{len(rows) - len(missing)} of {len(rows)} rows done" + (f"; not: {', '.join(missing)}" if missing else ""))
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
