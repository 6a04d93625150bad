"""The command line: parses, calls one function, prints. `python -m vlae` is the same."""

from __future__ import annotations

import difflib
import json
import logging
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from vlae.errors import VlaeError
from vlae.files import replacing
from vlae.training.configuration import TRAIN, build_model, find_config, parse, train_parser

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


def _parser(name: str) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"vlae {name}", description=COMMANDS[name][1], exit_on_error=False, allow_abbrev=False)


# -- train ------------------------------------------------------------------------------------------------------------


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


def _add_target(parser: Any) -> None:
    parser.add_argument("target", type=str | None, nargs="?", help="run directory, saved model or pretrained name")


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


def data_settings(settings: Any, model: Any) -> Any:
    """Which data were asked for, as `DataSettings`; what is not said comes from the model's own training data."""
    from vlae.training.run import DataSettings

    own, asked = model.metadata.get("data", {}), settings.data
    name = asked.name or own.get("name")
    if name is None:
        raise VlaeError("this model does not say what it was trained on: give --data.name")
    same = name == own.get("name")
    own_root = own.get("root") if same and Path(own.get("root") or "").is_dir() else None  # perhaps another machine's
    binarize = asked.binarize or (own.get("binarize") if same else None)
    options = {**(own.get("options", {}) if same else {}), **asked.options}
    return DataSettings(name, asked.root or own_root, binarize, options=options)


def choose_data(settings: Any, model: Any) -> Any:
    """The images that were asked for."""
    data = data_settings(settings, model).load(settings.data.split)
    return data if settings.data.limit is None else data.subset(settings.data.limit)


def evaluate(words: list[str]) -> int:
    """Every metric that applies, on held-out images: tables, JSON, CSV and an HTML report."""
    parser = _parser("eval")
    _add_target(parser)
    _add_choice(parser)
    _add_data(parser)
    parser.add_argument("--only", type=list[str], default=[], help="these groups or metrics: --only bound nll mig")
    parser.add_argument("--standard", type=bool, default=False, help="with FID, Inception Score and LPIPS")
    parser.add_argument("--nll_samples", type=list[int], default=[1, 10, 100], help="K, one or several; 0: no NLL")
    parser.add_argument("--nll_images", type=int, default=500, help="NLL on the first so many images; 0: all")
    parser.add_argument(
        "--information_images",
        type=int | None,
        default=None,
        help="mutual information among so many; else 2000, of an IAF posterior 300",
    )
    parser.add_argument("--quality_images", type=int, default=1000, help="reconstructions, and as many samples")
    parser.add_argument("--train_images", type=int, default=5000, help="training images that probes learn from")
    parser.add_argument("--batch_size", type=int, default=250, help="memory, not the result")
    parser.add_argument("--seed", type=int, default=0, help="of all noise")
    parser.add_argument("--double", type=bool, default=False, help="in float64")
    parser.add_argument(
        "--check", type=bool, default=False, help="compare with the model's expected numbers; exit 1 if off"
    )
    parser.add_argument("--criteria", type=bool, default=False, help="say which criteria of success are met")
    parser.add_argument("--pixelcnn", type=str | None, default=None, help="for the criteria: a model without a code")
    parser.add_argument("--vae", type=str | None, default=None, help="for the criteria: a VAE of MLPs")
    parser.add_argument("--strict", type=bool, default=False, help="exit 1 where a criterion is not met")
    parser.add_argument("--output", type=str | None, default=None, help="where the reports go; else the run's reports/")
    flags = ["--check", "--double", "--criteria", "--standard", "--strict"]
    settings = take_target(parse(parser, words, flags=flags, lists=["--only", "--nll_samples"]))
    from vlae.evaluation import report
    from vlae.evaluation.criteria import load_references
    from vlae.evaluation.judge import judge_of
    from vlae.evaluation.suite import Settings

    names = ("information_images", "quality_images", "train_images", "batch_size", "seed", "standard")
    wanted = Settings(
        tuple(settings.only),
        nll_samples=tuple(k for k in settings.nll_samples if k),
        nll_images=settings.nll_images or None,
        **{name: settings[name] for name in names},
    )
    for name in ("pixelcnn", "vae", "strict"):
        if settings[name] and not settings.criteria:
            raise VlaeError(f"--{name} is for the criteria of success: add --criteria")
    model, directory = choose_model(settings)
    others = [name for name in ("name", "binarize", "options", "limit") if settings.data.get(name)]
    others += ["split"] if settings.data.split != "test" else []
    if settings.check and others:
        raise VlaeError(f"the expected numbers are of the model's own whole test set: leave out --data.{others[0]}")
    data, test = data_settings(settings, model), choose_data(settings, model)
    references = load_references(test, settings.pixelcnn, settings.vae) if settings.criteria else None
    return report.run(
        model,
        test,
        Path(settings.output or directory / "reports"),
        wanted,
        training=lambda: data.load("train"),
        judging=lambda train: judge_of(data.name, train, test, data.root, data.options),
        run=run_of(settings, directory),
        double=settings.double,
        check=settings.check,
        references=references,
        strict=settings.strict,
        command=shlex.join(["vlae", "eval", *words]),
    )


def doctor(words: list[str]) -> int:
    """What is wrong with a run or a model, and what to change; the findings as a table and as JSON."""
    parser = _parser("doctor")
    _add_target(parser)
    _add_choice(parser)
    _add_data(parser)
    parser.add_argument("--images", type=int, default=1000, help="measure on the first so many test images")
    parser.add_argument("--batch_size", type=int, default=250, help="memory, not the result")
    parser.add_argument("--seed", type=int, default=0, help="of all noise")
    parser.add_argument("--strict", type=bool, default=False, help="exit 1 where there is a problem")
    settings = take_target(parse(parser, words, flags=["--strict"]))
    from vlae.evaluation import doctor

    model, directory = choose_model(settings)
    return doctor.run(
        model,
        choose_data(settings, model),
        directory / "reports",
        run_of(settings, directory),
        **{key: settings[key] for key in ("images", "batch_size", "seed", "strict")},
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


def experiment(words: list[str]) -> int:
    """A named study, or one of your own: trains and measures its cells, and writes a table and plots."""
    parser = _parser("experiment")
    parser.add_argument("name", type=str, nargs="?", default="", help="a study's name or file; none: lists them")
    parser.add_argument("--list", type=bool, default=False, help="list the studies")
    parser.add_argument(
        "--budget",
        type=str | None,
        default=None,
        help="a name in the study, 20m, 1h30m, or images",
    )
    parser.add_argument("--output", type=str | None, default=None, help="outputs/experiments/NAME if not given")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int | None, default=None, help="of each cell")
    parser.add_argument("--engine", type=str, default="loky", help="of workers: loky, ray or dask")
    parser.add_argument("--address", type=str | None, default=None, help="of a Ray or Dask cluster")
    parser.add_argument("--shard", type=str | None, default=None, help="I/N: cells I, I + N, ... only")
    parser.add_argument("--again", type=str, nargs="+", default=[], help="cells to train and measure again")
    parser.add_argument("--overwrite", type=bool, default=False, help="all cells again")
    parser.add_argument("--measure_again", type=bool, default=False, help="measure again what is trained")
    parser.add_argument("--table_only", type=bool, default=False, help="write the table of what is there")
    parser.add_argument("--dry_run", type=bool, default=False, help="plan and print, no more")
    flags = ["--list", "--overwrite", "--measure_again", "--table_only", "--dry_run"]
    words = [re.sub("^--[a-z-]+", lambda key: "--" + key[0][2:].replace("-", "_"), word) for word in words]
    settings = parse(parser, words, flags=flags)
    from vlae.experiments import engine, study

    if settings.list or not settings.name:
        print(study.listing())
        return 0
    chosen = study.load(study.find(settings.name))
    try:
        return engine.run(
            chosen,
            Path(settings.output or Path("outputs") / "experiments" / chosen.name),
            settings.budget,
            engine.Spread(settings.workers, settings.engine, settings.address, settings.threads),
            called=settings.name,
            **{key: settings[key] for key in ("shard", "again", "overwrite", "measure_again", "table_only", "dry_run")},
        )
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on from here", code=130)


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
    settings = parse(parser, words, flags=["--overwrite"], lists=["--only"])
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
    "train": (train, TRAIN),
    "eval": (evaluate, "all metrics of a run or model on held-out images: tables and an HTML report"),
    "doctor": (doctor, "what is wrong with a run or a model, and what to change"),
    "sample prior": (sample_prior, "draw images from the prior"),
    "viz recon-grid": (viz_recon_grid, "draw reconstructions"),
    "viz samples": (viz_samples, "draw samples beside data"),
    "compare dae": (compare_dae, "VAE, VLAE and denoising autoencoder side by side: a table and a picture"),
    "experiment": (experiment, "a study: models trained and measured alike, a table and plots; no name lists them"),
    "compress": (compress, "image files to one .vlae file, of the size that the bound promises"),
    "decompress": (decompress, "a .vlae file to image files, exact in every pixel"),
    "info": (info, "what a .vlae file holds"),
    "models": (models, "list the pretrained models"),
    "verify": (verify, "check this installation against exact answers, in seconds"),
}
