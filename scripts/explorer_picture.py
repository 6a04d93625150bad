"""Draws docs/images/explorer.png: the explorer with a completed drawing, as a browser shows it.

    python scripts/explorer_picture.py [MODEL]

Needs Playwright and a Chromium (`pip install -e '.[dev]'`), and shows test images where VLAE_DATA has them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vlae import VlaeError, cli
from vlae.explorer import Shelf
from vlae.explorer.background import READY, choose_model, chromium, serving
from vlae.files import replacing

PATH = Path("docs/images/explorer.png")


def main(words: list[str]) -> int:
    """Takes the picture."""
    try:
        with serving(Shelf(outputs=None)) as url, chromium() as browser:
            page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
            page.set_default_timeout(120_000)
            page.goto(url)
            choose_model(page, words[0] if words else "mnist-codec")
            page.click("#copy")
            page.click("#complete")
            page.wait_for_selector(READY)
            slider = page.locator("#sliders input").first
            for key in ["PageUp"] * 3:
                slider.press(key)
            page.wait_for_selector(READY)
            page.locator("h1").click()  # no focus ring
            with replacing(PATH) as temporary:
                temporary.write_bytes(page.screenshot(full_page=True))
    except VlaeError as error:
        return cli.fail(str(error))
    print(PATH)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
