"""The one exception that the command line turns into a single clear line."""

import re


class VlaeError(ValueError):
    """What the caller gave can't be used; the message says what was expected and what to do.

    A subclass of `ValueError`, so that library users need no import to catch it. The command line prints it as one
    line and exits with code 2; anything else is a bug and keeps its traceback.
    """


def require_positive(name: str, *numbers: int) -> None:
    """Refuses sizes under 1 and anything but integers, naming the argument that they came from."""
    if any(not isinstance(number, int) or number < 1 for number in numbers):
        raise VlaeError(f"{name} must be 1 or more; got {', '.join(map(str, numbers))}")


def one_line(error: BaseException) -> str:
    """An exception's type and the beginning of what it says, for the end of a message; no addresses in memory."""
    text = re.sub(r"<(\S+ object) at 0x[0-9a-f]+>", r"\1", f"{type(error).__name__}: {error}")
    return " ".join(text.split())[:120]
