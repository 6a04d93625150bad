"""The one exception that the command line turns into a single clear line."""

import math
import re
from numbers import Real
from typing import TypeGuard


class VlaeError(ValueError):
    """What the caller gave can't be used; the message says what was expected and what to do.

    A subclass of `ValueError`, so that library users need no import to catch it. The command line prints it as one
    line and exits with code 2; anything else is a bug and keeps its traceback.
    """


def require_positive(name: str, *numbers: int) -> None:
    """Refuses sizes under 1 and anything but integers, naming the argument that they came from."""
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if not whole or min(numbers, default=1) < 1:
        kind = "" if whole else "a whole number of "
        raise VlaeError(f"{name} must be {kind}1 or more; got {', '.join(map(repr, numbers))}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite real number, of whatever type; a boolean is none.

    Example:
        >>> [is_number(value) for value in (0.5, 2, True, "2", None, float("nan"))]
        [True, True, False, False, False, False]
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def require_numbers(what: str, **values: object) -> None:
    """Refuses anything but finite numbers, naming what needs them and the argument that it came from."""
    for name, value in values.items():
        if not is_number(value):
            raise VlaeError(f"{what} needs a finite number for {name}; got {value!r}")


def require_not_negative(name: str, value: object) -> None:
    """Refuses anything but a finite number of 0 or more, naming the argument that it came from."""
    if not is_number(value) or value < 0:
        raise VlaeError(f"{name} must be a number of 0 or more; got {value!r}")


def one_line(error: BaseException) -> str:
    """An exception's type and the beginning of what it says, for the end of a message; no addresses in memory."""
    text = re.sub(r"<(\S+ object) at 0x[0-9a-f]+>", r"\1", f"{type(error).__name__}: {error}")
    return " ".join(text.split())[:120]
