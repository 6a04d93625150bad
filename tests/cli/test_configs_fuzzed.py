"""Configuration files with any damage, and of any content: a run, or one line and exit code 2."""

import os
import resource

import pytest

from vlae.cli import main
from vlae.training import run

TRIALS = int(os.environ.get("VLAE_FUZZ", "25"))
CONFIG = b"""model:
  class_path: vlae.VAE
  init_args:
    latent_dim: 2
    architecture: mlp
    widths: [4]
data: {name: digits, binarize: dynamic, batch_size: 50, limit: 60}
objective:
  class_path: vlae.objectives.ELBO
  init_args:
    beta: {class_path: vlae.objectives.Linear, init_args: {start: 0.0, end: 1.0}}
optimizer: {name: adamax, lr: 0.01}
trainer: {max_epochs: 1, precision: 32-true, accelerator: cpu}
seed: 3
"""


@pytest.fixture
def attempt(tmp_path, monkeypatch, capsys):
    """`vlae train` with a configuration of these bytes, but without the training; the refusal, empty if there is none.

    In little memory, so that a network of giant size can't be made.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "train", lambda model, *_, **__: tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))

    def made(data):
        (tmp_path / "a.yaml").write_bytes(data)
        code = main(["train", "--config", "a.yaml"])
        said = capsys.readouterr().err.strip().splitlines()
        assert (code, len(said)) in ((0, 0), (2, 1)), (code, said)
        assert not said or (said[0].startswith("vlae: error: ") and len(said[0]) < 1000)
        return said[0] if said else ""

    yield made
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_whole_one_is_accepted(attempt):
    assert attempt(CONFIG) == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff\xfe",
        b"- a\n- b\n",
        b"42",
        b"model:\n\t- x",
        b"model: &a [*a]",
        b"model: !!python/object/apply:os.system [exit 1]",
        b"[" * 3000,
        b"{1: 2}",
        CONFIG.replace(b"latent_dim: 2", b"latent_dim: 100000000000"),
        CONFIG.replace(b"latent_dim: 2", b"latent_dim: -1"),
        CONFIG.replace(b"lr: 0.01", b"lr: .nan"),
        CONFIG.replace(b"name: digits", b"name: 2001-01-01"),
        CONFIG.replace(b"name: digits", b"name: [digits]"),
        CONFIG.replace(b"binarize: dynamic", b"options: {x: 1}"),
        CONFIG.replace(b"vlae.VAE", b"os.system"),
        CONFIG.replace(b"seed: 3", b"seed: 3\nseed: 100000000000000000000000"),
    ],
)
def test_files_that_are_no_configuration(attempt, data):
    assert attempt(data)


def test_any_damage(attempt, mutations):
    outcomes = [attempt(damaged) for damaged in mutations(CONFIG, TRIALS)]
    assert any(outcomes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)), "100,000 values"),
        ("data: &data\n  options: *data\n", "100,000 values"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("command", [["train", "--config"], ["experiment"]])
def test_a_small_file_that_stands_for_much_is_refused_at_once(tmp_path, capsys, text, words, command):
    """Each alias of the first holds the one before twice: written out, it would be 2^60 numbers."""
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    assert main([*command, str(path)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer: {max_epochs: 2}\nseed: 1\ntrainer: {ema_decay: 0.9}\n", "trainer is there twice, again in line 3"),
        ("optimizer:\n  lr: 0.1\n  lr: 0.2\n", "lr is there twice, again in line 3"),
        *((f"seed_of: 1\n{key}:\n", f"{key} is empty") for key in ("model", "data", "objective", "optimizer")),
        *((f"{key}:  # max_epochs: 3\n", f"{key} is empty") for key in ("trainer", "run", "seed")),
    ],
)
@pytest.mark.parametrize("command", [["train", "--config"], ["experiment"]])
def test_what_would_be_dropped_without_a_word_is_refused(tmp_path, capsys, text, words, command):
    path = tmp_path / "lossy.yaml"
    path.write_text(text)
    assert main([*command, str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_aliases_may_be_used(attempt):
    assert attempt(CONFIG.replace(b"batch_size: 50, limit: 60", b"batch_size: &n 50, limit: *n")) == ""
