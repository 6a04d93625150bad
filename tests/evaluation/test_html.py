"""The page: whole, alone, escaped, and the same every time."""

import base64
from html.parser import HTMLParser

import pytest
import torch

from vlae import models
from vlae.data import ImageDataset
from vlae.evaluation import html
from vlae.evaluation.criteria import Criterion
from vlae.evaluation.illustrations import illustrations
from vlae.evaluation.measurements import Measurements, Settings
from vlae.evaluation.metrics import METRICS
from vlae.evaluation.suite import measure

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text; fails where tags do not close in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.rows = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "tr" in self.open and data.strip():
            self.rows[-1].append(data.strip())

    def values(self, name):
        return [value for _, each, value in self.attributes if each == name]


@pytest.fixture
def found(tiny_vlae):
    pixels = torch.randint(0, 2, (8, 1, 5, 4), dtype=torch.uint8)
    test = ImageDataset(pixels, 2, name="noise", split="test", labels=torch.arange(8) % 2)
    settings = Settings(nll_samples=(1, 3), information_images=6, quality_images=4)
    return measure(tiny_vlae(), test, None, settings)


ROWS = [{"epoch": 1.0, "train/rate": 3.0}, {"epoch": 2.0, "train/rate": 4.0}]


def test_every_metric_is_there_with_its_words(found):
    page = Page(html.page(found, {"model": "VLAE"}, illustrations(found, ROWS)))
    by_heading = {row[0]: row for row in page.rows if row}
    for name, value in found.values.items():
        metric = METRICS[name]
        if metric.group == "nll" or name == "rate_bits":
            continue
        row = by_heading[metric.heading]
        assert row[1] == metric.about and row[2] == metric.written(value, found.errors.get(name))
        assert (row[-1] == html.ARROWS[metric.better]) == bool(metric.better), name
    for row in found.series["nll_by_samples"]:
        assert METRICS["nll"].written(row["nll"], row["error"]) in by_heading[str(row["samples"])]
    text = " ".join(page.text)
    assert all(words in text for words in (*found.notes, *found.skipped.values()))


def test_the_page_needs_nothing_else(found):
    text = html.page(found, {"command": "vlae eval"}, illustrations(found, ROWS))
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not page.values("href") and not page.values("style")
    sources = page.values("src")
    assert len(sources) == len(illustrations(found, ROWS)) >= 6
    for source in sources:
        head, data = source.split(",")
        assert head == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")


def test_it_is_made_for_everyone(found):
    page = Page(html.page(found, {}, illustrations(found)))
    assert page.values("lang") == ["en"] and page.values("charset") == ["utf-8"]
    assert "".join(page.text).count("VLAE on noise, test") == 2  # the title, and the heading
    assert page.tags.count("h1") == page.tags.count("title") == page.tags.count("main") == 1
    alternatives = page.values("alt")
    assert len(alternatives) == page.tags.count("img") and all(len(text) > 20 for text in alternatives)
    assert "prefers-color-scheme: dark" in html.STYLE and "@media print" in html.STYLE
    assert any(name == "viewport" for name in page.values("name"))
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert len(scopes) == page.tags.count("th")


def test_the_same_evaluation_gives_the_same_page(found):
    first = html.page(found, {"seed": "0"}, illustrations(found, ROWS))
    found.seconds = {name: value + 1 for name, value in found.seconds.items()}
    assert html.page(found, {"seed": "0"}, illustrations(found, ROWS)) == first
    found.values["rate"] += 1
    assert html.page(found, {"seed": "0"}, illustrations(found, ROWS)) != first


def test_everything_is_escaped():
    evil = "<script>alert('x')</script>&\""
    found = Measurements(evil, evil, {"rate": 1.0}, notes=[evil], skipped={evil: evil})
    criteria = [Criterion("rate", evil, True, evil)]
    text = html.page(found, {evil: evil}, criteria=criteria)
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text
    # Title and heading name model and data; the data, a criterion and its numbers, a note, a reason and its name, a
    # line of provenance and its name.
    assert "".join(page.text).count(evil) == 2 + 2 + 1 + 2 + 1 + 2 + 2


def test_criteria_stand_first_with_their_verdicts(found):
    verdicts = {"a": True, "b": False, "c": None}
    criteria = [Criterion(name, f"title {name}", met, f"numbers {name}") for name, met in verdicts.items()]
    page = Page(html.page(found, {}, criteria=criteria))
    assert page.rows[1:4] == [
        ["title a", "numbers a", "met"],
        ["title b", "numbers b", "NOT met"],
        ["title c", "numbers c", "not checked"],
    ]
    assert "Success criteria" not in html.page(found, {})


def test_levels_of_a_ladder_have_rows_and_a_picture():
    pixels = torch.randint(0, 2, (5, 1, 5, 4), dtype=torch.uint8)
    model = models.LadderVAE((1, 5, 4), latent_dims=(3, 2), hidden=5)
    found = measure(model, ImageDataset(pixels, 2, split="test"), None, Settings(only=("bound",)))
    page = Page(html.page(found, {}))
    rates = found.series["rate_per_level"]
    assert [row[1] for row in page.rows if row and row[0] in ("of z_1", "of z_2")] == [f"{rate:.2f}" for rate in rates]
    assert "Rate per level" in [each.title for each in illustrations(found)]


def test_what_can_not_be_drawn_is_left_out(found):
    titles = [each.title for each in illustrations(found, ROWS)]
    assert titles == [
        *("Reconstructions", "Data", "Samples", "Drawn samples", "Rate per dimension", "NLL and importance samples"),
        "Training",
    ]
    found.pictures["samples"] = torch.full((4, 1, 5, 4), torch.nan)
    found.pictures["drawn samples"] = torch.zeros(4, 2, 5, 4)
    found.series["bits_per_latent"] = [1.0, float("inf")]
    assert [each.title for each in illustrations(found)] == ["Reconstructions", "Data", "NLL and importance samples"]
    assert illustrations(Measurements("VAE", "noise")) == []
