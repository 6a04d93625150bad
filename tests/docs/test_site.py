"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and leaves nothing out."""

import html.parser
import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

from vlae.cli import COMMANDS

for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
    pytest.importorskip(name, reason="the documentation's tools are not installed: pip install -e '.[docs]'")

ROOT = Path(__file__).parents[2]
LOADING = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
ROOMS = ("codec", "data", "distributions", "evaluation", "figures", "models", "nn", "objectives", "sampling")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A warning, such as of a link that leads nowhere, stops the build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    path = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(path))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return path


class Loaded(html.parser.HTMLParser):
    """What a page makes the browser fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in LOADING and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get(LOADING[tag]) or "")
        self.found += re.findall(r"url\(([^)]+)\)", values.get("style") or "")


def foreign(page):
    """What a page loads from another host."""
    parser = Loaded()
    parser.feed(page)
    return [target for target in parser.found if re.match(r"(?:[a-z+]+:)?//", target)]


def test_what_comes_from_another_host_is_found():
    page = (
        '<script src="https://unpkg.com/a.js"></script><link rel="stylesheet" href="//b.org/c.css"><a href="https://d">'
    )
    assert foreign(page + '<img src="images/e.png">') == ["https://unpkg.com/a.js", "//b.org/c.css"]


def test_no_page_loads_anything_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not foreign(page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_the_reference_has_every_public_name(site):
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    listed = {line.split()[-1].rsplit(".", 1)[-1] for line in re.findall(r"^::: .*$", text, re.MULTILINE)}
    for room in ROOMS:
        public = set(importlib.import_module(f"vlae.{room}").__all__)
        assert not public - listed, room
    models = (site / "reference" / "models.html").read_text(encoding="utf-8")
    for anchor in ("vlae.VLAE", "vlae.LatentVariableModel.elbo", "vlae.nn.ReceptiveField.mask"):
        assert f'id="{anchor}"' in models


def test_the_reference_of_the_command_line_has_every_command_and_option(site):
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f'id="vlae-{name.replace(" ", "-")}"' in page
    for option in ("--trainer.max_epochs", "--nll_samples", "--lossy_bits", "--data.binarize"):
        assert f"<code>{option}</code>" in page


def test_formulas_are_drawn(site):
    pages = {page.name: page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html")}
    assert "<math" in pages["objectives.html"]
    assert "<math" in pages["evaluation.html"]
    for name, text in pages.items():
        assert "math::" not in text, name
        assert ":math:" not in text, name
        for formula in re.findall(r"<math.*?</math>", text, re.DOTALL):
            assert "\\" not in formula, name  # a name that the converter does not know stays as it is


def test_search_has_what_the_pages_say(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    locations = {entry["location"] for entry in index["docs"]}
    assert {"tutorial.html", "reference/models.html#vlae.VLAE"} <= locations


def test_pages_and_search_work_from_the_disk_in_a_browser(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    asked, wrong = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            for name in ("tutorial", "reference/cli") if scheme == "light" else ("explanation", "reference/sampling"):
                page.goto((site / f"{name}.html").as_uri())
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name}, {width} wide"
                assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)"), name
            if width == 1280:
                page.locator("input[name=query]").press_sequentially("wavefront")  # keys, which the search listens to
                page.wait_for_selector(".md-search-result__item a")
        browser.close()
    assert not wrong
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
