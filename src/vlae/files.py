"""Atomic writes: a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a write fails with where there is no room for it; the system names no file then.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends, and is removed if the block fails.

    Missing parent directories are made. The content is on the disk before it gets its name, so that not even a power
    cut leaves half a file under it. Raises `OSError`, which names `path`, where the file can't be written.
    """
    # Beside the target, because os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary) or (error.filename is None and error.errno in _NO_ROOM):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        if temporary.is_file():
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a file of bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `path` when the block ends, and is removed if the block fails.

    The old content is removed last, so that one of the two is always whole. Between two renames there is nothing under
    the name: a process killed in that instant leaves the old directory as `.<name>.old-.../content`, see `set_aside`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        new.chmod(0o755)  # mkdtemp's are private
        yield new
        for file in new.iterdir():
            _flush(file)
        _replace_directory(path, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace_directory(path: Path, new: Path) -> None:
    if not path.exists():
        os.rename(new, path)
        return
    old = aside(path)
    try:
        os.rename(path, old)
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        old.parent.rmdir()
        raise
    shutil.rmtree(old.parent, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def aside(path: Path) -> Path:
    """A new path beside `path` that its content can be moved to while a successor takes its place."""
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent)) / "content"


def set_aside(path: Path) -> list[Path]:
    """What `aside` made room for and no process has put back or removed: the newest first.

    Example:
        >>> set_aside(Path("no-such-directory") / "model")
        []
    """
    found = path.parent.glob(f".{path.name}.old-*/content") if path.name else ()
    return sorted(found, key=lambda content: content.stat().st_mtime, reverse=True)
