"""Speed of the importance-weighted NLL as a ratio, measured in one run: vlae's against the obvious loop over samples.

    python benchmarks/likelihood.py                # the ratio
    python benchmarks/likelihood.py --ablation     # and what each ingredient adds
    python benchmarks/likelihood.py --profile      # and where the rest of the time goes

The obvious loop encodes a batch, draws z, decodes it, notes log p(x|z) + log p(z) - log q(z|x), K times over, and takes
the logsumexp at the end. It is run on vlae's own network, which is the baseline, and on the plainly written one of
`benchmarks/obvious.py`. All its samples take as long, so that a few of them are timed; vlae's NLL is timed with all K.
It is eager, and all is float32. Blocks of the contenders alternate, so that a machine that is busy slows all of them;
the ratio is the median over rounds. That all give the same NLL is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch
from obvious import ObviousVLAE, check_same, weights_of
from torch import Tensor
from training import group_of, table

from vlae import VLAE, VlaeError, cli
from vlae.data import ImageDataset
from vlae.distributions import autoregressive
from vlae.models import base
from vlae.models.decoders import AutoregressiveDecoder
from vlae.nn import one_image
from vlae.nn.fused_decoder import FusedDecoder
from vlae.noise import randn
from vlae.training.settings import DataSettings
from vlae.training.speed import machine

MODEL = "mnist-dynamic"
CHUNK = 128  # of `vlae eval`
FEW = 8  # images at a time, in the ablation: about as many as the cache of a core holds
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-2}  # of the NLL, in nats: a float32 of 100 nats has 1e-5 itself
Row = tuple[str, ...]


# -- the obvious loop -------------------------------------------------------------------------------------------------


@torch.no_grad()
def obvious_loop(model: VLAE, x: Tensor, samples: int, noise: Tensor | None = None) -> Tensor:
    """log p(x) of images x [B, C, H, W] in nats, [B]; noise [samples, B, D] if given."""
    weights = []
    for k in range(samples):
        q = model.encode(x)
        z = q.rsample() if noise is None else q.mean + q.stddev * noise[k]
        weights.append(model.decode(z).log_prob(x) + model.prior().log_prob(z) - q.log_prob(z))
    return torch.stack(weights).logsumexp(0) - math.log(samples)


@torch.no_grad()
def obvious_network_loop(model: ObviousVLAE, x: Tensor, samples: int, noise: Tensor | None = None) -> Tensor:
    """The same by the network of `benchmarks/obvious.py`."""
    weights = []
    for k in range(samples):
        distortion, rate = model.bound(x, None if noise is None else noise[k])
        weights.append(-distortion - rate)
    return torch.stack(weights).logsumexp(0) - math.log(samples)


# -- vlae's, and without some ingredients -----------------------------------------------------------------------------


@contextmanager
def without(by_image: bool = True, maps: bool = True, trunk: bool = True, fused: bool = True) -> Iterator[None]:
    """Takes ingredients out of vlae's NLL: images one by one, the fast maps of z, the trunk on one image, compiled.

    The compiled decoder takes the place of both others, so that it goes with each of them.
    """

    def plainly(network: torch.nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda context: network(x.expand(len(context), -1, -1, -1), context)

    with (
        patch.object(base, "MANY", base.MANY if by_image else sys.maxsize),
        patch.object(
            AutoregressiveDecoder,
            "evaluate",
            AutoregressiveDecoder.evaluate if maps else AutoregressiveDecoder.forward,
        ),
        patch.object(autoregressive, "on_one_image", one_image.on_one_image if trunk else plainly),
        patch.object(FusedDecoder, "serves", FusedDecoder.serves if maps and trunk and fused else lambda *_: False),
    ):
        yield


def vlae_nll(model: VLAE, x: Tensor, samples: int, chunk: int = CHUNK, seed: int = 0) -> Tensor:
    """log p(x) in nats, [B], as `vlae eval` computes it."""
    return model.log_likelihood(x, samples, torch.Generator().manual_seed(seed), chunk)


# -- contenders -------------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """One way to compute the NLL: `run` does it for `images` images and `samples` samples.

    `speeds` are decoded images (samples of images) per second, one for each round; `faults` the pages of memory that
    the system had to hand out anew for each of them.
    """

    name: str
    images: int
    samples: int
    run: Callable[[], object]
    speeds: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)

    def block(self, seconds: float) -> None:
        """Runs for at least so long; notes the speed and the page faults."""
        before = page_faults()
        started, runs = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds or not runs:
            self.run()
            runs += 1
        self.speeds.append(runs * self.images * self.samples / elapsed)
        self.faults.append((page_faults() - before) / (runs * self.images * self.samples))


def page_faults() -> int:
    """How many pages of memory the system has handed out to this process; 0 where it doesn't say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Setup:
    """The model, in float32 and eval mode, and images for it."""

    def __init__(self, name: str, samples: int, batch: int, images: int):
        self.model = VLAE.from_pretrained(name).eval()
        self.obvious = obvious_of(self.model)
        self.samples, self.images = samples, images
        settings = DataSettings(**self.model.metadata.get("data", {"name": "mnist", "binarize": "dynamic"}))
        data = self.load(settings)
        self.protocol = data.protocol
        self.x = torch.stack([data[index] for index in range(max(batch, images))])
        self.batch = self.x[:batch]

    def load(self, settings: DataSettings) -> ImageDataset:
        """The test images, or noise of their shape where they can't be had."""
        try:
            return settings.load("test")
        except VlaeError as error:
            print(f"no {settings.name} ({error}): random images instead, which take as long")
            noise = torch.randint(256, (1000, *self.model.image_shape), dtype=torch.uint8)
            return ImageDataset(noise, name="random images", binarize="dynamic")

    def obvious_network(self) -> Contender:
        """The loop on the network of `benchmarks/obvious.py`."""
        run = lambda: obvious_network_loop(self.obvious, self.batch, 1)  # noqa: E731
        return Contender("obvious loop, obvious network", len(self.batch), 1, run)

    def baseline(self) -> Contender:
        """The loop on vlae's network."""
        return Contender("obvious loop", len(self.batch), 1, lambda: obvious_loop(self.model, self.batch, 1))

    def general(self, name: str, batch: int) -> Contender:
        """vlae's NLL of whole batches, all samples and images alike; a few samples, as all of them take as long."""
        samples = 4

        def run() -> None:
            with without(by_image=False):
                vlae_nll(self.model, self.x[:batch], samples, batch)

        return Contender(name, batch, samples, run)

    def ours(self, name: str = "vlae", chunk: int = CHUNK, **ingredients: bool) -> Contender:
        """vlae's NLL, or with some ingredients left out."""

        def run() -> None:
            with without(**ingredients):
                vlae_nll(self.model, self.x[: self.images], self.samples, chunk)

        return Contender(name, self.images, self.samples, run)

    def contenders(self, ablation: bool) -> list[Contender]:
        """The baseline first, ours last, and between them one more ingredient each if asked for."""
        if not ablation:
            return [self.baseline(), self.obvious_network(), self.ours()]
        return [
            self.baseline(),
            self.obvious_network(),
            self.general("+ encoder once", len(self.batch)),
            self.ours(f"+ image by image, {FEW} samples at a time", maps=False, trunk=False, chunk=FEW),
            self.ours("+ maps of z: channels last, pieces by size, ELU", trunk=False, chunk=FEW),
            self.ours("+ trunk on one image", fused=False),
            self.ours("+ compiled into one loop = vlae"),
        ]


def obvious_of(model: VLAE) -> ObviousVLAE:
    """The obvious network of the same weights."""
    network = ObviousVLAE(model.config).to(next(model.parameters()).dtype)
    network.load_state_dict(weights_of(model, network))
    return network.eval()


def check_nll(model: VLAE, x: Tensor, samples: int) -> dict[torch.dtype, float]:
    """How far all contenders' NLLs of images x differ at most, with the same noise, in nats, in float64 and float32.

    Raises:
        VlaeError: it is more than rounding.
    """
    check_same(model, x)
    worst = {}
    for dtype, tolerance in TOLERANCE.items():
        mine, images = copy.deepcopy(model).to(dtype).eval(), x.to(dtype)
        noise = randn((samples,), len(x), mine.latent_shape, torch.Generator().manual_seed(0), images)
        expected = obvious_loop(mine, images, samples, noise)
        others = {"the obvious network's": obvious_network_loop(obvious_of(mine), images, samples, noise)}
        for options in ({}, {"by_image": False}, {"maps": False}, {"trunk": False}, {"fused": False}):
            with without(**options), patch.object(base, "MANY", base.MANY if "by_image" in options else 1):
                others[f"vlae's {options or ''}".strip()] = vlae_nll(mine, images, samples)
        differences = {name: float((nll - expected).abs().max()) for name, nll in others.items()}
        name = max(differences, key=differences.__getitem__)
        worst[dtype] = differences[name]
        if not worst[dtype] < tolerance:
            raise VlaeError(f"{name} NLL differs from the obvious loop's by {worst[dtype]:.2g} nats in {dtype}")
    return worst


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(field: list[Contender], seconds: float, rounds: int) -> None:
    """Alternating blocks, after one run of each that is not timed."""
    for contender in field:
        contender.run()
    for _ in range(rounds):
        for contender in field:
            contender.block(seconds)


def ratios(contender: Contender, baseline: Contender) -> list[float]:
    """How many times as fast as the baseline, in each round."""
    return [mine / theirs for mine, theirs in zip(contender.speeds, baseline.speeds, strict=True)]


def time_of(seconds: float) -> str:
    """In minutes or hours."""
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def rows_of(field: list[Contender], samples: int) -> list[Row]:
    """Name, speed, ratio, page faults of a decoded image, and the time of 1,000 images, which is extrapolated."""
    rows = []
    for contender in field:
        speed, times = statistics.median(contender.speeds), ratios(contender, field[0])
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        faults = f"{statistics.median(contender.faults):.0f}"
        rows.append((contender.name, f"{speed:,.0f}", spread, faults, time_of(1000 * samples / speed)))
    return rows


def profile(contender: Contender) -> list[Row]:
    """Rows (group, per cent) of the self CPU time of one run."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        contender.run()
    totals: dict[str, float] = {}
    for event in recorded.events():
        group = group_of(event)
        totals[group] = totals.get(group, 0.0) + event.self_cpu_time_total
    whole = sum(totals.values())
    return [(name, f"{100 * value / whole:.1f} %") for name, value in sorted(totals.items(), key=lambda item: -item[1])]


def run(options: argparse.Namespace) -> str:
    """Checks, measures and prints; returns what was printed, as Markdown."""
    parts: list[str] = []

    def say(text: str) -> None:
        print(text + "\n", flush=True)
        parts.append(text + "\n")

    setup = Setup(options.model, options.samples, options.batch, options.images)
    worst = check_nll(setup.model, setup.x[:3], samples=40)
    double, single = max(worst[torch.float64], 1e-13), max(worst[torch.float32], 1e-6)  # a 0 is luck
    say(f"Machine: {machine()}; float32.")
    say(
        f"Model: {options.model}. Data: {setup.protocol}. K = {options.samples:,} samples; the obvious loop takes "
        f"batches of {len(setup.batch)} images. All give the same NLL, to {double:.0e} nats in float64 and "
        f"{single:.0e} in float32."
    )
    field = setup.contenders(options.ablation)
    measure(field, options.seconds, options.rounds)
    header = (
        "importance-weighted NLL",
        "decoded images/s",
        "ratio (range over rounds)",
        "page faults",
        "1,000 test images",
    )
    say(table(header, rows_of(field, options.samples)))
    ours, network = field[-1], field[1]
    say(
        f"Medians of {options.rounds} alternating blocks of {options.seconds:g} s or one run; a decoded image is one "
        "sample of one image, page faults are for each of them, and the last column is extrapolated from its speed. "
        f"**Ratio {statistics.median(ratios(ours, field[0])):.2f}**, and "
        f"{statistics.median(ratios(ours, network)):.2f} against the loop on the obvious network."
    )
    if options.profile:
        say(table(("where vlae's NLL spends its time", "share"), profile(ours)))
    return "\n".join(parts).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of vlae's importance-weighted NLL against the obvious loop.")
    parser.add_argument("--model", default=MODEL, help="a pretrained VLAE, by name or directory")
    parser.add_argument("--samples", type=int, default=1000, help="K")
    parser.add_argument("--batch", type=int, default=100, help="images at a time in the obvious loop")
    parser.add_argument("--images", type=int, default=4, help="images of one timed run of vlae's NLL")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks per contender")
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    parser.add_argument("--ablation", action="store_true", help="add one ingredient at a time")
    parser.add_argument("--profile", action="store_true", help="also show where the time of vlae's NLL goes")
    parser.add_argument("--write", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    counts = (options.samples, options.batch, options.images, options.rounds, options.seconds)
    if not (all(count > 0 for count in counts) and (options.threads is None or options.threads > 0)):
        return cli.fail("--samples, --batch, --images, --rounds, --seconds and --threads must be positive")
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
