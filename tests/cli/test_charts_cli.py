"""The charts of `vlae viz`, end to end on the embedded digits."""

import json
import os
import sys

import pytest
import torch
from PIL import Image

import vlae
from vlae.cli import main
from vlae.models import VQVAE, ConditionalVAE, DenoisingAutoencoder, LadderVAE, PixelCNN

METRICS = """epoch,train/distortion,train/rate,validation/distortion,validation/rate
0,30.0,1.5,29.0,2.0
1,27.5,3.0,27.0,3.5
"""
VLAE = {"latent_dim": 4, "decoder_layers": 0, "channels": 4, "encoder_widths": [4], "encoder_hidden": 16}
SHAPE = (1, 8, 8)
SAVED = {
    "vae": lambda: vlae.VAE(SHAPE, latent_dim=3, architecture="mlp", widths=[6]),
    "line": lambda: vlae.VAE(SHAPE, latent_dim=1, architecture="mlp", widths=[6]),
    "conditional": lambda: ConditionalVAE(SHAPE, classes=10, latent_dim=3, architecture="mlp", widths=[6]),
    "ladder": lambda: LadderVAE(SHAPE, latent_dims=(4, 2), hidden=8),
    "vqvae": lambda: VQVAE(SHAPE, codes=5, code_dim=3, widths=[4], prior_channels=4),
    "dae": lambda: DenoisingAutoencoder(SHAPE, latent_dim=3, architecture="mlp", widths=[6]),
    "pixelcnn": lambda: PixelCNN(SHAPE, decoder_layers=1, channels=4),
}
FILES = {
    "latent-scatter": "latent_scatter",
    "aggregate-posterior": "aggregate_posterior",
    "bits": "bits",
    "receptive-field": "receptive_field",
    "training-curves": "training_curves",
    "rate-distortion": "rate_distortion",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a run, as far as charts read one, and a saved model of each kind."""
    path = tmp_path_factory.mktemp("charts")
    (path / "outputs/tiny/logs").mkdir(parents=True)
    (path / "outputs/tiny/config.yaml").write_text("seed: 0\n")
    (path / "outputs/tiny/logs/metrics.csv").write_text(METRICS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        torch.manual_seed(0)
        model = vlae.VLAE(SHAPE, flow_hidden=[8], **VLAE)
        model.metadata = {"data": {"name": "digits", "binarize": "dynamic"}}
        model.save_pretrained("outputs/tiny/model")
        for name, make in SAVED.items():
            torch.manual_seed(0)
            model = make()
            model.metadata = {"data": {"name": "digits", "binarize": "threshold"}}
            model.save_pretrained(name)
    return path


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def picture(path):
    with Image.open(path) as image:
        return image.convert("RGB").copy()


@pytest.mark.parametrize("command", FILES)
def test_every_chart_of_the_newest_run_has_its_file(here, command, capsys):
    words = ["--data.limit", "40"] if command not in ("receptive-field", "training-curves") else []
    assert main(["viz", command, *words]) == 0
    out = capsys.readouterr().out
    path = f"outputs/tiny/grids/{FILES[command]}.png"
    assert "using the newest run" in out and path in out
    image = picture(here / path)
    assert image.width > 400 and len(image.getcolors(2**20)) > 5


@pytest.mark.parametrize("name", ["vae", "conditional", "ladder", "vqvae"])
@pytest.mark.parametrize("command", ["latent-scatter", "aggregate-posterior", "bits"])
def test_charts_of_the_code_are_of_every_model_with_one(here, name, command, capsys):
    code = main(["viz", command, "--model", name, "--count", "30", "--output", "out.png"])
    if (name, command) == ("vqvae", "aggregate-posterior"):
        assert code == 2 and "numbers in no order" in capsys.readouterr().err
        return
    assert code == 0
    assert "30" in capsys.readouterr().out and picture("out.png").width > 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("latent-scatter --model vae", "25 posterior means; the two dimensions of the largest rate ("),
        ("latent_scatter --model vae --projection pca", "25 posterior means; PCA of 3 dimensions: "),
        ("latent_scatter --model vae --projection first", "the first two of 3 dimensions: out.png"),
        ("latent-scatter --model vae --dims 2 0", "two dimensions as asked for: out.png"),
        ("latent-scatter --model vqvae", "PCA of 48 dimensions: "),  # 4 x 4 places of 3 numbers each
        ("aggregate-posterior --model vae --dims 2 0", "25 codes beside 25 of the prior, dimensions 2, 0: out.png"),
        ("aggregate-posterior --model dae", "dimensions 0, 1, 2: out.png"),
        ("bits --model ladder", "in 6 dimensions, 25 images: out.png"),
    ],
)
def test_what_is_drawn_is_said(here, capsys, words, said):
    assert main(["viz", *words.split(), "--output", "out.png", "--count", "25"]) == 0
    assert said in capsys.readouterr().out


def test_the_printed_rate_is_that_of_eval(here, capsys):
    assert main(["viz", "bits", "--model", "vae", "--count", "50", "--output", "out.png"]) == 0
    bits = float(capsys.readouterr().out.split(" bits")[0])
    assert main(["eval", "--model", "vae", "--data.limit", "50", "--only", "bound", "--output", "reports"]) == 0
    assert bits == pytest.approx(json.loads((here / "reports/evaluation.json").read_text())["rate_bits"], abs=0.006)


def test_the_rate_distortion_plane_holds_what_eval_measures(here, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr("vlae.figures.studies._name_points", lambda axes, points: drawn.extend(points))
    words = ["vae", "pixelcnn", "outputs/tiny", "--data.binarize", "threshold", "--count", "50"]
    assert main(["viz", "rate-distortion", *words]) == 0
    out = capsys.readouterr().out
    assert "3 models" in out and "outputs/rate_distortion.png" in out and "pixelcnn: rate 0.000" in out
    assert picture("outputs/rate_distortion.png").width > 400
    assert main(["eval", "--model", "vae", "--data.limit", "50", "--only", "bound", "--output", "reports"]) == 0
    measured = json.loads((here / "reports/evaluation.json").read_text())
    assert f"vae: rate {measured['rate']:.3f}, distortion {measured['distortion']:.3f}" in out
    assert [point.name for point in drawn] == ["vae", "pixelcnn", "tiny"]
    assert (drawn[0].x, drawn[0].y) == pytest.approx((measured["rate"], measured["distortion"]))


def test_one_model_may_be_chosen_by_an_option(here, capsys):
    printed = []
    for words in (["vae"], ["--model", "vae"]):
        assert main(["viz", "rate-distortion", *words, "--count", "9", "--output", "out.png"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "vae: rate" in printed[0]


def test_a_model_beside_itself_is_numbered(here, capsys):
    assert main(["viz", "rate-distortion", "vae", "vae", "--count", "9", "--output", "out.png"]) == 0
    assert "vae (2): rate" in capsys.readouterr().out


def test_the_window_is_checked(here, capsys, monkeypatch):
    for name in ("outputs/tiny/model", "pixelcnn"):
        assert main(["viz", "receptive-field", "--model", name, "--check", "--steps", "--output", "out.png"]) == 0
        assert "exactly those declared" in capsys.readouterr().out
    from vlae.nn.pixelcnn import GatedPixelCNN
    from vlae.nn.receptive import ReceptiveField

    field = GatedPixelCNN.receptive_field.fget
    monkeypatch.setattr(
        GatedPixelCNN,
        "receptive_field",
        property(lambda self: ReceptiveField.from_offsets(field(self).offsets | {(-3, 0)})),
    )
    assert main(["viz", "receptive-field", "--model", "pixelcnn", "--check", "--output", "out.png"]) == 1
    assert "they differ" in capsys.readouterr().out


def test_curves_of_a_run_by_any_of_its_names(here, capsys):
    (here / "tiny.yaml").write_text("seed: 0\n")
    for words in (["--run", "outputs/tiny"], ["--config", "tiny.yaml"], ["--model", "outputs/tiny/model"]):
        assert main(["viz", "training-curves", *words]) == 0
        assert "2 epochs: outputs/tiny/grids/training_curves.png" in capsys.readouterr().out


def test_images_without_labels_have_one_colour_and_it_is_said(here, capsys):
    (here / "images").mkdir(exist_ok=True)
    for k in range(12):
        Image.effect_noise((8, 8), 60).save(here / "images" / f"{k}.png")
    model = vlae.VAE(SHAPE, latent_dim=2, architecture="mlp", likelihood="gaussian")
    model.metadata = {"data": {"name": "folder", "options": {"path": "images", "size": 8, "mode": "L"}}}
    model.save_pretrained("unlabelled")
    assert main(["viz", "latent-scatter", "--model", "unlabelled", "--data.split", "train"]) == 0, capsys.readouterr()
    assert "in one colour, as there are no labels" in capsys.readouterr().out


@pytest.mark.parametrize("name", [r"a$\frac$b", "a$b", r"$x_1$"])
def test_a_name_with_dollars_is_no_formula(here, name, capsys):
    (here / name).mkdir(exist_ok=True)
    for file in (here / "vae").iterdir():
        (here / name / file.name).write_bytes(file.read_bytes())
    for command in ("latent-scatter", "aggregate-posterior", "bits", "rate-distortion"):
        assert main(["viz", command, "--model", name, "--count", "20", "--output", "out.png"]) == 0
    (here / f"outputs/{name}/logs").mkdir(parents=True, exist_ok=True)
    (here / f"outputs/{name}/config.yaml").write_text("seed: 0\n")
    os.utime(here / f"outputs/{name}/config.yaml", (0, 0))  # the newest run is another
    (here / f"outputs/{name}/logs/metrics.csv").write_text(METRICS)
    assert main(["viz", "training-curves", "--run", f"outputs/{name}", "--output", "out.png"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("latent-scatter --model pixelcnn", "no latent code"),
        ("aggregate-posterior --model pixelcnn", "no latent code"),
        ("bits --model pixelcnn", "no latent code"),
        ("bits --model dae", "no density of z"),
        ("rate-distortion dae", "no density of z"),
        ("latent-scatter --model line", "viz aggregate-posterior"),
        ("latent-scatter --model vae --projection tsne", "one of first, informative, pca, umap"),
        ("latent-scatter --model vae --dims 0 3", "no dimension 3"),
        ("latent-scatter --model vae --dims 0 1 2", "two dimensions; got 3"),
        ("latent-scatter --model vae --space pixels", "latent and noise"),
        ("latent-scatter --model vqvae --space noise", "no noise"),
        ("latent-scatter --model vae --count 0", "count must be at least 1"),
        ("latent-scatter --model vae --output x.pdf", "PNG"),
        ("aggregate-posterior --model vae --top 0", "top must be at least 1"),
        ("aggregate-posterior --model vae --dims 1 1", "twice"),
        ("bits --model vae --draws 0", "draws must be at least 1"),
        ("receptive-field --model vae", "factorised"),
        ("receptive-field --model vqvae --check", "factorised"),
        ("training-curves --model vae", "without its training log"),
        ("training-curves --model mnist-dynamic", "without its training log"),
        ("training-curves --model vae --run outputs/tiny", "one of --model, --run and --config"),
        ("training-curves --run outputs/unlogged", "no logs/metrics.csv"),
        ("rate-distortion vae outputs/tiny", "different data"),
        ("rate-distortion vae --model vae", "not both"),
        ("aggregate-posterior --model vae --dims 0 --top 2", "--top or --dims"),
        ("rate-distortion --model vae --run outputs/tiny", "one of --model, --run and --config"),
        ("rate-distortion nothing", "no saved model at 'nothing'"),
        ("bits --model mnist-dynamic --data.name digits --data.binarize dynamic", "1x28x28 images"),
    ],
)
def test_what_cannot_be_drawn_is_answered_in_one_line(here, capsys, words, said):
    (here / "outputs/unlogged").mkdir(exist_ok=True)
    (here / "outputs/unlogged/config.yaml").write_text("seed: 0\n")
    os.utime(here / "outputs/unlogged/config.yaml", (0, 0))  # the newest run is another
    assert main(["viz", *words.split()]) == 2
    printed, error = capsys.readouterr()
    assert error.startswith("vlae: error: ") and error.count("\n") == 1 and said in error, error
    assert not words.startswith("rate-distortion") or not printed, "a model was measured in vain"


def test_without_umap_the_extra_is_named(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert main(["viz", "latent-scatter", "--model", "vae", "--projection", "umap"]) == 2
    assert "vlae[umap]" in capsys.readouterr().err
