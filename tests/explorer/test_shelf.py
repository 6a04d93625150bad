"""What is offered: names and never paths, sets that are there, images in the model's own shape."""

import json

import pytest
import torch

import vlae
from vlae.errors import VlaeError
from vlae.explorer import Shelf
from vlae.models.saving import pretrained_names


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data but what needs none."""
    monkeypatch.setenv("VLAE_DATA", str(tmp_path))
    monkeypatch.setattr("vlae.data.sources.cache_dir", lambda: tmp_path / "cache")
    return tmp_path


def test_models_given_then_runs_then_pretrained(tmp_path, models):
    for name in ("old", "new"):
        models["vae"].save_pretrained(tmp_path / name / "model")
    (tmp_path / "no-model").mkdir()
    import os

    os.utime(tmp_path / "old" / "model" / "config.json", (1, 1))
    shelf = Shelf({"mine": models["vlae"]}, outputs=tmp_path)
    assert shelf.names[:3] == ["mine", (tmp_path / "new").as_posix(), (tmp_path / "old").as_posix()]
    assert shelf.names[3] == "mnist-dynamic"
    assert sorted(shelf.names[3:]) == pretrained_names()
    assert type(shelf.bench((tmp_path / "new").as_posix()).model) is vlae.VAE
    with pytest.raises(VlaeError, match="no model to explore"):
        Shelf(outputs=None, pretrained=False)


@pytest.mark.parametrize("name", ["", "../../etc", "/etc/passwd", "nothing"])
def test_only_names_on_the_shelf_can_be_asked_for(name, models, nowhere):
    models["vae"].save_pretrained(nowhere / "hidden")
    shelf = Shelf({"vae": models["vae"]}, outputs=None, pretrained=False)
    for wrong in (name, str(nowhere / "hidden")):
        with pytest.raises(VlaeError, match="choose one of vae"):
            shelf.bench(wrong)
    with pytest.raises(VlaeError, match="no data set"):
        shelf.strip("vae", name)


def test_sets_that_are_not_there_say_why(models, nowhere, monkeypatch):
    def no_downloads(*_):
        raise AssertionError("the page downloads nothing")

    monkeypatch.setattr("vlae.data.sources._download", no_downloads)
    models["vae"].metadata = {"data": {"name": "mnist", "binarize": "dynamic"}}
    shelf = Shelf({"vae": models["vae"]}, outputs=None, pretrained=False)
    sets = {entry["name"]: entry["reason"] for entry in shelf.sets("vae")}
    assert next(iter(sets)) == "mnist"
    assert "folder" not in sets
    assert {name for name, reason in sets.items() if reason is None} == {"digits", "sprites"}
    assert str(nowhere / "mnist") in sets["mnist"]
    with pytest.raises(VlaeError, match="mnist can't be shown: its files are not in"):
        shelf.strip("vae", "mnist")
    models["vae"].metadata = {"data": {"name": "folder", "options": {"path": "gone"}}}
    assert "no directory" in shelf.sets("vae")[0]["reason"]


def test_the_models_own_set_comes_as_it_was_trained_on(models, nowhere):
    model = models["vlae"]
    model.metadata = {"data": {"name": "digits", "binarize": "dynamic"}}
    strip = Shelf({"vlae": model}, outputs=None).strip("vlae", "digits")
    expected = vlae.data.load("digits", "test", binarize="dynamic")
    assert torch.equal(strip.images, expected.tensor()[: len(strip.images)])
    assert torch.equal(strip.labels, expected.labels[: len(strip.images)])
    assert "this split's fixed draw" in strip.note


def test_other_sets_are_fitted_to_the_model(models, nowhere):
    shelf = Shelf({**models, "wide": vlae.VAE((1, 28, 28), latent_dim=2, architecture="mlp", widths=[4])}, outputs=None)
    for name in ("wide", "colour", "levels"):
        for data in ("digits", "sprites"):
            strip = shelf.strip(name, data)
            model = shelf.bench(name).model
            model.check(strip.images)
            assert strip.images.unique().numel() >= 2
            if name == "wide":
                assert "28x28, grey, black and white" in strip.note


def test_conditional_models_are_told_the_labels(models, nowhere):
    shelf = Shelf(models, outputs=None)
    strip = shelf.strip("labels", "digits")
    assert torch.equal(strip.context, strip.labels)
    assert shelf.strip("attributes", "digits").context is None  # digits have none


def test_a_damaged_run_is_one_line(models, tmp_path):
    path = models["vae"].save_pretrained(tmp_path / "run" / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model": "Evil"}))
    shelf = Shelf(outputs=tmp_path, pretrained=False)
    with pytest.raises(VlaeError, match="Evil"):
        shelf.bench(shelf.names[0])


def test_few_models_stay_in_memory(models):
    shelf = Shelf(models, outputs=None, pretrained=False)
    for name in models:
        shelf.bench(name)
    assert len(shelf._benches) == 4
