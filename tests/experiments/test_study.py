"""The format of studies: merging, checks in one line, and the studies that come with the package."""

from pathlib import Path

import pytest
import yaml

from vlae import VlaeError
from vlae.experiments import study
from vlae.experiments.columns import column
from vlae.experiments.study import merged
from vlae.training.configuration import build_model, check, shipped

SHAPES = {"digits": (1, 8, 8), "dsprites": (1, 64, 64), "cifar10": (3, 32, 32)}
MINIMAL = {
    "title": "T",
    "base": {"model": {"class_path": "vlae.VAE", "init_args": {"architecture": "mlp"}}, "data": {"name": "digits"}},
    "cells": [{"name": "one"}],
    "columns": ["rate"],
}


def load(folder: Path, content) -> study.Study:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return study.load(path)


def test_what_a_cell_changes_is_merged():
    base = {"model": {"class_path": "vlae.VLAE", "init_args": {"channels": 16, "flow_steps": 2}}, "seed": 0}
    change = {"model": {"init_args": {"flow_steps": 0}}, "trainer": {"max_epochs": 3}}
    assert merged(base, change) == {
        "model": {"class_path": "vlae.VLAE", "init_args": {"channels": 16, "flow_steps": 0}},
        "seed": 0,
        "trainer": {"max_epochs": 3},
    }
    assert base["model"]["init_args"]["flow_steps"] == 2  # the base is not touched


def test_another_class_replaces_and_the_same_class_merges():
    base = {"class_path": "vlae.VLAE", "init_args": {"channels": 16}}
    other = {"class_path": "vlae.VAE", "init_args": {"architecture": "mlp"}}
    assert merged(base, other) == other
    same = merged(base, {"class_path": "vlae.models.VLAE", "init_args": {"flow_steps": 0}})
    assert same == {"class_path": "vlae.models.VLAE", "init_args": {"channels": 16, "flow_steps": 0}}
    schedule = {"free_nats": {"class_path": "Linear", "init_args": {"start": 8}}}
    assert merged(schedule, {"free_nats": 0.0}) == {"free_nats": 0.0}
    assert merged({"free_nats": 4.0}, schedule) == schedule


def test_merging_shares_nothing():
    base, change = {"a": {"b": [1]}}, {"c": {"d": [2]}}
    result = merged(base, change)
    result["a"]["b"].append(9)
    result["c"]["d"].append(9)
    assert (base, change) == ({"a": {"b": [1]}}, {"c": {"d": [2]}})


def test_a_whole_study(tmp_path):
    found = load(
        tmp_path,
        {
            **MINIMAL,
            "question": "Is\n  it so?",
            "cells": [
                {"name": "one", "x": {"layers": 1}, "published": {"nll": 80.5}, "group": "g", "note": "n"},
                {"name": "two", "data": {"binarize": "static"}, "seed": 4},
                {"name": "given", "pretrained": "mnist-dynamic", "data": {"name": "mnist"}},
            ],
            "budgets": {"minutes": 100, "full": None},
            "measure": {"only": ["bound"], "limit": 30, "split": "validation", "seed": 5},
            "columns": ["rate", "layers", "receptive_field"],
            "plots": [{"kind": "line", "x": "layers", "y": "rate"}],
            "notes": ["said"],
        },
    )
    one, two, given = found.cells
    assert found.name == "mine" and found.question == "Is it so?"
    assert (one.x, one.published, one.group, one.note) == ({"layers": 1}, {"nll": 80.5}, "g", "n")
    assert two.config["data"] == {"name": "digits", "binarize": "static"} and two.config["seed"] == 4
    assert one.config["data"] == {"name": "digits"}
    assert (one.trained, given.trained) == (True, False)
    assert found.measure.settings.only == ("bound",) and found.measure.settings.seed == 5
    assert (found.measure.limit, found.measure.split) == (30, "validation")
    assert found.plots[0]["y"] == ["rate"]
    assert column("layers").heading == "layers" and column("receptive_field").heading == "receptive field [pixels]"


def test_a_base_may_be_a_shipped_configuration(tmp_path):
    found = load(tmp_path, {**MINIMAL, "base": "mnist", "cells": [{"name": "one", "optimizer": {"lr": 0.1}}]})
    config = found.cells[0].config
    assert config["model"]["class_path"] == "vlae.VLAE" and config["data"]["binarize"] == "dynamic"
    assert config["optimizer"]["lr"] == 0.1 and config["optimizer"]["name"] == "adamax"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colums": ["rate"]}, "unknown key 'colums'; did you mean 'columns'"),
        ({"title": None, "cells": None}, "cells must be a list"),
        ({"columns": ["rat"]}, "no metric 'rat'; did you mean 'rate'"),
        ({"cells": [{"name": "a", "modle": {}}]}, "unknown key 'modle'; did you mean 'model'"),
        ({"cells": [{"nam": "a"}]}, "unknown key 'nam'; did you mean 'name'"),
        ({"cells": [{"group": "a"}]}, "name is missing"),
        ({"cells": [{"name": "a b"}, {"name": "a-B"}]}, "two cells are named 'a-B'"),
        ({"cells": [{"name": "?"}]}, "needs a letter"),
        ({"cells": [{"name": "a", "model": {"init_args": {"latent_dimm": 3}}}]}, "cell 'a': .*latent_dim"),
        ({"cells": [{"name": "a", "trainer": {"max_epochs": "many"}}]}, "cell 'a': .*max_epochs"),
        ({"cells": [{"name": "a", "trainer": None}]}, "cell 'a': trainer is empty"),
        ({"cells": [{"name": "a", "objective": {"class_path": "ELBOW"}}]}, "cell 'a': unknown objective 'ELBOW'"),
        (
            {"cells": [{"name": "a", "trainer": {"gradient_clip": None}}]},
            "cell 'a': trainer.gradient_clip can't be null",
        ),
        ({"cells": [{"name": "a", "data": {"batch_size": None}}]}, "cell 'a': data.batch_size can't be null"),
        (
            {"cells": [{"name": "a", "data": {"name": "digit"}}]},
            "cell 'a': no data set 'digit'; expected one of digits",
        ),
        ({"cells": [{"name": "a", "data": {"options": {"size": 8}}}]}, "cell 'a': digits has no option size"),
        (
            {"cells": [{"name": "a", "pretrained": "p", "data": {"nme": "digits"}}]},
            "cell 'a': Group 'data' does not accept option 'nme'",
        ),
        ({"cells": [{"name": "a", "pretrained": "p", "data": {"name": "digit"}}]}, "cell 'a': no data set 'digit'"),
        ({"cells": [{"name": "a", "run": "r", "data": {"binarize": "often"}}]}, "cell 'a': binarize='often': expected"),
        ({"cells": [{"name": "a", "pretrained": "p", "run": "r"}]}, "one of pretrained and run"),
        ({"cells": [{"name": "a", "pretrained": "p", "seed": 3}]}, "not trained here, so seed says nothing"),
        (
            {"cells": [{"name": "a", "pretrained": "caltech101"}]},
            "trained on caltech101_silhouettes and the base's data",
        ),
        ({"cells": [{"name": "a", "published": {"nl": 3}}]}, "published: unknown key 'nl'; did you mean 'nll'"),
        ({"cells": [{"name": "a", "published": {"nll": "low"}}]}, "nll must be a number"),
        ({"base": {}}, "cell 'one': no model"),
        ({"base": {"run": {"name": "x"}}}, "base: unknown key 'run'"),
        ({"base": "no-such"}, "no configuration 'no-such'"),
        ({"budgets": {"minutes": 0}}, "minutes must be a number of training images"),
        ({"budgets": {"20m": 100}}, "looks like a duration"),
        ({"budgets": {True: 100}}, "True is no name"),
        ({"cells": [{"name": "a", "data": 3}]}, "cell 'a': data must be keys and values; got 3"),
        ({"cells": [{"name": "a", "seed": "b"}]}, "cell 'a': seed must be a whole number; got 'b'"),
        ({"cells": [{"name": "a", "group": [1]}]}, "cell 'a': group must be text"),
        ({"cells": [{"name": "a", "published": {"nll": float("inf")}}]}, "nll must be a number; got inf"),
        ({"measure": {"split": "tests"}}, "measure: split='tests': expected one of"),
        ({"measure": {"split": 3}}, "measure: split must be text"),
        ({"measure": {"seed": "abc"}}, "measure: seed must be a whole number; got 'abc'"),
        ({"measure": {"nll_samples": 5}}, "measure: nll_samples must be a list; got 5"),
        ({"measure": {"nll_samples": ["5"]}}, "measure, each of: nll_samples must be a whole number; got '5'"),
        ({"measure": {"standard": 1}}, "measure: standard must be true or false"),
        ({"plots": [{"kind": ["line"]}]}, "plots: kind must be text"),
        ({"plots": [{"kind": "bars", "y": 3}]}, "plot bars: y must name columns; got 3"),
        ({"plots": [{"kind": "bars", "y": {"rate": 1}}]}, "plot bars: y must name columns"),
        ({"plots": [{"kind": "bars", "y": "rate", "title": [1]}]}, "plots: title must be text"),
        ({"plots": [{"kind": "pictures", "of": "samples", "count": "many"}]}, "plots: count must be a whole number"),
        ({"plots": [{"kind": "pictures", "of": "samples", "count": 40}]}, "count must be from 1 to 32, which are kept"),
        ({"plots": [{"kind": "pictures", "of": "samples", "count": 0}]}, "count must be from 1 to 32"),
        ({"plots": [{"kind": "bars", "y": "rate", "name": n} for n in "aA"]}, "two of them would be a.png"),
        (
            {"plots": [{"kind": "bars", "y": "rate"}, {"kind": "line", "x": "rate", "y": "nll", "name": "bars"}]},
            "bars.png",
        ),
        ({"measure": {"nll_image": 3}}, "unknown key 'nll_image'; did you mean 'nll_images'"),
        ({"measure": {"only": ["bond"]}}, "measure: .*'bond'.*did you mean 'bound'"),
        ({"measure": {"limit": 1}}, "limit must be at least 2"),
        ({"plots": [{"kind": "pie"}]}, "unknown kind 'pie'"),
        ({"plots": [{"kind": "bars", "x": "rate"}]}, "unknown key 'x'"),
        ({"plots": [{"kind": "line", "y": "rate"}]}, "x must name one column"),
        ({"plots": [{"kind": "line", "x": "rate", "y": ["elbow"]}]}, "no metric 'elbow'"),
        ({"plots": [{"kind": "pictures", "of": "dogs"}]}, "of must be one of reconstructions"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_file(tmp_path, change, words):
    with pytest.raises(VlaeError, match=words) as caught:
        load(tmp_path, {**MINIMAL, **change})
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_no_yaml_is_said(tmp_path):
    with pytest.raises(VlaeError, match=r"mine\.yaml is no YAML") as caught:
        load(tmp_path, "title: [")
    assert "\n" not in str(caught.value)
    with pytest.raises(VlaeError, match="must be keys and values"):
        load(tmp_path, "just words")


def test_finding(tmp_path):
    assert study.find("receptive-field") == study.find("receptive_field.yaml")
    (tmp_path / "own.yaml").write_text("")
    assert study.find(str(tmp_path / "own.yaml")) == tmp_path / "own.yaml"
    with pytest.raises(VlaeError, match="did you mean 'receptive-field'"):
        study.find("receptive-fields")
    assert "receptive-field " in study.listing()


# -- the studies that come with the package ---------------------------------------------------------------------------


def test_studies_are_no_configurations_of_vlae_train():
    assert "receptive-field" in shipped("experiments")
    assert not set(shipped("experiments")) & set(shipped())


@pytest.mark.parametrize("name", shipped("experiments"))
def test_shipped_studies_are_whole(name):
    found = study.load(study.find(name))
    assert found.question and len(found.cells) > 1 and len(found.budgets) > 1
    first = next(iter(found.budgets.values()))
    assert first is not None  # what is done where nothing is said must end
    for cell in found.cells:
        if cell.trained:
            settings = check(cell.config, cell.name)
            model = build_model(settings.model, SHAPES.get(settings.data.name, (1, 28, 28)))
            assert sum(p.numel() for p in model.parameters()) > 0


def test_receptive_field_differs_in_the_layers_alone():
    found = study.load(study.find("receptive-field"))
    layers = [cell.config["model"]["init_args"].pop("decoder_layers") for cell in found.cells]
    assert layers == sorted(set(layers)) == [cell.x["decoder_layers"] for cell in found.cells]
    assert (layers[0], layers[-1]) == (1, 15)
    assert all(cell.config == found.cells[0].config for cell in found.cells)
    objective = found.cells[0].config.get("objective", {})
    assert not objective.get("init_args", {}).get("free_nats")  # free bits off


@pytest.mark.parametrize("name", ["paper-static-mnist", "paper-dynamic-mnist", "paper-caltech", "paper-omniglot"])
def test_the_papers_unconditional_decoder_is_that_of_its_vlae(name):
    found = study.load(study.find(name))
    settings = {cell.name: check(cell.config, cell.name) for cell in found.cells if cell.trained}
    built = {cell: build_model(its.model, (1, 28, 28)) for cell, its in settings.items()}
    alone = built.pop("unconditional decoder").decoder
    whole = next(iter(built.values())).decoder.pixels
    shapes = [{key: value.shape for key, value in trunk.state_dict().items()} for trunk in (alone, whole)]
    assert {key for key in shapes[1] if not key.startswith("input_context")} == set(shapes[0])
    assert all(shapes[1][key] == shape for key, shape in shapes[0].items())
    assert len(alone.pointwise) == 4 and alone.receptive_field.size == 69


def test_a_base_that_does_not_name_its_data_is_no_mistake(tmp_path):
    """They are the default's then; a finished model beside it is measured by its own word."""
    content = {**MINIMAL, "base": {"model": {"class_path": "vlae.VLAE"}, "data": {"limit": 100}}}
    load(tmp_path, {**content, "cells": [{"name": "one", "pretrained": "mnist-dynamic"}]})
