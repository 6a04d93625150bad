"""How a command ends in an error."""

from __future__ import annotations

import errno
import os
import sys

from vlae.processes import first_to_fail

_NO_ROOM = "free some space; what was there is whole, and a training run continues with --resume"
_NOT_ALLOWED = "choose a place that can be written to"
_ADVICE = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.EEXIST: "something else is there: choose another name",
}


def fail(message: str, code: int = 2) -> int:
    """One line on standard error; of several processes that fail together, only the first one's."""
    if first_to_fail():
        print("vlae: error: " + " ".join(message.split()), file=sys.stderr)
    return code


def system_error(error: OSError) -> str:
    """What the system refused, on which file, and what to do.

    Example:
        >>> system_error(OSError(errno.EROFS, "Read-only file system", "/a/b"))
        'Read-only file system: /a/b; choose a place that can be written to'
    """
    what = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    return f"{what}; {_ADVICE[error.errno]}" if error.errno in _ADVICE else what


def nobody_reads() -> int:
    """Ends quietly after a broken pipe, as in `vlae info FILE | head -1`; the exit code of a command killed by one."""
    # Python flushes standard output once more at its end: into nothing, so that it does not complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13
