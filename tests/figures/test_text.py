"""What is written in a picture is what was given, dollars and backslashes included: nothing is a formula."""

import matplotlib
import numpy as np
import pytest
import torch

from vlae import figures
from vlae.figures.sheets import sheet
from vlae.figures.studies import Point, bars, lines, rate_distortion

NAME = r"a$\frac$b"
IMAGES = torch.zeros(2, 1, 8, 8)
PATHS = IMAGES[:, None]
POINTS = [Point(NAME, 1.0, 2.0, published=1.5, group=group, text=NAME) for group in (NAME, "other")]
CODES = torch.linspace(-2, 2, 40).reshape(20, 2)
CURVES = {"train/rate": [(0, 1.0), (1, 2.0)]}
DRAWN = {
    "image_grid": lambda: figures.image_grid(IMAGES, title=NAME),
    "recon_grid": lambda: figures.recon_grid(IMAGES, {NAME: IMAGES}, NAME, (NAME, "")),
    "sheet": lambda: sheet({NAME: IMAGES}, 2, NAME),
    "interpolations": lambda: figures.interpolations(PATHS, [NAME, NAME], title=NAME),
    "traversals": lambda: figures.traversals(PATHS, [NAME] * 2, [NAME], {NAME: IMAGES}, NAME, NAME),
    "latent_arithmetic": lambda: figures.latent_arithmetic({NAME: IMAGES}, {NAME: IMAGES}, NAME),
    "completions": lambda: figures.completions(IMAGES, torch.ones(1, 1, 8, 8).bool(), PATHS, [NAME] * 2, NAME),
    "decompressions": lambda: figures.decompressions(IMAGES, PATHS, NAME),
    "training_curves": lambda: figures.training_curves(CURVES, NAME),
    "latent_scatter": lambda: figures.latent_scatter(CODES, None, (NAME, NAME), NAME),
    "aggregate_posterior": lambda: figures.aggregate_posterior(CODES, CODES, [NAME] * 2, title=NAME),
    "bits_heatmap": lambda: figures.bits_heatmap(CODES, [NAME] * 2, title=NAME),
    "lines": lambda: lines({NAME: POINTS}, NAME, NAME),
    "bars": lambda: bars({NAME: POINTS}, NAME),
    "rate_distortion": lambda: rate_distortion(POINTS, NAME, NAME),
}


def rendered(name: str) -> np.ndarray:
    figure = DRAWN[name]()
    figure.canvas.draw()  # matplotlib reads formulas only here
    return np.asarray(figure.canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("name", DRAWN)
def test_names_from_outside_are_drawn_as_where_there_are_no_formulas(name, monkeypatch):
    drawn = rendered(name)
    for module in ("charts", "grids", "latents", "sequences", "studies"):
        monkeypatch.setattr(f"vlae.figures.{module}.plain", lambda text: text)
    with matplotlib.rc_context({"text.parse_math": False}):
        assert np.array_equal(drawn, rendered(name))
    with pytest.raises(ValueError, match="Expected"):  # the name is one that matplotlib would stumble on
        rendered(name)


@pytest.mark.parametrize("text", ["a$b", "$x$", r"a\$b$", "$$", "\\", "a\n$b$"])
def test_any_text_is_drawn_as_it_is(text, monkeypatch):
    monkeypatch.setitem(DRAWN, "title", lambda: figures.image_grid(IMAGES, title=text))
    drawn = rendered("title")
    monkeypatch.setattr("vlae.figures.grids.plain", lambda text: text)
    with matplotlib.rc_context({"text.parse_math": False}):
        assert np.array_equal(drawn, rendered("title"))
