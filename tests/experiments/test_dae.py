"""What the comparison trains, takes and refuses."""

import pytest
import torch
import yaml

import vlae
from vlae import VlaeError
from vlae.data import ImageDataset, load
from vlae.experiments import dae
from vlae.models.saving import build
from vlae.training.configuration import parse, train_parser
from vlae.training.settings import DataSettings

TINY = {"latent_dim": 3, "architecture": "mlp", "widths": [6]}
LEVELS = {"likelihood": "categorical", "likelihood_options": {"levels": 17}}


def configurations(data, epochs=None, latent_dim=None):
    training = data.load("train")
    return {kind: dae.configuration(kind, data, training, epochs, latent_dim, seed=7) for kind in dae.KINDS}


def test_models_differ_in_the_model_alone():
    settings = configurations(DataSettings("digits"), latent_dim=5)
    options = [s["model"]["init_args"] for s in settings.values()]
    for key in ("latent_dim", "likelihood", "likelihood_options"):
        assert [o[key] for o in options] == [{"latent_dim": 5, **LEVELS}[key]] * 3
    for key in ("data", "optimizer", "trainer", "seed"):
        assert settings["vae"][key] == settings["vlae"][key] == settings["dae"][key]
    assert settings["vae"]["trainer"]["max_epochs"] == 60
    assert configurations(DataSettings("digits"), epochs=2)["dae"]["trainer"]["max_epochs"] == 2
    for kind, name in dae.KINDS.items():
        model = build(name, {**settings[kind]["model"]["init_args"], "image_shape": (1, 8, 8)})
        model.check_levels(17, "digits")


@pytest.mark.parametrize("kind", dae.KINDS)
def test_a_configuration_is_one_of_vlae_train(kind, tmp_path):
    settings = configurations(DataSettings("digits"), epochs=2)[kind]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    parsed = parse(train_parser(), ["--config", str(tmp_path / "config.yaml")])
    assert parsed.trainer.max_epochs == 2 and parsed.seed == 7
    assert parsed.model.class_path.endswith(dae.KINDS[kind])
    assert parsed.model.init_args.latent_dim == 16
    parsed.pop("model")  # vlae train builds it itself, for the images of the data
    objective = train_parser().instantiate(parsed).objective
    free = [objective.free_nats(progress) for progress in (0.0, 1.0)]
    assert free == ([0.0, 0.0] if kind == "dae" else [10.0, 0.0])  # off at the end


def test_the_likelihood_fits_the_levels():
    def images(levels, channels=1, binarize=None):
        pixels = torch.randint(levels, (4, channels, 8, 8), dtype=torch.uint8)
        return ImageDataset(pixels, levels, binarize=binarize)

    for dataset in (images(2), images(17), images(256), images(256, 3), images(256, binarize="static")):
        options = dae.likelihood_for(dataset)
        model = vlae.VAE(dataset.image_shape, **TINY, **options)
        model.check_levels(dataset.effective_levels, "images")
        assert model.elbo(dataset.tensor()).elbo.isfinite().all()


def test_the_usual_binarisation_is_only_a_default():
    chosen = {given: dae.chosen_data(DataSettings("mnist", binarize=given)).binarize for given in (None, "static")}
    assert chosen == {None: "dynamic", "static": "static"}
    assert dae.chosen_data(DataSettings("mnist", binarize="none")).binarize is None
    assert dae.chosen_data(DataSettings("digits")).binarize is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Models of digits and of other images, saved."""
    folder = tmp_path_factory.mktemp("saved")
    vlae.VAE((1, 8, 8), **TINY, **LEVELS).save_pretrained(folder / "vae")
    vlae.VAE((1, 8, 8), **TINY).save_pretrained(folder / "binary")
    vlae.VAE((1, 5, 4), **TINY, **LEVELS).save_pretrained(folder / "small")
    vlae.VAE((1, 8, 8), **TINY, **LEVELS, classes=10).save_pretrained(folder / "conditional")
    vlae.DenoisingAutoencoder((1, 8, 8), **TINY, **LEVELS).save_pretrained(folder / "run" / "model")
    (folder / "a.txt").write_text("text")
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "config.yaml").write_text("seed: 0\n")
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("dae", "vae", "--dae_ckpt needs a DenoisingAutoencoder; .* holds a VAE"),
        ("vlae", "vae", "--vlae_ckpt needs a VLAE"),
        ("vae", "run", "--vae_ckpt needs a VAE; .* holds a DenoisingAutoencoder"),
        ("vae", "small", "1x5x4 images and digits has 1x8x8"),
        ("vae", "binary", "2 levels and digits has 17"),
        ("vae", "conditional", "conditional"),
        ("vae", "nothing", "no saved model"),
        ("vae", "a.txt", "is a file"),
        ("vae", "unfinished", "no finished epoch"),
    ],
)
def test_models_that_do_not_fit_are_refused_in_a_line(saved, kind, name, said):
    with pytest.raises(VlaeError, match=said) as caught:
        dae.load_as(kind, str(saved / name), load("digits", "test"))
    assert "\n" not in str(caught.value)


def test_models_are_found_as_saved_models_runs_and_names(saved):
    digits = load("digits", "test")
    assert type(dae.load_as("vae", str(saved / "vae"), digits)) is vlae.VAE
    assert type(dae.load_as("dae", str(saved / "run"), digits)) is vlae.DenoisingAutoencoder
    with pytest.raises(VlaeError, match=r"1x28x28 images and digits has 1x8x8: give --data\.name mnist"):
        dae.load_as("vlae", "mnist-dynamic", digits)
    mnist = ImageDataset(torch.randint(2, (4, 1, 28, 28), dtype=torch.uint8), 2, name="mnist")
    assert type(dae.load_as("vlae", "mnist-dynamic", mnist)) is vlae.VLAE


def test_runs_of_other_settings_are_not_taken_for_these(tmp_path):
    settings = configurations(DataSettings("digits"), epochs=2)["vae"]
    directory = tmp_path / "vae"
    dae.check_finished(settings, directory, overwrite=False)  # nothing there
    directory.mkdir()
    dae.check_finished(settings, directory, overwrite=False)
    (directory / "diary.txt").write_text("mine")
    with pytest.raises(VlaeError, match="is not a run"):
        dae.check_finished(settings, directory, overwrite=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    dae.check_finished(settings, directory, overwrite=False)
    elsewhere = {**settings, "data": {**settings["data"], "root": "/elsewhere"}}
    dae.check_finished(elsewhere, directory, overwrite=False)  # the same data, wherever they are
    longer = configurations(DataSettings("digits"), epochs=3)["vae"]
    with pytest.raises(VlaeError, match=r"trainer\.max_epochs 2, now 3"):
        dae.check_finished(longer, directory, overwrite=False)
    dae.check_finished(longer, directory, overwrite=True)
    options = {**settings, "data": {**settings["data"], "options": {"size": 3}}}
    with pytest.raises(VlaeError, match=r"data\.options\.size None, now 3"):
        dae.check_finished(options, directory, overwrite=False)


def test_the_verdict_says_which_is_sharper():
    table = {"data": {"sharpness": 1.0}, "VAE": {"sharpness": 0.5}, "VLAE": {"sharpness": 0.75}}
    assert "are sharper" in dae.compare_sharpness(table)
    table["VLAE"]["sharpness"] = 0.25
    assert "are NOT sharper" in dae.compare_sharpness(table)


def test_classifiers_judge_only_what_they_know():
    images = torch.randint(17, (12, 1, 8, 8), dtype=torch.uint8)
    plain = ImageDataset(images, 17)
    assert dae.judge_of(DataSettings("digits"), plain, plain)[0] is None
    labelled = ImageDataset(images, 17, labels=torch.arange(12))
    judge, notes = dae.judge_of(DataSettings("folder", options={"path": "x"}), labelled, labelled)
    assert judge is None and "no classifier" in notes[0]
