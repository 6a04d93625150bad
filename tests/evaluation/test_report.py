"""What `vlae eval` prints and writes, and what it fails for."""

import csv
import io
import json
import math

import pytest
import torch
from rich.console import Console

import vlae
from vlae import VlaeError, models
from vlae.data import ImageDataset
from vlae.evaluation import criteria, judge, report
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.criteria import References, settled
from vlae.evaluation.information import BITS
from vlae.evaluation.measurements import Measurements, Settings
from vlae.evaluation.metrics import METRICS
from vlae.evaluation.report import TOLERANCE, compare
from vlae.evaluation.suite import measure

SMALL = {"nll_samples": (1, 3), "nll_images": 5, "information_images": 6, "quality_images": 4, "train_images": 20}


@pytest.fixture
def images():
    def make(count, split="test", **options):
        pixels = torch.randint(0, 2, (count, 1, 5, 4), dtype=torch.uint8)
        return ImageDataset(pixels, 2, name="noise", split=split, labels=torch.arange(count) % 2, **options)

    return make


@pytest.fixture
def found(tiny_vlae, images):
    return measure(tiny_vlae(), images(8), images(20, "train"), Settings(**SMALL))


def printed(found, width=120, criteria=None):
    console = Console(file=io.StringIO(), width=width)
    for table in [*report.tables(found), *([] if criteria is None else [report.criteria_table(criteria)])]:
        console.print(table)
    return console.file.getvalue()


# -- checking ---------------------------------------------------------------------------------------------------------


def test_expected_numbers_pass_and_missed_ones_fail(found, capsys):
    expected = {name: found.values[name] for name in report.CHECKED}
    assert compare(found.values, expected) == 0
    assert compare(found.values, {**expected, "nll": expected["nll"] + 0.9 * TOLERANCE}) == 0
    assert "passed" in capsys.readouterr().out
    for name, value in expected.items():
        assert compare(found.values, {**expected, name: value + 1.1 * TOLERANCE}) == 1
        assert compare(found.values, {**expected, name: float("nan")}) == 1
        assert compare({k: v for k, v in found.values.items() if k != name}, expected) == 1
    assert "FAILED" in capsys.readouterr().out
    assert compare({"distortion": 2.0}, {"distortion": 2.0, "rate": None, "negative_elbo": None}) == 0


def test_check_measures_as_the_expected_numbers_were(tiny_vlae, images, tmp_path, capsys):
    model, test = tiny_vlae(), images(8)
    right = report.evaluate_dataset(model, test, nll_samples=4, nll_images=3, seed=7)
    model.metadata["expected"] = {
        **{name: getattr(right, name) for name in report.CHECKED},
        **{"nll_samples": 4, "nll_images": 3, "seed": 7},
    }
    assert report.run(model, test, tmp_path, Settings(**SMALL), check=True) == 0
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["nll"] == pytest.approx(right.nll, abs=1e-9)
    assert (values["nll_samples"], values["nll_images"], values["seed"]) == (4, 3, 7)
    assert set(values["seconds_by_group"]) == {"bound", "nll"}  # no more than it needs
    model.metadata["expected"]["rate"] += 1
    assert report.run(model, test, tmp_path, Settings(**SMALL), check=True) == 1
    assert "FAILED" in capsys.readouterr().out
    model.metadata = {}
    with pytest.raises(VlaeError, match="no expected numbers"):
        report.run(model, test, tmp_path, Settings(**SMALL), check=True)


# -- the console ------------------------------------------------------------------------------------------------------


def test_tables_show_every_number_once(found):
    shown = printed(found)
    for name, value in found.values.items():
        metric = METRICS[name]
        if metric.group != "nll" and name != "rate_bits":
            assert metric.heading in shown, name
            assert metric.written(value, found.errors.get(name)) in shown, name
    assert f"{found.values['rate'] * BITS:.2f}" in shown and "rate [bits]" not in shown
    for row in found.series["nll_by_samples"]:
        line = next(line for line in shown.splitlines() if line.startswith(f"│ {row['samples']} "))
        for text in (
            f"{row['nll']:.2f} ± {row['error']:.2f}",
            f"{row['nll'] * BITS:.2f}",
            f"{row['bits_per_dim']:.4f}",
        ):
            assert text in line
    assert "NLL by importance samples, 5 images" in shown
    assert " - " not in shown, "what does not apply has no row"


def test_what_does_not_apply_has_no_row(images):
    found = measure(models.PixelCNN((1, 5, 4), decoder_layers=1, channels=4), images(5), None, Settings(**SMALL))
    shown = printed(found)
    for words in ("active units", "shuffled", "mutual", "reconstructions", "perplexity"):
        assert words not in shown
    assert "drawn samples: sharpness" in shown


def test_levels_of_a_ladder_have_rows(images):
    model = models.LadderVAE((1, 5, 4), latent_dims=(3, 2), hidden=5)
    found = measure(model, images(5), None, Settings(only=("bound",)))
    shown = [line.split() for line in printed(found).splitlines()]
    for level, rate in enumerate(found.series["rate_per_level"], 1):
        assert any({f"z_{level}", f"{rate:.2f}"} <= set(line) for line in shown)


def test_notes_reasons_and_times_are_below(found, capsys):
    found.notes.append("a note [with brackets]")
    report.show(found, [settled(12.0, 0.0), settled(2.0, 0.0), settled(12.0, None)])
    out = " ".join(capsys.readouterr().out.split())
    for words in ("a note [with brackets]", "disentanglement: noise has no known factors", "seconds: bound"):
        assert words in out
    assert out.count("│ met │") == 1 and "NOT met" in out and "not checked" in out


# -- the files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tiny_vlae, images, tmp_path):
    model = tiny_vlae()
    test, train = images(8), images(20, "train")
    judge = Classifier((1, 5, 4), classes=2).eval()
    judge.test_accuracy = 0.5
    code = report.run(
        model,
        test,
        tmp_path / "reports",
        Settings(**SMALL),
        training=lambda: train,
        judging=lambda train: (judge, ""),
        command="vlae eval --run 'a b'",
    )
    assert code == 0
    return tmp_path / "reports"


def test_json_csv_and_page_agree(written):
    values = json.loads((written / "evaluation.json").read_text())
    assert values["images"] == 8 and values["nll_images"] == 5 and values["nll_samples"] == 3
    assert values["nll"] == values["values"]["nll"] == values["series"]["nll_by_samples"][-1]["nll"]
    assert values["negative_elbo"] == pytest.approx(values["distortion"] + values["rate"])
    assert "sample_frechet" in values["values"] and "knn" in values["values"]
    assert values["provenance"]["command"] == "vlae eval --run 'a b'"
    rows = {row["metric"]: row for row in csv.DictReader((written / "metrics.csv").open())}
    assert {name: float(row["value"]) for name, row in rows.items()} == values["values"]
    assert {name: float(row["error"]) for name, row in rows.items() if row["error"]} == values["errors"]
    assert (rows["nll"]["unit"], rows["nll"]["group"]) == ("nats", "nll")
    page = (written / "report.html").read_text()
    for name in values["values"]:
        if METRICS[name].group != "nll" and name != "rate_bits":
            assert METRICS[name].heading in page, name


def test_numbers_that_json_has_not_become_null(tiny_vlae):
    found = Measurements("VLAE", "noise", {"rate": 1.0}, series={"nll_by_samples": [{"nll": math.inf}]})
    found.series["factor_r2"] = {"shape": math.nan, "x": 0.5}
    values = json.loads(report.as_json(found, {}, Settings()))
    assert values["series"] == {"nll_by_samples": [{"nll": None}], "factor_r2": {"shape": None, "x": 0.5}}


def test_provenance_is_all_that_is_needed_to_do_it_again(tiny_vlae, found):
    about = report.provenance(tiny_vlae(), found, Settings(seed=3), "vlae eval --seed 3")
    assert about["model"] == "VLAE" and about["seed"] == "3" and about["command"] == "vlae eval --seed 3"
    again = vlae.VLAE(**json.loads(about["configuration"]))
    assert f"{sum(p.numel() for p in again.parameters()):,}" == about["parameters"]
    assert "torch" in about["versions"] and "float64" in about["precision"] and about["machine"]


def test_helpers_are_made_only_where_they_are_needed(images):
    train, calls = images(20, "train"), []
    judge = Classifier((1, 5, 4), classes=2)

    def training():
        calls.append("training")
        return train

    def judging(train):
        calls.append("judging")
        return judge, ""

    for only, expected in {
        ("bound", "nll"): [],
        ("sample_sharpness",): [],
        ("knn",): ["training"],
        ("samples",): ["training", "judging"],
        (): ["training", "judging"],
    }.items():
        calls.clear()
        found = report.helpers(Settings(only=only), training, judging)
        assert calls == expected, only
        assert found == (train if calls else None, judge if "judging" in calls else None, [])

    def missing():
        raise VlaeError("no such file: put it somewhere")

    train, judge, notes = report.helpers(Settings(), missing, judging)
    assert train is judge is None and "put it somewhere" in notes[0]
    assert report.helpers(Settings(), training, lambda train: (None, "why not"))[2] == ["why not"]


def test_criteria_are_measured_for_printed_and_fail_only_when_strict(tiny_vlae, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(criteria, "ENOUGH", 1)
    model, test, nobody = tiny_vlae(), images(8), References(None, None, {"pixelcnn": "none", "vae": "none"})
    settings = Settings(only=("knn",), **SMALL)
    assert report.run(model, test, tmp_path, settings, criteria=True, references=nobody) == 0
    values = json.loads((tmp_path / "evaluation.json").read_text())
    names = ["rate", "used", "samples", "sharpness", "nll", "speed", "codec"]
    assert [criterion["name"] for criterion in values["criteria"]] == names
    assert values["criteria"][1]["verdict"] == "NOT met"  # a model of random weights does not use its code
    assert "shuffled_gap" in values["values"]
    assert "NOT met" in capsys.readouterr().out and "NOT met" in (tmp_path / "report.html").read_text()
    assert report.run(model, test, tmp_path, settings, criteria=True, references=nobody, strict=True) == 1


def test_criteria_that_fail_leave_what_was_measured(tiny_vlae, images, tmp_path, monkeypatch):
    def fails(*arguments):
        raise VlaeError("no memory for the last criterion")

    monkeypatch.setattr(report, "check_criteria", fails)
    nobody = References(None, None, {})
    with pytest.raises(VlaeError, match="no memory for the last criterion"):
        report.run(tiny_vlae(), images(8), tmp_path, Settings(**SMALL), criteria=True, references=nobody)
    assert "nll" in json.loads((tmp_path / "evaluation.json").read_text())["values"]


def test_all_processes_measure_what_the_criteria_need(tiny_vlae, images, tmp_path, monkeypatch):
    """The second process has no models to compare with, and yet its share of the same measures."""
    asked = []
    monkeypatch.setattr(report.processes, "first", lambda: False)
    monkeypatch.setattr(report, "measure", lambda model, test, train, settings, keep: asked.append(settings.metrics))
    report.run(tiny_vlae(), images(8), tmp_path, Settings(only=("knn",), **SMALL), criteria=True)
    assert set(criteria.NEEDED) | {"knn"} <= set(asked[0])


def test_double_measures_in_float64_and_leaves_the_model_alone(tiny_vlae, images, tmp_path):
    model = tiny_vlae().float()
    report.run(model, images(4), tmp_path, Settings(only=("bound",)), double=True)
    assert next(model.parameters()).dtype == torch.float32
    assert json.loads((tmp_path / "evaluation.json").read_text())["provenance"]["precision"] == "float64"


def test_the_training_of_the_run_is_drawn(tiny_vlae, images, tmp_path):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "metrics.csv").write_text("epoch,train/rate\n1,3.0\n2,4.0\n")
    for run in (None, tmp_path / "run"):
        report.run(tiny_vlae(), images(4), tmp_path, Settings(only=("bound",)), run=run)
        assert ("epoch by epoch" in (tmp_path / "report.html").read_text()) == (run is not None)


def test_a_classifier_that_can_not_be_trained_is_a_note(monkeypatch):
    def trained_classifier(*_, **__):
        raise VlaeError("20 of its test classes have no training images")

    monkeypatch.setattr(judge, "trained_classifier", trained_classifier)
    images = ImageDataset.from_any(torch.zeros(4, 1, 8, 8), labels=torch.tensor([0, 1, 0, 1]))
    assert judge.judge_of("omniglot", images, images) == (
        None,
        "no classifier judges the samples: 20 of its test classes have no training images",
    )
