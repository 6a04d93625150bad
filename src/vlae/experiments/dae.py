"""VAE, VLAE and denoising autoencoder side by side: `vlae compare dae`.

outputs/compare-dae/
    vae/ vlae/ dae/                       one run each; finished ones are reused, interrupted ones go on
    comparison.json, .csv, .md, .png      the table, and the picture of reconstructions and samples
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from vlae import figures
from vlae.data import ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation import comparison
from vlae.evaluation import judge as judges
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.comparison import Column, Images
from vlae.figures.sheets import sheet
from vlae.files import write_text
from vlae.models import LatentVariableModel, load
from vlae.models.saving import CONFIG, build, trained_on
from vlae.objectives import ELBO, Linear
from vlae.training.checkpoints import load_any
from vlae.training.directory import choose_directory
from vlae.training.run import train
from vlae.training.settings import DataSettings, RunSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

logger = logging.getLogger("vlae.experiments")

KINDS = {"vae": "VAE", "vlae": "VLAE", "dae": "DenoisingAutoencoder"}
TITLES = {"vae": "VAE", "vlae": "VLAE", "dae": "DAE"}

# Grey sets of which the likelihoods' literature, and the shipped configurations, have binary images.
BINARIZED = {"mnist": "dynamic", "omniglot": "dynamic"}
IMAGE_VISITS, EPOCHS = 150_000, (3, 60)  # about so many images seen in training, in 3 to 60 epochs

# Off in the last quarter: the rate that is left is what the models themselves want.
FREE_NATS = {"start": 10.0, "end": 0.0, "begin": 0.5, "finish": 0.75}
OPTIMIZER: dict[str, Any] = {"name": "adamax", "lr": 0.004, "warmup_steps": 50, "schedule": "cosine"}


def run(
    data: DataSettings,
    checkpoints: Mapping[str, str | None],
    output: Path = Path("outputs/compare-dae"),
    epochs: int | None = None,
    latent_dim: int | None = None,
    images: int = 1000,
    train_images: int = 5000,
    columns: int = 16,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Column]:
    """Trains the models that are not given, measures all three, prints the table and writes it and the picture.

    Args:
        data: which images; its batch size and, if None, its binarisation are chosen for the set ("none" keeps levels).
        checkpoints: of "vae", "vlae" and "dae", a saved model to take instead of training: its directory, its run's,
            a run's best.ckpt, or a pretrained name.
        output: the directory of all that is made.
        epochs: of each training; None takes what shows the models about 150,000 images, 60 epochs at most.
        latent_dim: numbers in z of the models trained here; None: 16 for images of up to 16 pixels a side, else 32.
        images: the first so many test images are measured, and as many samples.
        train_images: the first so many training images teach the probes.
        columns: images per row of the picture.
        seed: of training and of all noise in the evaluation.
        overwrite: train again what is finished.

    Returns:
        The table's columns by title.
    """
    for name, number in {"images": images, "train_images": train_images, "count": columns}.items():
        if number < 2:
            raise VlaeError(f"{name} must be at least 2; got {number}")
    data = chosen_data(data)
    if data.options.get("whole"):
        raise VlaeError("whole=True gives all images in every split, so that none are held out: leave it out")
    training, test = data.load("train"), data.load("test")
    training_part = training.subset(min(train_images, len(training)))
    test = test.subset(min(images, len(test)))
    models = {kind: load_as(kind, path, test) for kind, path in checkpoints.items() if path}
    wanted = {
        kind: configuration(kind, data, training, epochs, latent_dim, seed) for kind in KINDS if kind not in models
    }
    for kind, settings in wanted.items():  # before the first training starts
        check_finished(settings, output / kind, overwrite)
    for kind, settings in wanted.items():
        models[kind] = load(trained(kind, settings, data, output, training.image_shape, overwrite))

    judge, notes = judge_of(data, training, test)
    table: dict[str, Column] = {"data": comparison.measure_data(training_part, test, judge)}
    pictures: dict[str, Images] = {}
    for kind in KINDS:
        table[TITLES[kind]], pictures[kind] = comparison.measure(models[kind], training_part, test, judge, seed)
    verdict = compare_sharpness(table)
    notes = [
        verdict,
        *footnotes(models, test, training_part),
        *notes,
        *(f"{TITLES[kind]}: {origin}" for kind, origin in origins(checkpoints, wanted).items()),
    ]
    title = f"VAE, VLAE and DAE on {test.protocol}"
    path = write(output, table, title, notes, {"data": test.protocol, "seed": seed, "notes": notes})
    figures.save(picture(test.tensor(), models, pictures, columns, title), path.with_suffix(".png"))
    console = Console()
    console.print(comparison.as_table(table, title))
    for note in notes:
        console.print(f"- {escape(note)}", highlight=False)
    print(f"written: {path} (.csv, .md) and {path.with_suffix('.png')}")
    return table


# -- models -----------------------------------------------------------------------------------------------------------


def chosen_data(data: DataSettings) -> DataSettings:
    """The settings with the binarisation that the set is compared in, where none is asked for."""
    binarize = BINARIZED.get(data.name) if data.binarize is None else data.binarize
    return replace(data, binarize=None if binarize == "none" else binarize)


def configuration(
    kind: str, data: DataSettings, training: ImageDataset, epochs: int | None, latent_dim: int | None, seed: int
) -> dict[str, Any]:
    """What `vlae train` would be told to train this model: a configuration as in `configs/`.

    The three differ in the model alone: same images, epochs, optimiser, likelihood and numbers in z. VAE and DAE have
    the MLP of the textbooks, the VLAE the networks of the shipped configurations `digits` and `mnist`.
    """
    small = max(training.image_shape[1:]) <= 16
    fewest, most = EPOCHS
    options: dict[str, Any] = {"latent_dim": (16 if small else 32) if latent_dim is None else latent_dim}
    options |= likelihood_for(training)
    if kind == "vlae" and small:
        options |= {"decoder_layers": 1, "channels": 32, "encoder_widths": [16, 32], "encoder_hidden": 128}
        options |= {"flow_hidden": [64, 64]}
    elif kind == "vlae":
        options |= {"decoder_layers": 3, "channels": 16, "flow_hidden": [256, 256]}
    else:
        options |= {"architecture": "mlp"}
    free = {} if kind == "dae" else {"free_nats": {"class_path": "vlae.objectives.Linear", "init_args": FREE_NATS}}
    return {
        "model": {"class_path": f"vlae.models.{KINDS[kind]}", "init_args": options},
        "data": asdict(replace(data, batch_size=64 if small else 128)),
        "objective": {"class_path": "vlae.objectives.ELBO", "init_args": free},
        "optimizer": OPTIMIZER,
        "trainer": {
            "max_epochs": max(fewest, min(most, IMAGE_VISITS // len(training))) if epochs is None else epochs,
            "precision": "32-true" if small else "auto",
            "progress_bar": False,
        },
        "seed": seed,
    }


def likelihood_for(dataset: ImageDataset) -> dict[str, Any]:
    """The likelihood of these levels, as constructor arguments: all three models get the same."""
    levels = dataset.effective_levels
    if levels == 2:
        return {"likelihood": "bernoulli"}
    few = levels <= 32 and dataset.image_shape[0] == 1
    return {"likelihood": "categorical" if few else "logistic_mixture", "likelihood_options": {"levels": levels}}


def load_as(kind: str, path: str, dataset: ImageDataset) -> LatentVariableModel:
    """The saved model at a path or of a pretrained name; refuses one of another kind or of other images."""
    place = Path(path)
    if place.name == "best.ckpt" and place.is_file():
        place = place.parent.parent
    elif place.is_file():
        raise VlaeError(f"--{kind}_ckpt takes the directory of a saved model or of a run; {path} is a file")
    model = load_any(place if place.exists() else path)
    if type(model).__name__ != KINDS[kind]:
        raise VlaeError(f"--{kind}_ckpt needs a {KINDS[kind]}; {path} holds a {type(model).__name__}")
    own = trained_on(model).get("name")
    if tuple(model.image_shape) != tuple(dataset.image_shape):
        advice = f"give --data.name {own}" if own and own != dataset.name else "give the set that it was trained on"
        raise VlaeError(
            f"{path} is a model of {comparison.by(model.image_shape)} images and {dataset.name} has "
            f"{comparison.by(dataset.image_shape)}: {advice}"
        )
    if model.condition is not None:
        raise VlaeError(f"{path} is a conditional model, which has no samples without a context: give another")
    model.check_levels(dataset.effective_levels, dataset.name)
    return model


def check_finished(settings: dict[str, Any], directory: Path, overwrite: bool) -> None:
    """Refuses a directory whose run was made with other settings, or that is no run."""
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / "config.yaml").is_file():
        raise VlaeError(f"{directory} is not a run, so it is left alone: choose another --output")
    if overwrite:
        return
    old, new = flat(yaml.safe_load((directory / "config.yaml").read_text())), flat(settings)
    # Where the files of a set lie does not matter; of a folder it says which images are meant.
    absolute = Path(str(new.get("data.options.path"))).expanduser().is_absolute()
    same = {"data.root"} if new.get("data.name") != "folder" or absolute else set()
    different = [key for key in {**new, **old} if old.get(key) != new.get(key) and key not in same]
    if different:
        key = different[0]
        raise VlaeError(
            f"the run {directory} was trained with other settings ({key} {old.get(key)}, now {new.get(key)}): train "
            "again with --overwrite, or choose another --output"
        )


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys.

    Example:
        >>> flat({"data": {"name": "digits"}, "seed": 0})
        {'data.name': 'digits', 'seed': 0}
    """
    if not isinstance(settings, dict):
        return {prefix: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else key)
    return found


def trained(
    kind: str,
    settings: dict[str, Any],
    data: DataSettings,
    output: Path,
    image_shape: tuple[int, int, int],
    overwrite: bool,
) -> Path:
    """The saved model of the run `output/kind`, which is trained, finished, or found finished."""
    saved, last = output / kind / "model", output / kind / "ckpts" / "last.ckpt"
    if (saved / CONFIG).is_file() and not overwrite:
        logger.info(f"{TITLES[kind]}: found finished in {output / kind}")
        return saved
    resume = last.is_file() and not overwrite
    directory = choose_directory(RunSettings(kind, str(output), overwrite=True), kind, resume)
    torch.manual_seed(settings["seed"])
    model = build(KINDS[kind], {**settings["model"]["init_args"], "image_shape": image_shape})
    return train(
        model,
        ELBO() if kind == "dae" else ELBO(free_nats=Linear(**FREE_NATS)),
        OptimizerSettings(**OPTIMIZER),
        replace(data, batch_size=settings["data"]["batch_size"]),
        TrainerSettings(**settings["trainer"]),
        directory,
        yaml.safe_dump(settings, sort_keys=False),
        seed=settings["seed"],
        resume=resume,
    )


# -- results ----------------------------------------------------------------------------------------------------------


def judge_of(data: DataSettings, training: ImageDataset, test: ImageDataset) -> tuple[Classifier | None, list[str]]:
    """The classifier that judges samples, where the set has one, and a note that says so."""
    judge, why = judges.judge_of(data.name, training, test, data.root, data.options)
    if judge is None:
        return None, [why]
    return judge, [
        f"samples are judged by a classifier trained on {data.name}, {judge.test_accuracy:.1%} right on its test; "
        "confidence is its mean probability of the likeliest class, the confident share that of images above 0.9; the "
        f"Frechet distance is of its features, between {len(test)} test images and as many samples (data: training "
        "images), and falls with more of them"
    ]


def footnotes(models: Mapping[str, LatentVariableModel], test: ImageDataset, training_part: ImageDataset) -> list[str]:
    """What the table's numbers mean."""
    notes = [
        f"{TITLES[kind]} has no rate and no -ELBO: its code is a point without a density, so there is no bound on "
        "log p(x), and its distortion is paid for with as many bits as it likes; its samples are from a Gaussian "
        "fitted to the codes"
        for kind, model in models.items()
        if not model.has_bound
    ]
    return [
        *notes,
        "reconstructions and samples are mean images (VAE, DAE) or greedy ones (VLAE); drawn ones are x ~ p(x|z), "
        "which for VAE and DAE means noise on every pixel, and noise is sharp too",
        "sharpness is the variance of the Laplacian, to be read against the data's own",
        f"probes of posterior means (data: of the pixels) learn from {len(training_part)} training images and are "
        f"tested on {len(test)}",
    ]


def origins(checkpoints: Mapping[str, str | None], wanted: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Where each model came from."""
    given = {kind: f"given, {path}" for kind, path in checkpoints.items() if path}
    return given | {
        kind: f"trained here, epochs: {settings['trainer']['max_epochs']}" for kind, settings in wanted.items()
    }


def compare_sharpness(table: Mapping[str, Column]) -> str:
    """Whether the VLAE's greedy reconstructions are sharper than the VAE's mean images, in one sentence."""
    vlae, vae, own = (table[title]["sharpness"] for title in ("VLAE", "VAE", "data"))
    return (
        f"the VLAE's greedy reconstructions are {'sharper' if vlae > vae else 'NOT sharper'} than the VAE's mean "
        f"images: variance of the Laplacian {vlae:.4f} against {vae:.4f}; the data's own is {own:.4f}"
    )


def write(output: Path, table: Mapping[str, Column], title: str, notes: list[str], about: dict[str, Any]) -> Path:
    """Writes the table as JSON, CSV and markdown; the JSON's path."""
    path = output / "comparison.json"
    write_text(path, comparison.as_json(table, about))
    write_text(path.with_suffix(".csv"), comparison.as_csv(table))
    write_text(path.with_suffix(".md"), comparison.as_markdown(table, title, notes))
    return path


def picture(
    x: Tensor, models: Mapping[str, LatentVariableModel], pictures: Mapping[str, Images], columns: int, title: str
) -> Figure:
    """Data, reconstructions by each model, then two rows of samples of each, decoded or (autoregressive) drawn."""
    columns = min(columns, len(x))
    first, both = slice(columns), slice(min(2, len(x) // columns) * columns)
    reconstructions, samples = {"data": x[first]}, {}
    for kind, images in pictures.items():
        name = TITLES[kind]
        if models[kind].autoregressive:
            reconstructions[f"{name} greedy"] = images.reconstructions[first]
            reconstructions[f"{name} drawn"] = images.drawn_reconstructions[first]
            samples[f"{name} samples, drawn"] = images.drawn_samples[both]
        else:
            reconstructions[name] = images.reconstructions[first]
            samples[f"{name} samples, means"] = images.samples[both]
    return sheet(reconstructions | samples, columns, title)
