"""A study: a question, cells that answer it (models trained and measured alike), and the table and plots made of them.

Its format is YAML; `configs/experiments/receptive-field.yaml` is an example of every key:

    title, question     shown above the table
    base                a configuration of `vlae train`, or the name of a shipped one
    cells               each a name, and what differs from the base; instead of a training, `pretrained: NAME` or
                        `run: DIRECTORY`. Besides: `published` numbers by metric, `x` numbers for axes and columns, a
                        `group` (a line of its own in plots), a `note`. A finished model is measured on the base's
                        data, unless it has `data` of its own: they are asked for where it was trained on another set
    budgets             names for numbers of training images shown to each cell; null: what the base says. The first is
                        the default
    measure             settings of the evaluation, and on which images: `split`, and the first `limit` of it
    columns             of the table, metrics by name
    plots               each a `kind`, and what it shows
    notes               below the table
"""

from __future__ import annotations

import copy
import difflib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from vlae.data.datasets import check_split
from vlae.errors import VlaeError
from vlae.evaluation.measurements import Settings
from vlae.evaluation.metrics import METRICS
from vlae.experiments.columns import STUDY
from vlae.models.saving import CONFIG as MODEL
from vlae.models.saving import locate
from vlae.training.configuration import check, check_yaml, find_config, shipped

CONFIG = ("model", "data", "objective", "optimizer", "trainer", "seed", "start_from")
CELL = ("name", "pretrained", "run", "published", "x", "group", "note")
PLOTS: dict[str, tuple[str, ...]] = {
    "line": ("x", "y", "log_x"),
    "bars": ("y",),
    "rate-distortion": (),
    "pictures": ("of", "count"),
}
KEPT_PICTURES = 32
PICTURES = ("reconstructions", "drawn reconstructions", "samples", "drawn samples")


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        name: in the table.
        config: of `vlae train`; of a cell that is not trained, what is left of it is the data.
        pretrained: name of a model that comes with the package, or "".
        run: directory of a run or saved model, or "".
        published: numbers from papers, by metric.
        x: numbers that name the cell on axes and in columns.
        group: cells of one group are joined in plots.
        note: said below the table.
    """

    name: str
    config: dict[str, Any]
    pretrained: str = ""
    run: str = ""
    published: dict[str, float] = field(default_factory=dict)
    x: dict[str, float] = field(default_factory=dict)
    group: str = ""
    note: str = ""

    @property
    def slug(self) -> str:
        """A name for the cell's files."""
        return slug(self.name)

    @property
    def trained(self) -> bool:
        """Whether it is trained here."""
        return not (self.pretrained or self.run)


@dataclass(frozen=True)
class Measure:
    """How cells are evaluated: the settings of the suite, and on which images.

    Attributes:
        settings: of `vlae.evaluation.suite.measure`.
        split: of the cell's data set.
        limit: the first so many images of it; None: all.
    """

    settings: Settings = field(default_factory=Settings)
    split: str = "test"
    limit: int | None = None


@dataclass(frozen=True)
class Study:
    """A study as its file says it; `load` reads and checks one."""

    name: str
    title: str
    question: str
    cells: tuple[Cell, ...]
    budgets: dict[str, int | None]
    measure: Measure
    columns: tuple[str, ...]
    plots: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def slug(name: str) -> str:
    """Letters, digits and dashes.

    Example:
        >>> slug("VLAE, 3 layers (beta = 0.5)")
        'vlae-3-layers-beta-0-5'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def find(name: str) -> Path:
    """The file of a study: a path, or the name of one that comes with the package."""
    if Path(name).is_file():
        return Path(name)
    known = shipped("experiments")
    if (stem := name.removesuffix(".yaml").replace("_", "-")) in known:
        return known[stem]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"give a YAML file or one of {', '.join(known)}"
    raise VlaeError(f"no experiment {name!r}: {hint}")


def listing() -> str:
    """The studies that come with the package, a line each."""
    lines = []
    for name, path in shipped("experiments").items():
        content = yaml.safe_load(path.read_text())
        budgets = ", ".join(content.get("budgets") or ["full"])
        lines.append(f"{name:28s}{content['title']}; {len(content['cells'])} cells, budgets {budgets}")
    return "\n".join([*lines, "", "vlae experiment NAME --budget BUDGET; a budget may be a duration too, such as 20m"])


def load(path: Path) -> Study:
    """Reads and checks a study.

    Raises:
        VlaeError: what is wrong, in one line that names the file and the key.
    """
    check_yaml(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VlaeError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    try:
        return _study(path.stem, content)
    except VlaeError as error:
        raise VlaeError(f"{path}: {error}") from None


def merged(base: Any, change: Any) -> Any:
    """`base` with what `change` says instead; dictionaries are merged key by key, anything else is replaced.

    A part with another `class_path` is replaced as a whole: its arguments are another class's.

    Example:
        >>> merged({"model": {"class_path": "VAE", "init_args": {"latent_dim": 8}}}, {"model": {"class_path": "VQVAE"}})
        {'model': {'class_path': 'VQVAE'}}
    """
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return copy.deepcopy(change)
    if "class_path" in base and "class_path" in change and _class(base) != _class(change):
        return copy.deepcopy(change)
    result = copy.deepcopy(base)
    for key, value in change.items():
        result[key] = merged(base[key], value) if key in base else copy.deepcopy(value)
    return result


def _class(part: Mapping[str, Any]) -> str:
    return str(part["class_path"]).rsplit(".", 1)[-1]


def _study(name: str, content: Any) -> Study:
    keys = [each.name for each in fields(Study) if each.name != "name"]
    _known(content, [*keys, "base"], "the study", required=("title", "cells", "columns"))
    base = content.get("base") or {}
    if isinstance(base, str):
        base = yaml.safe_load(find_config(base).read_text())
        base.pop("run", None)
    _known(base, CONFIG, "base")
    cells = tuple(_cell(each, base) for each in _list(content["cells"], "cells"))
    slugs = [cell.slug for cell in cells]
    if twice := [cell.name for i, cell in enumerate(cells) if cell.slug in slugs[:i]]:
        raise VlaeError(f"two cells are named {twice[0]!r}, or nearly so: names must tell them apart")
    axes = {key for cell in cells for key in cell.x}
    columns = tuple(_list(content["columns"], "columns"))
    _columns(columns, axes, "columns")
    plots = tuple(_plot(each, axes) for each in _list(content.get("plots") or [], "plots"))
    files = [file_name(plots, plot) for plot in plots]
    if twice := [file for i, file in enumerate(files) if file in files[:i]]:
        raise VlaeError(f"plots: two of them would be {twice[0]}: give each a name of its own")
    return Study(
        name=name,
        title=str(content["title"]),
        question=" ".join(str(content.get("question") or "").split()),
        cells=cells,
        budgets=_budgets(content.get("budgets") or {"full": None}),
        measure=_measure(content.get("measure") or {}),
        columns=columns,
        plots=plots,
        notes=tuple(map(str, _list(content.get("notes") or [], "notes"))),
    )


def _cell(content: Any, base: dict[str, Any]) -> Cell:
    _known(content, [*CELL, *CONFIG], "a cell", required=("name",))
    name = str(content["name"])
    where = f"cell {name!r}"
    if not slug(name):
        raise VlaeError(f"{where}: its name needs a letter or a digit")
    if empty := [key for key, value in content.items() if key in CONFIG and value is None]:
        raise VlaeError(f"{where}: {empty[0]} is empty: leave it out, or give it a value")
    own = {key: value for key, value in content.items() if key in CELL and value is not None}
    _typed(own, where, pretrained=str, run=str, group=str, note=str)
    _typed(content, where, data=dict, seed=int)
    config = merged(base, {key: value for key, value in content.items() if key in CONFIG})
    if "pretrained" in own and "run" in own:
        raise VlaeError(f"{where}: give one of pretrained and run")
    for key in ("published", "x"):
        _known(own.setdefault(key, {}), METRICS | STUDY if key == "published" else None, f"{where}: {key}")
        for metric, value in own[key].items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise VlaeError(f"{where}: {key}: {metric} must be a number; got {value!r}")
    cell = Cell(**{**own, "name": name, "config": config})
    if cell.trained:
        check(config, where)
    elif extra := [key for key in content if key in CONFIG and key != "data"]:
        raise VlaeError(f"{where}: it is not trained here, so {extra[0]} says nothing; only data may be given")
    else:
        if config.get("data"):
            check({"data": config["data"]}, where, trained=False)
        if "data" not in content:
            _same_data(cell, where)
    return cell


def _same_data(cell: Cell, where: str) -> None:
    """Refuses a finished model of other data than the base's: measured on these its numbers would mean nothing."""
    try:
        saved = json.loads((locate(cell.pretrained or cell.run) / MODEL).read_text())
        own = saved["metadata"]["data"]["name"]
    except (VlaeError, OSError, ValueError, KeyError, TypeError):
        return  # there is no such model (yet), or it does not say: the evaluation will find out
    if (data := cell.config.get("data")) and data.get("name", own) != own:
        raise VlaeError(
            f"{where}: its model was trained on {own} and the base's data are {data['name']}: give the cell its data, "
            f"such as {{name: {own}}}"
        )


def _budgets(content: Any) -> dict[str, int | None]:
    _known(content, None, "budgets")
    for name, images in content.items():
        if not isinstance(name, str):
            raise VlaeError(f"budgets: {name!r} is no name: put it in quotes")
        if images is not None and (isinstance(images, bool) or not isinstance(images, int) or images < 1):
            raise VlaeError(f"budgets: {name} must be a number of training images, or null; got {images!r}")
        if name[:1].isdigit():
            raise VlaeError(f"budgets: {name} looks like a duration; a name begins with a letter")
    return dict(content)


def _measure(content: Any) -> Measure:
    own = ("split", "limit")
    settings = [each.name for each in fields(Settings)]
    _known(content, [*settings, *own], "measure")
    _typed(content, "measure", split=str, limit=int)
    for key in settings:
        default = getattr(Settings(), key)
        if isinstance(default, tuple):
            each = str if key == "only" else int
            for value in _list(content.get(key, []), f"measure: {key}"):
                _typed({key: value}, "measure, each of", **{key: each})
        else:
            _typed(content, "measure", **{key: bool if isinstance(default, bool) else int})
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    measure = {key: given.pop(key) for key in own if key in given}
    limit = measure.get("limit")
    if limit is not None and limit < 2:
        raise VlaeError(f"measure: limit must be at least 2 images, or null for all; got {limit!r}")
    try:
        check_split(measure.get("split", "test"))
        return Measure(Settings(**given), **measure)
    except (VlaeError, TypeError) as error:
        raise VlaeError(f"measure: {error}") from None


def _plot(content: Any, axes: Collection[str]) -> dict[str, Any]:
    _known(content, None, "a plot", required=("kind",))
    _typed(content, "plots", kind=str, title=str, name=str, log_x=bool, of=str, count=int)
    kind = content["kind"]
    if kind not in PLOTS:
        raise VlaeError(f"plots: unknown kind {kind!r}: choose one of {', '.join(PLOTS)}")
    _known(content, ["kind", "title", "name", *PLOTS[kind]], f"plot {kind}")
    content = dict(content)
    for key in ("x", "y"):
        if key not in PLOTS[kind]:
            continue
        names = content.get(key)
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or (key == "x" and len(names) > 1):
            raise VlaeError(f"plot {kind}: {key} must name {'one column' if key == 'x' else 'columns'}; got {names!r}")
        _columns(names, axes, f"plot {kind}: {key}")
        content[key] = names[0] if key == "x" else list(names)
    if kind == "pictures" and content.get("of") not in PICTURES:
        raise VlaeError(f"plot pictures: of must be one of {', '.join(PICTURES)}; got {content.get('of')!r}")
    if not 1 <= content.get("count", 1) <= KEPT_PICTURES:
        raise VlaeError(
            f"plot pictures: count must be from 1 to {KEPT_PICTURES}, which are kept; got {content['count']}"
        )
    return content


def file_name(plots: Sequence[Mapping[str, Any]], plot: Mapping[str, Any]) -> str:
    """A plot's file: its own name, else its kind, numbered where there are several."""
    if plot.get("name"):
        return f"{slug(plot['name'])}.png"
    alike = [other for other in plots if other["kind"] == plot["kind"] and not other.get("name")]
    return f"{plot['kind']}{f'-{alike.index(plot) + 1}' if len(alike) > 1 else ''}.png"


def _typed(content: Mapping[str, Any], where: str, **types: type) -> None:
    """Refuses values of other types; what is not there, or null, may be."""
    words = {str: "text", int: "a whole number", bool: "true or false", dict: "keys and values"}
    for key, wanted in types.items():
        value = content.get(key)
        wrong = not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))
        if value is not None and wrong:
            raise VlaeError(f"{where}: {key} must be {words[wanted]}; got {value!r}")


def _columns(names: Collection[str], axes: Collection[str], where: str) -> None:
    known = [*METRICS, *STUDY, *axes]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise VlaeError(f"{where}: no metric {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))


def _known(content: Any, known: Collection[str] | None, where: str, required: Collection[str] = ()) -> None:
    """Refuses what is no dictionary, unknown keys (`known` None: any will do) and missing ones."""
    if not isinstance(content, dict):
        raise VlaeError(f"{where} must be keys and values; got {content!r}")
    for key in content:
        if known is not None and key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise VlaeError(f"{where}: unknown key {key!r}; {hint}")
    if missing := [key for key in required if key not in content]:
        raise VlaeError(f"{where}: {missing[0]} is missing")


def _list(content: Any, where: str) -> list[Any]:
    if not isinstance(content, list):
        raise VlaeError(f"{where} must be a list; got {content!r}")
    return content
