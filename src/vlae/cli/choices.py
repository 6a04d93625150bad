"""What commands have in common: which model, which data, which context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vlae.errors import VlaeError
from vlae.training.configuration import find_config, parse


def parser_for(name: str) -> Any:
    """An empty parser for the command of this name."""
    from jsonargparse import ArgumentParser

    from vlae.cli import COMMANDS

    return ArgumentParser(prog=f"vlae {name}", description=COMMANDS[name][1], exit_on_error=False, allow_abbrev=False)


def add_choice(parser: Any, device: bool = True, target: bool = True) -> None:
    """Which model, and for what computes with it also where: `parse_choice` and `choose_model` read it.

    With `target` a run or a model may also stand as a word of its own.
    """
    if target:
        parser.add_argument("target", type=str | None, nargs="?", help="run directory, saved model or pretrained name")
    parser.add_argument("--model", type=str | None, default=None, help="pretrained name, saved model, or hf:org/name")
    parser.add_argument("--run", type=str | None, default=None, help="run directory")
    parser.add_argument("--config", type=str | None, default=None, help="the run of this configuration")
    if device:
        parser.add_argument(
            "--device", type=str, default="cpu", help="cpu, cuda, cuda:1, or auto: a GPU if there is one"
        )


def add_data(parser: Any) -> None:
    """Which images: `choose_data` reads it."""
    group = "the model's own data are the default"
    parser.add_argument("--data.name", type=str | None, default=None, help=f"data set; {group}")
    parser.add_argument("--data.root", type=str | None, default=None, help="where its files are")
    parser.add_argument("--data.binarize", type=str | None, default=None, help="static, dynamic or threshold")
    parser.add_argument("--data.split", type=str, default="test", help="test, validation, train or train+validation")
    parser.add_argument("--data.options", type=dict, default={}, help="further options of the data set")
    parser.add_argument("--data.limit", type=int | None, default=None, help="the first so many images only")


def parse_choice(parser: Any, words: list[str], **options: Any) -> Any:
    """The settings, with the word that stands for a run or a model where --run or --model would be."""
    return take_target(parse(parser, words, **options))


def take_target(settings: Any) -> Any:
    """The settings with the word that stands for a run or a model where --run or --model would be."""
    if target := settings.target:
        if settings.model or settings.run or settings.config:
            raise VlaeError(f"give {target!r} or one of --model, --run and --config, not both")
        settings["run" if (Path(target) / "config.yaml").is_file() else "model"] = target
    return settings


def run_of(settings: Any, directory: Path) -> Path | None:
    """The run that a chosen model is of; a pretrained one is of none, even where a run of its name lies about."""
    pretrained = settings.model and not Path(settings.model).exists()
    return directory if (directory / "config.yaml").is_file() and not pretrained else None


def check_one_choice(settings: Any) -> None:
    """Refuses more than one of --model, --run and --config."""
    given = [name for name in ("model", "run", "config") if settings.get(name)]
    if len(given) > 1:
        raise VlaeError(f"give one of --model, --run and --config, not {' and '.join('--' + name for name in given)}")


def choose_model(settings: Any) -> tuple[Any, Path]:
    """The model that was asked for, else that of the newest run (saying so), and where to put what is made of it."""
    import torch

    from vlae.machine import find_device

    device = find_device(settings.get("device") or "cpu")  # before anything is read
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # bounds are sums over all pixels: convolutions keep float32's 24 bits
    model, directory = _chosen(settings)
    return model.to(device), directory


def _chosen(settings: Any) -> tuple[Any, Path]:
    from vlae.models.hub import PREFIX
    from vlae.models.saving import load, pretrained_names
    from vlae.training.checkpoints import load_any

    check_one_choice(settings)
    if settings.model:
        if settings.model in pretrained_names() and not Path(settings.model).exists():
            return load(settings.model), Path("outputs") / "pretrained" / settings.model
        if settings.model.startswith(PREFIX):
            return load(settings.model), Path("outputs") / "hub" / settings.model.removeprefix(PREFIX)
        path = Path(settings.model)
        return load_any(path), path.parent if path.name == "model" else path
    directory = choose_run(settings)
    return load_any(directory), directory


def choose_run(settings: Any) -> Path:
    """The run directory that was asked for by --run or --config, else the newest (saying so)."""
    if settings.run or settings.config:
        directory = Path(settings.run or Path("outputs") / find_config(settings.config).stem)
        if not (directory / "config.yaml").is_file():
            raise VlaeError(f"{directory} is not a run: train one with vlae train, or give --model")
        return directory
    runs = sorted(Path("outputs").glob("*/config.yaml"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise VlaeError("there is no run in outputs/: train one (vlae train --config digits) or give --model NAME")
    print(f"using the newest run, {runs[-1].parent}")
    return runs[-1].parent


def add_context(parser: Any) -> None:
    """Labels or attributes of conditional models: `choose_context` reads it."""
    parser.add_argument("--label", type=int | None, default=None, help="of a conditional model; not given: all in turn")
    parser.add_argument("--attributes", type=list[float] | None, default=None, help="of a model conditional on those")


def choose_context(settings: Any, model: Any, count: int) -> Any:
    """The context that was asked for, one for each of `count` images; labels go round where none was asked for."""
    import torch

    given = [name for name in ("label", "attributes") if settings.get(name) is not None]
    if model.condition is None:
        if given:
            raise VlaeError(f"this model is not conditional: leave out --{given[0]}")
        return None
    wanted = "label" if model.condition.classes else "attributes"
    if given not in ([], [wanted]):
        raise VlaeError(f"this model is conditional on {wanted}: give --{wanted}, not --{' and --'.join(given)}")
    if wanted == "attributes":
        if not given:
            raise VlaeError(f"this model is conditional: give --attributes, {model.condition.attributes} numbers")
        return model.check_context(torch.tensor(settings.attributes), count)
    labels = torch.arange(count) % model.condition.classes if not given else torch.tensor(settings.label)
    return model.check_context(labels, count)


def data_settings(settings: Any, model: Any) -> Any:
    """Which data were asked for, as `DataSettings`; what is not said comes from the model's own training data."""
    from vlae.models.saving import trained_on
    from vlae.training.settings import DataSettings

    own, asked = trained_on(model), settings.data
    name = asked.name or own.get("name")
    if name is None:
        raise VlaeError("this model does not say what it was trained on: give --data.name")
    same = name == own.get("name")
    own_root = own.get("root") if same and Path(own.get("root") or "").is_dir() else None  # perhaps another machine's
    binarize = asked.binarize or (own.get("binarize") if same else None)
    options = {**(own.get("options", {}) if same else {}), **{key: _in_yaml(v) for key, v in asked.options.items()}}
    return DataSettings(name, asked.root or own_root, binarize, options=options)


def _in_yaml(value: Any) -> Any:
    """What a word means in YAML: --data.options.size 16 gives a word, and --data.options '{size: 16}' a number."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def choose_data(settings: Any, model: Any) -> Any:
    """The images that were asked for."""
    data = data_settings(settings, model).load(settings.data.split)
    return data if settings.data.limit is None else data.subset(settings.data.limit)


def choose_images(data: Any, model: Any, rows: list[int]) -> tuple[Any, Any]:
    """The images of these numbers, [N, C, H, W], placed where the model is, and their context where it takes one."""
    if not rows:
        raise VlaeError("give the number of one image or more")
    if bad := [row for row in rows if not 0 <= row < len(data)]:
        raise VlaeError(f"there is no image {bad[0]}: {data.name} {data.split} has images 0 to {len(data) - 1}")
    part = data.subset(max(rows) + 1)
    context = model.context_of(part.labels, part.factors, part.name)
    x = model.placed(part.tensor()[rows])
    return x, None if context is None else context[rows]


def images_of_label(data: Any, label: int, count: int) -> list[int]:
    """The numbers of the first `count` images of this label, or of all there are."""
    if data.labels is None:
        raise VlaeError(f"{data.name} has no labels: choose images by number")
    rows = (data.labels == label).nonzero()[:count, 0].tolist()
    if not rows:
        raise VlaeError(f"{data.name} {data.split} has no image of label {label}")
    return rows


def add_pixels(parser: Any) -> None:
    """How p(x|z) is shown: `drawn_pixels` reads it."""
    parser.add_argument(
        "--greedy", type=bool, default=False, help="the likeliest pixels of an autoregressive decoder, not drawn ones"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all noise")


def drawn_pixels(settings: Any, model: Any) -> tuple[bool, str]:
    """Whether pixels are drawn, and how to say in a title what is shown: factorised decoders are shown by the mean."""
    if not model.autoregressive:
        return False, "mean images of p(x|z)"
    return (
        (False, "pixels taken greedily") if settings.greedy else (True, "pixels drawn, with one noise for all images")
    )
