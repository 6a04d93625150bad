"""Saved models on the Hugging Face Hub, through its own client: `hf:org/name`, or `hf:org/name@revision`.

A repository holds what a saved model's directory holds. Of a repository, only the configuration and the weights are
fetched, whatever else lies in it; they are read as any saved model is, by checksum and without unpickling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlae.errors import VlaeError

PREFIX = "hf:"
_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def repository_of(name: str) -> tuple[str, str | None] | None:
    """The repository and the revision that `org/name` or `org/name@revision` names, or None where it is none.

    Example:
        >>> repository_of("org/name@v2"), repository_of("mnist-dynamic")
        (('org/name', 'v2'), None)
    """
    found = _REPOSITORY.fullmatch(name)
    return (found["repo"], found["revision"]) if found else None


def download(name: str, files: Sequence[str], **client: Any) -> Path:
    """The directory, in the Hub's own cache, of these files of the repository `org/name` or `org/name@revision`.

    `client` are options of its client's `hf_hub_download`: token, cache_dir, local_files_only.

    Raises:
        VlaeError: no such repository, revision or file, no network and nothing in the cache, or no client.
    """
    named = repository_of(name)
    if named is None:
        raise VlaeError(f"{PREFIX}{name} names no model on the Hub: write {PREFIX}ORGANISATION/NAME, or ...@REVISION")
    repository, revision = named
    with _speaking_with_the_hub(f"{repository} could not be fetched from the Hub"):
        from huggingface_hub import hf_hub_download

        paths = [Path(hf_hub_download(repository, file, revision=revision, **client)) for file in files[:1]]
        # All files of the one commit that the first came from: the branch may move in between.
        commit = paths[0].parent.name
        paths += [Path(hf_hub_download(repository, file, revision=commit, **client)) for file in files[1:]]
    return paths[0].parent


def upload(
    directory: Path, repository: str, message: str, revision: str | None, private: bool | None, token: str | None
) -> str:
    """Puts the files of a directory into a repository, made if missing, in one commit; returns the commit's address.

    Raises:
        VlaeError: a name that is none, no network, no right to write there, or no client.
    """
    if repository_of(repository) is None or "@" in repository:
        raise VlaeError(f"{repository!r} is no name of a repository: write ORGANISATION/NAME")
    with _speaking_with_the_hub(f"{repository} could not be written to the Hub"):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        files: list[Any] = [CommitOperationAdd(path.name, str(path)) for path in sorted(directory.iterdir())]
        return str(api.create_commit(repository, files, commit_message=message, revision=revision).commit_url)


@contextmanager
def _speaking_with_the_hub(what: str) -> Iterator[None]:
    """Turns what the client raises into one line that begins with `what`."""
    try:
        yield
    except ImportError as error:
        raise VlaeError(f"{what}: {error.name} is not installed; pip install huggingface_hub") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise VlaeError(f"{what}: {_reason(error)}") from None
    except Exception as error:  # its transport's errors have a base class of their own, another one in each version
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "huggingface_hub", "requests"):
            raise
        raise VlaeError(f"{what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What went wrong and what to do, in one line."""
    kind, status = type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or kind in ("RepositoryNotFoundError", "GatedRepoError"):
        return "there is no such repository, or it needs a login (hf auth login)"
    if kind == "RevisionNotFoundError":
        return "it has no such revision"
    if kind == "RemoteEntryNotFoundError" or status == 404:
        return "it holds no saved model of vlae (config.json and model.safetensors)"
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError") or isinstance(error, TimeoutError):
        return "no answer, and not in the cache; check the network, or give a directory"
    return " ".join(f"{kind}: {error}".split())[:200]
