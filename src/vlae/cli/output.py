"""How a command ends in an error."""

from __future__ import annotations

import sys

from vlae.processes import first_to_fail


def fail(message: str, code: int = 2) -> int:
    """One line on standard error; of several processes that fail together, only the first one's."""
    if first_to_fail():
        print("vlae: error: " + " ".join(message.split()), file=sys.stderr)
    return code
