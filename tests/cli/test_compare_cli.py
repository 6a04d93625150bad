"""`vlae compare dae`, end to end on the embedded digits."""

import csv
import json
import shutil

import pytest
from PIL import Image

from vlae.cli import main
from vlae.evaluation import classifier

WORDS = ["compare", "dae", "--epochs", "1", "--images", "40", "--train_images", "100", "--count", "5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with one finished comparison."""
    path = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(classifier, "cache_dir", lambda: path / "cache")
        patch.setattr(classifier, "EPOCHS", (1, 1))
        assert main(WORDS) == 0
        yield path


def weights(folder, kind):
    return (folder / f"outputs/compare-dae/{kind}/model/model.safetensors").read_bytes()


def test_it_leaves_runs_a_table_and_a_picture(folder):
    output = folder / "outputs/compare-dae"
    for kind in ("vae", "vlae", "dae"):
        assert (output / kind / "model" / "config.json").is_file()
        assert (output / kind / "logs" / "metrics.csv").is_file()
    found = json.loads((output / "comparison.json").read_text())
    columns = found["columns"]
    assert list(columns) == ["data", "VAE", "VLAE", "DAE"]
    for name in ("VAE", "VLAE"):
        total = columns[name]["distortion"] + columns[name]["rate"]
        assert columns[name]["negative_elbo"] == pytest.approx(total)
    assert "distortion" in columns["DAE"] and "rate" not in columns["DAE"]
    for name in columns:
        assert {"sharpness", "sample_frechet", "sample_confidence", "linear_probe", "knn"} <= columns[name].keys()
    assert any("tested on 40" in note for note in found["notes"])
    assert any("DAE has no rate" in note for note in found["notes"])

    rows = {row["metric"]: row for row in csv.DictReader((output / "comparison.csv").open())}
    assert float(rows["ssim"]["VLAE"]) == columns["VLAE"]["ssim"] and rows["rate"]["DAE"] == ""
    markdown = (output / "comparison.md").read_text()
    assert "| rate [nats] | - |" in markdown and "variance of the Laplacian" in markdown
    assert Image.open(output / "comparison.png").size[0] > 300


def test_what_is_finished_is_used_again_and_what_was_interrupted_goes_on(folder, capsys):
    before = {kind: weights(folder, kind) for kind in ("vae", "vlae", "dae")}
    table = (folder / "outputs/compare-dae/comparison.json").read_text()
    logs = {kind: folder / f"outputs/compare-dae/{kind}/logs/train.log" for kind in before}
    first = {kind: log.read_text() for kind, log in logs.items()}
    shutil.rmtree(folder / "outputs/compare-dae/vae/model")  # as if stopped just before the end
    assert main(WORDS) == 0
    assert {kind: weights(folder, kind) for kind in before} == before
    assert (folder / "outputs/compare-dae/comparison.json").read_text() == table
    assert logs["vae"].read_text().startswith(first["vae"]) and logs["vae"].read_text() != first["vae"]  # went on
    assert all(logs[kind].read_text() == first[kind] for kind in ("vlae", "dae"))  # left alone
    assert "variance of the Laplacian" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", ["vlae", "dae"])
def test_a_run_is_what_vlae_train_makes_of_its_configuration(folder, kind):
    config = folder / f"outputs/compare-dae/{kind}/config.yaml"
    assert main(["train", "--config", str(config), "--run.name", f"{kind}-again"]) == 0
    assert (folder / f"outputs/{kind}-again/model/model.safetensors").read_bytes() == weights(folder, kind)


def test_given_models_are_not_trained(folder):
    vae, vlae, dae = (folder / f"outputs/compare-dae/{kind}" for kind in ("vae", "vlae", "dae"))
    given = ["--vae_ckpt", f"{vae}", "--vlae_ckpt", f"{vlae}/model", "--dae_ckpt", f"{dae}/ckpts/best.ckpt"]
    words = ["compare.dae", *WORDS[2:], *given, "--output", "other"]
    assert main(words) == 0
    assert {path.name for path in (folder / "other").iterdir()} == {
        f"comparison.{suffix}" for suffix in ("json", "csv", "md", "png")
    }
    ours, theirs = (
        json.loads((folder / name / "comparison.json").read_text()) for name in ("outputs/compare-dae", "other")
    )
    assert ours["columns"] == theirs["columns"]
    assert any("DAE: given" in note for note in theirs["notes"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data.name nope", "no data set 'nope'"),
        ("--vae_ckpt nothing", "no saved model"),
        ("--dae_ckpt outputs/compare-dae/vae", "needs a DenoisingAutoencoder"),
        ("--vlae_ckpt mnist-dynamic", "1x28x28"),
        ("--epochs 2", "other settings (trainer.max_epochs 1, now 2)"),
        ("--latent_dim 3", "latent_dim 16, now 3"),
        ("--epochs 0 --output fresh", "max_epochs must be at least 1"),
        ("--latent_dim 0 --output fresh", "latent_dim must be at least 1"),
        ("--images 1", "images must be at least 2"),
        ("--count 0", "count must be at least 2"),
        ("--data.name sprites --data.options.whole true", "none are held out"),
        ("--epoch 3", "epochs"),
        ("--data.binarize half", "binarize"),
    ],
)
def test_errors_are_one_line(folder, capsys, words, said):
    assert main([*WORDS[:2], *WORDS[4:], *words.split()] if "epoch" in words else [*WORDS, *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlae: error: ") and error.count("\n") == 1, error
    assert said in error
    assert not (folder / "fresh").exists()
