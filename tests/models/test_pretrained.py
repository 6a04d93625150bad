"""The models that come with the package: they load, and their cards and metadata say what is true."""

import os

import pytest

import vlae
from vlae.evaluation.report import TOLERANCE, evaluate_dataset
from vlae.models.saving import CARD, locate, pretrained_names
from vlae.training.settings import DataSettings


def test_there_are_pretrained_models():
    assert "mnist-dynamic" in pretrained_names()


@pytest.mark.parametrize("name", pretrained_names())
def test_card_and_metadata_agree(name):
    model = vlae.load(name)
    expected, card = model.metadata["expected"], (locate(name) / CARD).read_text()
    assert "first" not in card.split("## Expected numbers")[1]  # the NLL is of a fixed random choice
    for key in ("distortion", "rate", "negative_elbo", "nll") if model.latent_size else ("negative_elbo",):
        assert f"{expected[key]:.4f}" in card
    assert expected["negative_elbo"] == pytest.approx(expected["distortion"] + expected["rate"])
    assert f"vlae eval --model {name} --check" in card
    assert model.metadata["protocol"] in card
    assert not model.training


@pytest.mark.skipif(not os.environ.get("VLAE_DATA"), reason="needs the data sets in $VLAE_DATA")
@pytest.mark.parametrize("name", ["mnist-dynamic", "mnist-codec"])  # the others take minutes: vlae eval --check
def test_expected_bound_is_obtained(name):
    model = vlae.load(name)
    result = evaluate_dataset(model, DataSettings(**model.metadata["data"]).load("test"))
    for key in ("distortion", "rate", "negative_elbo"):
        assert getattr(result, key) == pytest.approx(model.metadata["expected"][key], abs=TOLERANCE)
    assert result.shuffled_gap > 5  # nats: z is used


@pytest.mark.skipif(not os.environ.get("VLAE_DATA"), reason="needs the data sets in $VLAE_DATA")
def test_expected_nll_is_obtained():
    model = vlae.load("mnist-vae-mlp")  # the fastest
    expected = model.metadata["expected"]
    dataset = DataSettings(**model.metadata["data"]).load("test")
    result = evaluate_dataset(model, dataset, expected["nll_samples"], expected["nll_images"])
    assert result.nll == pytest.approx(expected["nll"], abs=TOLERANCE)


def test_samples_and_reconstructions_are_images():
    model = vlae.load("mnist-dynamic")
    images = model.sample(2)
    assert images.shape == (2, 1, 28, 28)
    assert model.reconstruct(images).shape == images.shape
