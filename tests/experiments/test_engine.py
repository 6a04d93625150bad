"""Studies from end to end on small images: what is kept, what goes on, what is refused, and what the table says."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import vlae
from vlae import VlaeError, cli
from vlae.evaluation.measurements import Measurements
from vlae.experiments import calibration, cell_training, cells, engine, study, tables
from vlae.experiments.engine import Spread
from vlae.experiments.job import Job, difference, state
from vlae.experiments.plan import Timing
from vlae.files import holding
from vlae.training.callbacks import EpochReport

TINY = {
    "title": "Layers",
    "question": "What do they do?",
    "base": {
        "model": {
            "class_path": "vlae.VLAE",
            "init_args": {
                "latent_dim": 3,
                "decoder_layers": 0,
                "channels": 4,
                "encoder_widths": [4],
                "encoder_hidden": 8,
                "flow_hidden": [8],
            },
        },
        "data": {"name": "digits", "binarize": "dynamic", "batch_size": 64, "validation_limit": 20},
        "trainer": {"max_epochs": 2, "precision": "32-true", "accelerator": "cpu"},
        "seed": 1,
    },
    "cells": [
        {"name": "none", "x": {"layers": 0}, "published": {"nll": 12.5}},
        {"name": "one, more", "model": {"init_args": {"decoder_layers": 1}}, "x": {"layers": 1}},
    ],
    "budgets": {"seconds": 256, "two": 2400, "full": None},
    "measure": {"only": ["bound", "nll"], "nll_samples": [4], "nll_images": 10, "limit": 30},
    "columns": ["layers", "receptive_field", "rate", "negative_elbo", "nll", "training_images", "epochs", "mse"],
    "plots": [{"kind": "line", "x": "layers", "y": ["rate", "nll"]}, {"kind": "rate-distortion"}],
    "notes": ["of my own"],
}


def write(folder: Path, **changes) -> study.Study:
    path = folder / "layers.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return study.load(path)


def in_this_process(config, directory, log, threads, resume=False):
    """What `vlae_train` does, without the seconds that a new process takes to start."""
    log.touch()
    trained.append(directory.name)
    if cli.main(cell_training.train_words(config, directory, resume)):
        raise VlaeError("training failed: see above")
    return 1.5


trained: list[str] = []  # the cells that were trained since the test began


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module in (cell_training, calibration):
        monkeypatch.setattr(module, "vlae_train", in_this_process)
    trained.clear()


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A finished study; its folder is copied by those who change it."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell_training, "vlae_train", in_this_process)
        assert engine.run(write(folder), folder / "out", called="layers.yaml") == 0
    return folder / "out"


@pytest.fixture
def done(once, tmp_path):
    """A copy of the finished study."""
    return Path(shutil.copytree(once, tmp_path / "out"))


def results(output: Path) -> dict:
    return {path.parent.name: json.loads(path.read_text()) for path in output.glob("cells/*/result.json")}


def snapshot(output: Path) -> dict:
    files = [path for path in (output / "cells").rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_the_table_says_what_the_cells_say(once):
    none, more = (results(once)[name]["values"] for name in ("none", "one-more"))
    errors = results(once)["none"]["errors"]
    rows = list(csv.DictReader((once / "table.csv").open()))
    assert [row["cell"] for row in rows] == ["none", "one, more"]
    for row, values in zip(rows, (none, more), strict=True):
        for name in ("rate", "negative_elbo", "nll", "receptive_field"):
            assert float(row[name]) == values[name]
    assert [row["layers"] for row in rows] == ["0", "1"]
    assert [row["nll_published"] for row in rows] == ["12.5", ""]
    assert float(rows[0]["nll_error"]) == errors["nll"]
    assert "mse" not in rows[0]  # it was not measured
    text = (once / "table.md").read_text()
    assert f"| {none['nll']:.2f} ± {errors['nll']:.2f} | 12.50 |" in text
    assert "| one, more | 1 | " in text
    for words in ("What do they do?", "of my own", "256 training images", "seed 1", "torch", "![line.png](line.png)"):
        assert words in text
    assert "made by: vlae experiment layers.yaml --budget seconds" in text
    for name in ("line.png", "rate-distortion.png"):
        assert (once / name).read_bytes().startswith(b"\x89PNG")
    whole = json.loads((once / "results.json").read_text())
    assert [cell["result"]["values"] for cell in whole["cells"]] == [none, more]


def test_cells_are_what_the_budget_says(once):
    found = results(once)
    for name, result in found.items():
        kept = yaml.safe_load((once / "cells" / name / "config.yaml").read_text())
        assert kept["data"]["limit"] == 256 and kept["trainer"]["max_epochs"] == 1
        assert result["identity"]["config"]["data"]["limit"] == 256
        assert result["values"]["training_images"] == 256
        assert result["values"]["training_seconds"] == 1.5
        steps = list(csv.DictReader((once / "cells" / name / "logs" / "metrics.csv").open()))[-1]["step"]
        assert int(steps) * 64 == 256
    assert found["none"]["values"]["receptive_field"] < found["one-more"]["values"]["receptive_field"]
    assert "30 images" in found["none"]["data"] and found["none"]["data"].startswith("digits, test")


def test_measured_as_by_hand(once):
    """The numbers are those of the suite on the first images of the test split, by the saved model."""
    import vlae
    from vlae.data import load
    from vlae.evaluation.measurements import Settings
    from vlae.evaluation.suite import measure

    model = vlae.load(once / "cells" / "none" / "model")
    test = load("digits", "test", binarize="dynamic").subset(30)
    found = measure(model, test, None, Settings(only=("bound", "nll"), nll_samples=(4,), nll_images=10))
    for name, value in found.values.items():
        assert results(once)["none"]["values"][name] == pytest.approx(value, rel=1e-5), name


def test_finished_cells_are_kept_to_the_byte(done, tmp_path, capsys):
    before = snapshot(done)
    assert engine.run(write(tmp_path), done) == 0
    assert trained == []
    assert snapshot(done) == before
    assert capsys.readouterr().out.count("finished before") == 2


def test_again_does_one_cell_anew(done, tmp_path):
    other = snapshot(done)
    before = results(done)
    marked = done / "cells" / "one-more" / "result.json"
    marked.write_text(marked.read_text().replace("one, more", "marked"))
    assert engine.run(write(tmp_path), done, again=["one, more"]) == 0
    assert trained == ["one-more"]
    assert results(done)["one-more"]["values"] == before["one-more"]["values"]
    assert results(done)["one-more"]["name"] == "one, more"
    same = {path for path in other if "/none" in str(path)}
    assert {path: snapshot(done)[path] for path in same} == {path: other[path] for path in same}
    with pytest.raises(VlaeError, match="no cell 'three': choose from none, one-more"):
        engine.run(write(tmp_path), done, again=["three"])


def test_a_missing_cell_is_done_and_a_trained_one_only_measured(done, tmp_path):
    before = results(done)
    shutil.rmtree(done / "cells" / "none")
    (done / "cells" / "one-more" / "result.json").unlink()
    assert engine.run(write(tmp_path), done) == 0
    assert trained == ["none"]
    assert {name: result["values"] for name, result in results(done).items()} == {
        name: result["values"] for name, result in before.items()
    }


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    """Two epochs with a stop after the first are the two epochs without one; the time of both parts counts."""
    tiny = write(tmp_path, cells=TINY["cells"][:1])
    assert engine.run(tiny, tmp_path / "whole", budget="two") == 0
    start, stops = EpochReport.on_train_epoch_start, []

    def stopping(self, trainer, module):
        start(self, trainer, module)
        if trainer.current_epoch == 1 and not stops:
            stops.append(1)
            raise KeyboardInterrupt

    def training(config, directory, log, threads, resume=False):
        trained.append("resumed" if resume else "new")
        if cli.main(cell_training.train_words(config, directory, resume)) == 130:
            raise cell_training.Interrupted(4.0)
        return 1.5

    monkeypatch.setattr(cell_training, "vlae_train", training)
    monkeypatch.setattr(EpochReport, "on_train_epoch_start", stopping)
    trained.clear()
    with pytest.raises(KeyboardInterrupt):
        engine.run(tiny, tmp_path / "parts", budget="two")
    assert stops and not results(tmp_path / "parts")
    assert engine.run(tiny, tmp_path / "parts") == 0  # of the plan that is there
    assert trained == ["new", "resumed"]
    parts, whole = results(tmp_path / "parts")["none"]["values"], results(tmp_path / "whole")["none"]["values"]
    assert (parts.pop("training_seconds"), whole.pop("training_seconds")) == (5.5, 1.5)
    assert parts == whole
    assert whole["epochs"] == 2


def test_seconds_that_nobody_counted_are_not_made_up(done, tmp_path):
    """A training that was killed together with the study: what it took is not known."""
    (job, _) = engine._jobs(write(tmp_path), done, Spread(), False, set(), False)
    assert job.seconds_so_far() == 1.5
    job.keep_of_training(None, None)  # as `train` begins
    job.result_path.unlink()
    assert engine.run(write(tmp_path), done) == 0
    assert "training_seconds" not in results(done)["none"]["values"]
    assert results(done)["one-more"]["values"]["training_seconds"] == 1.5


def test_a_changed_cell_is_refused_and_says_why(done, tmp_path):
    before = snapshot(done)
    changed = [TINY["cells"][0], {**TINY["cells"][1], "model": {"init_args": {"decoder_layers": 2}}}]
    with pytest.raises(VlaeError, match=r"'one, more'.*decoder_layers was 1, now 2.*--again one-more") as caught:
        engine.run(write(tmp_path, cells=changed), done)
    assert "\n" not in str(caught.value)
    assert snapshot(done) == before and trained == []
    assert engine.run(write(tmp_path, cells=changed), done, again=["one-more"]) == 0
    assert trained == ["one-more"]
    assert results(done)["one-more"]["values"]["receptive_field"] > 12


def test_other_measures_need_no_other_training(done, tmp_path):
    measure = {**TINY["measure"], "limit": 40}
    with pytest.raises(VlaeError, match=r"limit was 30, now 40.*--measure_again"):
        engine.run(write(tmp_path, measure=measure), done)
    models = {path: snapshot(done)[path] for path in snapshot(done) if "model" in str(path)}
    assert engine.run(write(tmp_path, measure=measure), done, measure_again=True) == 0
    assert trained == []
    assert {path: snapshot(done)[path] for path in models} == models
    assert all("40 images" in result["data"] for result in results(done).values())


def test_another_budget_is_refused_until_overwritten(done, tmp_path):
    tiny = write(tmp_path, cells=TINY["cells"][:1])
    with pytest.raises(VlaeError, match=r"budget seconds, and this is 128: .*--overwrite"):
        engine.run(tiny, done, budget="128")
    assert engine.run(tiny, done, budget="128", overwrite=True) == 0
    assert results(done)["none"]["values"]["training_images"] == 128
    assert json.loads((done / "plan.json").read_text())["budget"] == "128"


def test_where_the_data_are_makes_no_other_cell(done, tmp_path):
    base = {**TINY["base"], "data": {**TINY["base"]["data"], "root": str(tmp_path)}}
    assert engine.run(write(tmp_path, base=base), done) == 0
    assert trained == []


def test_a_folder_elsewhere_makes_another_cell():
    """There the root says which images are meant."""
    here, there = ({"config": {"data": {"name": "folder", "root": root}}} for root in ("a", "b"))
    assert difference(here, there) == "config.data.root was a, now b"
    assert not difference({"data": {"name": "digits", "root": "a"}}, {"data": {"name": "digits", "root": "b"}})


def test_another_model_under_the_name_that_a_cell_starts_from_makes_another_cell(tmp_path):
    source = tmp_path / "source"
    job = Job(
        study.Cell("one", {"start_from": str(source)}), {"start_from": str(source)}, None, study.Measure(), tmp_path
    )
    assert job.identity()["config"]["start_from_sha256"] is None  # it is not there yet
    small_vae(0).save_pretrained(source)
    before = job.identity()
    small_vae(1).save_pretrained(source)
    now = job.identity()
    assert difference(before, now).startswith("config.start_from_sha256 was ")
    assert not difference(now, job.identity())
    shutil.rmtree(source)  # gone, it can't tell that it is another
    assert not difference(now, job.identity())
    del before["config"]["start_from_sha256"]  # what results of earlier versions lack
    assert not difference(before, now)


def small_vae(seed):
    torch.manual_seed(seed)
    return vlae.VAE((1, 4, 4), architecture="mlp", widths=[4], latent_dim=2)


def test_what_a_cell_started_from_is_kept_when_its_training_begins(tmp_path, monkeypatch):
    """Not when it is measured: by then another model may lie there."""
    source = tmp_path / "source"
    small_vae(0).save_pretrained(source)
    config = {"start_from": str(source)}
    job = Job(study.Cell("one", config), config, None, study.Measure(), tmp_path / "cells")

    def training(path, directory, *_):
        directory.mkdir()
        (directory / "config.yaml").write_text(path.read_text())
        small_vae(2).save_pretrained(directory / "model")
        return 1.0

    monkeypatch.setattr(cell_training, "vlae_train", training)
    job.folder.mkdir()
    cell_training.train(job, resume=False)
    assert state(job).name == "trained" and job.seconds_so_far() == 1.0
    of_training = job.identity()
    small_vae(1).save_pretrained(source)
    assert state(job).name == "changed" and "start_from_sha256 was" in state(job).change
    assert not difference(of_training, job.identity())  # what is there is still of the first
    shutil.rmtree(source)
    assert state(job).name == "trained"


def test_nothing_is_fetched_to_tell_a_model_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("vlae.models.hub.download", lambda *_: pytest.fail("it was fetched"))
    config = {"start_from": "hf:someone/something"}
    assert Job(study.Cell("one", config), config, None, study.Measure(), tmp_path).identity()


def test_a_folder_with_a_whole_path_is_the_same_under_any_root():
    absolute, relative = (
        [{"data": {"name": "folder", "root": root, "options": {"path": path}}} for root in "ab"] for path in ("/x", "x")
    )
    assert not difference(*absolute) and difference(*relative)


def test_data_without_a_name_are_a_finished_models_own(tmp_path):
    """Not the digits, which are the default of a training."""
    config = {"data": {"binarize": "threshold"}}
    model = small_vae(0)
    model.metadata["data"] = {"name": "mnist", "binarize": "dynamic", "options": {"size": 14}}
    job = Job(study.Cell("one", config, run="x"), config, None, study.Measure(), tmp_path)
    found = cells.data_of(job, model)
    assert (found.name, found.binarize, found.options) == ("mnist", "threshold", {"size": 14})


def test_a_failing_cell_takes_no_other_along(tmp_path, capsys):
    bad = {"name": "bad", "run": str(tmp_path / "nothing")}
    tiny = write(tmp_path, cells=[bad, TINY["cells"][0]])
    assert engine.run(tiny, tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert out.count("bad: FAILED: no saved model at") == 1
    assert set(results(tmp_path / "out")) == {"none"}
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| bad | - | - |" in text and "bad is missing: no saved model at" in text


def test_a_cell_may_fail_in_any_way(tmp_path, monkeypatch):
    def evaluate(job, original=cells.evaluate):
        if job.cell.name == "none":
            raise ZeroDivisionError("of a\nkind")
        return original(job)

    monkeypatch.setattr(cells, "evaluate", evaluate)
    tiny = write(tmp_path)
    assert engine.run(tiny, tmp_path / "out") == 1
    assert set(results(tmp_path / "out")) == {"one-more"}
    assert "none is missing: ZeroDivisionError: of a kind" in (tmp_path / "out" / "table.md").read_text()
    assert "Traceback" in (tmp_path / "out" / "cells" / "none.log").read_text()
    monkeypatch.undo()
    assert engine.run(tiny, tmp_path / "out") == 0  # it was trained, and is only measured
    assert trained == ["none", "one-more"]


def test_a_model_that_is_there_is_only_measured(done, tmp_path):
    given = [TINY["cells"][0], {"name": "given", "run": str(done / "cells" / "none")}]
    tiny = write(tmp_path, cells=given)
    assert engine.run(tiny, tmp_path / "new") == 0
    assert trained == ["none"]
    none, given = (results(tmp_path / "new")[name]["values"] for name in ("none", "given"))
    for name in ("training_images", "training_seconds", "epochs"):
        del none[name]
    assert none == given


def test_a_model_that_was_trained_elsewhere_finds_the_images_of_its_judge_here(done, tmp_path, monkeypatch):
    """A folder of another machine in its metadata is no place to look for images."""
    shutil.copytree(done / "cells" / "none", tmp_path / "run")
    saved = vlae.load(tmp_path / "run")
    saved.metadata["data"]["root"] = str(tmp_path / "not-here")
    saved.save_pretrained(tmp_path / "run" / "model")
    asked = []
    monkeypatch.setattr(cells, "judge_of", lambda data, training, test: (asked.append(data), ["no judge"]))
    measure = {**TINY["measure"], "only": ["samples"], "quality_images": 20}
    given = [{"name": "given", "run": str(tmp_path / "run")}]
    tiny = write(tmp_path, base={}, cells=given, measure=measure, columns=["mse"], plots=[])
    assert engine.run(tiny, tmp_path / "new") == 0
    assert [data.root for data in asked] == [None]


def test_shards_and_the_table_of_what_is_there(tmp_path):
    tiny, out = write(tmp_path), tmp_path / "out"
    with pytest.raises(VlaeError, match="nothing in"):
        engine.run(tiny, out, table_only=True)
    assert engine.run(tiny, out, shard="1/2") == 0
    assert trained == ["none"]
    assert "one, more is missing: not done yet" in (out / "table.md").read_text()
    assert engine.run(tiny, out, shard="2/2") == 0
    assert trained == ["none", "one-more"]
    table = (out / "table.md").read_text()
    (out / "table.md").unlink()
    assert engine.run(tiny, out, table_only=True) == 0
    assert (out / "table.md").read_text() == table and "missing" not in table
    for wrong in ("0/2", "3/2", "2", "a/b", "-1/2"):
        with pytest.raises(VlaeError, match="I/N"):
            engine.run(tiny, out, shard=wrong)


# -- durations --------------------------------------------------------------------------------------------------------


def test_a_duration_is_planned_once(tmp_path, monkeypatch):
    times = iter([0.0, 20.0])  # the timing itself takes 20 seconds of the 100
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(times))
    tiny = write(tmp_path)
    jobs = engine._jobs(tiny, tmp_path, Spread(), False, set(), False)
    timings = {"none": Timing(1, 0.02, 3), "one-more": Timing(1, 0.06, 3)}
    plan = engine.make_plan(jobs, tiny, tmp_path, "100s", Spread(), timing=lambda job: timings[job.cell.slug])
    work = (0.9 * 80 - 8) / 0.08  # images and half of the validation images, of both cells
    assert plan.images == pytest.approx(work - 10, abs=1)
    assert plan.timings == timings
    plan.write(tmp_path / "plan.json")

    def never(job):
        raise AssertionError

    assert engine.make_plan(jobs, tiny, tmp_path, "100s", Spread(), timing=never) == plan
    assert engine.make_plan(jobs, tiny, tmp_path, None, Spread(), timing=never) == plan
    with pytest.raises(VlaeError, match="shards share one plan"):
        engine.make_plan(jobs, tiny, tmp_path, "200s", Spread(), shards=2, timing=never)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(VlaeError, match=r"plan\.json is damaged"):
        engine.make_plan(jobs, tiny, tmp_path, None, Spread())


def test_a_duration_shorter_than_its_planning_is_refused(tmp_path, monkeypatch):
    times = iter([0.0, 20.0])
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(times))
    tiny = write(tmp_path)
    jobs = engine._jobs(tiny, tmp_path, Spread(), False, set(), False)
    with pytest.raises(VlaeError, match="took 20 s of 15s"):
        engine.make_plan(jobs, tiny, tmp_path, "15s", Spread(), timing=lambda job: Timing())


def test_a_cell_that_cannot_be_timed_is_left_out_of_the_sum(tmp_path, capsys):
    def timing(job):
        if job.cell.slug == "none":
            raise VlaeError("it is broken")
        return Timing(1, 0.06, 3)

    tiny = write(tmp_path)
    jobs = engine._jobs(tiny, tmp_path, Spread(), False, set(), False)
    plan = engine.make_plan(jobs, tiny, tmp_path, "60s", Spread(), timing=timing)
    assert set(plan.timings) == {"one-more"} and plan.images > 256
    assert "none: can't be timed: it is broken" in capsys.readouterr().out
    with pytest.raises(VlaeError, match="no cell could be timed"):
        engine.make_plan(jobs[:1], tiny, tmp_path, "60s", Spread(), timing=timing)


def test_timing_measures_and_leaves_nothing(tmp_path):
    (job,) = engine._jobs(write(tmp_path, cells=TINY["cells"][:1]), tmp_path / "out", Spread(), False, set(), False)
    found = calibration.calibrate(job)
    assert 0 < found.image < 0.1 and 0 < found.evaluation < 60 and 0 <= found.start < 60
    assert list((tmp_path / "out" / "cells").iterdir()) == []
    assert state(job).name == "new"


def test_a_dry_run_does_nothing_but_plan(tmp_path, capsys):
    assert engine.run(write(tmp_path), tmp_path / "out", dry_run=True) == 0
    out = capsys.readouterr().out
    assert "256 training images" in out and "one-more" in out and "1 epoch of 256 images" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]
    assert trained == []


# -- spreading --------------------------------------------------------------------------------------------------------


def test_two_processes_give_the_numbers_of_one(once, tmp_path, monkeypatch):
    """Really in other processes, each training by a `vlae train` of its own; with the times that took."""
    monkeypatch.undo()
    assert engine.run(write(tmp_path), tmp_path / "out", spread=Spread(workers=2)) == 0
    for name, result in results(tmp_path / "out").items():
        values, alone = result["values"], results(once)[name]["values"]
        assert 0 < values.pop("training_seconds") < 600
        assert values == {key: alone[key] for key in values}
        log = (tmp_path / "out" / "cells" / f"{name}.log").read_text()
        assert "the model is" in log


def command(folder: Path, script: str) -> str:
    """A program in Python's place."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo vlae: error: no such data; echo bye; exit 2", "training failed: no such data"),
        ("echo first; echo last line; exit 1", "training failed: last line"),
        ("exit 1", "training failed: it said nothing"),
        ("kill -9 $$", "training failed: stopped by signal 9"),
    ],
)
def test_a_training_that_fails_says_why(tmp_path, monkeypatch, script, words):
    monkeypatch.undo()
    monkeypatch.setattr(cell_training.sys, "executable", command(tmp_path, script))
    with pytest.raises(VlaeError, match=words) as caught:
        cell_training.vlae_train(tmp_path / "c.yaml", tmp_path / "run", tmp_path / "c.log", 1)
    assert "\n" not in str(caught.value) and "c.log" in str(caught.value)


def test_a_training_is_told_its_threads_and_its_seconds_are_counted(tmp_path, monkeypatch):
    monkeypatch.undo()
    script = f"echo $OMP_NUM_THREADS $@ > {tmp_path}/said; {cell_training.sys.executable} -c 'sum(range(30_000_000))'"
    monkeypatch.setattr(cell_training.sys, "executable", command(tmp_path, script))
    seconds = cell_training.vlae_train(tmp_path / "c.yaml", tmp_path / "runs" / "me", tmp_path / "c.log", 3)
    assert seconds > 0.1
    words = (tmp_path / "said").read_text().split()
    assert words[:3] == ["3", "-m", "vlae"]
    assert words[3:] == cell_training.train_words(tmp_path / "c.yaml", tmp_path / "runs" / "me", False)
    assert "--resume" in cell_training.train_words(tmp_path / "c.yaml", tmp_path / "run", True)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_that_is_told_to_end_takes_its_trainings_with_it(tmp_path, monkeypatch, workers):
    """As a batch system does: it tells the process that it has started, and no other."""
    monkeypatch.undo()
    endless = {**TINY, "base": {**TINY["base"], "trainer": {**TINY["base"]["trainer"], "max_epochs": 100_000}}}
    (tmp_path / "endless.yaml").write_text(yaml.safe_dump(endless))
    words = ["experiment", "endless.yaml", "--budget", "full", "--workers", str(workers), "--output", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlae", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 240
    while len(checkpoints := list(tmp_path.rglob("last.ckpt"))) < workers and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    assert len(checkpoints) == workers
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    # Not the last line always: joblib may warn of what its workers had not yet cleared away.
    assert any(line.endswith("interrupted; the same command goes on from here") for line in err.splitlines())
    for path in checkpoints:
        with holding(path.parent.parent):  # nobody trains into it
            pass


@pytest.mark.skipif(os.name != "posix", reason="directories can't be held on Windows")
def test_a_cell_that_another_process_trains_is_left_to_it(tmp_path):
    layers = write(tmp_path)
    mine = tmp_path / "out" / "cells" / "none"
    (mine / "ckpts").mkdir(parents=True)
    (mine / "ckpts" / "best.ckpt").write_bytes(b"the other's")
    with holding(mine):
        assert engine.run(layers, tmp_path / "out") == 1
    assert (mine / "ckpts" / "best.ckpt").read_bytes() == b"the other's"
    assert "another process is writing to" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.skipif(os.name != "posix", reason="directories can't be held on Windows")
@pytest.mark.parametrize("options", [{"again": ["one-more"]}, {"overwrite": True}])
def test_nothing_is_set_aside_where_one_cell_is_being_trained(done, options):
    before = snapshot(done)
    with (
        holding(done / "cells" / "one-more"),
        pytest.raises(VlaeError, match=r"another process is writing to .*one-more"),
    ):
        engine.run(write(done.parent), done, **options)
    assert snapshot(done) == before


def fails(config, directory, log, threads, resume=False):
    """A training that comes to something before it fails."""
    log.write_text("new")
    (directory / "ckpts").mkdir(parents=True)
    raise VlaeError("training failed: no luck")


@pytest.mark.parametrize("options", [{"overwrite": True}, {"again": ["none"]}, {"overwrite": True, "budget": "two"}])
def test_what_fails_anew_leaves_what_was_there(done, monkeypatch, options):
    before, plan = snapshot(done), (done / "plan.json").read_bytes()
    monkeypatch.setattr(cell_training, "vlae_train", fails)
    assert engine.run(write(done.parent), done, **options) == 1
    assert snapshot(done) == before
    assert (done / "plan.json").read_bytes() == plan
    assert engine.run(write(done.parent), done) == 0
    assert snapshot(done) == before


def test_what_can_not_be_measured_again_keeps_what_was_measured(done, monkeypatch):
    before = snapshot(done)

    def never(job):
        raise VlaeError("no luck")

    monkeypatch.setattr(cells, "evaluate", never)
    assert engine.run(write(done.parent), done, measure_again=True) == 1
    assert snapshot(done) == before


@pytest.mark.parametrize("options", [{"overwrite": True}, {"measure_again": True}])
def test_what_is_begun_anew_and_stopped_goes_on(done, monkeypatch, options):
    """The wish is fulfilled by the next command, that does not repeat it: cell by cell, and nothing is left aside."""
    layers, before, evaluate = write(done.parent), snapshot(done), cells.evaluate

    def stopped(job):
        if job.cell.slug == "one-more":
            raise KeyboardInterrupt
        return evaluate(job)

    monkeypatch.setattr(cells, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        engine.run(layers, done, **options)
    monkeypatch.setattr(cells, "evaluate", evaluate)
    assert engine.run(layers, done) == 0
    assert trained == (["none", "one-more"] if "overwrite" in options else [])
    for slug in ("none", "one-more"):
        result = done / "cells" / slug / "result.json"
        assert result.stat().st_mtime_ns != before[result][0]
    assert not list((done / "cells").glob("*.replaced"))


def test_what_was_begun_anew_and_is_done_anew_again(done, monkeypatch):
    layers, before = write(done.parent), snapshot(done)

    def stopped(config, directory, log, threads, resume=False):
        fails_after = directory / "ckpts"
        fails_after.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(cell_training, "vlae_train", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            engine.run(layers, done, again=["none"])
    monkeypatch.setattr(cell_training, "vlae_train", fails)
    assert engine.run(layers, done) == 1
    assert snapshot(done) == before


def test_a_dry_run_leaves_the_plan_of_what_is_there(done):
    before = (done / "plan.json").read_bytes()
    assert engine.run(write(done.parent), done, budget="two", overwrite=True, dry_run=True) == 0
    assert (done / "plan.json").read_bytes() == before
    assert engine.run(write(done.parent), done) == 0


@pytest.mark.parametrize(
    "options", [{"budget": "two"}, {"shard": "1/2"}, {"again": ["none"]}, {"overwrite": True}, {"measure_again": True}]
)
def test_the_table_alone_takes_no_wishes(done, options):
    with pytest.raises(VlaeError, match=f"what is there: leave --{next(iter(options))} out"):
        engine.run(write(done.parent), done, table_only=True, **options)


def test_a_study_of_ready_models_survives_one_that_can_not_be_measured(done, monkeypatch, capsys):
    given = [{"name": name, "run": str(done / "cells" / name)} for name in ("none", "one-more")]
    models = write(done.parent, cells=given, base={"data": TINY["base"]["data"]}, columns=["rate"], plots=[])
    evaluate = cells.evaluate

    def broken(job):
        if job.cell.slug == "none":
            raise ZeroDivisionError("by zero")
        return evaluate(job)

    monkeypatch.setattr(cells, "evaluate", broken)
    assert engine.run(models, done.parent / "models") == 1
    assert "none: FAILED: ZeroDivisionError: by zero" in capsys.readouterr().out
    assert list(results(done.parent / "models")) == ["one-more"]
    assert "ZeroDivisionError" in (done.parent / "models" / "cells" / "none.log").read_text()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"identity": {}, "values": 3}'])
def test_a_damaged_result_is_measured_again(done, content):
    (done / "cells" / "none" / "result.json").write_text(content)
    assert engine.run(write(done.parent), done) == 0
    assert (trained, list(results(done))) == ([], ["none", "one-more"])


@pytest.mark.parametrize("content", [b"{a: [", b"[]", b"\xff"])
def test_a_damaged_configuration_is_another_one(done, content):
    (done / "cells" / "none.yaml").write_bytes(content)
    with pytest.raises(VlaeError, match=r"was made otherwise .*--again none"):
        engine.run(write(done.parent), done)
    assert engine.run(write(done.parent), done, again=["none"]) == 0
    assert trained == ["none"]


@pytest.mark.parametrize("words", [{"budget": "²"}, {"shard": "²/3"}])
def test_digits_that_are_no_numbers(done, words):
    with pytest.raises(VlaeError):
        engine.run(write(done.parent), done, **words)


def test_a_training_ends_with_who_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(cell_training.sys, "executable", command(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60"))
    wait = cell_training.subprocess.Popen.wait

    def interrupted(self, *arguments):
        monkeypatch.setattr(cell_training.subprocess.Popen, "wait", wait)
        while not (tmp_path / "pid").is_file():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(cell_training.subprocess.Popen, "wait", interrupted)
    with pytest.raises(cell_training.Interrupted) as caught:
        cell_training.vlae_train(tmp_path / "c.yaml", tmp_path / "run", tmp_path / "c.log", 1)
    assert 0 <= caught.value.seconds < 5
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"engine": "slurm"}, "one of loky, ray, dask"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"address": "tcp://x"}, "--engine ray or --engine dask"),
    ],
)
def test_spreading_refuses(options, words):
    with pytest.raises(VlaeError, match=words):
        Spread(**options)


def test_threads_are_one_where_there_are_workers():
    assert Spread().each is None
    assert Spread(workers=2).each == 1
    assert Spread(workers=2, threads=3).each == 3
    assert Spread(engine="ray").each == 1


@pytest.mark.parametrize("name", ["ray", "dask"])
def test_a_missing_engine_is_refused_in_one_line(name, monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(engine.importlib, "import_module", missing)
    with pytest.raises(
        VlaeError, match=rf"{name} is not there \(No module named '{name}.*'\): pip install 'vlae\[{name}\]'"
    ):
        Spread(workers=2, engine=name).map(str, [1, 2])


def test_what_is_to_be_made_anew_is_not_removed_where_the_workers_are_missing(done, tmp_path, monkeypatch):
    def missing(module):
        raise VlaeError(f"pip install {module}")

    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    monkeypatch.setattr(engine, "_needed", missing)
    for options in ({"overwrite": True}, {"again": ["none"]}):
        with pytest.raises(VlaeError, match="pip install"):
            engine.run(write(tmp_path), done, spread=Spread(workers=2, engine="ray"), **options)
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_of_all_cells_below_the_datas(tmp_path):
    plot = {"kind": "pictures", "of": "samples", "count": 3, "name": "Drawn by all"}
    tiny = write(tmp_path, cells=[*TINY["cells"], {"name": "later"}], plots=[plot, {"kind": "bars", "y": "mse"}])
    found = Measurements("VLAE", "digits", pictures={n: torch.rand(5, 1, 8, 8) for n in ("data", "samples")})
    for cell in tiny.cells[:2]:
        cells._keep_pictures(found, tmp_path / "cells" / cell.slug / "pictures.npz")
    results = {cell.name: {"values": {}, "errors": {}} for cell in tiny.cells[:2]}
    figure = tables.draw(tiny, results, tiny.plots[0], tmp_path)
    assert [text.get_text() for text in figure.texts if text.get_text()] == ["Layers", "data", "none", "one, more"]
    assert study.file_name(tiny.plots, tiny.plots[0]) == "drawn-by-all.png"
    assert tables.draw(tiny, results, tiny.plots[1], tmp_path) is None  # nobody measured it
    with np.load(tmp_path / "cells" / "none" / "pictures.npz") as arrays:
        assert np.abs(arrays["samples"] / 255 - found.pictures["samples"].numpy()).max() <= 0.5 / 255 + 1e-6


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(done, tmp_path, monkeypatch, capsys):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["experiment"]) == 0
    assert "receptive-field" in capsys.readouterr().out
    assert cli.main(["experiment", "--list"]) == 0
    assert cli.main(["experiment", "layers.yaml", "--output", str(done), "--table-only"]) == 0
    assert "made by: vlae experiment layers.yaml --budget seconds" in capsys.readouterr().out
    assert cli.main(["experiment", "layers.yaml", "--dry-run", "--budget=two"]) == 0
    assert (tmp_path / "outputs" / "experiments" / "layers" / "plan.json").is_file()
    assert cli.main(["experiment", "layers.yaml", "--budget", "soon"]) == 2
    assert "choose one of seconds, two, full" in capsys.readouterr().err
    assert cli.main(["experiment", "nothing"]) == 2

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", interrupted)
    assert cli.main(["experiment", "layers.yaml"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_job_that_is_cleared_asks_for_nothing_more(done, tmp_path):
    (job, _) = engine._jobs(write(tmp_path), done, Spread(), True, set(), False)
    assert state(job).name == "new"
    cleared = job.cleared()
    assert not cleared.anew and not job.directory.exists()
    assert replace(job, anew=False) == cleared


def test_a_budget_whose_name_means_something_else_now_is_refused(tmp_path):
    first = write(tmp_path, budgets={"minutes": 100})
    plan = engine.make_plan([], first, tmp_path, "minutes", Spread())
    plan.write(tmp_path / "plan.json")
    assert engine.make_plan([], first, tmp_path, None, Spread()) == plan
    other = write(tmp_path, budgets={"minutes": 400})
    with pytest.raises(VlaeError, match="it was 100 images, and it is 400 now"):
        engine.make_plan([], other, tmp_path, None, Spread())
    assert engine.make_plan([], other, tmp_path, None, Spread(), overwrite=True).images == 400


def test_a_plot_that_cannot_be_drawn_leaves_the_table(tmp_path, capsys):
    made = write(tmp_path, plots=[{"kind": "line", "x": "layers", "y": ["rate"], "log_x": True}])
    results = {
        cell.name: {
            "values": {"rate": 3.0},
            "errors": {},
            "notes": [],
            "skipped": {},
            "data": "digits",
            "seed": 1,
            "machine": "m",
            "versions": "v",
        }
        for cell in made.cells
    }
    tables.write(made, results, tmp_path, tables.About("256 images", "vlae experiment layers"))
    assert "line.png is left out" in capsys.readouterr().out  # one cell is at 0
    assert (tmp_path / "table.md").is_file() and (tmp_path / "results.json").is_file()
    assert not (tmp_path / "line.png").exists()


def test_columns_that_no_cell_has_a_number_of_are_named(tmp_path):
    study = write(tmp_path)
    study = replace(study, columns=("rate", "fid", "mig"))
    about = {"notes": [], "data": "digits", "seed": 1, "machine": "m", "versions": "v"}
    result = {"values": {"rate": 3.0}, "errors": {}, "skipped": {}, **about}
    notes = tables.footnotes(study, {study.cells[0].name: result}, tables.About("256 images", "vlae"))
    assert "no cell has a number of: samples: FID, MIG" in notes
    assert not [note for note in tables.footnotes(study, {}, tables.About("", "")) if note.startswith("no cell has")]


def test_what_is_measured_is_not_taken_from_what_the_study_says(tmp_path):
    cell = write(tmp_path).cells[0]
    assert tables.value(replace(cell, x={"nll": 3.0, "layers": 0.0}), {"values": {}}, "nll") is None
    assert tables.value(replace(cell, x={"nll": 3.0, "layers": 7.0}), {"values": {}}, "layers") == 7.0
