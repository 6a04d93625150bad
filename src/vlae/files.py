"""Atomic writes: a reader sees the old file or the whole new one, never a part. One writer holds a directory."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from vlae.errors import VlaeError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

# What a write fails with where there is no room for it; the system names no file then.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# What is being written bears the number of its process, and of its machine: others may share the directory, and only on
# its own machine can one see whether a process still lives. A hash, as host names may be long and of any characters.
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_UNFINISHED = re.compile(rf"\..+\.(?:new-)?{_HOST}-([0-9]{{1,9}})(?:\.tmp|-\w+)")

# Bytes of a name to which up to 33 are added meanwhile: file systems take 255.
_LONGEST_NAME = 222


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends, and is removed if the block fails.

    Missing parent directories are made. The content is on the disk before it gets its name, so that not even a power
    cut leaves half a file under it. What killed processes have left in the directory is removed. Raises `OSError`,
    which names `path`, where the file can't be written.
    """
    with _beside(path) as temporary:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary path for what is to take the place of `path`; what is still there when the block ends is removed."""
    # Beside the target, because os.replace is atomic only within one file system.
    temporary = path.with_name(f".{_shortened(path.name)}.{_owner()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.absolute(), os.getpid())
        yield temporary
    except OSError as error:
        if error.filename == str(temporary) or (error.filename is None and error.errno in NO_ROOM):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if temporary.is_file():
            temporary.unlink()


def check_target(path: Path) -> None:
    """Refuses a file that can't be written, before hours are spent on its content.

    Raises:
        VlaeError: a directory is in its place.
        OSError: as `check_place`.
    """
    check_place(path.parent)
    if path.is_dir():
        raise VlaeError(f"{path}: a directory, where a file is to be written; choose another name")


def check_place(directory: Path) -> None:
    """Refuses a directory that can be neither made nor written to, before hours are spent on what is to go there.

    Nothing is made yet. Raises `OSError`, which names the file or directory that is in the way.
    """
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


@contextmanager
def holding(directory: Path) -> Iterator[int]:
    """Holds a directory for this process, and yields its number in the file system; it may be renamed meanwhile.

    The system lets go of it with the process, however that ends. Where it can't hold directories (Windows, some network
    drives) nothing is held.

    Raises:
        VlaeError: another process, or another part of this one, holds it.
    """
    handle = os.open(directory, os.O_RDONLY) if fcntl is not None else None
    try:
        if fcntl is not None and handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise VlaeError(
                    f"another process is writing to {directory}: wait for it, stop it, or choose another name"
                ) from None
            except OSError:
                pass
        yield directory.stat().st_ino
    finally:
        if handle is not None:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(values: Any) -> str:
    """Values as the text of a JSON file, with null where a number is NaN or infinite, which JSON has not."""
    return json.dumps(_finite(values), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file of bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together: all of them are on the disk before the first takes its place."""
    with ExitStack() as stack:
        written = {}
        for path in contents:
            check_target(path)
        for path, data in contents.items():
            written[path] = temporary = stack.enter_context(_beside(path))
            temporary.write_bytes(data)
            _flush(temporary)
        for path, temporary in written.items():
            os.replace(temporary, path)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `path` when the block ends, and is removed if the block fails.

    The old content is removed last, so that one of the two is always whole. Between two renames there is nothing under
    the name: a process killed in that instant leaves the old directory as `.<name>.old-.../content`, see `set_aside`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent.absolute(), os.getpid())
    new = Path(tempfile.mkdtemp(prefix=f".{_shortened(path.name)}.new-{_owner()}-", dir=path.parent))
    try:
        new.chmod(0o755)  # mkdtemp's are private
        yield new
        for file in new.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _flush(file)
        _replace_directory(path, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace_directory(path: Path, new: Path) -> None:
    # What killed processes have set aside may be the only copy, or half removed: it goes while there is a whole one.
    superseded = re.compile(rf"{re.escape(f'.{_shortened(path.name)}.old-{_HOST}')}-([0-9]{{1,9}})-\w+")
    if not path.exists():
        os.rename(new, path)
        _remove_unowned(path.parent, superseded)
        return
    _remove_unowned(path.parent, superseded)
    old = aside(path, _owner() + "-")
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
    # For reading where the system allows that: a copy of what was read-only is, too.
    stream = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(stream)
    finally:
        os.close(stream)


def aside(path: Path, owner: str = "") -> Path:
    """A new path beside `path` that its content can be moved to while a successor takes its place."""
    return Path(tempfile.mkdtemp(prefix=f".{_shortened(path.name)}.old-{owner}", dir=path.parent)) / "content"


def set_aside(path: Path) -> list[Path]:
    """What `aside` made room for and no process has put back or removed: the newest first.

    Example:
        >>> set_aside(Path("no-such-directory") / "model")
        []
    """
    found = path.parent.glob(f"{glob.escape(f'.{_shortened(path.name)}.old-')}*/content") if path.name else ()
    return sorted(found, key=lambda content: content.stat().st_mtime, reverse=True)


def _owner() -> str:
    return f"{_HOST}-{os.getpid()}"


def _shortened(name: str) -> str:
    """A file's name, its middle replaced where it would be too long with what is added to it.

    By a hash: names that differ in their middle alone are written at the same time.
    """
    data = name.encode(errors="surrogatepass")
    if len(data) <= _LONGEST_NAME:
        return name
    # Characters that are cut are left out.
    start, end = (part.decode(errors="ignore") for part in (data[:90], data[-90:]))
    return f"{start}~{hashlib.sha256(data).hexdigest()[:32]}~{end}"


@lru_cache(maxsize=1024)
def _sweep(directory: Path, process: int) -> None:
    """Removes what processes of this machine had begun to write into a directory when they were killed.

    Whatever it was to become: its writer is gone. Once for each process, as a directory that ten thousand pictures are
    written to would take long to list for each of them. (In containers that share a host name and a directory, a
    writer may look dead: its write then fails, and nothing is half-written.)
    """
    _remove_unowned(directory, _UNFINISHED)


def _remove_unowned(directory: Path, names: re.Pattern[str]) -> None:
    """Removes what has such a name, with the number of a process that is no more; not what can't be removed."""
    with suppress(OSError):
        for name in os.listdir(directory):
            if (found := names.fullmatch(name)) and not _lives(int(found[1])):
                left = directory / name
                with suppress(OSError):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def _lives(process: int) -> bool:
    """Whether a process of this machine may still be there; its number may also be another one's by now."""
    if os.name != "posix":  # elsewhere os.kill ends the process, whatever the signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
