"""All speeds and sizes as ratios in one table, each measured in this run against its baseline.

    python benchmarks/ratios.py                # prints the table; wants an otherwise idle machine
    python benchmarks/ratios.py --store        # and puts it into docs/benchmarks.md

The single benchmarks say more: what each ingredient adds, where the time goes, what is checked before it is timed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training import table

from vlae import VlaeError, cli
from vlae.files import write_text
from vlae.training.speed import machine

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- ratios -->", "<!-- end of ratios -->"
NUMBER = r"([+-]?[\d,.]*\d)"


@dataclass(frozen=True)
class Ratio:
    """A ratio that a benchmark prints.

    Attributes:
        what: is measured.
        against: what.
        pattern: finds the number, its one group, in the benchmark's output.
    """

    what: str
    against: str
    pattern: str


# Command -> what is read from its output.
BENCHMARKS: dict[tuple[str, ...], list[Ratio]] = {
    ("training.py", "--rounds", "3", "--seconds", "6"): [
        Ratio("training, images a second", "the obvious implementation", rf"\*\*Ratio {NUMBER}\*\*"),
    ],
    ("scaling.py", "--rounds", "2"): [
        Ratio("training in two processes", "in one", rf"\| 2 \| [\d,.]+ \| {NUMBER} \|"),
    ],
    ("sampling.py", "--quick"): [
        Ratio("one sample, images a second", "a full pass for each pixel", rf"\*\*Ratio {NUMBER} at batch 1\b"),
        Ratio("64 samples, images a second", "a full pass for each pixel", rf", {NUMBER} at batch 64\b"),
    ],
    ("likelihood.py", "--rounds", "3"): [
        Ratio("NLL with K = 1,000, images a second", "a loop over samples", rf"\*\*Ratio {NUMBER}\*\*"),
    ],
    ("codec.py", "--images", "2000"): [
        Ratio("bytes of gzip -9 on packed bits", "of a .vlae file", rf"\| gzip -9 on packed bits .*\| {NUMBER} *\|"),
        Ratio("bytes of PNG, one mosaic", "of a .vlae file", rf"\| PNG, 1 mosaic .*\| {NUMBER} *\|"),
        Ratio("bytes of 2,000 images, per cent over", "-ELBO", rf"\| whole file .*\| {NUMBER} %"),
    ],
}


def read(ratio: Ratio, text: str, command: Sequence[str]) -> str:
    """The number in a benchmark's output."""
    found = re.search(ratio.pattern, text)
    if found is None:
        raise VlaeError(f"benchmarks/{' '.join(command)} printed no ratio of {ratio.what}: run it by itself")
    return found[1]


def run(command: Sequence[str]) -> str:
    """What a benchmark prints."""
    done = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], capture_output=True, text=True)
    if done.returncode:
        raise VlaeError(f"benchmarks/{' '.join(command)} failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return done.stdout


def ratios() -> str:
    """The table, as Markdown."""
    rows = []
    for command, wanted in BENCHMARKS.items():
        print(f"benchmarks/{' '.join(command)} ...", file=sys.stderr, flush=True)
        text = run(command)
        rows += [(r.what, r.against, read(r, text, command), f"`benchmarks/{' '.join(command)}`") for r in wanted]
    return f"Machine: {machine()}.\n\n" + table(("", "against", "ratio", "by"), rows)


def store(page: str, text: str) -> str:
    """The page with another table of ratios."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(END) < page.index(BEGIN):
        raise VlaeError(f"{PAGE} has no one place for the table: it goes between {BEGIN} and {END}")
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="All ratios in one table.")
    parser.add_argument("--store", action="store_true", help=f"put the table into {PAGE.relative_to(HERE.parent)}")
    options = parser.parse_args()
    try:
        page = PAGE.read_text() if options.store else f"{BEGIN}{END}"
        store(page, "")  # before minutes of work
        text = ratios()
        print(text)
        if options.store:
            write_text(PAGE, store(page, text))
    except (VlaeError, OSError) as error:
        return cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
