"""Sampling speed as a ratio, measured in one run: the wavefront against the obvious loop, a full pass for each pixel.

    python benchmarks/sampling.py                # the ratio, how it grows with image and batch, memory, a plot
    python benchmarks/sampling.py --quick        # a couple of cells only
    python benchmarks/sampling.py --exact        # and the whole obvious loop once, to check what is extrapolated
    python benchmarks/sampling.py --profile      # and where the wavefront's time goes

The network is a two-stack PixelCNN of random weights. The obvious loop's time is that of one full pass, measured, times
the number of pixels. Passes and samples alternate, so that a machine that is busy slows both; the ratio is the median
over rounds. That both give the same pixels and logits is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from torch import Tensor
from training import table

from vlae import VlaeError, cli
from vlae.distributions import Autoregressive, Bernoulli
from vlae.distributions.scan import Pixels
from vlae.figures.charts import DARK, WARM
from vlae.nn import GatedPixelCNN
from vlae.nn.cached import evaluator
from vlae.training.speed import machine

LAYERS, KERNEL_SIZE, CHANNELS, CONTEXT_CHANNELS = 4, 3, 32, 8
SIDE, BATCHES = 28, (1, 64)
SIDES = {1: (16, 28, 32, 64, 256), 64: (16, 28, 32, 64)}  # by batch
GROWING_BATCHES = (1, 4, 16, 64, 256)  # at SIDE
TOLERANCE = 1e-5  # of logits in float32, their spread being about 1
SHORTEST = 0.2  # seconds that calls are repeated for, at least
PLOT = Path("outputs/sampling.png")
Row = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One setting: the image's side, images at a time, and the network."""

    side: int = SIDE
    batch: int = 1
    slanted: bool = False
    layers: int = LAYERS
    channels: int = CHANNELS

    @property
    def pixels(self) -> int:
        """Of one image: as many passes make the obvious loop."""
        return self.side**2

    @property
    def network(self) -> str:
        """Its name in the tables."""
        return "slanted" if self.slanted else "straight"

    def distribution(self) -> Autoregressive:
        """p(x|z) of a network of random weights, large enough that the logits depend on the pixels."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            network = GatedPixelCNN(
                *(1, 1, self.layers, KERNEL_SIZE, self.channels, CONTEXT_CHANNELS), slanted=self.slanted
            )
            for weights in network.parameters():
                weights.mul_(2)
            context = torch.randn(self.batch, CONTEXT_CHANNELS, self.side, self.side)
        return Autoregressive(network.eval(), Bernoulli(), context, (1, self.side, self.side))


def full_pass(p: Autoregressive) -> Callable[[], Tensor]:
    """What the obvious loop does for each pixel: all logits of an image."""
    x = torch.zeros(*p.batch_shape, *p.event_shape)

    def call() -> Tensor:
        with torch.inference_mode():
            return p.network(x, p.context)

    return call


def check_same(cell: Cell) -> float:
    """Raises unless wavefront and obvious loop draw the same pixels; returns how far their logits differ at most."""
    p = cell.distribution()
    u = torch.rand(*p.batch_shape, *p.event_shape, generator=torch.Generator().manual_seed(0))
    x = p.sample(uniforms=u)
    if not torch.equal(x, p.sample(uniforms=u, method="raster")):
        raise VlaeError(f"wavefront and raster order draw different pixels ({cell})")
    logits = torch.empty_like(x)

    def visit(sites: Pixels, conditional: Any) -> Tensor:
        logits[sites.index] = conditional.logits
        return x[sites.index]

    p.scan(visit)
    with torch.inference_mode():
        difference = float((p.network(x, p.context).squeeze(2) - logits).abs().max())
    if not difference < TOLERANCE:
        raise VlaeError(f"the wavefront's logits differ from the full pass's by {difference:.1e} ({cell})")
    return difference


# -- time -------------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def average(call: Callable[[], object], least: int) -> float:
    """Seconds a call takes on average over at least so many calls and SHORTEST seconds.

    Not their median: a loop takes the sum of its passes, and on a busy machine the two differ by a sixth.
    """
    times: list[float] = []
    while len(times) < least or sum(times) < SHORTEST:
        times.append(seconds(call))
    return statistics.mean(times)


class Speed:
    """The times of one cell, in seconds, one for each round: of a full pass, and of a call of `sample`."""

    def __init__(self, cell: Cell):
        self.cell, self.p = cell, cell.distribution()
        self.full_pass = full_pass(self.p)
        self.steps = len(self.p.schedule())
        self.passes: list[float] = []
        self.samples: list[float] = []
        self.set_ups: list[float] = []  # the part of a sample call before its first step

    def warm_up(self) -> None:
        """The first calls."""
        self.full_pass()
        self.p.sample()

    def round(self) -> None:
        """Times both, one after the other."""
        self.passes.append(average(self.full_pass, 3))
        self.samples.append(average(self.p.sample, 1))
        self.set_ups.append(average(self.set_up, 1))

    def set_up(self) -> None:
        """What `sample` does before its first step."""
        with torch.inference_mode():
            evaluator(self.p.network, self.p.context, self.p.event_shape, self.p.schedule())

    @property
    def sample_seconds(self) -> float:
        """Of one call of `sample`."""
        return statistics.median(self.samples)

    @property
    def set_up_seconds(self) -> float:
        """Of that, before the first step."""
        return statistics.median(self.set_ups)

    @property
    def loop_seconds(self) -> float:
        """Of the obvious loop, extrapolated from its passes."""
        return self.cell.pixels * statistics.median(self.passes)

    @property
    def ratios(self) -> list[float]:
        """The obvious loop's time over the wavefront's, in each round."""
        return [self.cell.pixels * one / ours for one, ours in zip(self.passes, self.samples, strict=True)]


def measure(cells: Sequence[Cell], rounds: int) -> dict[Cell, Speed]:
    """Times all cells in each round."""
    speeds = {cell: Speed(cell) for cell in cells}
    for speed in speeds.values():
        speed.warm_up()
    for _ in range(rounds):
        for speed in speeds.values():
            speed.round()
    return speeds


def whole_loop(speed: Speed) -> Row:
    """Row (network, batch, measured, extrapolated, measured / extrapolated) of the obvious loop, run as a whole."""
    before = average(speed.full_pass, 100)
    measured = seconds(lambda: speed.p.sample(method="raster"))
    extrapolated = speed.cell.pixels * (before + average(speed.full_pass, 100)) / 2
    cell = speed.cell
    return cell.network, str(cell.batch), time_of(measured), time_of(extrapolated), f"{measured / extrapolated:.2f}"


# -- memory -----------------------------------------------------------------------------------------------------------


@dataclass
class Memory:
    """What a cell needs beyond network and context at its highest, MiB: the wavefront, and one full pass."""

    ours: float
    full_pass: float


def peak_of(cell: Cell) -> Memory:
    """Each in a process of its own, whose memory holds nothing else yet."""
    return Memory(*(_in_a_new_process(_peak, cell, ours, torch.get_num_threads()) for ours in (True, False)))


def _in_a_new_process(function: Callable[..., float], *arguments: object) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak(cell: Cell, ours: bool, threads: int) -> float:
    """The highest memory of one call minus that before it, MiB."""
    torch.set_num_threads(threads)
    for small in (replace(cell, side=8, batch=1).distribution(), replace(cell, side=8, batch=2).distribution()):
        small.sample()  # what libraries set up once is no part of it
        full_pass(small)()
    p = cell.distribution()
    forget_peak()
    before = peak_memory()
    if ours:
        p.sample()
    else:
        full_pass(p)()
    return peak_memory() - before


def forget_peak() -> None:
    """The highest memory counts from now on, where Linux lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """The most resident memory of this process so far, MiB.

    On Linux from VmHWM: `ru_maxrss`, otherwise the same number, starts at the peak of the process that started this one
    and would hide whatever stays below it.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# -- profile ----------------------------------------------------------------------------------------------------------

GROUPS = {
    "matrix products": {"addmm", "addmm_", "mm", "linear", "baddbmm", "bmm"},
    "copies": {"copy_", "clone", "cat", "index_select", "fill_", "_to_copy", "contiguous", "gather"},
    "tanh": {"tanh", "tanh_"},
    "other element-wise": {"elu", "addcmul", "add", "add_", "sub", "mul", "div", "sigmoid", "lt", "uniform_"},
    "convolutions, once": {"convolution", "_convolution", "conv2d", "mkldnn_convolution"},
}
OTHER, PYTHON = "views, allocation, dispatch", "Python between the calls"


def group_of(name: str) -> str:
    """What a profiled operation belongs to."""
    if not name.startswith("aten::"):
        return PYTHON
    return next((group for group, names in GROUPS.items() if name.removeprefix("aten::") in names), OTHER)


@dataclass
class Profile:
    """One call of `sample` taken apart."""

    shares: dict[str, float] = field(default_factory=dict)  # of self time, by group
    calls: float = 0.0  # of PyTorch, made by Python, for each step
    slowdown: float = 1.0  # by the profiler itself


def profile(speed: Speed) -> Profile:
    """Profiles one call of `sample`."""
    for _ in range(2):  # a profiler's first use takes its time
        plain = average(speed.p.sample, 1)
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu) as recorded, torch.profiler.record_function("# sample"):
            profiled = seconds(speed.p.sample)
    totals: dict[str, float] = {}
    calls = 0
    for event in recorded.events():
        totals[group_of(event.name)] = totals.get(group_of(event.name), 0.0) + event.self_cpu_time_total
        calls += event.cpu_parent is not None and event.cpu_parent.name == "# sample"
    whole = sum(totals.values())
    return Profile({name: t / whole for name, t in totals.items()}, calls / speed.steps, profiled / plain)


def profile_tables(speeds: Sequence[Speed]) -> str:
    """What limits the wavefront: shares of a profile, and how long the same calls take on next to no numbers."""
    profiles = [profile(speed) for speed in speeds]
    headings = tuple(f"batch {speed.cell.batch}" for speed in speeds)
    rows: list[Row] = [
        (group, *(f"{100 * one.shares.get(group, 0.0):.1f} %" for one in profiles))
        for group in (*GROUPS, OTHER, PYTHON)
    ]
    rows.append(("calls of PyTorch per step", *(f"{one.calls:.0f}" for one in profiles)))
    rows.append(("slowed down by the profiler", *(f"{one.slowdown:.2f}" for one in profiles)))
    rows.append(("the same calls on one channel", *(f"{100 * overhead(speed):.0f} % of the time" for speed in speeds)))
    return table(("where the wavefront spends its time", *headings), rows) + (
        "\n\nShares of self time under the profiler, which slows down Python and small operations most. On one channel "
        "and one image the calls are the same with hardly any arithmetic: that share of the time without the profiler "
        "is overhead of Python and PyTorch, an operation's own dispatch included."
    )


def overhead(speed: Speed, rounds: int = 5) -> float:
    """The time of the same calls on one image and one channel, as a fraction of this cell's, alternating."""
    bare = replace(speed.cell, channels=1, batch=1).distribution()
    bare.sample()
    return statistics.median(average(bare.sample, 1) / average(speed.p.sample, 1) for _ in range(rounds))


# -- output -----------------------------------------------------------------------------------------------------------


def time_of(seconds: float) -> str:
    """For people: 1.2 ms, 12 s, 3.4 min."""
    for unit, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return f"{_digits(seconds / length)} {unit}"
    return f"{_digits(seconds / 1e-6)} µs"


def memory_of(mib: float) -> str:
    """Small differences of resident memory mean nothing."""
    return "< 1" if mib < 1 else _digits(mib)


def _digits(value: float) -> str:
    """Two significant digits, or all before the point."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def ratio_of(speed: Speed) -> str:
    """Median and range over rounds."""
    low, middle, high = min(speed.ratios), statistics.median(speed.ratios), max(speed.ratios)
    return f"{_digits(middle)} ({_digits(low)} to {_digits(high)})"


def headline_table(speeds: Sequence[Speed]) -> str:
    """The ratio of each network and batch."""
    header = ("network", "batch", "pixels", "steps", "a step", "set-up", "sample", "obvious loop", "ratio (range)")
    return table(header, [headline_row(speed) for speed in speeds])


def headline_row(speed: Speed) -> Row:
    """One of its rows."""
    set_up, whole, cell = speed.set_up_seconds, speed.sample_seconds, speed.cell
    step = max(0.0, whole - set_up) / speed.steps
    return (
        *(cell.network, str(cell.batch), str(cell.pixels), str(speed.steps)),
        *(time_of(step), time_of(set_up), time_of(whole), time_of(speed.loop_seconds), ratio_of(speed)),
    )


def growth_table(speeds: Sequence[Speed], memory: dict[Cell, Memory]) -> str:
    """Time, ratio and memory of each cell."""
    header = ("image", "batch", "steps", "sample", "obvious loop", "ratio (range)", "MiB, sample", "MiB, one pass")
    rows: list[Row] = []
    for speed in sorted(speeds, key=lambda each: (each.cell.batch, each.cell.side)):
        cell, peak = speed.cell, memory[speed.cell]
        times = time_of(speed.sample_seconds), time_of(speed.loop_seconds), ratio_of(speed)
        memories = memory_of(peak.ours), memory_of(peak.full_pass)
        rows.append((f"{cell.side}x{cell.side}", str(cell.batch), str(speed.steps), *times, *memories))
    return table(header, rows)


def exponents(speeds: Sequence[Speed]) -> str:
    """How times grow with the image, as powers of its side between the smallest and the largest image of a batch."""
    batch = min(speed.cell.batch for speed in speeds)
    line = sorted((s for s in speeds if s.cell.batch == batch), key=lambda speed: speed.cell.side)
    small, large = line[0], line[-1]
    scale = math.log(large.cell.side / small.cell.side)
    ours = math.log(large.sample_seconds / small.sample_seconds) / scale
    loop = math.log(large.loop_seconds / small.loop_seconds) / scale
    return (
        f"At batch {batch} from {small.cell.side}x{small.cell.side} to {large.cell.side}x{large.cell.side}, the "
        f"wavefront's time grows like side^{ours:.1f}, the obvious loop's like side^{loop:.1f}."
    )


def plot(speeds: dict[Cell, Speed], memory: dict[Cell, Memory], title: str) -> Figure:
    """Time and memory against the image's side, and time against the batch; ours dark and filled, the loop hollow."""
    figure = Figure(figsize=(13, 4.8), dpi=128, layout="constrained", facecolor="white")
    figure.suptitle(title, size=9)
    by_time, by_memory, by_batch = figure.subplots(1, 3)
    for batch, marker in ((1, "o"), (64, "^")):
        line = sorted((cell for cell in memory if cell.batch == batch), key=lambda cell: cell.side)
        if not line:
            continue
        sides, name = [cell.side for cell in line], f"batch {batch}"
        _ours(by_time, sides, [speeds[c].sample_seconds for c in line], f"wavefront, {name}", marker)
        _theirs(by_time, sides, [speeds[c].loop_seconds for c in line], f"obvious loop, {name}", marker)
        _ours(by_memory, sides, [memory[c].ours for c in line], f"wavefront, {name}", marker)
        _theirs(by_memory, sides, [memory[c].full_pass for c in line], f"one full pass, {name}", marker)
    line = sorted((cell for cell in memory if cell.side == SIDE), key=lambda cell: cell.batch)
    batches = [cell.batch for cell in line]
    _ours(by_batch, batches, [speeds[c].sample_seconds for c in line], "wavefront", "o")
    _theirs(by_batch, batches, [speeds[c].loop_seconds for c in line], "obvious loop", "o")
    _label(by_time, "time", "side of the image [pixels]", "one call of sample [s]")
    _label(by_memory, "memory beyond network and context", "side of the image [pixels]", "peak [MiB]")
    _label(by_batch, f"time at {SIDE}x{SIDE}", "batch [images]", "one call of sample [s]")
    return figure


def _ours(axes: Axes, x: Sequence[int], y: Sequence[float], label: str, marker: str) -> None:
    axes.plot(x, y, color=DARK, marker=marker, label=label)


def _theirs(axes: Axes, x: Sequence[int], y: Sequence[float], label: str, marker: str) -> None:
    axes.plot(x, y, color=WARM, marker=marker, linestyle="--", markerfacecolor="white", label=label)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    """Logarithmic axes with the measured values of x as ticks, and a legend below."""
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.set_title(title, size=10)
    ticks = sorted({float(value) for line in axes.get_lines() for value in np.asarray(line.get_xdata())})
    axes.set_xticks([tick for tick in ticks if tick != 28 or 32 not in ticks])  # their numbers would overlap
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


# -- command ----------------------------------------------------------------------------------------------------------


def cells_of(quick: bool) -> tuple[list[Cell], list[Cell]]:
    """The cells of the headline, and those of growth."""
    if quick:
        return [Cell(batch=batch) for batch in BATCHES], [Cell(side=16), Cell()]
    headline = [Cell(batch=batch, slanted=slanted) for slanted in (False, True) for batch in BATCHES]
    growth = [Cell(side=side, batch=batch) for batch, sides in SIDES.items() for side in sides]
    return headline, list(dict.fromkeys(growth + [Cell(batch=batch) for batch in GROWING_BATCHES]))


def run(options: argparse.Namespace) -> str:
    """Measures and prints; returns what was printed, as Markdown."""
    parts: list[str] = []

    def say(text: str) -> None:
        print(text + "\n", flush=True)
        parts.append(text + "\n")

    headline, growth = cells_of(options.quick)
    say(f"Machine: {machine()}; float32, random weights.")
    checked = {replace(cell, batch=2, side=16 if options.quick else SIDE) for cell in headline}
    difference = max(map(check_same, checked))
    say(
        f"Two-stack PixelCNN of {LAYERS} gated layers, {CHANNELS} channels, {KERNEL_SIZE}x{KERNEL_SIZE} kernels, "
        f"Bernoulli pixels. Wavefront and obvious loop draw the same pixels; logits agree to {difference:.0e}."
    )
    speeds = measure(list(dict.fromkeys(headline + growth)), options.rounds)
    say(headline_table([speeds[cell] for cell in headline]))
    say(
        f"One call of `sample` at {SIDE}x{SIDE}; medians of {options.rounds} alternating rounds. The obvious loop is a "
        "full pass for each pixel, extrapolated from one. **Ratio "
        + ", ".join(f"{_digits(statistics.median(speeds[c].ratios))} at batch {c.batch}" for c in headline[:2])
        + "**."
    )
    if options.exact:
        rows = [whole_loop(speeds[cell]) for cell in headline if cell.batch == 1]
        say(table(("obvious loop, network", "batch", "run as a whole", "extrapolated", "ratio"), rows))
    if options.profile:
        say(profile_tables([speeds[cell] for cell in headline if not cell.slanted]))
    memory = {cell: peak_of(cell) for cell in growth}
    grown = [speeds[cell] for cell in growth]
    say(growth_table(grown, memory))
    say(f"{exponents(grown)} Memory is the peak beyond network and context, in a process of its own.")
    path = options.plot or (None if options.quick else PLOT)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        title = f"One call of sample: wavefront and obvious loop (extrapolated). {machine()}"
        plot(speeds, memory, title).savefig(path)
        print(f"plot: {path}")
    return "\n".join(parts).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="Sampling speed of vlae's wavefront against the obvious loop.")
    parser.add_argument("--rounds", type=int, help="of timing: 5, or 2 if quick")
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    parser.add_argument("--quick", action="store_true", help="a couple of cells only")
    parser.add_argument("--exact", action="store_true", help="also run the whole obvious loop once, at batch 1")
    parser.add_argument("--profile", action="store_true", help="also show where the time of the wavefront goes")
    parser.add_argument("--plot", type=Path, help=f"where to draw it; {PLOT} if not given, and not at all if quick")
    parser.add_argument("--write", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 2 if options.quick else 5
    if not (options.rounds > 0 and (options.threads is None or options.threads > 0)):
        return cli.fail("--rounds and --threads must be positive")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        text = run(options)
    except VlaeError as error:
        return cli.fail(str(error))
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
