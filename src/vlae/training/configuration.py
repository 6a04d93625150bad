"""Configurations: the parser of `vlae train`, which the experiments share, and plain words for what it refuses."""

from __future__ import annotations

import difflib
import inspect
import itertools
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from vlae.errors import VlaeError

MOST_VALUES = 100_000  # in a configuration file; ours have about thirty

# One line for help pages.
TRAIN = "train one configuration: --config NAME_OR_FILE, and any key to override"


def train_parser() -> Any:
    """The parser of `vlae train`: every key of a configuration is an option."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    from vlae.models import LatentVariableModel
    from vlae.objectives import Objective
    from vlae.training.settings import DataSettings, RunSettings, TrainerSettings
    from vlae.training.task import OptimizerSettings

    parser = ArgumentParser(prog="vlae train", description=TRAIN, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file, or the name of a shipped configuration")
    parser.add_subclass_arguments(LatentVariableModel, "model", skip={"image_shape"}, required=False)
    parser.add_class_arguments(DataSettings, "data")
    parser.add_subclass_arguments(Objective, "objective", default={"class_path": "vlae.objectives.ELBO"})
    parser.add_class_arguments(OptimizerSettings, "optimizer")
    parser.add_class_arguments(TrainerSettings, "trainer")
    parser.add_class_arguments(RunSettings, "run")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights, the data's order and all noise")
    parser.add_argument(
        "--start_from",
        type=str | None,
        default=None,
        help="begin with the weights of this saved model: a run, a directory, a pretrained name or hf:org/name",
    )
    parser.add_argument("--resume", type=bool, default=False, help="go on from the run's last checkpoint")
    return parser


def list_options() -> list[str]:
    """The options of `vlae train` that take several values, as words: --model.encoder_widths 8 16 32."""
    found = []
    for section, classes in section_classes().items():
        parameters = [each for kind in classes for each in inspect.signature(kind).parameters.values()]
        names = {each.name for each in parameters if str(each.annotation).startswith(("tuple[", "list[", "Sequence["))}
        found += [f"--{section}.{path}{name}" for name in sorted(names) for path in ("", "init_args.")]
    return found


def section_classes() -> dict[str, list[Any]]:
    """The sections of a configuration, with the classes that their keys are the arguments of."""
    from vlae import objectives
    from vlae.models.saving import known_models
    from vlae.training.settings import DataSettings, RunSettings, TrainerSettings
    from vlae.training.task import OptimizerSettings

    return {
        "model": known_models(),
        "objective": [getattr(objectives, name) for name in class_names("objective")],
        "data": [DataSettings],
        "optimizer": [OptimizerSettings],
        "trainer": [TrainerSettings],
        "run": [RunSettings],
    }


def build_model(settings: Any, image_shape: tuple[int, int, int]) -> Any:
    """The new model that the `model` part of a configuration describes, for images of that shape."""
    from vlae.models.saving import build

    return build(settings.class_path.rsplit(".", 1)[-1], {**settings.init_args.as_dict(), "image_shape": image_shape})


def find_config(name: str) -> Path:
    """A configuration file: a path, or the name of one that comes with the package."""
    if Path(name).is_file():
        check_yaml(Path(name))
        return Path(name)
    known = shipped()
    if (stem := name.removesuffix(".yaml")) in known:
        return known[stem]
    close = difflib.get_close_matches(stem, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"give a YAML file or one of {', '.join(known)}"
    raise VlaeError(f"no configuration {name!r}: {hint}")


def check_yaml(path: Path) -> None:
    """Refuses what no reader of YAML tells of.

    A key that is there twice, of which the last one would be taken; a section with nothing in it; and aliases, each of
    others, that stand for more values than memory holds, or for themselves.
    """
    sizes: dict[int, float] = {}  # of the part of the file that is under each node, aliases written out

    def size(node: yaml.Node | None) -> float:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # until it is known: what holds itself never ends
            if isinstance(node, yaml.MappingNode):
                refuse_twice(path, node)
            parts = node.value if isinstance(node, yaml.SequenceNode) else itertools.chain(*node.value)
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
        values = size(root)
        refuse_empty(path, root)
    except RecursionError:
        raise VlaeError(f"{path} is nested too deeply for a configuration") from None
    except VlaeError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, ValueError):
        return  # whoever reads it says what is wrong
    if values > MOST_VALUES:
        raise VlaeError(f"{path}: its aliases stand for more than {MOST_VALUES:,} values: write them out")


def refuse_twice(path: Path, node: yaml.MappingNode) -> None:
    """Refuses a mapping in which a key is there twice."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in seen:
                raise VlaeError(
                    f"{path}: {key.value} is there twice, again in line {key.start_mark.line + 1}: join them"
                )
            seen.add(key.value)


def refuse_empty(path: Path, root: yaml.Node | None) -> None:
    """Refuses a file with a section that has nothing in it: its lines were commented out, say."""
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value in SECTIONS and value.tag == "tag:yaml.org,2002:null":
            raise VlaeError(f"{path}: {key.value} is empty: leave it out, or give it a value")


SECTIONS = ("model", "data", "objective", "optimizer", "trainer", "run", "seed")


def shipped(folder: str = ".") -> dict[str, Path]:
    """The YAML files that come with the package in a folder of `configs`, by name."""
    # In an installed package the configurations lie inside it, in a checkout beside `src`.
    places = [Path(str(resources.files("vlae"))) / "configs", Path(__file__).parents[3] / "configs"]
    return {path.stem: path for place in places for path in sorted((place / folder).glob("*.yaml"))}


def parse(parser: Any, words: list[str], flags: Sequence[str] = (), lists: Sequence[str] = ()) -> Any:
    """Parses with jsonargparse; what it refuses becomes one line that names the key and what was expected.

    `flags` are options that may stand without a value, which means true: --resume. `lists` are options that take one
    word or more, as in --dims 0 1 2. In an option's name a dash may stand for an underscore: --nll-samples.
    """
    from jsonargparse import ArgumentError

    for word, after in itertools.pairwise([*words, ""]):
        if word in ("--model.help", "--objective.help") and (not after or after.startswith("-")):
            kind = word[2:].removesuffix(".help")
            raise VlaeError(f"say of which {kind}: {word}=NAME, one of {', '.join(class_names(kind))}")
    words = gather([underscored(word) for word in words], lists)
    follow = [*words, ""][1:]
    words = [
        f"{word}=true" if word in flags and after.lower() not in ("true", "false") else word
        for word, after in zip(words, follow, strict=True)
    ]
    try:
        settings = parser.parse_args(words)
    except (ArgumentError, TypeError, ValueError) as error:
        files = [value for option, value in itertools.pairwise(words) if option == "--config"]
        where = f" (in {files[-1]} or on the command line)" if files else ""
        raise VlaeError(explain(str(error), parser) + where) from None
    if not -(2**63) <= (settings.get("seed") or 0) < 2**63:
        raise VlaeError(f"--seed must be an integer of 64 bits; got {settings.seed}")
    check_classes(settings)
    return settings


def check_classes(settings: Any) -> None:
    """Refuses classes of this package that are no model or objective themselves, but bases of several."""
    for kind in ("model", "objective"):
        path = getattr(settings.get(kind), "class_path", "")  # of most commands the model is a word
        if path.startswith("vlae.") and path.rsplit(".", 1)[-1] not in class_names(kind):
            raise VlaeError(f"unknown {kind} {path!r}: choose one of {', '.join(class_names(kind))}")


def check_nulls(settings: Any) -> None:
    """Refuses null for a key that needs a value: jsonargparse takes it for any key that has a default."""
    empty = [name for name in ("objective", "seed", "resume") if settings.get(name) is None]
    for section, classes in section_classes().items():
        given = settings.get(section)
        if (path := getattr(given, "class_path", None)) is not None:
            classes = [kind for kind in classes if kind.__name__ == path.rsplit(".", 1)[-1]]
            given = given.get("init_args")
        for name, parameter in inspect.signature(classes[0]).parameters.items() if given and classes else ():
            if name in given and given[name] is None and needs_value(parameter):
                empty.append(f"{section}.{name}")
    if empty:
        raise VlaeError(f"{empty[0]} can't be null: leave it out, or give it a value")


def needs_value(parameter: inspect.Parameter) -> bool:
    """Whether None is surely no value of this parameter: neither its default, nor left room for by its annotation.

    An argument without an annotation, as classes from outside have, may take anything.
    """
    annotation = str(parameter.annotation)
    anything = parameter.annotation is parameter.empty or annotation in ("Any", "typing.Any")
    free = anything or "None" in annotation or "Optional" in annotation
    return not free and parameter.default is not None


def underscored(word: str) -> str:
    """An option with underscores for the dashes in its name; any other word as it is.

    Example:
        >>> underscored("--nll-samples=64"), underscored("--run.name=my-run"), underscored("my-run")
        ('--nll_samples=64', '--run.name=my-run', 'my-run')
    """
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word


def gather(words: Sequence[str], lists: Sequence[str]) -> list[str]:
    """Makes one word of each of these options and the words after it, up to the next option, as jsonargparse wants it.

    A negative number is a word like others, and numbers with commas between them are several. What is written as a list
    already, and null, is left alone; an option that comes twice adds up.

    Example:
        >>> gather(["--dims", "0", "-1", "--count", "3"], ["--dims"])
        ['--dims=["0", "-1"]', '--count', '3']
    """
    result: list[str] = []
    found: dict[str, list[str]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option not in lists:
            result.append(word)
            continue
        values = [value] if equals else []
        while rest and not (rest[0].startswith("-") and not _NUMBER.fullmatch(rest[0])):
            values.append(rest.pop(0))
        if not values:
            raise VlaeError(f"{option} needs one word or more after it")
        if values[0].startswith("[") or values == ["null"]:
            result += [f"{option}={values[0]}", *values[1:]]
            continue
        values = [part for value in values for part in (value.split(",") if _NUMBERS.fullmatch(value) else [value])]
        if option in found:
            result.remove(f"{option}={json.dumps(found[option])}")
        found[option] = found.get(option, []) + values
        result.append(f"{option}={json.dumps(found[option])}")
    return result


_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_NUMBERS = re.compile(r"(-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?,)+-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def check(config: dict[str, Any], where: str, trained: bool = True) -> Any:
    """The settings of a configuration given as plain values; an error is one line that begins with `where`.

    Raises:
        VlaeError: an unknown key, a wrong type, no such data set or, of what is to be trained, no model.
    """
    from jsonargparse import ArgumentError

    from vlae.data.loading import check_request

    parser = train_parser()
    try:
        settings = parser.parse_object(config)
    except (ArgumentError, TypeError, ValueError) as error:
        raise VlaeError(f"{where}: {explain(str(error), parser)}") from None
    if trained and settings.get("model") is None:
        raise VlaeError(f"{where}: no model")
    check_classes(settings)
    data = settings.data
    try:
        check_nulls(settings)
        check_request(data.name, data.split, data.binarize, data.options)
    except VlaeError as error:
        raise VlaeError(f"{where}: {error}") from None
    return settings


def explain(message: str, parser: Any) -> str:
    """Shortens jsonargparse's message to its cause, and adds the nearest known key.

    Example:
        >>> explain("Key 'trainer.max_epoch' is not expected", train_parser())
        "Key 'trainer.max_epoch' is not expected; did you mean 'max_epochs'?"
        >>> explain("Expected a <class 'int'>. Got value: x", train_parser())
        'Expected an integer. Got value: x'
    """
    text = " ".join(message.split())
    if text.startswith("Unexpected config"):
        return "not a configuration: expected keys such as model, data and trainer"
    named = re.search(r'"(model|objective)": .*Expected a dot import path string: (\S+)', text)
    if named and "Problem with given class_path" not in text:  # else it is one of the class's own arguments
        return f"unknown {named[1]} {named[2]!r}: choose one of {', '.join(class_names(named[1]))}"
    # jsonargparse tries every reading of an optional subclass; those after the first say nothing.
    text = re.sub(r" - Expected a <class 'NoneType'>.*|Given value type: .*", "", text).strip()
    text = re.sub(r"- Expected a path but .*? either not accessible or invalid ", "", text)
    text = re.sub(r" - Expected a dot import path string: (.*)", r" or a class; got \1", text)
    text = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: (?:- )?", "", text)
    text = re.sub(r"Expected an? <class '(?:[\w.]+\.)?(\w+)'>", _named, text)
    text = text.replace("Parser key ", "").replace("Problem with given class_path ", "in ").replace(": - ", ": ")
    unknown = re.search(r"(?:Option|Key|key|arguments:) ['\"-]*([\w.]+)['\"]?(?: is not|$| )", text)
    if unknown and re.search("not accepted|not expected|nrecognized", text):
        names = {action.dest.rsplit(".", 1)[-1]: None for action in parser._actions}
        names |= dict.fromkeys(model_options()) if "objective" in names else {}  # of what a configuration builds
        # Of what follows a dot too: --model.prior_option '{steps: 2}' is read as prior_option.steps.
        parts = [part for part in unknown[1].split(".")[-2:] if part not in names]
        close = [match for part in parts for match in difflib.get_close_matches(part, names, n=1)]
        text += f"; did you mean {close[0]!r}?" if close else ""
    return text[:500]


def _named(type_: re.Match[str]) -> str:
    """What is expected, in words, for the name of a Python type."""
    return {
        "int": "Expected an integer",
        "float": "Expected a number",
        "str": "Expected a word",
        "bool": "Expected true or false",
        "dict": "Expected names with values, as in '{name: value}'",
        "tuple": "Expected a list, as in '[1, 2]'",
        "list": "Expected a list, as in '[1, 2]'",
        "Sequence": "Expected a list, as in '[1, 2]'",
    }.get(type_[1], f"Expected {type_[1]}")


def class_names(kind: str) -> list[str]:
    """The models, or the objectives, that a configuration may name."""
    from vlae import models, objectives

    module, base = (models, models.LatentVariableModel) if kind == "model" else (objectives, objectives.Objective)
    found = [getattr(module, name) for name in module.__all__]
    return [each.__name__ for each in found if isinstance(each, type) and issubclass(each, base) and each is not base]


def model_options() -> list[str]:
    """The constructor arguments of all models and objectives."""
    from vlae import objectives
    from vlae.models.saving import known_models

    names = [name for model in known_models() for name in model.argument_names()]
    kinds = [kind for kind in vars(objectives).values() if inspect.isclass(kind)]
    return names + [name for kind in kinds for name in inspect.signature(kind).parameters]
