"""The family's table: every row is a configuration that `vlae train` takes, and its model does what a row needs."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from vlae.training.configuration import build_model, train_parser

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import family

PLAN = yaml.safe_load(Path(family.__file__).with_suffix(".yaml").read_text())
SHAPES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28), "dsprites": (1, 64, 64), "kodak": (3, 32, 32)}
MODELS = {"VAE", "ConditionalVAE", "LadderVAE", "VQVAE", "DenoisingAutoencoder", "PixelCNN", "VLAE"}


@pytest.mark.parametrize("row", PLAN["rows"], ids=family.slug)
def test_a_row_is_a_configuration_of_a_model(row, tmp_path):
    path = tmp_path / "row.yaml"
    path.write_text(yaml.safe_dump(family.configuration(PLAN, row)))
    settings = train_parser().parse_args(["--config", str(path)])
    assert settings.data.name and settings.seed == 0 and settings.trainer.max_epochs == 1
    model = build_model(settings.model, SHAPES[row["set"]])
    levels = 2 if row["set"] in ("mnist", "dsprites") else 256
    model.check_levels(levels, row["set"])
    x = torch.randint(0, levels, (2, *SHAPES[row["set"]])) / (levels - 1)
    context = None
    if model.condition is not None:
        context = torch.tensor([1, 2]) if model.condition.classes else torch.randn(2, model.condition.attributes)
    with torch.no_grad():
        assert model.eval().elbo(x, context=context).elbo.isfinite().all()


def test_rows_have_names_of_their_own_and_cover_the_models():
    names = [family.slug(row) for row in PLAN["rows"]]
    assert len(set(names)) == len(names)
    assert {next(iter(row["model"])) for row in PLAN["rows"]} == MODELS
    assert {row["set"] for row in PLAN["rows"]} == set(family.TITLES) == set(PLAN["sets"])


def test_a_row_overrides_the_budget_and_the_set():
    plan = {"budget": {"data": {"batch_size": 4}, "seed": 0}, "sets": {"a": {"data": {"name": "digits"}}}}
    row = {"set": "a", "name": "x", "model": {"VAE": {"latent_dim": 2}}, "objective": {"ELBO": {"beta": 2.0}}}
    assert family.configuration(plan, row) == {
        "data": {"batch_size": 4, "name": "digits"},
        "seed": 0,
        "model": {"class_path": "vlae.VAE", "init_args": {"latent_dim": 2}},
        "objective": {"class_path": "vlae.objectives.ELBO", "init_args": {"beta": 2.0}},
    }


def values(**changes):
    """What a row's JSON file holds."""
    numbers = {"parameters": 1234, "distortion": 80.0, "rate": 20.0, "negative_elbo": 100.0, "steps": 10}
    nll = {"nll": 98.0, "nll_error": 1.5, "nll_images": 5, "nll_samples": 7, "nll_bits_per_dim": 0.18}
    words = {
        "model": "VAE",
        "likelihood": "bernoulli",
        "has_bound": True,
        "protocol": "digits",
        "training_seconds": 61.4,
    }
    return {**numbers, **nll, **words, **changes}


def test_a_model_without_a_bound_shows_none():
    assert family.cells(values()) == [
        *("VAE", "bernoulli", "1,234", "80.00", "20.00", "100.00", "98.00 ± 1.50", "0.180", "61 s")
    ]
    without = family.cells(values(has_bound=False, rate=None, negative_elbo=None, nll=None))
    assert without[3:] == ["80.00", "–", "–", "–", "–", "61 s"]
    density = family.cells(values(nll_bits_per_dim=None))
    assert density[6:8] == ["98.00 ± 1.50", "–"]


def test_the_table_holds_the_rows_that_are_done(tmp_path):
    plan = {**PLAN, "rows": PLAN["rows"][:2]}
    assert family.table(plan, tmp_path) == ""
    (tmp_path / f"{family.slug(PLAN['rows'][1])}.json").write_text(json.dumps(values(model="only this")))
    text = family.table(plan, tmp_path)
    assert text.count("only this") == 1 and "MNIST" in text and "10 steps of 64 images" in text and "K = 7" in text
