"""Lightning checkpoints with any damage: a model, or one line that names the file; nothing in them is run."""

import io
import os
import resource
import zipfile

import pytest
import torch

from vlae import VlaeError
from vlae.models import LatentVariableModel
from vlae.training.checkpoints import FORMAT, model_of

TRIALS = int(os.environ.get("VLAE_FUZZ", "120"))
ODD = (None, True, [], {}, "", "x\ny", -1, 1.5, float("nan"), [[1]], {"a": 1}, {1: "a"}, b"a", torch.zeros(2))


@pytest.fixture(autouse=True)
def bounded():
    """Little memory to spare."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def checkpoint(tiny_vae):
    """What Lightning keeps, as far as it is read."""
    model = tiny_vae()
    return {
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "epoch": 1,
        "global_step": 10,
        "vlae": {
            "format": FORMAT,
            "model": type(model).__name__,
            "arguments": model.config,
            "metadata": {"protocol": "digits"},
        },
    }


def attempt(path):
    """Whether it is a model; else the refusal is one line."""
    try:
        model = model_of(path)
    except VlaeError as error:
        message = str(error)
        assert str(path) in message and "\n" not in message and len(message) < 600, message
        return False
    assert isinstance(model, LatentVariableModel)
    return True


def saved(checkpoint):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def test_the_whole_one_is_read(tmp_path, checkpoint):
    (tmp_path / "a.ckpt").write_bytes(saved(checkpoint))
    assert attempt(tmp_path / "a.ckpt")


def test_any_damage_to_the_file(tmp_path, checkpoint, mutations):
    path = tmp_path / "a.ckpt"
    outcomes = set()
    for damaged in mutations(saved(checkpoint), TRIALS):
        path.write_bytes(damaged)
        outcomes.add(attempt(path))
    assert False in outcomes


def test_any_damage_to_what_it_says_behind_whole_checksums(tmp_path, checkpoint, mutations):
    """The pickle of a checkpoint changed, in an archive whose checksums are right again."""
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(io.BytesIO(saved(checkpoint))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    outcomes = set()
    for damaged in mutations(members[pickled], TRIALS):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, data in {**members, pickled: damaged}.items():
                archive.writestr(name, data)
        outcomes.add(attempt(path))
    assert outcomes == {True, False}


def places(value, path=()):
    """The paths of everything in nested dictionaries."""
    yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*path, key))


def put(value, path, new):
    """A copy with one thing replaced."""
    return new if not path else {**value, path[0]: put(value[path[0]], path[1:], new)}


def test_anything_in_the_place_of_anything(tmp_path, checkpoint):
    path = tmp_path / "a.ckpt"
    for place in places(checkpoint):
        if len(place) == 2 and place[0] == "state_dict" and not place[1].endswith("bias"):
            continue  # the weights are alike
        for odd in ODD:
            path.write_bytes(saved(put(checkpoint, place, odd)))
            attempt(path)
