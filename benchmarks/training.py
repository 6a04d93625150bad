"""Training speed as a ratio, measured in one run: vlae's training step against the obvious implementation of the same.

    python benchmarks/training.py                # the ratio
    python benchmarks/training.py --ablation     # and what each ingredient adds
    python benchmarks/training.py --profile      # and where the rest of the time goes

Blocks of the contenders alternate, so that a machine that is busy slows all of them; the ratio is the median over
rounds. Both do the whole of a training step: batch, bound, gradient, clipping, optimiser and averaged weights.
Lightning's loop around the step is in neither. That both compute the same bound is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from obvious import ObviousVLAE, check_same, item_batches, weights_of
from torch import Tensor

import vlae.data
from vlae import VLAE, VlaeError, cli
from vlae.training import configuration
from vlae.training.speed import best_precision, can_compile, compile_networks, machine

WARM_UP_STEPS = 3
CONFIG = Path(__file__).parents[1] / "configs" / "mnist.yaml"


class Setup:
    """What is trained: model, objective, optimiser, batch size and trainer settings of a configuration, and images."""

    def __init__(self, config: str, device: torch.device):
        parser = configuration.train_parser()
        settings = configuration.parse(parser, [f"--config={configuration.find_config(config)}"])
        model = settings.pop("model")
        made = parser.instantiate(settings)
        self.objective, self.optimizer, self.trainer = made.objective, made.optimizer, made.trainer
        self.batch_size, self.device = made.data.batch_size, device
        self.images = self.load(made.data)
        torch.manual_seed(made.seed)
        self.model: VLAE = configuration.build_model(model, self.images.image_shape)  # type: ignore[assignment]

    def load(self, data: Any) -> vlae.data.ImageDataset:
        """The configuration's training images, or noise of MNIST's shape where they can't be had."""
        try:
            return data.load("train")
        except VlaeError as error:
            print(f"no {data.name} ({error}): random images instead, which take as long")
            noise = torch.randint(256, (10_000, 1, 28, 28), dtype=torch.uint8)
            return vlae.data.ImageDataset(noise, name="random 28x28 images", binarize="dynamic")


class Contender:
    """One way to train: `step` takes a batch and makes one step."""

    def __init__(self, name: str, batches: Iterator[Tensor], step: Callable[[Tensor], None]):
        self.name, self.batches, self.step = name, batches, step
        self.speeds: list[float] = []
        self.first_step = 0.0

    def warm_up(self) -> None:
        """The first steps; the very first compiles where there is something to compile."""
        self.first_step = self.seconds(1)
        self.seconds(WARM_UP_STEPS)

    def seconds(self, steps: int) -> float:
        """How long so many steps take."""
        started = time.perf_counter()
        for _ in range(steps):
            self.train_once()
        return time.perf_counter() - started

    def block(self, seconds: float, batch_size: int) -> None:
        """Steps for at least this long; notes images per second."""
        started, steps = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds:
            self.train_once()
            steps += 1
        self.speeds.append(steps * batch_size / elapsed)

    def train_once(self) -> None:
        """One batch and one step; its test for NaN waits for the device, so that the clock needs no other wait."""
        with torch.profiler.record_function("# data"):
            x = next(self.batches)
        self.step(x)


def step_of(
    setup: Setup, model: torch.nn.Module, loss_of: Callable[[Tensor], Tensor], precision: str, foreach: bool
) -> Callable[[Tensor], None]:
    """A whole training step as vlae's task makes it, with the optimiser's arithmetic fused over weights or not."""
    weights = list(model.parameters())
    averages = [w.detach().clone() for w in weights]
    optimizer = setup.optimizer.make(weights, foreach=foreach)
    share, clip = 1 - setup.trainer.ema_decay, setup.trainer.gradient_clip
    bf16 = precision == "bf16-mixed"

    def step(x: Tensor) -> None:
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(x)
            optimizer.zero_grad()
            loss.backward()
        with torch.profiler.record_function("# optimizer"):
            norm = torch.nn.utils.clip_grad_norm_(weights, clip, foreach=foreach)
            if not torch.isfinite(loss + norm):
                return
            optimizer.step()
            with torch.no_grad():
                if foreach:
                    torch._foreach_lerp_(averages, weights, share)
                else:
                    for average, weight in zip(averages, weights, strict=True):
                        average.lerp_(weight, share)

    return step


def memory_batches(setup: Setup) -> Iterator[Tensor]:
    """Ours: cut from uint8 in memory, binarised on the device."""
    batches = vlae.data.Batches(setup.images, setup.batch_size, shuffle=True, drop_last=True, device=setup.device)
    while True:
        for batch in batches:
            yield batch.images


def obvious(setup: Setup, in_memory: bool = False) -> Contender:
    """The obvious implementation; with our batches if `in_memory`."""
    model = ObviousVLAE(setup.model.config)
    model.load_state_dict(weights_of(setup.model, model))
    model.to(setup.device)
    objective = copy.deepcopy(setup.objective)

    def loss_of(x: Tensor) -> Tensor:
        distortion, rate = model.bound(x.to(setup.device))
        floor = objective.free_nats(0.0) if hasattr(objective, "free_nats") else 0.0
        return distortion.mean() + rate.mean().clamp(min=floor)

    batches = memory_batches(setup) if in_memory else item_batches(setup.images.images, setup.batch_size)
    name = "+ batches in memory" if in_memory else "obvious"
    return Contender(name, batches, step_of(setup, model, loss_of, "32-true", foreach=False))


def ours(setup: Setup, name: str, channels_last: bool = True, bf16: bool = True, compiled: bool = True) -> Contender:
    """vlae's training step, or with some ingredients left out."""
    model = copy.deepcopy(setup.model).to(setup.device).train()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    if compiled and can_compile(setup.device):
        compile_networks(model)
    objective = copy.deepcopy(setup.objective)

    def loss_of(x: Tensor) -> Tensor:
        return objective(model.elbo(x.contiguous(memory_format=layout)), 0.0)

    precision = best_precision(setup.device) if bf16 else "32-true"
    return Contender(name, memory_batches(setup), step_of(setup, model, loss_of, precision, foreach=True))


def contenders(setup: Setup, ablation: bool) -> list[Contender]:
    """The obvious implementation first, ours last, and between them one more ingredient each if asked for."""
    if not ablation:
        return [obvious(setup), ours(setup, "vlae")]
    return [
        obvious(setup),
        obvious(setup, in_memory=True),
        ours(setup, "+ vlae's layers, loss and fused optimiser", channels_last=False, bf16=False, compiled=False),
        ours(setup, "+ channels-last", bf16=False, compiled=False),
        ours(setup, f"+ precision {best_precision(setup.device)}", compiled=False),
        ours(setup, "+ compiled = vlae"),
    ]


def measure(field: list[Contender], seconds: float, rounds: int, batch_size: int) -> list[tuple[str, ...]]:
    """Rows (name, images/s, ratio, first step) from alternating blocks; the ratio is the median of each round's own."""
    for contender in field:
        contender.warm_up()
    for _ in range(rounds):
        for contender in field:
            contender.block(seconds, batch_size)
    rows = []
    for c in field:
        ratios = [mine / base for mine, base in zip(c.speeds, field[0].speeds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((c.name, f"{statistics.median(c.speeds):.0f}", spread, f"{c.first_step:.1f} s"))
    return rows


# -- profile ----------------------------------------------------------------------------------------------------------


def group_of(event: Any) -> str:
    """What a profiled operation belongs to: its own name, or the marked region that it is in."""
    outer = event
    while outer is not None:
        if outer.name.startswith("# "):
            return {"# data": "data", "# optimizer": "clipping, optimizer, averaging"}[outer.name]
        outer = outer.cpu_parent
    name = event.name.lower()
    if "conv" in name and "fused" not in name:
        return "convolution backward" if "backward" in name else "convolution forward"
    if any(word in name for word in ("addmm", "aten::mm", "matmul", "linear", "bmm")):
        return "matmul"
    if "fused" in name or (name.startswith("aten::") and "empty" not in name):
        return "element-wise, sums, copies"
    return "Python, autograd, dispatch"


def profile(contender: Contender, steps: int = 10) -> list[tuple[str, ...]]:
    """Rows (group, per cent) of the self CPU time of some steps."""
    contender.seconds(WARM_UP_STEPS)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        contender.seconds(steps)
    totals: dict[str, float] = {}
    for event in recorded.events():
        totals[group_of(event)] = totals.get(group_of(event), 0.0) + event.self_cpu_time_total
    whole = sum(totals.values())
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return [(name, f"{100 * value / whole:.1f} %") for name, value in ordered]


# -- output -----------------------------------------------------------------------------------------------------------


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, its columns aligned so that it reads well as plain text too."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Training speed of vlae against the obvious implementation.")
    parser.add_argument("--config", default=str(CONFIG), help="whose model, batch size, objective and optimiser")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks per contender")
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to train")
    parser.add_argument("--ablation", action="store_true", help="add one ingredient at a time")
    parser.add_argument("--profile", action="store_true", help="also show where the time of vlae's step goes")
    parser.add_argument("--write", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    if not (options.seconds > 0 and options.rounds > 0 and (options.threads is None or options.threads > 0)):
        return cli.fail("--seconds, --rounds and --threads must be positive")
    if options.device == "cuda" and not torch.cuda.is_available():
        return cli.fail("--device cuda: there is no GPU")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.profile:  # compiled kernels then show up by name
        torch._inductor.config.cpp.enable_kernel_profile = True
    device = torch.device(options.device)
    try:
        setup = Setup(options.config, device)
        x = torch.stack([setup.images[i] for i in range(16)])
        difference = check_same(setup.model, x)
        text = run(setup, options, difference)
    except VlaeError as error:
        return cli.fail(str(error))
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text + "\n")
    return 0


def run(setup: Setup, options: argparse.Namespace, difference: float) -> str:
    """Measures and prints; returns what was printed, as Markdown."""
    parts: list[str] = []

    def say(text: str) -> None:
        print(text + "\n", flush=True)
        parts.append(text + "\n")

    weights = sum(p.numel() for p in setup.model.parameters())
    say(f"Machine: {machine(setup.device)}; precision {best_precision(setup.device)}.")
    say(
        f"Data: {setup.images.protocol}. Configuration {Path(options.config).stem}: {weights:,} weights, batches of "
        f"{setup.batch_size}. Both implementations give the same bound, to {difference:.0e} nats."
    )
    field = contenders(setup, options.ablation)
    rows = measure(field, options.seconds, options.rounds, setup.batch_size)
    say(table(("training step", "images/s", "ratio (range over rounds)", "first step"), rows))
    say(
        f"Medians of {options.rounds} alternating blocks of {options.seconds:g} s; the first step includes "
        f"compilation, or what its cache leaves of it. **Ratio {rows[-1][2].split()[0]}**."
    )
    if options.profile:
        say(table(("where vlae's step spends its time", "share"), profile(field[-1])))
    return "\n".join(parts).strip()


if __name__ == "__main__":
    sys.exit(main())
