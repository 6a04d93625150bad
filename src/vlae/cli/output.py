"""How a command ends in an error."""

from __future__ import annotations

import sys


def fail(message: str, code: int = 2) -> int:
    """One line on standard error."""
    print("vlae: error: " + " ".join(message.split()), file=sys.stderr)
    return code
