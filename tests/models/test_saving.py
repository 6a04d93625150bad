import hashlib
import json
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
import safetensors.torch
import torch

import vlae
from vlae import VlaeError
from vlae.models import saving
from vlae.models.saving import trained_on

MODELS = {
    "vae": lambda vae, vlae: vae(architecture="conv", widths=[4], flow_steps=2),
    "two": lambda vae, vlae: vlae(weight_norm=True),
    "tied": lambda vae, vlae: vlae(stacks="plain", tied=True, decoder_layers=3, pointwise_blocks=1),
    "colour": lambda vae, vlae: vlae((3, 4, 4), likelihood="gaussian", flow_order="same"),
}


@pytest.fixture
def saved(tmp_path, tiny_vae):
    """A saved model's directory."""
    return tiny_vae().save_pretrained(tmp_path / "model")


def bound(model, x):
    return model.elbo(x, generator=torch.Generator().manual_seed(0)).elbo


def edit(path, **changes):
    """Changes keys of the configuration; None removes one."""
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    config = {key: value for key, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))


def with_weights(path, data):
    """Replaces the weights and makes the checksum fit, as an attacker would."""
    (path / "model.safetensors").write_bytes(data)
    edit(path, sha256=hashlib.sha256(data).hexdigest())


def refusal(path):
    """The one line that loading fails with."""
    with pytest.raises(VlaeError) as caught:
        vlae.load(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_round_trip_is_bit_equal(tmp_path, tiny_vae, tiny_vlae, binary, make, dtype):
    model = make(tiny_vae, tiny_vlae).to(dtype)
    x = binary(6, model.image_shape).to(dtype)
    with torch.no_grad():
        model.train().elbo(x)  # moves the batch statistics, which are saved too
    model.eval()
    again = vlae.load(model.save_pretrained(tmp_path / "a" / "model"))
    assert type(again) is type(model)
    assert not again.training
    assert all(a.dtype == b.dtype for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(bound(again, x), bound(model, x))
    assert again.config == model.config
    assert list(map(id, again.parameters())) != list(map(id, model.parameters()))


def test_configuration_is_the_constructors_arguments(tiny_vlae):
    model = tiny_vlae(stacks="plain")
    assert model.config["stacks"] == "plain" and model.config["kernel_size"] == 3  # given, and a default
    assert model.config["image_shape"] == [1, 5, 4]
    assert vlae.VLAE(**model.config).config == model.config


@pytest.mark.parametrize("beta", [np.float32(0.5), Fraction(1, 2), np.int64(2)])
def test_numbers_of_any_type_are_kept_as_numbers(beta, tmp_path, tiny_vae):
    model = tiny_vae(beta=beta)
    assert model.config["beta"] == float(beta) and type(model.config["beta"]) in (int, float)
    assert vlae.load(model.save_pretrained(tmp_path / "model")).beta == beta


def test_metadata_and_card_travel(tmp_path, tiny_vae):
    model = tiny_vae()
    model.metadata = {"data": "digits", "expected": {"nll": 12.25}}
    path = model.save_pretrained(tmp_path / "model", card="# A model\n")
    assert sorted(os.listdir(path)) == ["README.md", "config.json", "model.safetensors"]
    assert (path / "README.md").read_text() == "# A model\n"
    assert vlae.load(path).metadata == model.metadata


def test_from_pretrained_checks_the_class(saved):
    assert isinstance(vlae.VAE.from_pretrained(saved), vlae.VAE)
    assert isinstance(vlae.LatentVariableModel.from_pretrained(saved), vlae.VAE)
    with pytest.raises(VlaeError, match="holds a VAE, not a VLAE"):
        vlae.VLAE.from_pretrained(saved)


def test_a_run_directory_holds_its_model(saved):
    assert isinstance(vlae.load(saved.parent), vlae.VAE)


def test_saving_replaces_the_model_that_is_there(saved, tiny_vlae):
    tiny_vlae().save_pretrained(saved)
    assert isinstance(vlae.load(saved), vlae.VLAE)
    assert os.listdir(saved.parent) == ["model"]


@pytest.mark.parametrize("failing", ["write", "rename"])
def test_a_failing_write_leaves_the_old_model(saved, tiny_vlae, monkeypatch, failing):
    before = {name: (saved / name).read_bytes() for name in os.listdir(saved)}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    model, rename = tiny_vlae(), os.rename
    if failing == "write":  # after the weights, before the configuration
        monkeypatch.setattr(saving.Path, "write_text", fail)
    else:  # the old model has moved away and the new one can't take its place
        monkeypatch.setattr(saving.os, "rename", lambda a, b: fail() if ".new-" in str(a) else rename(a, b))
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(saved)
    monkeypatch.undo()
    assert {name: (saved / name).read_bytes() for name in os.listdir(saved)} == before
    assert os.listdir(saved.parent) == ["model"]
    vlae.load(saved)


def test_something_else_is_never_replaced(tmp_path, tiny_vae):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.png").write_bytes(b"1")
    (tmp_path / "file").write_text("1")
    for name in ("holiday", "file"):
        with pytest.raises(VlaeError, match="is not a saved model"):
            tiny_vae().save_pretrained(tmp_path / name)
    assert (tmp_path / "holiday" / "photo.png").exists() and (tmp_path / "file").read_text() == "1"
    (tmp_path / "empty").mkdir()
    vlae.load(tiny_vae().save_pretrained(tmp_path / "empty"))


@pytest.mark.parametrize("position", [0, 8, 100, -1])
def test_a_changed_byte_of_the_weights_is_refused(saved, position):
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[position] ^= 1
    (saved / "model.safetensors").write_bytes(data)
    assert "checksum" in refusal(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"model"', "{}", '{"format": 1}', "\ud800"])
def test_a_damaged_configuration_is_refused(saved, text):
    (saved / "config.json").write_text(text, errors="surrogatepass")
    assert "config.json" in refusal(saved)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "Evil"}, "unknown model 'Evil'"),
        ({"model": "os.system"}, "unknown model"),
        ({"model": ["VAE"]}, "unknown model"),
        ({"format": 2}, "format 2.*update vlae"),
        ({"format": 2, "sha256": None, "model": None}, "format 2.*update vlae"),
        ({"sha256": "0"}, "checksum"),
        ({"arguments": None}, "config.json"),
        ({"arguments": 3}, "does not fit VAE"),
        ({"arguments": {}}, "image_shape"),
        ({"arguments": {"image_shape": [1, 5, 4], "colour": "red"}}, "colour"),
        ({"arguments": {"image_shape": [1, 5, 4], "latent_dim": 0}}, "latent_dim must be"),
        ({"arguments": {"image_shape": [1, 5, 4], "latent_dim": "many"}}, "latent_dim must be"),
        ({"arguments": {"image_shape": [1, 5, 4], "architecture": "mlp", "widths": ["a"]}}, "widths"),
        (
            {"arguments": {"image_shape": [1, 6, 4], "architecture": "mlp", "widths": [6], "latent_dim": 3}},
            "size mismatch",
        ),
        ({"arguments": {"image_shape": [1, 5, 4], "architecture": "mlp", "widths": [6, 6], "latent_dim": 3}}, "layers"),
        ({"metadata": 3}, "config.json"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(saved, changes, reason):
    edit(saved, **changes)
    with pytest.raises(VlaeError, match=reason):
        vlae.load(saved)
    refusal(saved)


@pytest.mark.parametrize(
    "other", [{"flow_order": "same"}, {"latent_dim": 5}, None], ids=["same shapes", "sizes", "class"]
)
def test_configurations_swapped_between_two_models_are_refused(tmp_path, tiny_vae, tiny_vlae, other):
    """Where all shapes agree, the checksum alone tells that the weights are another model's."""
    models = [tiny_vlae(flow_order="reversed"), tiny_vae() if other is None else tiny_vlae(**other)]
    paths = [model.save_pretrained(tmp_path / name) for model, name in zip(models, "ab", strict=True)]
    texts = [(path / "config.json").read_text() for path in paths]
    for path, text in zip(paths, reversed(texts), strict=True):
        (path / "config.json").write_text(text)
        assert "does not match its checksum in config.json: damaged or of another model" in refusal(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused(saved, name):
    (saved / name).unlink()
    assert name in refusal(saved)


def test_a_missing_model_says_what_there_is(tmp_path):
    for path in (tmp_path / "nothing", "no-such-name", ""):
        assert "no saved model" in refusal(path)


class Bomb:
    """A pickle of it calls `os.mkdir` when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("writer", [pickle.dumps, lambda bomb: b"PK\x03\x04" + pickle.dumps(bomb)])
def test_pickles_are_refused_and_not_run(saved, tmp_path, writer):
    exploded = tmp_path / "exploded"
    with_weights(saved, writer({"encoder": Bomb(str(exploded))}))
    assert "does not fit" in refusal(saved)
    torch.save({"encoder": Bomb(str(exploded))}, saved / "pytorch_model.bin")
    with_weights(saved, (saved / "pytorch_model.bin").read_bytes())
    refusal(saved)
    (saved / "model.safetensors").unlink()
    assert "incomplete" in refusal(saved)  # nothing falls back to the pickle beside it
    assert not exploded.exists()


def test_truncated_and_missing_weights_are_refused_even_with_a_fitting_checksum(saved):
    whole = (saved / "model.safetensors").read_bytes()
    state = safetensors.torch.load(whole)
    for data in (
        b"",
        whole[:-8],
        whole[:20],
        safetensors.torch.save({}),
        safetensors.torch.save({**state, "extra": torch.zeros(1)}),
    ):
        with_weights(saved, data)
        refusal(saved)
    missing = dict(state)
    name = next(iter(missing))
    del missing[name]
    with_weights(saved, safetensors.torch.save(missing))
    assert name in refusal(saved)


def test_a_subclass_records_its_own_arguments(tmp_path):
    class Small(vlae.VAE):
        def __init__(self, side: int = 3):
            super().__init__((1, side, side), latent_dim=2, architecture="mlp", widths=[4])

    try:
        model = Small(4)
        assert model.config == {"side": 4}
        assert vlae.load(model.save_pretrained(tmp_path / "small")).image_shape == (1, 4, 4)
    finally:
        del saving._classes["Small"]


def test_a_subclass_that_hands_arguments_on_keeps_them_all():
    """Their defaults too: a later change of one must not change a saved model."""
    model = vlae.ConditionalVAE((1, 4, 4), classes=3, latent_dim=2)
    same = vlae.VAE((1, 4, 4), classes=3, latent_dim=2)
    assert model.config == same.config
    assert set(vlae.ConditionalVAE.argument_names()) == set(vlae.VAE.argument_names())


def test_a_loaded_model_keeps_the_configuration_it_was_saved_with(tmp_path):
    """An argument that is new in this version must not change the fingerprint of compressed files."""
    path = vlae.VAE((1, 4, 4), latent_dim=2).save_pretrained(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    del config["arguments"]["spectral_norm"]
    (path / "config.json").write_text(json.dumps(config))
    assert vlae.load(path).config == config["arguments"]


def test_what_lies_beside_a_saved_model_stays_when_it_is_saved_anew(saved, tiny_vlae):
    (saved / "reports").mkdir()
    (saved / "reports" / "report.html").write_text("numbers")
    (saved / "notes.txt").write_text("mine")
    (saved / "notes.txt").chmod(0o444)
    tiny_vlae().save_pretrained(saved)
    assert (saved / "reports" / "report.html").read_text() == "numbers"
    assert (saved / "notes.txt").read_text() == "mine"
    assert isinstance(vlae.load(saved), vlae.VLAE)


@pytest.mark.parametrize("text", ['{"architectures": ["Bert"], "format": 1}', "[1]", "no JSON"])
def test_a_directory_with_a_configuration_of_something_else_is_not_replaced(tmp_path, tiny_vae, text):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.json").write_text(text)
    (tmp_path / "project" / "thesis.tex").write_text("years")
    with pytest.raises(VlaeError, match="not a saved model"):
        tiny_vae().save_pretrained(tmp_path / "project")
    assert (tmp_path / "project" / "thesis.tex").read_text() == "years"
    assert (tmp_path / "project" / "config.json").read_text() == text


def test_metadata_that_cannot_be_of_a_data_set_are_said(tiny_vae):
    model = tiny_vae()
    for own in (None, "digits", 3):
        model.metadata = {"data": own}
        assert trained_on(model) == {}
    for own in ({"name": 3}, {"name": "digits", "options": 3}, {"name": "digits", "root": 7}):
        model.metadata = {"data": own}
        with pytest.raises(VlaeError, match=r"metadata say data\.") as caught:
            trained_on(model)
        assert "\n" not in str(caught.value)


def test_a_configuration_nested_without_end_is_refused(saved):
    (saved / "config.json").write_text("[" * 200_000)
    with pytest.raises(VlaeError, match="not the configuration of a saved model"):
        vlae.load(saved)
