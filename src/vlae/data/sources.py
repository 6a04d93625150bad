"""Data files: where they are looked for, their checksums, and their download into the cache."""

import hashlib
import logging
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pooch

from vlae.errors import VlaeError
from vlae.files import replacing

Root = str | Path | None
_CHECK = True  # tests switch it off, to run loaders on small files of the same format


@dataclass(frozen=True)
class File:
    """One file of a data set.

    Attributes:
        name: the file's name.
        folders: sub-folders it may lie in, the usual one first.
        checksum: "md5:..." or "sha256:...", or None.
        urls: mirrors, tried in this order.
        repacked: copies may be packed otherwise than the download, so that only the latter is held to the checksum.
    """

    name: str
    folders: tuple[str, ...]
    checksum: str | None = None
    urls: tuple[str, ...] = ()
    repacked: bool = False


def cache_dir() -> Path:
    """Where downloads go: the user's cache directory, such as `~/.cache/vlae`."""
    return Path(pooch.os_cache("vlae"))


def places(root: Root) -> list[Path]:
    """Where files are looked for: `root`, else `$VLAE_DATA` if it is set, and then the cache.

    Raises:
        VlaeError: `root` or `$VLAE_DATA` is not a directory.
    """
    given = root or os.environ.get("VLAE_DATA")
    if not given:
        return [cache_dir()]
    path = Path(given).expanduser()
    if not path.is_dir():
        raise VlaeError(f"{'root' if root else 'VLAE_DATA'}={given}: no such directory; expected the data's folder")
    return [path, cache_dir()]


def find(file: File, root: Root) -> Path | None:
    """The file where it lies, its checksum verified, or None."""
    for place in places(root):
        for folder in file.folders:
            path = place / folder / file.name
            if path.is_file():
                if not file.repacked:
                    verify(path, file.checksum)
                return path
    return None


def fetch(what: str, files: Sequence[File], root: Root, archive: File | None = None) -> list[Path]:
    """All of `files`, found or else downloaded into the cache: one by one, or as members of `archive`.

    Raises:
        VlaeError: a checksum is wrong, or files are missing and can't be downloaded; one line names them all.
    """
    found = [find(file, root) for file in files]
    missing = [file for file, path in zip(files, found, strict=True) if path is None]
    if missing:
        try:
            if archive:
                _unpack(_download(archive), missing)
            else:
                for file in missing:
                    _download(file)
        except (OSError, ValueError) as error:
            names = ", ".join(file.name for file in missing)
            looked, *rest = (str(place / missing[0].folders[0]) for place in places(root))
            raise VlaeError(
                f"{what}: {names} not found in {' or '.join([looked, *rest])}, and no download "
                f"({' '.join(str(error).split())[:200]}); put the files into {looked}"
            ) from error
    return [path or cache_dir() / file.folders[0] / file.name for file, path in zip(files, found, strict=True)]


def verify(path: Path, checksum: str | None) -> None:
    """Hold a file against "md5:..." or "sha256:...".

    Raises:
        VlaeError: it differs.
    """
    if checksum is None or not _CHECK:
        return
    algorithm, expected = checksum.split(":")
    with path.open("rb") as stream:
        actual = hashlib.file_digest(stream, algorithm).hexdigest()
    if actual != expected:
        raise VlaeError(f"{path}: {algorithm} {actual}, expected {expected}; delete the file and fetch it again")


def verify_bytes(what: str, data: bytes, md5: str) -> None:
    """Hold bytes against their md5; `what` names them in the error."""
    if _CHECK and hashlib.md5(data).hexdigest() != md5:
        raise VlaeError(f"{what}: its content is not the published one; delete the file and fetch it again")


def keep(file: File, arrays: Mapping[str, np.ndarray]) -> bool:
    """Save in the cache, as npz, what took long to make; a cache that can't be written to is no fault."""
    try:
        with replacing(cache_dir() / file.folders[0] / file.name) as path, path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    except OSError:
        return False
    return True


def _download(file: File) -> Path:
    """The file in the cache, from the first mirror that answers with the right content.

    Raises:
        OSError: no mirror did.
    """
    # Mirrors that fail are expected; pooch's own log lines would only bury the one message that counts.
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    failures = []
    try:
        for url in file.urls:
            try:
                return Path(
                    pooch.retrieve(
                        url,
                        known_hash=file.checksum if _CHECK else None,
                        fname=file.name,
                        path=cache_dir() / file.folders[0],
                        downloader=pooch.HTTPDownloader(timeout=(5, 30), chunk_size=1 << 16),
                    )
                )
            except (OSError, ValueError) as error:
                failures.append(f"{urlsplit(url).hostname}: {type(error).__name__}")
    finally:
        logger.setLevel(level)
    raise OSError("; ".join(failures) or "it has no public address")


def _unpack(archive: Path, members: Sequence[File]) -> None:
    """Members of a tar archive into the cache, by their names alone; the archive itself is not kept."""
    try:
        with tarfile.open(archive) as tar:
            inside = {Path(info.name).name: info for info in tar if info.isfile()}
            for file in members:
                if file.name not in inside:
                    raise OSError(f"{archive.name} holds no {file.name}")
                stream = tar.extractfile(inside[file.name])
                assert stream is not None
                with replacing(cache_dir() / file.folders[0] / file.name) as temporary:
                    temporary.write_bytes(stream.read())
                    verify(temporary, file.checksum)
    except (tarfile.TarError, EOFError) as error:
        raise OSError(f"{archive.name}: {error}") from error
    finally:
        archive.unlink()
