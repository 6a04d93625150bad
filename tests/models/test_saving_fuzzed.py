"""Saved models with any damage: one line that says so, or a model; never a traceback of something else."""

import hashlib
import json
import random
from contextlib import suppress

import pytest
import torch

import vlae
from vlae import VlaeError

ODD = (None, True, [], {}, "", "x", "\x00", -1, 0, 1.5, float("nan"), float("inf"), [[1]], {"a": 1}, [-3], ["a", 2])


def models(tiny_vae, tiny_vlae):
    """One of each kind of configuration."""
    return {
        "vae": tiny_vae(),
        "vlae": tiny_vlae(flow_steps=2),
        "plain": tiny_vlae(stacks="plain", pointwise_blocks=1, conditioning="input"),
        "levels": tiny_vlae(likelihood="logistic_mixture", likelihood_options={"levels": 4, "components": 2}),
        "pixelcnn": vlae.PixelCNN((1, 5, 4), decoder_layers=1, channels=4),
        "vqvae": vlae.VQVAE((1, 8, 8), codes=4, code_dim=2, widths=[4], prior_layers=1, prior_channels=4),
    }


def attempt(path):
    """Loads; a refusal is one line and names the place."""
    try:
        return vlae.load(path)
    except VlaeError as error:
        refusal = str(error)
    assert str(path) in refusal and "\n" not in refusal, refusal
    return None


def change(data, rng):
    """Some bytes changed, cut out, put in, or repeated; most often near the start, where the header is."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(min(len(data), rng.choice((16, 400, len(data)))))
        kind = rng.randrange(5)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2:
            del data[place : place + rng.choice((1, 8, 10_000))]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.choice((1, 8)))
        else:
            data[place:place] = data[place : place + 20]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("kind", ["vae", "vlae", "vqvae"])
def test_any_damage_to_the_weights_though_the_checksum_fits(tmp_path, tiny_vae, tiny_vlae, kind):
    model, rng = models(tiny_vae, tiny_vlae)[kind], random.Random(kind)
    path = model.save_pretrained(tmp_path / "model")
    weights, config = (path / "model.safetensors").read_bytes(), json.loads((path / "config.json").read_text())
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    refused = 0
    for _ in range(150):
        data = change(weights, rng)
        (path / "model.safetensors").write_bytes(data)
        (path / "config.json").write_text(json.dumps({**config, "sha256": hashlib.sha256(data).hexdigest()}))
        loaded = attempt(path)
        refused += loaded is None
        if loaded is not None:
            assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == shapes
    assert refused > 50  # the rest changed numbers alone


def places(value, path=()):
    """The way to every value in nested lists and dictionaries."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def replaced(value, path, new):
    """The same with another value at a place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("kind", ["vae", "vlae", "plain", "levels", "pixelcnn", "vqvae"])
def test_any_odd_value_in_the_configuration(tmp_path, tiny_vae, tiny_vlae, kind):
    model = models(tiny_vae, tiny_vlae)[kind]
    path = model.save_pretrained(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    x = torch.zeros(1, *model.image_shape)
    for place in places(config):
        for odd in ODD:
            (path / "config.json").write_text(json.dumps(replaced(config, place, odd)))
            loaded = attempt(path)
            if loaded is not None and odd is not True:  # which Python takes for 1
                images = x.to(next(loaded.parameters()).dtype)
                with suppress(VlaeError):  # such as a likelihood of other levels
                    assert loaded.elbo(images).elbo.shape == (1,), (place, odd)
