"""Atomic writes: a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends, and is removed if the block fails.

    Missing parent directories are made. Raises `OSError` where the file can't be written.
    """
    # Beside the target, because os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_file():
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
