"""Where a command puts its picture, and how it ends in an error."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from vlae.errors import VlaeError
from vlae.files import check_target
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
    errno.ENOTDIR: "a file is where a directory was expected: choose another place",
}


def add_output(parser: Any, default: str, array: bool = False) -> None:
    """Where the picture goes: `check_output` and `output_path` read it. With `array`, its pixels go beside it."""
    what = "PNG, and .npz of the same name for the pixels" if array else "PNG"
    parser.add_argument("--output", type=str | None, default=None, help=f"{what}; {default} if not given")


def check_output(settings: Any, array: bool = False) -> None:
    """Refuses an --output that can't be written, or would take away what was not named: before any work is done."""
    if settings.output is None:
        return
    path = Path(settings.output)
    if path.suffix.lower() != ".png":
        raise VlaeError(f"--output is the name of a PNG, but {settings.output!r} does not end in .png")
    beside = path.with_suffix(".npz")
    # Both are there where the command is run again. The array alone is something else, and was not named.
    if array and beside.exists() and not path.exists():
        raise VlaeError(
            f"{beside} would be overwritten by the pixels of {path}: give another --output, or move it away"
        )
    _check_files(path, array)


def output_path(settings: Any, default: Path, array: bool = False) -> Path:
    """The --output, else the default, which is checked here: it is known only once there is a model."""
    path = default if settings.output is None else Path(settings.output)
    _check_files(path, array)
    return path


def _check_files(path: Path, array: bool) -> None:
    for file in [path, path.with_suffix(".npz")] if array else [path]:
        check_target(file)


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
