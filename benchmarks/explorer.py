"""How fast the explorer's picture follows a slider: measured in a real browser, from the move to the painted picture.

    python benchmarks/explorer.py                         # mnist-dynamic, 28x28, 60 moves one by one and a drag
    python benchmarks/explorer.py --models mnist-codec fashion-mnist --moves 100

*One by one*: each move waits until its picture is painted. *Dragged*: moves come every 16 ms, more often than pictures
can; requests never queue, so the picture that is painted is at most one picture behind. Needs Playwright and a Chromium
(`pip install -e '.[dev]'`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from training import table

from vlae import VlaeError, cli
from vlae.explorer import Shelf
from vlae.explorer.background import READY, choose_model, chromium, serving
from vlae.machine import machine

AIM = 150  # ms, of the median at 28x28 on two cores
EVERY = 16  # ms between the moves of a drag

# Sets the slider as a hand does, and waits until the counter of painted moves has changed.
MOVE = """async ([selector, value]) => {
  const slider = document.querySelector(selector), latency = document.querySelector('#latency');
  const before = latency.dataset.moves;
  slider.value = value;
  slider.dispatchEvent(new Event('input'));
  while (latency.dataset.moves === before) await new Promise((done) => setTimeout(done, 1));
  return Number(latency.dataset.last);
}"""


def one_by_one(page: Any, moves: int) -> list[float]:
    """Milliseconds of single moves of the first slider."""
    return [page.evaluate(MOVE, ["#sliders input", -2 + 4 * k / moves]) for k in range(moves)]


def dragged(page: Any, moves: int) -> tuple[float, int]:
    """The median of a drag with the mouse over the second slider, and how many pictures were painted."""
    page.locator("#reset").click()
    page.wait_for_selector(READY)
    slider, latency = page.locator("#sliders input").nth(1), page.locator("#latency")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    before = int(latency.get_attribute("data-moves"))
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    page.mouse.down()
    times = []
    for k in range(moves):
        page.mouse.move(box["x"] + 10 + (box["width"] - 20) * k / moves, box["y"] + box["height"] / 2)
        page.wait_for_timeout(EVERY)
        times.append(float(latency.get_attribute("data-last")))
    page.mouse.up()
    page.wait_for_selector(READY)
    painted = int(latency.get_attribute("data-moves")) - before
    return statistics.median(times), painted


def measure(page: Any, name: str, moves: int) -> tuple[str, ...]:
    """A row of the table."""
    choose_model(page, name)
    one_by_one(page, 5)  # the first calls
    singles = one_by_one(page, moves)
    shape = page.locator("#decoded").evaluate("c => `${c.height}x${c.width}`")
    alone = float(page.inner_text("#latency").split("alone: ")[1].split()[0])
    drag, painted = dragged(page, moves)
    ninth = statistics.quantiles(singles, n=10)[-1]
    median = statistics.median(singles)
    return name, shape, f"{median:.0f} ms", f"{ninth:.0f} ms", f"{alone:.0f} ms", f"{drag:.0f} ms", f"{painted}"


def main(words: list[str] | None = None) -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mnist-dynamic"], help="pretrained names")
    parser.add_argument("--moves", type=int, default=60, help="of each kind")
    settings = parser.parse_args(words)
    try:
        if settings.moves < 10:
            raise VlaeError(f"--moves must be 10 or more; got {settings.moves}")
        with serving(Shelf(outputs=None)) as url, chromium() as browser:
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.set_default_timeout(120_000)
            page.goto(url)
            rows = [measure(page, name, settings.moves) for name in settings.models]
            print(f"Machine: {machine()}; Chromium {browser.version}, headless, on the same machine.\n")
    except VlaeError as error:
        return cli.fail(str(error))
    header = ("model", "image", "move", "90 % of moves", "of it the model", "dragged", "pictures")
    print(table(header, rows))
    print(f"\nMedians from a slider's move to the painted picture, {settings.moves} moves; the aim is {AIM} ms.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
