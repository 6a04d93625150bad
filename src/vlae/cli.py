"""The command line: parses, calls one function, prints. `python -m vlae` is the same."""

from __future__ import annotations

import difflib
import itertools
import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from vlae.errors import VlaeError
from vlae.files import replacing

Command = Callable[[list[str]], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code: 0, 1 (a check failed), 2 (bad input, in one line) or 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[
            RichHandler(console=Console(width=None), show_path=False, show_level=False, omit_repeated_times=False)
        ],
    )
    for noisy in ("httpx", "pooch", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("vlae").setLevel(logging.INFO)
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        from vlae import __version__

        print(f"vlae {__version__}")
        return 0
    try:
        name, rest = split_command(words)
        return COMMANDS[name][0](rest) or 0
    except VlaeError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except KeyboardInterrupt:
        return fail("interrupted; a training run continues with --resume", code=130)


def fail(message: str, code: int = 2) -> int:
    """One line on standard error."""
    print("vlae: error: " + " ".join(message.split()), file=sys.stderr)
    return code


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command's name and the words after it; dotted and underscored spellings are the same as words with dashes.

    Example:
        >>> split_command(["viz.recon_grid", "--count", "8"])
        ('viz recon-grid', ['--count', '8'])
    """
    plain = words[0].replace(".", " ").replace("_", "-").split()
    candidates = [(" ".join(plain), words[1:])]
    if len(words) > 1 and not words[1].startswith("-"):
        candidates.insert(0, (" ".join([*plain, words[1].replace("_", "-")]), words[2:]))
    for name, rest in candidates:
        if name in COMMANDS:
            return name, rest
    group = [name for name in COMMANDS if name.startswith(plain[0] + " ")]
    close = group or difflib.get_close_matches(candidates[-1][0], COMMANDS, n=1)
    hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else "see vlae --help"
    raise VlaeError(f"unknown command {' '.join(words[:2])!r}: {hint}")


def help_text() -> str:
    """The list of commands."""
    lines = ["usage: vlae COMMAND [OPTIONS]   (vlae COMMAND --help for its options)", ""]
    lines += [f"  {name:18s}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(lines)


# -- parsing ----------------------------------------------------------------------------------------------------------


def parse(parser: Any, words: list[str], flags: Sequence[str] = ()) -> Any:
    """Parses with jsonargparse; what it refuses becomes one line that names the key and what was expected.

    `flags` are options that may stand without a value, which means true: --resume.
    """
    from jsonargparse import ArgumentError

    follow = [*words, ""][1:]
    words = [
        f"{word}=true" if word in flags and after.lower() not in ("true", "false") else word
        for word, after in zip(words, follow, strict=True)
    ]
    try:
        return parser.parse_args(words)
    except (ArgumentError, TypeError, ValueError) as error:
        files = [value for option, value in itertools.pairwise(words) if option == "--config"]
        where = f" (in {files[-1]} or on the command line)" if files else ""
        raise VlaeError(explain(str(error), parser) + where) from None


def explain(message: str, parser: Any) -> str:
    """Shortens jsonargparse's message to its cause, and adds the nearest known key.

    Example:
        >>> explain("Key 'trainer.max_epoch' is not expected", train_parser())
        "Key 'trainer.max_epoch' is not expected; did you mean 'max_epochs'?"
    """
    text = " ".join(message.split())
    if named := re.search(r'"(model|objective)": .*Expected a dot import path string: (\S+)', text):
        return f"unknown {named[1]} {named[2]!r}: choose one of {', '.join(class_names(named[1]))}"
    # jsonargparse tries every reading of an optional subclass; those after the first say nothing.
    text = re.sub(r" - Expected a <class 'NoneType'>.*|Given value type: .*", "", text).strip()
    text = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: (?:- )?", "", text)
    text = text.replace("Parser key ", "").replace("Problem with given class_path ", "in ").replace(": - ", ": ")
    unknown = re.search(r"(?:Option|Key|key|arguments:) ['\"-]*([\w.]+)['\"]?(?: is not|$| )", text)
    if unknown and re.search("not accepted|not expected|nrecognized", text):
        names = {action.dest.rsplit(".", 1)[-1]: None for action in parser._actions} | dict.fromkeys(model_options())
        # Of what follows a dot too: --model.prior_option '{steps: 2}' is read as prior_option.steps.
        parts = [part for part in unknown[1].split(".")[-2:] if part not in names]
        close = [match for part in parts for match in difflib.get_close_matches(part, names, n=1)]
        text += f"; did you mean {close[0]!r}?" if close else ""
    return text[:500]


def class_names(kind: str) -> list[str]:
    """The models, or the objectives, that a configuration may name."""
    from vlae import models, objectives

    module, base = (models, models.LatentVariableModel) if kind == "model" else (objectives, objectives.Objective)
    found = [getattr(module, name) for name in module.__all__]
    return [each.__name__ for each in found if isinstance(each, type) and issubclass(each, base) and each is not base]


def model_options() -> list[str]:
    """The constructor arguments of all models and objectives."""
    import inspect

    from vlae import objectives
    from vlae.models.saving import known_models

    names = [name for model in known_models() for name in model.argument_names()]
    kinds = [kind for kind in vars(objectives).values() if inspect.isclass(kind)]
    return names + [name for kind in kinds for name in inspect.signature(kind).parameters]


def find_config(name: str) -> Path:
    """A configuration file: a path, or the name of one that comes with the package."""
    if Path(name).is_file():
        return Path(name)
    # In an installed package the configurations lie inside it, in a checkout beside `src`.
    folders = [Path(str(resources.files("vlae"))) / "configs", Path(__file__).parents[2] / "configs"]
    shipped = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    if (stem := name.removesuffix(".yaml")) in shipped:
        return shipped[stem]
    raise VlaeError(f"no configuration {name!r}: give a YAML file or one of {', '.join(shipped)}")


def _parser(name: str) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"vlae {name}", description=COMMANDS[name][1], exit_on_error=False, allow_abbrev=False)


# -- train ------------------------------------------------------------------------------------------------------------


def train_parser() -> Any:
    """The parser of `vlae train`: every key of a configuration is an option."""
    from jsonargparse import ActionConfigFile

    from vlae.models import LatentVariableModel
    from vlae.objectives import Objective
    from vlae.training.run import DataSettings, RunSettings, TrainerSettings
    from vlae.training.task import OptimizerSettings

    parser = _parser("train")
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file, or the name of a shipped configuration")
    parser.add_subclass_arguments(LatentVariableModel, "model", skip={"image_shape"}, required=False)
    parser.add_class_arguments(DataSettings, "data")
    parser.add_subclass_arguments(Objective, "objective", default={"class_path": "vlae.objectives.ELBO"})
    parser.add_class_arguments(OptimizerSettings, "optimizer")
    parser.add_class_arguments(TrainerSettings, "trainer")
    parser.add_class_arguments(RunSettings, "run")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights, the data's order and all noise")
    parser.add_argument("--resume", type=bool, default=False, help="go on from the run's last checkpoint")
    return parser


def train(words: list[str]) -> int:
    """Trains one configuration into a run directory."""
    parser = train_parser()
    words, config_name = _resolve_config(words)
    settings = parse(parser, words, flags=["--resume"])
    if settings.get("model") is None:
        raise VlaeError("no model: give --config NAME (mnist, digits, ...) or --model VLAE")
    from jsonargparse import Namespace

    from vlae.training import run

    model_settings, settings_without_model = settings.pop("model"), settings
    # What is kept says how to train the run, not how this command came upon it.
    kept = Namespace(**{**vars(settings_without_model), "model": model_settings})
    kept = kept.clone()
    kept.resume = kept.run.overwrite = False
    kept.run.name = kept.run.name or config_name
    text = parser.dump(kept, skip_unset=False)
    try:
        objects = parser.instantiate(settings_without_model)
    except TypeError as error:
        raise VlaeError(str(error)) from None
    import torch

    data: run.DataSettings = objects.data
    directory = run.choose_directory(objects.run, config_name or data.name, settings.resume)
    torch.manual_seed(settings.seed)
    model = build_model(model_settings, data.load(data.split).image_shape)
    started = time.monotonic()
    saved = run.train(
        model,
        objects.objective,
        objects.optimizer,
        data,
        objects.trainer,
        directory,
        text,
        seed=settings.seed,
        resume=settings.resume,
    )
    minutes = (time.monotonic() - started) / 60
    print(f"trained in {minutes:.1f} minutes; the model is {saved}, the log {directory / 'logs' / 'train.log'}")
    print(f"next: vlae eval --run {directory}")
    return 0


def build_model(settings: Any, image_shape: tuple[int, int, int]) -> Any:
    """The new model that the `model` part of a configuration describes, for images of that shape."""
    from vlae.models.saving import build

    return build(settings.class_path.rsplit(".", 1)[-1], {**settings.init_args.as_dict(), "image_shape": image_shape})


def _resolve_config(words: list[str]) -> tuple[list[str], str | None]:
    """Replaces configuration names by their files, and returns the last one's name."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    resolved, name = list(words), None
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise VlaeError("--config needs a YAML file or a configuration's name")
            path = find_config(words[i + 1])
            resolved[i + 1], name = str(path), path.stem
    return resolved, name


# -- commands on a trained model --------------------------------------------------------------------------------------


def _add_choice(parser: Any) -> None:
    parser.add_argument("--model", type=str | None, default=None, help="pretrained name, or directory of a saved model")
    parser.add_argument("--run", type=str | None, default=None, help="run directory")
    parser.add_argument("--config", type=str | None, default=None, help="the run of this configuration")


def _add_data(parser: Any) -> None:
    group = "the model's own data are the default"
    parser.add_argument("--data.name", type=str | None, default=None, help=f"data set; {group}")
    parser.add_argument("--data.root", type=str | None, default=None, help="where its files are")
    parser.add_argument("--data.binarize", type=str | None, default=None, help="static, dynamic or threshold")
    parser.add_argument("--data.split", type=str, default="test", help="test, validation or train")
    parser.add_argument("--data.options", type=dict, default={}, help="further options of the data set")
    parser.add_argument("--data.limit", type=int | None, default=None, help="the first so many images only")


def choose_model(settings: Any) -> tuple[Any, Path]:
    """The model that was asked for, else that of the newest run (saying so), and where to put what is made of it."""
    from vlae.models.saving import load, pretrained_names
    from vlae.training.run import export

    given = [name for name in ("model", "run", "config") if settings.get(name)]
    if len(given) > 1:
        raise VlaeError(f"give one of --model, --run and --config, not {' and '.join('--' + name for name in given)}")
    if settings.model:
        if settings.model in pretrained_names() and not Path(settings.model).exists():
            return load(settings.model), Path("outputs") / settings.model
        path = Path(settings.model)
        return load(path), path.parent if path.name == "model" else path
    if settings.run or settings.config:
        directory = Path(settings.run or Path("outputs") / find_config(settings.config).stem)
        if not (directory / "config.yaml").is_file():
            raise VlaeError(f"{directory} is not a run: train one with vlae train, or give --model")
    else:
        runs = sorted(Path("outputs").glob("*/config.yaml"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise VlaeError("there is no run in outputs/: train one (vlae train --config digits) or give --model NAME")
        directory = runs[-1].parent
        print(f"using the newest run, {directory}")
    return load(directory / "model" if (directory / "model").is_dir() else export(directory)), directory


def _add_context(parser: Any) -> None:
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


def choose_data(settings: Any, model: Any) -> Any:
    """The data set that was asked for; what is not said comes from the model's own training data."""
    from vlae.data import load

    own, asked = model.metadata.get("data", {}), settings.data
    name = asked.name or own.get("name")
    if name is None:
        raise VlaeError("this model does not say what it was trained on: give --data.name")
    same = name == own.get("name")
    own_root = own.get("root") if same and Path(own.get("root") or "").is_dir() else None  # perhaps another machine's
    binarize = asked.binarize or (own.get("binarize") if same else None)
    options = {**(own.get("options", {}) if same else {}), **asked.options}
    data = load(name, asked.split, root=asked.root or own_root, binarize=binarize, **options)
    return data if asked.limit is None else data.subset(asked.limit)


def evaluate(words: list[str]) -> int:
    """Bounds in nats and bits on held-out images; a table, JSON and CSV."""
    parser = _parser("eval")
    _add_choice(parser)
    _add_data(parser)
    parser.add_argument("--nll_samples", type=int, default=100, help="importance samples per image; 0: no NLL")
    parser.add_argument("--nll_images", type=int, default=500, help="NLL on the first so many images; 0: all")
    parser.add_argument("--batch_size", type=int, default=250, help="memory, not the result")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, which is keyed by image")
    parser.add_argument("--double", type=bool, default=False, help="in float64")
    parser.add_argument(
        "--check", type=bool, default=False, help="compare with the model's expected numbers; exit 1 if off"
    )
    settings = parse(parser, words, flags=["--check", "--double"])
    from vlae.evaluation import report

    model, directory = choose_model(settings)
    dataset = choose_data(settings, model)
    return report.run(
        model,
        dataset,
        directory / "reports",
        nll_samples=settings.nll_samples,
        nll_images=settings.nll_images or None,
        batch_size=settings.batch_size,
        seed=settings.seed,
        double=settings.double,
        check=settings.check,
    )


def sample_prior(words: list[str]) -> int:
    """Images x ~ p(x|z), z ~ p(z): a picture, and the pixels as an array."""
    parser = _parser("sample prior")
    _add_choice(parser)
    parser.add_argument("--count", type=int, default=64, help="how many images")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the prior")
    parser.add_argument("--pixel_temperature", type=float, default=1.0, help="of each pixel's distribution")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    _add_context(parser)
    parser.add_argument(
        "--output", type=str | None, default=None, help="PNG; the run's samples/prior_samples.png if not given"
    )
    settings = parse(parser, words)
    from vlae import figures
    from vlae.sampling import prior_samples, save_array

    model, directory = choose_model(settings)
    context = choose_context(settings, model, settings.count)
    images = prior_samples(
        model, settings.count, settings.temperature, settings.pixel_temperature, settings.seed, context=context
    )
    path = Path(settings.output or directory / "samples" / "prior_samples.png")
    figures.save(figures.image_grid(images), path)
    print(f"{len(images)} samples: {path} and {save_array(images, path.with_suffix('.npz'))}")
    return 0


def viz_recon_grid(words: list[str]) -> int:
    """Held-out images above their reconstructions, deterministic and (autoregressive decoders) drawn."""
    parser = _parser("viz recon-grid")
    _add_choice(parser)
    _add_data(parser)
    parser.add_argument("--count", type=int, default=20, help="how many images")
    parser.add_argument(
        "--output", type=str | None, default=None, help="PNG; the run's grids/recon_grid.png if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawn reconstructions")
    settings = parse(parser, words)
    from vlae import figures
    from vlae.sampling import decompressions

    model, directory = choose_model(settings)
    data = choose_data(settings, model).subset(settings.count)
    x = data.tensor().to(next(model.parameters()).dtype)
    context = model.context_of(data.labels, data.factors, data.name)
    path = Path(settings.output or directory / "grids" / "recon_grid.png")
    rows = {"reconstruction": model.reconstruct(x, context=context)}
    if model.autoregressive:
        rows = {"greedy": rows["reconstruction"], "drawn": decompressions(model, x, settings.seed, context)}
    figures.save(figures.recon_grid(x, rows), path)
    print(f"{len(x)} reconstructions: {path}")
    return 0


def viz_samples(words: list[str]) -> int:
    """Held-out images beside samples from the prior."""
    parser = _parser("viz samples")
    _add_choice(parser)
    _add_data(parser)
    parser.add_argument("--count", type=int, default=20, help="how many of each")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the prior")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--output", type=str | None, default=None, help="PNG; the run's grids/samples.png if not given")
    settings = parse(parser, words)
    from vlae import figures
    from vlae.sampling import prior_samples

    model, directory = choose_model(settings)
    data = choose_data(settings, model).subset(settings.count)
    x, context = data.tensor(), model.context_of(data.labels, data.factors, data.name)
    samples = prior_samples(model, len(x), settings.temperature, seed=settings.seed, context=context)
    path = Path(settings.output or directory / "grids" / "samples.png")
    figures.save(figures.recon_grid(x, samples, row_labels=("data", "sample")), path)
    print(f"{len(x)} samples beside data: {path}")
    return 0


def compare_dae(words: list[str]) -> int:
    """VAE, VLAE and denoising autoencoder side by side: trains what is not given; a table and a picture."""
    parser = _parser("compare dae")
    for name in ("vae", "vlae", "dae"):
        parser.add_argument(
            f"--{name}_ckpt", type=str | None, default=None, help="saved model, run or pretrained name; else trained"
        )
    parser.add_argument("--data.name", type=str, default="digits", help="data set")
    parser.add_argument("--data.root", type=str | None, default=None, help="where its files are")
    parser.add_argument(
        "--data.binarize", type=str | None, default=None, help="static, dynamic, threshold, none; else the usual"
    )
    parser.add_argument("--data.options", type=dict, default={}, help="further options of the data set")
    parser.add_argument("--data.limit", type=int | None, default=None, help="the first so many images only")
    parser.add_argument("--epochs", type=int | None, default=None, help="of each training; else by the set's size")
    parser.add_argument("--latent_dim", type=int | None, default=None, help="numbers in z; else by the image's size")
    parser.add_argument("--images", type=int, default=1000, help="measure on the first so many test images")
    parser.add_argument("--train_images", type=int, default=5000, help="probes learn from the first so many")
    parser.add_argument("--count", type=int, default=16, help="images per row of the picture")
    parser.add_argument("--seed", type=int, default=0, help="of training and of all noise")
    parser.add_argument("--output", type=str, default="outputs/compare-dae", help="where runs, table and picture go")
    parser.add_argument("--overwrite", type=bool, default=False, help="train again what is finished")
    settings = parse(parser, words, flags=["--overwrite"])
    from vlae.experiments import dae
    from vlae.training.run import DataSettings

    dae.run(
        DataSettings(**settings.data.as_dict()),
        {name: settings[f"{name}_ckpt"] for name in ("vae", "vlae", "dae")},
        output=Path(settings.output),
        columns=settings.count,
        **{key: settings[key] for key in ("epochs", "latent_dim", "images", "train_images", "seed", "overwrite")},
    )
    return 0


# -- the codec --------------------------------------------------------------------------------------------------------


def compress(words: list[str]) -> int:
    """Image files, directories or a data set to one .vlae file."""
    parser = _parser("compress")
    parser.add_argument("paths", type=str, nargs="+", help="image files, directories or arrays, then the file to write")
    _add_choice(parser)
    _add_data(parser)
    parser.add_argument("--lossy_step", type=float | None, default=None, help="keep only z, in bins of this width")
    parser.add_argument("--lossy_bits", type=float | None, default=None, help="keep only z, in so many bits an image")
    parser.add_argument("--images_per_block", type=int, default=256, help="larger: smaller file; smaller: finer access")
    parser.add_argument("--coder", type=str, default="auto", help="auto, numpy or constriction: the bytes are the same")
    parser.add_argument("--verify", type=bool, default=True, help="decode what was written and compare")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the blocks")
    settings = parse(parser, words, flags=["--verify"])
    from vlae import codec

    *inputs, output = settings.paths
    if not inputs and settings.data.name is None:
        raise VlaeError("give what to compress and then the file to write: vlae compress DIR_OR_FILES OUT.vlae")
    if inputs and settings.data.name is not None:
        raise VlaeError("give files or --data.name, not both")
    if Path(output).suffix != ".vlae":
        raise VlaeError(f"the last name is the file to write and should end in .vlae; got {output!r}")
    model, _ = choose_model(settings)
    options = {
        key: settings[key] for key in ("lossy_step", "lossy_bits", "images_per_block", "coder", "verify", "workers")
    }
    options["name"] = Path(settings.model or settings.run or settings.config or "").name
    started = time.monotonic()
    if inputs:
        codec.compress_files(model, inputs, output, **options)
    else:
        data = codec.compress(model, choose_data(settings, model).tensor(), **options)
        with replacing(Path(output)) as temporary:
            temporary.write_bytes(data)
    seconds = time.monotonic() - started
    found = codec.info(Path(output).read_bytes())
    count, size = found["images"], found["bytes"]
    raw = math.prod(found["image_shape"]) * math.log2(found["levels"])
    print(
        f"{count:,} images of {'x'.join(map(str, found['image_shape']))} in {size:,} bytes: {8 * size / count:.2f} "
        f"bits an image, {raw * count / 8 / size:.1f} times smaller than raw; {count / seconds:.0f} images/s"
        + (", decoded again and compared" if settings.verify else "")
    )
    print(f"{output}: vlae decompress {output} DIRECTORY")
    return 0


def decompress(words: list[str]) -> int:
    """The pictures of a .vlae file, into a directory."""
    parser = _parser("decompress")
    parser.add_argument("file", type=str, help="the .vlae file")
    parser.add_argument("directory", type=str, help="where to put the pictures")
    _add_choice(parser)
    parser.add_argument("--only", type=list[str], default=[], help="names of pictures: only their blocks are decoded")
    parser.add_argument("--texture", type=str, default="sample", help="of a lossy file: sample, greedy or mean")
    parser.add_argument("--seed", type=int, default=0, help="of a lossy file's texture")
    parser.add_argument("--coder", type=str, default="auto", help="auto, numpy or constriction")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace pictures that exist")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the blocks")
    settings = parse(parser, words, flags=["--overwrite"])
    from vlae import codec
    from vlae.models.saving import load, pretrained_names

    data = Path(settings.file).read_bytes()
    named = codec.info(data)["model"]
    if not any(settings.get(key) for key in ("model", "run", "config")) and named in pretrained_names():
        model = load(named)
    else:
        model, _ = choose_model(settings)
    started = time.monotonic()
    options = {key: settings[key] for key in ("only", "texture", "seed", "coder", "overwrite", "workers")}
    paths = codec.decompress_files(model, data, settings.directory, **options)
    print(f"{len(paths)} files in {settings.directory}, {time.monotonic() - started:.1f} s: {paths[0]}")
    return 0


def info(words: list[str]) -> int:
    """What a .vlae file holds; no model is needed."""
    parser = _parser("info")
    parser.add_argument("file", type=str, help="the .vlae file")
    parser.add_argument("--json", type=bool, default=False, help="as JSON, every picture listed")
    settings = parse(parser, words, flags=["--json"])
    from vlae import codec

    found = codec.info(Path(settings.file).read_bytes())
    if settings.json:
        print(json.dumps(found, indent=2))
        return 0
    names = [entry["name"] for entry in found["pictures"]]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    mode = found["mode"] + ("" if found["step"] is None else f", only z, in bins of {found['step']:.4g}")
    rows = {
        "mode": mode,
        "model": f"{found['model'] or 'unnamed'}, fingerprint {found['fingerprint']}",
        "images": f"{found['images']:,} of {'x'.join(map(str, found['image_shape']))}, {found['levels']} levels",
        "pictures": f"{len(names)}: {shown}",
        "blocks": f"{found['blocks']}, each can be decoded alone",
        "size": f"{found['bytes']:,} bytes, {found['payload_bytes']:,} of them in blocks",
        "rate": f"{found['bits_per_image']:.2f} bits an image",
    }
    for name, text in rows.items():
        print(f"{name:10s}{text}")
    return 0


def verify(words: list[str]) -> int:
    """Checks this installation against exact answers, in seconds."""
    parse(_parser("verify"), words)
    from vlae.verify import run

    return run()


def models(words: list[str]) -> int:
    """Lists the pretrained models."""
    parse(_parser("models"), words)
    from vlae.models.saving import load, pretrained_names

    for name in pretrained_names():
        model = load(name)
        size = sum(p.numel() for p in model.parameters())
        print(f"{name:18s}{type(model).__name__:6s}{size:>10,} parameters  {model.metadata.get('protocol', '')}")
    return 0


COMMANDS: dict[str, tuple[Command, str]] = {
    "train": (train, "train one configuration: --config NAME_OR_FILE, and any key to override"),
    "eval": (evaluate, "bounds in nats and bits of a run or model on held-out images"),
    "sample prior": (sample_prior, "draw images from the prior"),
    "viz recon-grid": (viz_recon_grid, "draw reconstructions"),
    "viz samples": (viz_samples, "draw samples beside data"),
    "compare dae": (compare_dae, "VAE, VLAE and denoising autoencoder side by side: a table and a picture"),
    "compress": (compress, "image files to one .vlae file, of the size that the bound promises"),
    "decompress": (decompress, "a .vlae file to image files, exact in every pixel"),
    "info": (info, "what a .vlae file holds"),
    "models": (models, "list the pretrained models"),
    "verify": (verify, "check this installation against exact answers, in seconds"),
}
