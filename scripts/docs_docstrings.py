"""What docstrings hold beside Markdown: doctests as code, and formulas (`.. math::` and `:math:`) as MathML.

Browsers draw MathML themselves, so that nothing has to be fetched.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

_BLOCK = re.compile(r"^\.\. math::[ \t]*(?P<formula>.+(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_INLINE = re.compile(r":math:`(?P<formula>[^`]+)`")
_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*(?:\n\n>>> .*(?:\n.+)*)*", re.MULTILINE)


def on_config(config: Any, **_: Any) -> Any:
    """Adds the extension to those of the site, and so to those of the docstrings."""
    config.markdown_extensions.append(Docstrings())
    return config


class Docstrings(Extension):
    """Markdown with what docstrings hold beside it."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Registers both: doctests before fenced code is read (25), formulas after it and before HTML (20)."""
        md.preprocessors.register(_Doctests(md), "doctests", 29)
        md.preprocessors.register(_Formulas(md), "formulas", 24)


class _Doctests(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        fenced = _DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```", "\n".join(lines))
        return fenced.split("\n")


class _Formulas(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        text = "\n".join(lines)
        for pattern, display in ((_BLOCK, "block"), (_INLINE, "inline")):
            text = pattern.sub(lambda found, display=display: self._drawn(found["formula"], display), text)
        return text.split("\n")

    def _drawn(self, formula: str, display: str) -> str:
        known = " ".join(formula.split()).replace(r"\arg", r"\operatorname{arg}")  # the converter has no such name
        mathml = convert(known, display=display)
        if display == "inline":
            return str(self.md.htmlStash.store(mathml))
        return "\n" + self.md.htmlStash.store(f'<div class="formula">{mathml}</div>') + "\n"
