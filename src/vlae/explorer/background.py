"""An explorer in a thread and a browser to look at it with: for tests, the benchmark and the picture of the docs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlae.errors import VlaeError
from vlae.explorer.server import MAX_UPLOAD, address, application, listen, make_server
from vlae.explorer.shelf import Shelf

READY = "body[data-ready=true][data-busy=false]"  # the page has all that it asked for


@contextmanager
def serving(shelf: Shelf, max_upload: int = MAX_UPLOAD, **options: Any) -> Iterator[str]:
    """The address of an explorer on a free port, served in a thread while the block runs."""
    with listen("127.0.0.1", 0) as listening:
        server = make_server(application(shelf, max_upload, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join(20)


@contextmanager
def chromium() -> Iterator[Any]:
    """A Chromium under Playwright: the system's, else Playwright's own.

    Raises:
        VlaeError: there is no Playwright, or no Chromium.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise VlaeError("Playwright is not installed: pip install playwright") from None
    names = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as engine:
        paths = [path for path in (*names, engine.chromium.executable_path) if path and Path(path).is_file()]
        if not paths:
            raise VlaeError("no Chromium is installed: playwright install chromium")
        # Its sandbox needs more rights than a container gives; it sees this page alone.
        browser = engine.chromium.launch(executable_path=paths[0], args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def choose_model(page: Any, name: str) -> None:
    """Chooses a model on the page, and waits for all that follows."""
    page.wait_for_selector(READY)
    if page.input_value("#model") != name:
        page.select_option("#model", name)
        page.wait_for_selector(READY)
