"""Writes the reference of the command line into docs/reference/cli.md while the site is built, from the parsers."""

from __future__ import annotations

import argparse
import html
from typing import Any
from unittest import mock

PLACE = "<!-- commands -->"


class _Found(Exception):
    """No error, but the way out of a command."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces the mark on the page of the command line."""
    return markdown.replace(PLACE, reference()) if page.file.src_uri == "reference/cli.md" else markdown


def reference() -> str:
    """All commands with their options, as Markdown."""
    from vlae.cli import COMMANDS

    lines = ["| command | |", "|---|---|"]
    lines += [f"| [`vlae {name}`](#vlae-{name.replace(' ', '-')}) | {text} |" for name, (_, text) in COMMANDS.items()]
    for name, (_, text) in COMMANDS.items():
        lines += ["", f"## vlae {name}", "", text[0].upper() + text[1:] + ".", ""]
        lines += options(parser_of(name))
    return "\n".join(lines)


def parser_of(name: str) -> Any:
    """The parser that the command makes: it is caught when the command is asked for its help."""
    from jsonargparse import ArgumentParser

    from vlae.cli import COMMANDS

    with mock.patch.object(ArgumentParser, "print_help", autospec=True, side_effect=_Found) as printed:
        try:
            COMMANDS[name][0](["--help"])
        except _Found:
            return printed.call_args.args[0]
    raise RuntimeError(f"vlae {name} did not ask a parser for help")


def options(parser: Any) -> list[str]:
    """A table of the parser's arguments: name, default, what it is."""
    rows = []
    for action in parser._actions:
        hidden = action.help == argparse.SUPPRESS or "--help" in action.option_strings
        if hidden or action.dest in ("print_config", "print_shtab") or type(action).__name__ == "_ActionConfigLoad":
            continue
        names = ", ".join(f"`{option}`" for option in action.option_strings if not option.endswith("+"))
        rows.append((names or f"`{action.dest.upper()}`", written(action), explained(action)))
    if not rows:
        return ["No options."]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return ["| option | default | |", "|---|---|---|", *(f"| {row} |" for row in cells)]


def written(action: Any) -> str:
    """The default, or nothing where there is none."""
    default = action.default
    if default in (None, argparse.SUPPRESS, []) or default == {}:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{getattr(default, 'class_path', default)}`"


def explained(action: Any) -> str:
    """The help text, without what jsonargparse appends to it."""
    text = " ".join((action.help or "").split()).replace("%(default)s", str(action.default))
    return html.escape(text, quote=False).replace("*", "\\*")
