"""Every shipped configuration parses, and builds the model it says."""

import copy
import inspect
from pathlib import Path

import pytest
import yaml

from vlae import VlaeError, cli
from vlae.nn import MaskedConv2d, PlainPixelCNN
from vlae.training.configuration import (
    build_model,
    check_nulls,
    find_config,
    list_options,
    parse,
    section_classes,
    train_parser,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "dsprites": (1, 64, 64), "sprites": (3, 32, 32)}


def model_of(name: str):
    settings = train_parser().parse_args(["--config", str(find_config(name))])
    return build_model(settings.model, SHAPES.get(settings.data.name, (1, 28, 28))), settings


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_builds(path):
    model, _ = model_of(path.stem)
    assert sum(p.numel() for p in model.parameters()) > 0


def test_there_are_configurations():
    assert {path.stem for path in CONFIGS} >= {
        "digits",
        "mnist",
        "mnist-paper-static",
        "mnist-paper-dynamic",
        "cifar10",
    }


@pytest.mark.parametrize(("name", "distinct"), [("mnist-paper-static", 1), ("mnist-paper-dynamic", 5)])
def test_paper_presets_are_the_papers(name, distinct):
    model, settings = model_of(name)
    pixels = model.decoder.pixels
    assert isinstance(pixels, PlainPixelCNN)
    assert 1 + pixels.depth == 6  # masked layers
    assert len({id(m) for m in pixels.modules() if isinstance(m, MaskedConv2d) and m.mask_type == "B"}) == distinct
    assert len(pixels.pointwise) == 4
    assert model.decoder.receptive_field.size == 69  # the blind spot of six plain 3x3 layers is part of the model
    assert model.latent_shape == (64,)
    assert len(model.prior_module.steps) == 4
    orders = [step.order.tolist() for step in model.prior_module.steps]
    assert orders[1] == orders[0][::-1] == orders[3]
    assert orders[2] == orders[0]
    hidden = [layer.weight.shape[0] for layer in model.prior_module.steps[0].hyper if hasattr(layer, "weight")]
    assert hidden == [640, 640, 64]  # three layers; 64 outputs: shifts only
    assert settings.objective.init_args.free_nats == pytest.approx(0.01 * 28 * 28)
    assert settings.optimizer.name == "adamax"
    assert settings.optimizer.lr == 0.002
    assert settings.trainer.ema_decay == 0.998
    assert settings.data.split == "train+validation"


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        ("--model.encoder_widths 8 16", "model.init_args.encoder_widths", (8, 16)),
        ("--model.encoder_widths=[8,16]", "model.init_args.encoder_widths", (8, 16)),
        ("--model.init_args.encoder-widths 8", "model.init_args.encoder_widths", (8,)),
        ("--optimizer.frozen encoder", "optimizer.frozen", ["encoder"]),
        ("--optimizer.frozen encoder decoder --seed 3", "optimizer.frozen", ["encoder", "decoder"]),
        ("--optimizer.betas .5 .9", "optimizer.betas", (0.5, 0.9)),
    ],
)
def test_lists_are_words(words, key, expected):
    settings = parse(train_parser(), ["--config", str(find_config("digits")), *words.split()], lists=list_options())
    assert settings[key] == expected


FREE = {  # keys that may be null, of all the sections' own
    *("data.root", "data.binarize", "data.limit", "data.validation_limit", "run.name"),
    *("model.likelihood_options", "model.posterior_options", "model.prior_options", "model.trunk_options"),
}


def test_null_is_refused_where_a_value_is_needed(tmp_path, capsys):
    settings = yaml.safe_load(find_config("digits").read_text())
    sections = section_classes()
    sections["model"] = [kind for kind in sections["model"] if kind.__name__ == "VLAE"]
    for section in ("model", "data", "optimizer", "trainer", "run"):
        for name in set(inspect.signature(sections[section][0]).parameters) - {"image_shape"}:
            config, key = copy.deepcopy(settings), f"{section}.{name}"
            part = config.setdefault(section, {})
            (part["init_args"] if section == "model" else part)[name] = None
            (tmp_path / "null.yaml").write_text(yaml.safe_dump(config))
            parsed = parse(train_parser(), ["--config", str(tmp_path / "null.yaml")])
            if key in FREE:
                check_nulls(parsed)
            else:
                with pytest.raises(VlaeError, match=f"^{key} can't be null: leave it out, or give it a value$"):
                    check_nulls(parsed)
    (tmp_path / "null.yaml").write_text(yaml.safe_dump({**settings, "data": {"batch_size": None}}))
    assert cli.main(["train", "--config", str(tmp_path / "null.yaml")]) == 2
    assert capsys.readouterr().err == "vlae: error: data.batch_size can't be null: leave it out, or give it a value\n"


@pytest.mark.parametrize("annotation", ["", ": Optional[str]", ": Any", ": str | None", ": 'str'"])
def test_an_argument_of_a_model_of_ones_own_may_be_left_out(annotation, tmp_path, monkeypatch):
    """Its default is filled in, though it be None."""
    name = f"mine_{len(annotation)}_{annotation.count('N')}"
    (tmp_path / f"{name}.py").write_text(
        f"from typing import Any, Optional\nimport vlae\nclass Mine(vlae.VAE):\n"
        f"    def __init__(self, image_shape, note{annotation} = None, latent_dim: int = 2):\n"
        "        super().__init__(image_shape, latent_dim=latent_dim, architecture='mlp')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {"model": {"class_path": f"{name}.Mine", "init_args": {"latent_dim": 3}}, "data": {"name": "digits"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    check_nulls(parse(train_parser(), ["--config", str(tmp_path / "own.yaml")]))


def test_a_list_may_be_none():
    words = ["--model", "VAE", "--model.widths", "null"]
    assert parse(train_parser(), words, lists=list_options())["model.init_args.widths"] is None
