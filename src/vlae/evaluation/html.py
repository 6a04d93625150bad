"""An evaluation as one HTML page that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from vlae.evaluation.criteria import Criterion
from vlae.evaluation.illustrations import Illustration
from vlae.evaluation.measurements import Measurements
from vlae.evaluation.metrics import GROUPS, METRICS, Metric
from vlae.evaluation.rows import in_bits, nll_cells, rows_of

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6875; --line: #d5dbe1; --paper: #ffffff; --good: #1a7f37;
  --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa7b4; --line: #39434e; --paper: #14181d; --good: #4ac26b; --bad: #ff7b72; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .25rem; }
p { margin: .25rem 0 .75rem; }
.soft, small { color: var(--soft); }
small { display: block; font-size: .8rem; line-height: 1.3; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); }
thead th.number, thead th { font-size: .8rem; color: var(--soft); font-weight: 600; white-space: normal; }
.scroll { overflow-x: auto; }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.short { white-space: nowrap; }
.number + .short { padding-left: 1rem; }
figure { margin: 1rem 0; }
figcaption { font-size: .85rem; color: var(--soft); }
figcaption strong { color: var(--ink); }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: white; }
.side { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.wide { grid-column: 1 / -1; }
.met { color: var(--good); font-weight: 600; } .not-met { color: var(--bad); font-weight: 600; }
code { font-size: .8rem; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""

ARROWS = {"lower": "↓ lower", "higher": "↑ higher", "": ""}


def page(
    found: Measurements,
    about: Mapping[str, str],
    illustrations: Sequence[Illustration] = (),
    criteria: Sequence[Criterion] | None = None,
) -> str:
    """The page.

    Args:
        found: what was measured.
        about: where the numbers come from, lines by name.
        illustrations: pictures, in their order.
        criteria: success criteria, where they were asked for.

    Returns:
        HTML. The same evaluation gives the same text: there is no date in it, and no time that anything took.
    """
    title = f"{found.model} on {found.data.split(':')[0]}"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(found.data)}</p>']
    if criteria is not None:
        body += section("Success criteria", [criteria_table(criteria)])
    for group, text in GROUPS.items():
        rows = rows_of(found, group)
        tables = [metric_table(rows, found)] if rows else []
        if group == "nll" and "nll_by_samples" in found.series:
            tables.insert(0, nll_table(found.series["nll_by_samples"]))
        if tables:
            body += section(group.capitalize() if group != "nll" else "NLL", [paragraph(text), *tables])
    if illustrations:
        body += section("Pictures", ['<div class="side">', *map(picture, illustrations), "</div>"])
    if found.notes:
        body += section("Notes", [bullets(found.notes)])
    if found.skipped:
        body += section("Not measured", [bullets(f"{name}: {reason}" for name, reason in found.skipped.items())])
    body += section("Where these numbers come from", [provenance_table(about)])
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def section(title: str, parts: Iterable[str]) -> list[str]:
    """A heading and what is below it, already HTML."""
    return ["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"]


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f'<p class="soft">{escape(text[:1].upper() + text[1:])}.</p>'


def bullets(lines: Iterable[str]) -> str:
    """Plain lines as a list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), short: Sequence[int] = ()
) -> str:
    """A table of cells that are HTML already; the first of each row is its heading.

    Args:
        headings: of the columns, plain text; none: a table without a head.
        rows: cells.
        numbers: columns that are set flush right.
        short: columns that are not broken into lines.
    """

    def cell(tag: str, column: int, content: str, scope: str = "") -> str:
        kind = ' class="number"' if column in numbers else ' class="short"' if column in short else ""
        return f"<{tag}{scope}{kind}>{content}</{tag}>"

    head = "".join(cell("th", i, escape(text), ' scope="col"') for i, text in enumerate(headings))
    head = f"<thead><tr>{head}</tr></thead>\n" if headings else ""
    lines = []
    for first, *others in rows:
        cells = [cell("th", 0, first, ' scope="row"'), *(cell("td", i, text) for i, text in enumerate(others, 1))]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n{head}<tbody>\n{body}\n</tbody>\n</table></div>'


def metric_table(metrics: Sequence[Metric], found: Measurements) -> str:
    """A group's numbers, in bits too where they are nats, and which way is better."""
    with_bits = any(metric.unit == "nats" for metric in metrics)
    rows = []
    for metric in metrics:
        value, error = found.values[metric.name], found.errors.get(metric.name)
        cells = [f"{escape(metric.heading)}<small>{escape(metric.about)}</small>"]
        cells.append(escape(metric.written(value, error)))
        if with_bits:
            cells.append(escape(in_bits(metric, value)))
        rows.append([*cells, ARROWS[metric.better]])
        if metric.name == "rate":
            for level, rate in enumerate(found.series.get("rate_per_level", []), 1):
                rows.append([f"of z_{level}", metric.written(rate), in_bits(metric, rate), ""])
    headings = ["per image", "value", *(["in bits"] if with_bits else []), "better"]
    return table(headings, rows, numbers=range(1, len(headings) - 1), short=[len(headings) - 1])


def nll_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The NLL at each number of importance samples."""
    headings = ["importance samples K", METRICS["nll"].heading, "in bits", "bits/dim", "effective samples"]
    return table(headings, [[escape(cell) for cell in nll_cells(row)] for row in rows], numbers=range(1, len(headings)))


def criteria_table(criteria: Sequence[Criterion]) -> str:
    """Each criterion with its verdict and its numbers."""
    kinds = {True: "met", False: "not-met", None: "soft"}
    rows = [
        [
            f"{escape(criterion.title)}<small>{escape(criterion.evidence)}</small>",
            f'<span class="{kinds[criterion.met]}">{escape(criterion.verdict)}</span>',
        ]
        for criterion in criteria
    ]
    return table(["criterion and numbers", "verdict"], rows, short=[1])


def provenance_table(about: Mapping[str, str]) -> str:
    """Lines by name."""
    rows = [[escape(name), f"<code>{escape(line)}</code>"] for name, line in about.items()]
    return table([], rows, short=[0])


def picture(illustration: Illustration) -> str:
    """A figure as a picture inside the page."""
    kind = ' class="wide"' if illustration.wide else ""
    about, title = escape(illustration.about), escape(illustration.title)
    return (
        f'<figure{kind}><img alt="{about}" src="data:image/png;base64,{as_png(illustration.figure)}">'
        f"<figcaption><strong>{title}.</strong> {about}</figcaption></figure>"
    )


def as_png(figure: Figure) -> str:
    """A figure as PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")
