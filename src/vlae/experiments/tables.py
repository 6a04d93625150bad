"""What a study comes to: the table (console, Markdown, CSV), everything as JSON, and the plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from vlae.errors import VlaeError, one_line
from vlae.evaluation.metrics import METRICS
from vlae.experiments.columns import STUDY, column
from vlae.experiments.study import Cell, Study, file_name
from vlae.figures import save
from vlae.figures.sheets import sheet
from vlae.figures.studies import Point, bars, lines, rate_distortion
from vlae.files import json_text, write_text

Results = Mapping[str, dict[str, Any]]  # what `cells.evaluate` made, by the cell's name


@dataclass(frozen=True)
class About:
    """What was done.

    Attributes:
        budget: in words.
        command: that does it again.
        failures: why a cell is not there, by name.
    """

    budget: str
    command: str
    failures: dict[str, str] = field(default_factory=dict)


def write(study: Study, results: Results, output: Path, about: About) -> None:
    """Writes table, JSON and plots to `output`, and prints the table."""
    notes = footnotes(study, results, about)
    write_text(output / "table.csv", as_csv(study, results))
    write_text(output / "results.json", as_json(study, results, about))
    pictures = _plots(study, results, output)
    write_text(output / "table.md", as_markdown(study, results, notes, list(pictures)))
    console = Console()
    table = as_table(study, results)
    if Measurement.get(console, console.options.update(width=10_000), table).maximum > console.width:
        table = as_table(study, results, transposed=True)
    console.print(table)
    for note in notes:
        console.print(f"- {escape(note)}", highlight=False)
    print(f"written: {', '.join(str(output / name) for name in ('table.md', 'table.csv', 'results.json', *pictures))}")


def value(cell: Cell, result: Mapping[str, Any] | None, name: str) -> float | None:
    """A cell's number by its column: measured, else one that the study gives."""
    found = None if result is None else result["values"].get(name)
    known = name in METRICS or name in STUDY  # what is measured is never taken from what the study says
    return cell.x.get(name) if found is None and not known else found


def error(result: Mapping[str, Any] | None, name: str) -> float | None:
    """The standard error of a cell's number."""
    return None if result is None else result["errors"].get(name)


def shown(study: Study, results: Results) -> list[str]:
    """The columns of which any cell has a number."""
    return [
        name
        for name in study.columns
        if any(value(c, results.get(c.name), name) is not None or name in c.published for c in study.cells)
    ]


def rows(study: Study, results: Results) -> tuple[list[str], list[list[str]]]:
    """The table in words: the headings, and a row for each cell. Published numbers stand right of the obtained."""
    names = shown(study, results)
    published = {name for cell in study.cells for name in cell.published}
    headings = [""]
    for name in names:
        headings += [column(name).heading, *(["published"] if name in published else [])]
    table = []
    for cell in study.cells:
        result = results.get(cell.name)
        row = [cell.name]
        for name in names:
            metric = column(name)
            row.append(metric.written(value(cell, result, name), error(result, name)))
            if name in published:
                row.append(metric.written(cell.published.get(name)))
        table.append(row)
    return headings, table


def as_table(study: Study, results: Results, transposed: bool = False) -> Table:
    """The table for a console; transposed, a cell is a column."""
    headings, cells = rows(study, results)
    if transposed:
        headings, *cells = map(list, zip(headings, *cells, strict=True))
    table = Table(title=escape(study.title), title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(escape(heading), justify="right" if i else "left")
    for row in cells:
        table.add_row(*map(escape, row))
    return table


def as_markdown(study: Study, results: Results, notes: list[str], pictures: list[str]) -> str:
    """Title, question, table, plots and notes."""
    headings, cells = rows(study, results)
    lines = [f"# {study.title}", ""]
    lines += [study.question, ""] if study.question else []
    lines += ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in cells]
    lines += ["", *(f"![{name}]({name})" for name in pictures), *([""] if pictures else [])]
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


def as_csv(study: Study, results: Results) -> str:
    """A row for each cell: its numbers in full, their standard errors and published ones where there are any."""
    names = shown(study, results)
    with_error = {name for name in names if any(error(results.get(c.name), name) is not None for c in study.cells)}
    published = {name for cell in study.cells for name in cell.published}
    header = ["cell", "group"]
    for name in names:
        header += [name, *([f"{name}_error"] if name in with_error else [])]
        header += [f"{name}_published"] if name in published else []
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(header)
    for cell in study.cells:
        result = results.get(cell.name)
        row: list[Any] = [cell.name, cell.group]
        for name in names:
            row.append(_blank(value(cell, result, name)))
            row += [_blank(error(result, name))] if name in with_error else []
            row += [_blank(cell.published.get(name))] if name in published else []
        writer.writerow(row)
    return buffer.getvalue()


def as_json(study: Study, results: Results, about: About) -> str:
    """Everything that is known of every cell."""
    cells = [
        {
            "name": cell.name,
            "group": cell.group,
            "x": cell.x,
            "published": cell.published,
            "failure": about.failures.get(cell.name),
            "result": results.get(cell.name),
        }
        for cell in study.cells
    ]
    whole = {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "budget": about.budget,
        "command": about.command,
        "cells": cells,
    }
    return json_text(whole)


def footnotes(study: Study, results: Results, about: About) -> list[str]:
    """What the numbers mean and how they came about."""
    notes = [*study.notes, *(f"{cell.name}: {cell.note}" for cell in study.cells if cell.note)]
    notes.append(about.budget)
    notes += _shared(results, lambda result: [f"measured on {result['data']}"])
    notes += _shared(results, lambda result: result["notes"])
    metrics = [METRICS[name] for name in study.columns if name in METRICS]
    for name in dict.fromkeys(key for metric in metrics for key in (metric.group, metric.name)):
        why = _shared(results, lambda result, name=name: [result["skipped"][name]] if name in result["skipped"] else [])
        notes += [f"no {column(name).label}: {text}" for text in why]
    if results and (left := [name for name in study.columns if name not in shown(study, results)]):
        notes.append(f"no cell has a number of: {', '.join(column(name).label for name in left)}")
    seeds = sorted({result["seed"] for result in results.values() if result["seed"] is not None})
    if seeds:
        notes.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    notes += sorted({f"{result['machine']}; {result['versions']}" for result in results.values()})
    for cell in study.cells:
        if cell.name not in results:
            notes.append(f"{cell.name} is missing: {about.failures.get(cell.name, 'not done yet')}")
    notes.append(f"made by: {about.command}")
    return notes


def _shared(results: Results, of: Any) -> list[str]:
    """What results say, once; with the cells' names where not all say it."""
    said: dict[str, list[str]] = {}
    for name, result in results.items():
        for text in of(result):
            said.setdefault(text, []).append(name)
    return [text if len(names) == len(results) else f"{', '.join(names)}: {text}" for text, names in said.items()]


def _blank(number: float | None) -> Any:
    return "" if number is None else number


# -- plots ------------------------------------------------------------------------------------------------------------


def _plots(study: Study, results: Results, output: Path) -> dict[str, Path]:
    """Draws the plots of which there is anything to draw; file names and paths."""
    made: dict[str, Path] = {}
    for plot in study.plots:
        name = file_name(study.plots, plot)
        try:
            figure, why = draw(study, results, plot, output), "no cell has its numbers"
        except Exception as error:  # a plot is not worth the table
            figure, why = None, str(error) if isinstance(error, VlaeError) else one_line(error)
        if figure is None:
            print(f"{name} is left out: {why}")
            continue
        save(figure, output / name)
        made[name] = output / name
    return made


def draw(study: Study, results: Results, plot: Mapping[str, Any], output: Path) -> Figure | None:
    """A plot; None where no cell has its numbers."""
    kind, title = plot["kind"], plot.get("title", study.title)
    if kind == "pictures":
        return _sheet(study, results, plot, output, title)
    if kind == "rate-distortion":
        points = [
            point._replace(x=rate)
            for cell, point in _points(study, results, "distortion")
            if (rate := value(cell, results.get(cell.name), "rate")) is not None
        ]
        return rate_distortion(points, title) if points else None
    x = plot.get("x")
    panels = {}
    for name in plot["y"]:
        points = []
        for cell, point in _points(study, results, name):
            place = value(cell, results.get(cell.name), x) if x else 0.0
            if place is not None:
                points.append(point._replace(x=place))
        if points:
            panels[_axis(name)] = points
    if not panels:
        return None
    if kind == "bars":
        return bars(panels, title)
    return lines(panels, _axis(str(x)), title, bool(plot.get("log_x")))


def _points(study: Study, results: Results, name: str) -> list[tuple[Cell, Point]]:
    found = []
    for cell in study.cells:
        result = results.get(cell.name)
        if result is not None and (y := value(cell, result, name)) is not None:
            point = Point(
                cell.name,
                y,
                error=error(result, name),
                published=cell.published.get(name),
                group=cell.group,
                text=format(y, column(name).form),
            )
            found.append((cell, point))
    return found


def _axis(name: str) -> str:
    """A metric on an axis, with its unit."""
    metric = column(name)
    unit = f"{metric.unit} per image" if metric.unit in ("nats", "bits") else metric.unit
    return f"{metric.label} [{unit}]" if unit else metric.label


def _sheet(study: Study, results: Results, plot: Mapping[str, Any], output: Path, title: str) -> Figure | None:
    """A row of pictures for each cell, below the data's own."""
    wanted, count = plot["of"], plot.get("count", 16)
    sets: dict[str, torch.Tensor] = {}
    for cell in study.cells:
        path = output / "cells" / cell.slug / "pictures.npz"
        if cell.name not in results or not path.is_file():
            continue
        with np.load(path) as arrays:
            for name, label in (("data", "data"), (wanted, cell.name)):
                if name in arrays and len(arrays[name]) >= count:
                    sets.setdefault(label, torch.from_numpy(arrays[name][:count]) / 255)
    return sheet(sets, count, title) if len(sets) > 1 else None
