"""`vlae doctor`, end to end on the embedded digits."""

import json
import shutil

import pytest
from PIL import Image

from vlae.cli import main

TINY = """
model:
  class_path: vlae.VAE
  init_args: {latent_dim: 4, architecture: conv, widths: [8, 16]}
data: {name: digits, binarize: dynamic, batch_size: 64}
trainer: {max_epochs: 2, precision: 32-true, accelerator: cpu, devices: 1, progress_bar: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with one finished run."""
    path = tmp_path_factory.mktemp("doctor")
    (path / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["train", "--config", "tiny.yaml"]) == 0
    return path


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "outputs/tiny/reports/doctor.json").unlink(missing_ok=True)
    return folder


def report(folder):
    return json.loads((folder / "outputs/tiny/reports/doctor.json").read_text())


@pytest.mark.parametrize("words", [["outputs/tiny"], ["--run", "outputs/tiny"], ["--config", "tiny.yaml"], []])
def test_a_run_is_read_however_it_is_named(words, here, capsys):
    assert main(["doctor", *words, "--images", "120"]) == 0
    out = capsys.readouterr().out
    found = report(here)
    assert found["run"] == "outputs/tiny" and found["images"] == 120
    names = {finding["name"] for finding in found["findings"]}
    assert {"collapse", "holes", "blur", "instability", "overfitting", "unfinished training"} <= names
    assert all(finding["advice"] for finding in found["findings"] if finding["severity"] != "ok")
    assert all(name in out for name in names) and "checks:" in out


def test_after_two_epochs_it_is_not_finished(here):
    assert main(["doctor", "outputs/tiny", "--images", "50", "--strict", "false"]) == 0
    finding = next(f for f in report(here)["findings"] if f["name"] == "unfinished training")
    assert finding["severity"] == "notice" and "--trainer.max_epochs 4, now 2" in finding["advice"]


def test_strict_fails_where_there_is_a_problem(here):
    code = main(["doctor", "outputs/tiny", "--images", "50", "--strict"])
    problems = [f["name"] for f in report(here)["findings"] if f["severity"] == "problem"]
    assert problems and code == 1  # two epochs leave blurred means


def test_a_saved_model_inside_its_run_has_that_run(here):
    assert main(["doctor", "outputs/tiny/model", "--images", "20"]) == 0
    assert report(here)["run"] == "outputs/tiny"


def test_a_model_without_a_run_gets_the_checks_that_need_only_the_model(here):
    (here / "alone").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (here / "alone" / name).write_bytes((here / "outputs/tiny/model" / name).read_bytes())
    assert main(["doctor", "--model", "alone", "--images", "20"]) == 0
    found = json.loads((here / "alone/reports/doctor.json").read_text())
    assert found["run"] is None and "no run to read" in found["left_out"]["overfitting"]


def test_a_pretrained_model_has_no_run_even_beside_one_of_its_name(here):
    (here / "pictures").mkdir(exist_ok=True)
    for k in range(10):
        Image.effect_noise((28, 28), 60).save(here / f"pictures/{k}.png")
    directory = here / "outputs/mnist-codec"
    directory.mkdir()
    (directory / "config.yaml").write_text("no run of this model")
    folder = ["--data.name", "folder", "--data.split", "train", "--data.options", "{path: pictures, mode: L}"]
    try:
        assert main(["doctor", "mnist-codec", *folder, "--data.binarize", "threshold"]) == 0
        found = json.loads((here / "outputs/pretrained/mnist-codec/reports/doctor.json").read_text())
        assert [path.name for path in directory.iterdir()] == ["config.yaml"], "what is made of a model is no run's"
    finally:
        shutil.rmtree(directory)  # which would be the newest run
    assert found["run"] is None and "no run to read" in found["left_out"]["overfitting"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("doctor outputs/tiny --run outputs/tiny", "not both"),
        ("doctor nothing", "no saved model"),
        ("doctor --run nothing", "is not a run"),
        ("doctor outputs/tiny --images 1", "images must be at least 2"),
        ("doctor outputs/tiny --data.limit 1", "digits test has 1 image"),
    ],
)
def test_errors_are_one_line(line, message, here, capsys):
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
