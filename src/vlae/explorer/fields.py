"""The fields of a request: each asked for by name, with its type and range."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vlae.errors import VlaeError

MOST_NUMBERS = 1_000_000  # in a code


class Fields:
    """A request's JSON object.

    Args:
        body: its text.

    Raises:
        VlaeError: no JSON object; and in all methods a field that is missing, of another type or out of range.

    Example:
        >>> Fields(b'{"seed": 3}').whole("seed", 0, 10)
        3
    """

    def __init__(self, body: bytes):
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            raise VlaeError("the request is not JSON") from None
        if not isinstance(values, dict):
            raise VlaeError(f"expected a JSON object; got {type(values).__name__}")
        self.values: dict[str, Any] = values

    def text(self, name: str) -> str:
        """A string."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise VlaeError(f"{name} must be a string; got {_short(value)}")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string, or None where it is left out."""
        return None if self.values.get(name) is None else self.text(name)

    def flag(self, name: str) -> bool:
        """True or false; false where it is left out."""
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise VlaeError(f"{name} must be true or false; got {_short(value)}")
        return value

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """An integer in a range."""
        value = self.values.get(name, default)
        if type(value) is not int or not least <= value <= most:  # True is an int too
            raise VlaeError(f"{name} must be an integer from {least} to {most}; got {_short(value)}")
        return value

    def numbers(self, name: str) -> list[float]:
        """A list of finite numbers."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) > MOST_NUMBERS or not all(map(_finite, value)):
            raise VlaeError(f"{name} must be a list of finite numbers; got {_short(value)}")
        return value

    def told(self, name: str = "context") -> int | list[float] | None:
        """A label, a list of attributes, or nothing."""
        value = self.values.get(name)
        if value is None or (type(value) is int and abs(value) < 2**31):
            return value
        return self.numbers(name)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # NaN is not


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{type(value).__name__} of {len(value)}"
    return "nothing" if value is None else repr(value)[:60]
