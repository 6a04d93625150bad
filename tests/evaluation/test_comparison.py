"""The table's numbers against what they are said to be, and its forms."""

import csv
import io
import json
import math

import pytest
import torch
from rich.console import Console

import vlae
from vlae import VlaeError
from vlae.data import load
from vlae.evaluation import comparison, pictures, quality
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.probes import probe
from vlae.evaluation.report import evaluate_dataset

LEVELS = {"likelihood": "categorical", "likelihood_options": {"levels": 17}}


@pytest.fixture
def sets():
    return load("digits").subset(60), load("digits", "test").subset(25)


@pytest.fixture
def judge():
    return Classifier((1, 8, 8), classes=10).eval()


@pytest.mark.parametrize("kind", ["tiny_vae", "tiny_vlae"])
def test_images_are_decoded_and_drawn_the_same_every_time(kind, request, monkeypatch):
    model = request.getfixturevalue(kind)((1, 8, 8), **LEVELS)
    x = load("digits", "test").subset(7).tensor().double()
    monkeypatch.setattr(pictures, "CHUNK", 3)
    images, again, other = (comparison.images_of(model.train(), x, seed) for seed in (1, 1, 2))
    assert model.training
    model.eval()
    torch.testing.assert_close(images.reconstructions, model.reconstruct(x))
    for name in ("reconstructions", "drawn_reconstructions", "samples", "drawn_samples"):
        made = getattr(images, name)
        assert made.shape == x.shape and made.min() >= 0 and made.max() <= 1
        assert torch.equal(made, getattr(again, name))
        assert torch.equal(made, getattr(other, name)) == (name == "reconstructions")
    assert not torch.equal(images.drawn_samples[:3], images.drawn_samples[3:6])  # no batch repeats another's noise
    levels = images.drawn_samples * 16
    torch.testing.assert_close(levels, levels.round())  # draws are at the data's levels


def test_drawn_samples_are_of_the_same_codes_as_the_decoded_ones(tiny_vae):
    model = tiny_vae((1, 8, 8), likelihood="gaussian", likelihood_options={"sigma": 1e-6})
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    images = comparison.images_of(model, load("digits", "test").subset(4).tensor().double())
    torch.testing.assert_close(images.samples, images.drawn_samples, atol=1e-4, rtol=0)
    assert images.samples.std(0).mean() > 0.01  # of different codes


def test_a_models_numbers_are_those_of_the_parts(tiny_vlae, sets, judge):
    train, test = sets
    model = tiny_vlae((1, 8, 8), **LEVELS)
    column, images = comparison.measure(model, train, test, judge, seed=3)
    bound, probed, x = evaluate_dataset(model, test, seed=3), probe(model, train, test), test.tensor()
    expected = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "latent_size": 3,
        "distortion": bound.distortion,
        "rate": bound.rate,
        "negative_elbo": bound.negative_elbo,
        "mse": quality.mse(x, images.reconstructions).mean().item(),
        "sharpness": quality.sharpness(images.reconstructions).mean().item(),
        "drawn_ssim": quality.ssim(x, images.drawn_reconstructions).mean().item(),
        "sample_sharpness": quality.sharpness(images.samples).mean().item(),
        "sample_confidence": judge.confidence(images.samples).mean().item(),
        "drawn_sample_frechet": quality.frechet_distance(judge.features(x), judge.features(images.drawn_samples)),
        "linear_probe": probed.linear,
        "knn": probed.knn,
    }
    assert {name: column[name] for name in expected} == pytest.approx(expected)
    known = {name for names in comparison.SECTIONS for name in names}
    assert column.keys() == known - {"factor_r2"}  # every number has a row
    without, _ = comparison.measure(model, train, test)
    assert not any("frechet" in name or "confiden" in name for name in without)


def test_a_model_without_a_bound_has_no_rate(sets):
    model = vlae.DenoisingAutoencoder((1, 8, 8), latent_dim=3, architecture="mlp", widths=[6], **LEVELS).eval()
    column, _ = comparison.measure(model, *sets)
    assert "distortion" in column
    assert not {"rate", "negative_elbo"} & column.keys()


def test_the_datas_own_column(sets, judge):
    train, test = sets
    column = comparison.measure_data(train, test, judge)
    others = train.subset(25).tensor()
    assert column["latent_size"] == 64
    assert column["sharpness"] == pytest.approx(quality.sharpness(test.tensor()).mean().item())
    assert column["sample_sharpness"] == pytest.approx(quality.sharpness(others).mean().item())
    features = judge.features(test.tensor()), judge.features(others)
    assert column["sample_frechet"] == pytest.approx(quality.frechet_distance(*features))
    assert column["knn"] == probe(None, train, test).knn
    assert "mse" not in column and "rate" not in column


def test_other_images_and_conditional_models_are_refused(tiny_vae, sets):
    with pytest.raises(VlaeError, match="1x5x4 images and those of digits are 1x8x8"):
        comparison.measure(tiny_vae(), *sets)
    with pytest.raises(VlaeError, match="conditional"):
        comparison.measure(vlae.ConditionalVAE((1, 8, 8), classes=10, **LEVELS), *sets)


COLUMNS = {"data": {"sharpness": 1.5}, "VAE": {"rate": 12.345678, "sharpness": math.nan, "parameters": 1234.0}}


def test_the_table_in_all_its_forms():
    console = Console(file=io.StringIO(), width=100)
    console.print(comparison.as_table(COLUMNS, "title"))
    printed = console.file.getvalue()
    assert "rate [nats]" in printed and "12.35" in printed and "1,234" in printed
    assert "MSE" not in printed  # nobody has one

    lines = comparison.as_markdown(COLUMNS, "title", ["a note"]).splitlines()
    assert "| | data | VAE |" in lines
    assert "| rate [nats] | - | 12.35 |" in lines
    assert lines[0] == "# title" and lines[-1] == "- a note"

    rows = list(csv.reader(io.StringIO(comparison.as_csv(COLUMNS))))
    assert rows[0] == ["metric", "data", "VAE"]
    assert ["rate", "", "12.345678"] in rows and len(rows) == 4

    values = json.loads(comparison.as_json(COLUMNS, {"seed": 3}))
    assert values["seed"] == 3
    assert values["columns"]["VAE"] == {"rate": 12.345678, "sharpness": None, "parameters": 1234.0}
