"""From a name and options, as they stand in a configuration, to an object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vlae.errors import VlaeError

Made = TypeVar("Made")


def make(what: str, name: str, kinds: Mapping[str, Callable[..., Made]], given: tuple, options: dict[str, Any]) -> Made:
    """kinds[name](*given, **options); unknown names and options are refused with the choices.

    Args:
        what: the word for the kind of thing, for the message: "prior".
        name: which of them.
        kinds: what can be made, by name.
        given: positional arguments, which are not the user's to choose.
        options: the user's.
    """
    if name not in kinds:
        raise VlaeError(f"unknown {what} {name!r}: choose one of {', '.join(kinds)}")
    parameters = inspect.signature(kinds[name]).parameters.values()
    # A class without a constructor of its own has PyTorch's, which takes anything.
    known = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)][len(given) :]
    unknown = [option for option in options if option not in {parameter.name for parameter in known}]
    if unknown:
        choices = ", ".join(parameter.name for parameter in known) or "none"
        raise VlaeError(f"the {what} {name!r} has no option {unknown[0]!r}: its options are {choices}")
    missing = [p.name for p in known if p.default is p.empty and p.name not in options]
    if missing:
        raise VlaeError(f"the {what} {name!r} needs the option {missing[0]!r}")
    try:
        return kinds[name](*given, **options)
    except TypeError as error:
        raise VlaeError(f"the {what} {name!r} can't be made with {options}: {error}") from None
