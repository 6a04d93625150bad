"""The command line, end to end on the embedded digits, and its errors: one line, exit code 2, no traceback."""

import csv
import json
import re
import shutil

import pytest
import yaml

import vlae
from vlae.cli import COMMANDS, main, split_command
from vlae.models.saving import pretrained_names

TINY = """
model:
  class_path: vlae.VLAE
  init_args: {latent_dim: 4, decoder_layers: 0, channels: 4, encoder_widths: [4], encoder_hidden: 16, flow_hidden: [8]}
data: {name: digits, binarize: dynamic, batch_size: 200}
trainer: {max_epochs: 1, precision: 32-true, accelerator: cpu, devices: 1, progress_bar: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with one finished run."""
    path = tmp_path_factory.mktemp("cli")
    (path / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["train", "--config", "tiny.yaml", "--model.latent_dim", "3"]) == 0
    return path


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_train_writes_the_run(here):
    run = here / "outputs" / "tiny"
    for name in (
        "config.yaml",
        "ckpts/best.ckpt",
        "ckpts/last.ckpt",
        "logs/metrics.csv",
        "logs/train.log",
        "model/config.json",
    ):
        assert (run / name).is_file(), name
    assert list((run / "logs").glob("events*")), "TensorBoard"
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["latent_dim"] == 3
    assert "-ELBO" in (run / "logs" / "train.log").read_text()


def test_saved_configuration_trains_again(here):
    config = here / "outputs" / "tiny" / "config.yaml"
    assert main(["train", "--config", str(config), "--run.name", "again"]) == 0
    first, second = (
        (here / "outputs" / name / "model" / "model.safetensors").read_bytes() for name in ("tiny", "again")
    )
    assert first == second  # same seed, same machine, same bits


def test_eval_writes_numbers_that_add_up(here, capsys):
    words = ["--only", "bound", "nll", "--nll_samples", "5", "--nll_images", "20"]
    assert main(["eval", "--run", "outputs/tiny", *words]) == 0
    values = json.loads((here / "outputs/tiny/reports/evaluation.json").read_text())
    assert values["images"] == 300
    assert values["nll_images"] == 20
    assert values["nll_samples"] == 5
    assert values["negative_elbo"] == pytest.approx(values["distortion"] + values["rate"])
    assert sum(values["bits_per_latent"]) == pytest.approx(values["rate_bits"])
    assert values["bits_per_dim"] == pytest.approx(values["negative_elbo"] / 64 / 0.6931471805599453)
    rows = {row["metric"]: row for row in csv.DictReader((here / "outputs/tiny/reports/metrics.csv").open())}
    assert float(rows["rate"]["value"]) == values["rate"]
    assert "-ELBO" in capsys.readouterr().out


def test_pictures_and_samples(here, capsys):
    assert main(["sample", "prior", "--config", "tiny.yaml", "--count", "5"]) == 0
    assert main(["viz.recon_grid", "--model", "outputs/tiny/model", "--count", "4"]) == 0
    assert main(["viz", "samples", "--run", "outputs/tiny", "--count", "4"]) == 0
    for name in ("samples/prior_samples.png", "grids/recon_grid.png", "grids/samples.png"):
        assert (here / "outputs/tiny" / name).read_bytes().startswith(b"\x89PNG")
    import numpy as np

    assert np.load(here / "outputs/tiny/samples/prior_samples.npz")["images"].shape == (5, 1, 8, 8)


def test_newest_run_is_the_default_and_said(here, capsys):
    assert main(["sample", "prior", "--count", "1"]) == 0
    assert "using the newest run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("foo", "unknown command"),
        ("viz foo", "viz recon-grid"),
        ("train", "no model"),
        ("train --config nope", "no configuration 'nope'"),
        ("train --config tiny.yaml --model.latentdim 3 --run.name x", "did you mean 'latent_dim'"),
        ("train --config tiny.yaml --model.latent_dim abc --run.name x", "latent_dim"),
        ("train --config tiny.yaml --model.latent_dim 0 --run.name x", "latent_dim must be at least 1"),
        ("train --config tiny.yaml --model.kernel_size 4 --run.name x", "kernel_size must be odd"),
        ("train --config tiny.yaml --trainer.max_epoch 3", "did you mean 'max_epochs'"),
        ("train --config tiny.yaml --trainer.max_epochs 0 --run.name x", "max_epochs must be at least 1"),
        ("train --config tiny.yaml --trainer.precision 8 --run.name x", "precision"),
        ("train --config tiny.yaml --optimizer.lr -1 --run.name x", "optimizer.lr must be positive"),
        ("train --config tiny.yaml --data.name mnits --run.name x", "mnist"),
        ("train --config tiny.yaml --data.binarize half --run.name x", "binarize"),
        ("train --config tiny.yaml --data.root /nonexistent --data.name mnist --run.name x", "/nonexistent"),
        ("train --config tiny.yaml", "--resume"),
        ("train --config tiny.yaml --run.name x --resume", "nothing to resume"),
        ("train --config broken.yaml", "broken.yaml"),
        ("train --config unknown.yaml", "modle"),
        ("eval --model nothing", "no saved model"),
        ("eval --run nothing", "not a run"),
        ("eval --run outputs/tiny --config tiny.yaml", "one of --model, --run and --config"),
        ("eval --run outputs/tiny --check", "no expected numbers"),
        ("eval --run outputs/tiny --nll_sample 3", "nll_samples"),
        ("export programs --model nothing", "no saved model at 'nothing'"),
        ("export outputs/tiny programs --run outputs/tiny", "not both"),
        ("eval outputs/nothing", "no saved model at 'outputs/nothing'"),
        ("eval outputs/tiny --run outputs/tiny", "not both"),
        ("eval outputs/tiny --only bound mgi", "no metric or group 'mgi': did you mean 'mig'?"),
        ("eval outputs/tiny --only", "--only needs one word or more"),
        ("eval outputs/tiny --nll_samples 1 x", "nll_samples"),
        ("eval outputs/tiny --nll_samples 1 -3", "nll_samples must be positive"),
        ("eval outputs/tiny --quality_images 1", "quality_images must be at least 2"),
        ("eval outputs/tiny --strict", "add --criteria"),
        ("eval outputs/tiny --criteria --vae mnist-dynamic", "1x28x28 images and those of digits are 1x8x8"),
        ("eval mnist-dynamic --data.name digits --data.binarize dynamic", "choose a data set of such images"),
        ("eval mnist-codec --data.name digits", "1x28x28 images and those of digits are 1x8x8"),
        ("eval --run outputs/tiny --data.split tset", "split"),
        ("sample prior --run outputs/tiny --count 0", "count must be at least 1"),
        ("sample prior --run outputs/tiny --pixel_temperature 0", "temperatures must be positive"),
        ("viz recon-grid --run outputs/tiny --output tiny.yaml/x.png", ""),
    ],
)
def test_errors_are_one_line_with_exit_code_2(here, capsys, words, said):
    (here / "broken.yaml").write_text("model: [1,\n")
    (here / "unknown.yaml").write_text("modle: 3\n")
    capsys.readouterr()
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlae: error: ")
    assert error.count("\n") == 1, error
    assert said in error
    assert not (here / "outputs" / "x").exists()


def test_an_existing_run_survives_a_refused_command(here):
    before = (here / "outputs/tiny/model/model.safetensors").read_bytes()
    assert main(["train", "--config", "tiny.yaml", "--run.overwrite", "true", "--model.latent_dim", "0"]) == 2
    assert (here / "outputs/tiny/model/model.safetensors").read_bytes() == before


def test_every_command_has_help(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert name in text
        for spelled in (name.replace(" ", ".").replace("-", "_"), re.sub("[ -]", "_", name), name.replace(" ", "-")):
            assert split_command([spelled, "--count", "8"]) == (name, ["--count", "8"])
        with pytest.raises(SystemExit) as stop:
            main([*name.split(), "--help"])
        assert stop.value.code == 0


def test_an_option_is_no_part_of_a_command(capsys):
    assert main(["viz_recon_gird", "--run", "outputs/tiny"]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'viz_recon_gird': did you mean" in error and "'viz recon-grid'" in error


def test_a_pretrained_models_pictures_leave_its_configurations_run_alone(here, capsys):
    """Both are called omniglot: a run begins where there are pictures of the model, and keeps its own."""
    assert main(["sample", "prior", "omniglot", "--count", "1"]) == 0
    assert not (here / "outputs/omniglot").exists()
    words = ["--config", str(here / "tiny.yaml"), "--run.name", "omniglot", "--data.limit", "200"]
    try:
        assert main(["train", *words]) == 0
        assert main(["sample", "prior", "--run", "outputs/omniglot", "--count", "1"]) == 0
        kept = (here / "outputs/omniglot/samples/prior_samples.png").read_bytes()
        assert main(["sample", "prior", "--model", "omniglot", "--count", "1"]) == 0
        assert (here / "outputs/omniglot/samples/prior_samples.png").read_bytes() == kept
        assert (here / "outputs/pretrained/omniglot/samples/prior_samples.png").read_bytes() != kept
    finally:
        shutil.rmtree(here / "outputs/omniglot", ignore_errors=True)


@pytest.mark.parametrize(
    "line",
    ["viz bits TARGET --count 20", "sample prior TARGET --count 1", "viz traverse TARGET --dims 0,1", "doctor TARGET"],
)
def test_a_run_or_a_model_may_be_a_word(line, here, capsys):
    for target in ("outputs/tiny", "outputs/tiny/model"):
        assert main(line.replace("TARGET", target).split()) in (0, 1)
    assert "using the newest run" not in capsys.readouterr().out


def test_verify_passes(capsys):
    assert main(["verify"]) == 0
    assert "10 of 10 checks passed" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "listed"), [("model", "LadderVAE"), ("objective", "IWAE")])
def test_an_unknown_class_is_answered_with_the_known_ones(kind, listed, capsys):
    assert main(["train", "--config", "digits", f"--{kind}", "NOPE"]) == 2
    error = capsys.readouterr().err
    assert f"unknown {kind} 'NOPE'" in error and listed in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("value", ["abc", "{class_path: Nope}"])
def test_a_bad_value_of_an_argument_is_not_blamed_on_its_class(value, capsys):
    assert main(["train", "--config", "digits", "--objective.free_nats", value, "--run.name", "x"]) == 2
    error = capsys.readouterr().err
    assert "free_nats" in error and "unknown objective" not in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(("kind", "listed"), [("model", "LadderVAE"), ("objective", "IWAE")])
@pytest.mark.parametrize("rest", [[], ["--config", "digits"]])
def test_help_on_a_class_needs_its_name(kind, listed, rest, capsys):
    assert main(["train", f"--{kind}.help", *rest]) == 2
    error = capsys.readouterr().err
    assert f"--{kind}.help=NAME" in error and listed in error and len(error.splitlines()) == 1


def test_hints_are_never_what_was_typed(capsys):
    assert main(["train", "--config", "digits", "--objective", "IWAE", "--objective.free_nats", "3"]) == 2
    assert "did you mean" not in capsys.readouterr().err
    assert main(["train", "--config", "digits", "--model.prior_option", "{steps: 2}"]) == 2
    assert "did you mean 'prior_options'" in capsys.readouterr().err
    assert main(["eval", "--code", "3"]) == 2
    assert "'codes'" not in capsys.readouterr().err  # a constructor's, not this command's


@pytest.mark.parametrize("option", ["--pixel-temperature", "--pixel_temperature"])
def test_dashes_may_stand_for_underscores(here, option, capsys):
    words = ["sample", "prior", "--run", "outputs/tiny", "--output", "out-put.png"]
    assert main([*words, "--count=2", option, "0.5"]) == 0
    assert "2 samples: out-put.png" in capsys.readouterr().out
    assert main(["train", "--config", "tiny.yaml", "--trainer.max-epochs", "0", "--run.name", "x"]) == 2
    assert "max_epochs must be at least 1" in capsys.readouterr().err


def test_export_takes_a_model_like_other_commands(here, capsys):
    assert main(["export", "newest"]) == 0
    assert "using the newest run" in capsys.readouterr().out
    assert main(["export", "named", "--run", "outputs/tiny"]) == 0
    assert main(["export", "outputs/tiny", "word"]) == 0
    for folder in ("newest", "named", "word"):
        assert (here / folder / "export.json").read_text() == (here / "newest/export.json").read_text()


def test_evaluation_of_the_first_images_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp")
    model.metadata = {"data": {"name": "digits", "binarize": "threshold"}}
    model.save_pretrained("model")
    words = ["--only", "bound", "nll", "--nll_samples", "0"]
    assert main(["eval", "--model", "model", "--data.limit", "7", *words]) == 0
    assert "7 images" in capsys.readouterr().out
    assert main(["eval", "--model", "model", "--data.limit", "0"]) == 2


def test_models_are_listed_with_what_they_have_to_reach(capsys):
    assert main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(lines) == pretrained_names()
    for name, line in lines.items():
        model = vlae.load(name)
        expected = model.metadata["expected"]
        assert f"{expected['negative_elbo']:.2f}" in line and line.endswith(model.metadata["protocol"])
        assert f"{sum(p.numel() for p in model.parameters()):,}" in line and type(model).__name__ in line


@pytest.mark.parametrize("kind", ["model", "objective"])
def test_bases_of_classes_are_none_themselves(kind, capsys):
    for name in {"model": ["Textbook", "SingleLevelModel", "LatentVariableModel"], "objective": ["Objective"]}[kind]:
        assert main(["train", "--config", "digits", f"--{kind}", name]) == 2
        error = capsys.readouterr().err
        assert f"unknown {kind}" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("command", ["sample prior", "viz samples", "doctor", "eval", "train --config tiny.yaml"])
def test_a_seed_has_64_bits(here, command, capsys):
    assert main([*command.split(), "--seed", "99999999999999999999999"]) == 2
    assert "--seed must be an integer of 64 bits" in capsys.readouterr().err


def test_a_training_that_diverges_is_no_success(here, capsys):
    assert main(["train", "--config", "tiny.yaml", "--run.name", "wild", "--optimizer.lr", "1e18"]) == 2
    error = capsys.readouterr().err
    assert "NaN or infinite" in error and "lower optimizer.lr" in error and len(error.strip().splitlines()) == 1
    wild = here / "outputs/wild"
    try:
        assert sorted(path.name for path in wild.iterdir()) == ["config.yaml", "logs"], "to see why, and no weights"
        assert "NaN or infinite" in (wild / "logs/train.log").read_text().splitlines()[-1]
    finally:
        shutil.rmtree(wild)  # it would be the newest run


def test_a_file_that_is_no_configuration(here, capsys):
    (here / "empty.yaml").write_text("")
    assert main(["train", "--config", "empty.yaml"]) == 2
    assert "expected keys such as model" in capsys.readouterr().err


def test_a_study_is_named_before_its_options(capsys):
    assert main(["experiment", "--budget", "minutes"]) == 2
    assert "say which study" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--data.options.size", "16"], ["--data.options", "{size: 16}"]])
def test_options_of_data_are_read_as_yaml_in_either_form(words, here, capsys):
    line = ["eval", "outputs/tiny", "--data.name", "sprites", "--data.limit", "3", "--only", "bound"]
    assert main([*line, *words]) == 2
    assert "3x16x16" in capsys.readouterr().err  # of another shape than the model's: that is what is refused
