"""The models that come with the package: they load, and their cards and metadata say what is true."""

import os

import pytest

import vlae
from vlae.evaluation.report import TOLERANCE, evaluate_dataset
from vlae.models.saving import CARD, locate, pretrained_names
from vlae.training.run import DataSettings


def test_there_are_pretrained_models():
    assert "mnist-dynamic" in pretrained_names()


@pytest.mark.parametrize("name", pretrained_names())
def test_card_and_metadata_agree(name):
    model = vlae.load(name)
    expected, card = model.metadata["expected"], (locate(name) / CARD).read_text()
    for key in ("distortion", "rate", "negative_elbo", "nll"):
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


def test_samples_and_reconstructions_are_images():
    model = vlae.load("mnist-dynamic")
    images = model.sample(2)
    assert images.shape == (2, 1, 28, 28)
    assert model.reconstruct(images).shape == images.shape
