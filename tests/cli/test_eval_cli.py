"""`vlae eval`, end to end on the embedded digits, and lists as words."""

import csv
import json
import shutil

import pytest
from jsonargparse import ArgumentParser

from vlae import VLAE, VlaeError
from vlae.cli import main
from vlae.evaluation import classifier, criteria
from vlae.training.configuration import gather, parse

MODEL = """
model:
  class_path: vlae.VLAE
  init_args: {latent_dim: 4, decoder_layers: 0, channels: 4, encoder_widths: [4], encoder_hidden: 16, flow_hidden: [8]}
data: {name: digits, binarize: dynamic, batch_size: 200}
trainer: {max_epochs: 2, precision: 32-true, accelerator: cpu, devices: 1, progress_bar: false}
"""
SMALL = ["--nll_samples", "1", "3", "--nll_images", "10", "--information_images", "20"]
SMALL += ["--quality_images", "12", "--train_images", "60"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with one finished run, evaluated."""
    path = tmp_path_factory.mktemp("eval")
    (path / "tiny.yaml").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(classifier, "cache_dir", lambda: path / "cache")
        patch.setattr(classifier, "EPOCHS", (1, 1))
        assert main(["train", "--config", "tiny.yaml"]) == 0
        assert main(["eval", "outputs/tiny", *SMALL]) == 0
        yield path


def reports(folder):
    return folder / "outputs/tiny/reports"


def test_everything_is_measured_and_written(folder):
    values = json.loads((reports(folder) / "evaluation.json").read_text())
    for name in ("negative_elbo", "nll", "mutual_information", "ssim", "drawn_sample_frechet", "knn"):
        assert name in values["values"]
    assert [row["samples"] for row in values["series"]["nll_by_samples"]] == [1, 3]
    used = {"nll": 10, "information": 20, "reconstruction": 12, "samples": 12}
    assert {name: values["images_by_group"][name] for name in used} == used
    assert set(values["skipped"]) == {"disentanglement", "standard"}
    rows = list(csv.DictReader((reports(folder) / "metrics.csv").open()))
    assert [row["metric"] for row in rows] and set(rows[0]) == {"metric", "value", "error", "unit", "group"}
    page = (reports(folder) / "report.html").read_text()
    assert "epoch by epoch" in page and "vlae eval outputs/tiny --nll_samples 1 3" in page
    assert (folder / "cache" / "classifiers").is_dir()


def test_the_same_command_gives_the_same_page(folder):
    first = (reports(folder) / "report.html").read_bytes()
    (reports(folder) / "report.html").unlink()
    assert main(["eval", "outputs/tiny", *SMALL]) == 0
    assert (reports(folder) / "report.html").read_bytes() == first


@pytest.mark.parametrize("which", [["outputs/tiny"], ["outputs/tiny/model"], ["--run=outputs/tiny"], []])
def test_only_what_is_asked_for_and_no_classifier_for_it(folder, which, monkeypatch):
    monkeypatch.setattr(classifier, "train", None)  # calling it would fail
    shutil.rmtree(folder / "cache", ignore_errors=True)
    assert main(["eval", *which, "--only", "distortion", "sample_sharpness", *SMALL]) == 0
    values = json.loads((reports(folder) / "evaluation.json").read_text())
    assert set(values["values"]) == {"distortion", "sample_sharpness"}


def test_criteria_are_a_report_unless_they_are_to_be_strict(folder, capsys, monkeypatch):
    # One that is surely not met: the clock of a busy machine now and then finds sampling fast enough even here.
    monkeypatch.setattr(criteria, "seconds", lambda call: 1.0)
    words = ["eval", "outputs/tiny", "--only", "bound", "--data.limit", "30", "--criteria", *SMALL]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "success criteria" in shown and "NOT met" in shown and "not checked" in shown
    values = json.loads((reports(folder) / "evaluation.json").read_text())
    rate = values["criteria"][0]
    assert "not known" not in rate["evidence"], "the run says that free bits were off"
    assert main([*words, "--strict"]) == 1


def test_a_run_says_how_many_nats_were_free_when_it_ended(folder):
    config = json.loads((folder / "outputs/tiny/model/config.json").read_text())
    assert config["metadata"]["free_nats_at_end"] == 0.0


def test_nothing_to_measure_is_refused(folder, capsys):
    assert main(["eval", "outputs/tiny", "--only", "nll", "--nll_samples", "0", "--output", "nothing"]) == 2
    assert "nothing is to be measured" in capsys.readouterr().err
    assert not (folder / "nothing").exists()


def test_images_that_were_trained_on_are_told(folder, capsys):
    said = "the model was trained on these images"
    for split, told in {"train": True, "train+validation": True, "validation": False, "test": False}.items():
        words = ["eval", "outputs/tiny", "--only", "bound", "--data.limit", "20", "--data.split", split]
        assert main([*words, "--output", "on"]) == 0
        assert (said in " ".join(capsys.readouterr().out.split())) == told
        assert any(said in note for note in json.loads((folder / "on/evaluation.json").read_text())["notes"]) == told


@pytest.mark.parametrize("command", ["eval", "doctor"])
def test_a_place_that_is_none_is_refused_before_anything_is_measured(folder, capsys, monkeypatch, command):
    from vlae.evaluation import doctor, report

    for module, name in ((report, "measure"), (report, "helpers"), (doctor, "diagnose")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was measured"))
    shutil.copytree(folder / "outputs/tiny/model", folder / "run" / "model", dirs_exist_ok=True)
    (folder / "run" / "reports").write_text("in the way")
    assert main([command, "run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlae: error: ") and "reports" in error and error.count("\n") == 1
    assert (folder / "run" / "reports").read_text() == "in the way"


def test_models_without_their_data_name_are_asked_for_it(folder, capsys):
    shutil.copytree(folder / "outputs/tiny/model", folder / "nameless")
    config = json.loads((folder / "nameless/config.json").read_text())
    config["metadata"] = {}
    (folder / "nameless/config.json").write_text(json.dumps(config))
    assert main(["eval", "nameless"]) == 2
    assert "give --data.name" in capsys.readouterr().err


# -- lists as words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--dims 0 1 2", {"dims": [0, 1, 2]}),
        ("--dims=3", {"dims": [3]}),
        ("--dims -1 2 --count 4", {"dims": [-1, 2], "count": 4}),
        ("--dims [5,6]", {"dims": [5, 6]}),
        ("--dims 5,6", {"dims": [5, 6]}),
        ("there --dims=5,-6", {"dims": [5, -6], "where": "there"}),
        ("--scales .5,1e-3 2", {"scales": [0.5, 0.001, 2.0]}),
        ("--dims=[5,6] there", {"dims": [5, 6], "where": "there"}),
        ("there --dims 7", {"dims": [7], "where": "there"}),
        ("--dims 1 --count 2 --dims 3", {"dims": [1, 3], "count": 2}),
        ("--names a 1 b,c", {"names": ["a", "1", "b,c"]}),
        ("--scales .5 -1e-3", {"scales": [0.5, -0.001]}),
        ("--count 1 --flag --names x", {"names": ["x"], "flag": True, "count": 1}),
        ("", {"dims": [9], "names": []}),
    ],
)
def test_lists_are_words(words, expected):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("where", type=str | None, nargs="?")
    parser.add_argument("--dims", type=list[int], default=[9])
    parser.add_argument("--names", type=list[str], default=[])
    parser.add_argument("--scales", type=list[float], default=[])
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--flag", type=bool, default=False)
    found = parse(parser, words.split(), flags=["--flag"], lists=["--dims", "--names", "--scales"])
    assert {name: found[name] for name in expected} == expected


def test_other_words_are_left_alone():
    words = ["run", "--count", "1", "2", "--dimsy", "3"]
    assert gather(words, ["--dims"]) == words
    with pytest.raises(VlaeError, match="--dims needs one word or more"):
        gather(["--dims", "--count", "1"], ["--dims"])


def test_the_nll_of_all_is_told_by_that_of_all_with_fewer_samples(folder, capsys):
    words = ["eval", "outputs/tiny", "--only", "bound", "nll", "--nll_samples", "60", "--output", "fewer"]
    found = []
    for more in (["--nll_images", "40"], ["--nll_images", "40", "--nll_of_all_samples", "8"], ["--nll_images", "0"]):
        assert main([*words, *more]) == 0
        found.append(json.loads((folder / "fewer/evaluation.json").read_text()))
    plain, closer, truth = found
    assert [row["samples"] for row in closer["series"]["nll_by_samples"]] == [8, 60]
    assert closer["values"]["nll"] == plain["values"]["nll"]
    assert closer["errors"]["nll_of_all"] < 0.7 * plain["errors"]["nll_of_all"]
    assert abs(closer["values"]["nll_of_all"] - truth["values"]["nll"]) < 4 * closer["errors"]["nll_of_all"]
    assert sum("NLL of all 300 images" in note for note in closer["notes"]) == 1
    for wrong in (["8", "--nll_images", "0"], ["60"], ["0"]):
        assert main([*words, "--nll_of_all_samples", *wrong]) == 2
        assert "from 1 to 59" in " ".join(capsys.readouterr().err.split())


def test_the_nll_of_every_image_is_kept_and_gone_on_from(folder, monkeypatch, capsys):
    words = ["eval", "outputs/tiny", "--only", "bound", "nll", "--nll_samples", "2", "5", "--keep", "kept/nll.csv"]
    assert main([*words, "--nll_images", "20"]) == 0
    values = json.loads((reports(folder) / "evaluation.json").read_text())
    assert values["errors"]["nll_of_all"] < values["errors"]["nll"]
    assert "NLL of all images [nats]" in capsys.readouterr().out
    lines = (folder / "kept" / "nll.csv").read_text().splitlines()
    assert len(lines) == 22 and lines[1] == "position,elbo,nll_2,nll_5,ess_2,ess_5"

    measured, importance_weights = [], VLAE.importance_weights
    monkeypatch.setattr(
        VLAE,
        "importance_weights",
        lambda self, x, *rest: (measured.append(len(x)), importance_weights(self, x, *rest))[1],
    )
    assert main([*words, "--nll_images", "0"]) == 0
    every = json.loads((reports(folder) / "evaluation.json").read_text())
    assert sum(measured) == 280 and every["images_by_group"]["nll"] == 300
    assert every["values"]["nll_of_all"] == every["values"]["nll"] and "nll_of_all" not in every["errors"]
    assert abs(values["values"]["nll_of_all"] - every["values"]["nll"]) < 4 * values["errors"]["nll_of_all"]
    assert (folder / "kept" / "nll.csv").read_text().splitlines()[:22] == lines

    capsys.readouterr()
    assert main([*words, "--nll_images", "0", "--seed", "3"]) == 2
    assert "differ in seed" in " ".join(capsys.readouterr().err.split())
    assert main(["eval", "outputs/tiny", "--only", "bound", "--keep", "kept/nll.csv"]) == 2
    assert "no NLL is measured that kept/nll.csv could keep" in " ".join(capsys.readouterr().err.split())
