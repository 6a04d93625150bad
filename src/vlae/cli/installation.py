"""`vlae verify` and `vlae models`: what is installed."""

from __future__ import annotations

from vlae.cli.choices import parser_for
from vlae.training.configuration import parse


def verify(words: list[str]) -> int:
    """Checks this installation against exact answers, in seconds."""
    parse(parser_for("verify"), words)
    from vlae.verify import run

    return run()


def models(words: list[str]) -> int:
    """Lists the pretrained models."""
    parse(parser_for("models"), words)
    from vlae.models.saving import load, pretrained_names

    for name in pretrained_names():
        model = load(name)
        size = sum(p.numel() for p in model.parameters())
        print(f"{name:18s}{type(model).__name__:6s}{size:>10,} parameters  {model.metadata.get('protocol', '')}")
    return 0
