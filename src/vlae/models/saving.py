"""Saved models: a directory with `model.safetensors`, `config.json` and a model card. Nothing is ever unpickled."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import wraps
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from vlae.errors import VlaeError, one_line
from vlae.files import replacing_directory, set_aside
from vlae.models import hub

if TYPE_CHECKING:
    from vlae.models.base import LatentVariableModel

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1
_classes: dict[str, type[Savable]] = {}  # the allow-list: what a config.json may name


def _plain_number(value: object) -> float:
    """A number of another type than Python's own, of NumPy or a fraction, as JSON has it."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


class Savable(nn.Module):
    """A model whose configuration is its constructor arguments, kept in `self.config` as plain values.

    `self.metadata` travels with a saved model: plain values such as the data it was trained on and its expected
    numbers. Every subclass is entered under its name in the list of what `load` may build.
    """

    config: dict[str, Any]
    metadata: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _classes[entered_as(cls)] = cls
        construct = cls.__init__

        @wraps(construct)
        def recording(self: Savable, *args: Any, **kwargs: Any) -> None:
            if type(self) is cls:  # not a subclass's constructor calling this one
                arguments = cls._named(construct, args, kwargs)
                construct(self, *args, **kwargs)
                try:
                    self.config = json.loads(json.dumps(arguments, default=_plain_number))
                except TypeError:  # a module, say: such a model can be used, and not saved
                    self.config = {}
                self.metadata = {}
            else:
                construct(self, *args, **kwargs)

        cls.__init__ = recording  # type: ignore[method-assign, assignment]

    @classmethod
    def _named(cls, construct: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a call of the constructor by name, defaults too."""
        signature = inspect.signature(construct)
        bound = signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:  # arguments of a base class
                arguments |= dict(
                    zip(cast("type[Savable]", cls.__mro__[1]).argument_names(), arguments.pop(name, ()), strict=False)
                )
            if parameter.kind is parameter.VAR_KEYWORD:
                handed_on = arguments.pop(name, {})
                # What a subclass of somebody's own tells the base class need not be the base's defaults.
                arguments = {**(cls._defaults() if is_ours(cls) else {}), **arguments, **handed_on}
        return arguments

    @classmethod
    def argument_names(cls) -> list[str]:
        """The names of the constructor's arguments, those that it hands on to its base class among them."""
        return list(cls._arguments())

    @classmethod
    def _arguments(cls) -> dict[str, inspect.Parameter]:
        found: dict[str, inspect.Parameter] = {}
        for base in cls.__mro__:  # from here up to the first that hands nothing on
            parameters = inspect.signature(base).parameters.values()
            found = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD} | found
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
        return found

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {name: p.default for name, p in cls._arguments().items() if p.default is not p.empty}

    def save_pretrained(self, path: str | os.PathLike[str], card: str | None = None) -> Path:
        """Writes the model to the directory `path`, replacing a model that is there; returns the path.

        The new directory is complete before it takes the old one's place. `card` is the text of the model card. Other
        files in the directory, such as reports, are kept.
        """
        path = Path(path)
        if path.exists() and not is_saved_model(path) and (not path.is_dir() or any(path.iterdir())):
            raise VlaeError(f"{path} exists and is not a saved model: choose another path, nothing was written")
        check_rebuilds(self)
        # Cloned, since a tensor that has two names in the model is to be under both in the file.
        weights = safetensors.torch.save({k: v.contiguous().clone() for k, v in self.state_dict().items()})
        config = {
            "format": FORMAT,
            "model": entered_as(type(self)),
            "arguments": self.config,
            "metadata": self.metadata,
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
        with replacing_directory(path) as new:
            (new / WEIGHTS).write_bytes(weights)
            (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            text = card or f'# {type(self).__name__}\n\nLoad with `vlae.load("{path.name}")`.\n'
            (new / CARD).write_text(text, encoding="utf-8")
            for other in path.iterdir() if path.is_dir() else ():
                if other.name not in (WEIGHTS, CONFIG, CARD):
                    if other.is_dir() and not other.is_symlink():
                        shutil.copytree(other, new / other.name, symlinks=True)
                    else:
                        shutil.copy2(other, new / other.name, follow_symlinks=False)
        return path

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a saved model of this class from a directory, a pretrained name, or the Hub ("org/name").

        Args:
            path: where it is; what is there as a path is not looked up on the Hub.
            revision: branch, tag or commit on the Hub; None is the main branch.
            token: to read a private repository with; None takes that of `hf auth login`.
            cache_dir: where downloads are kept; None is the Hub's own cache.
            local_files_only: take what was downloaded before, without asking.

        Raises:
            VlaeError: nothing there, not of this class, damaged; or options of the Hub for what is not on it.
        """
        client = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only or None}
        client = {name: value for name, value in client.items() if value is not None}
        where, name = Path(path), str(path).removeprefix(hub.PREFIX)
        if not where.exists() and hub.repository_of(name):
            named = name if revision is None else f"{name}@{revision}"
            where = hub.download(named, (CONFIG, WEIGHTS), **client)
        elif revision is not None or client:
            given = ["revision"] * (revision is not None) + list(client)
            raise VlaeError(f"{path} is not on the Hub: {given[0]} is for a model there, ORGANISATION/NAME")
        else:
            where = locate(path)
        model = load(where)
        if not isinstance(model, cls):
            raise VlaeError(f"{path} holds a {type(model).__name__}, not a {cls.__name__}: use vlae.load")
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        revision: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        card: str | None = None,
    ) -> str:
        """Saves the model to the Hugging Face Hub, in one commit, and returns the commit's address.

        Args:
            repo_id: "org/name"; made if missing.
            commit_message: of the commit.
            revision: branch to commit to; None is the main one.
            private: whether a new repository is private; None leaves it to the organisation.
            token: to write with; None takes that of `hf auth login`.
            card: the text of the model card. A header of what the Hub shows and searches by (no licence: the weights
                are their trainer's) is put before it, unless it begins with one of its own (`---`).
        """
        with tempfile.TemporaryDirectory() as folder:
            about = card or f'# {repo_id}\n\nLoad with `vlae.load("{hub.PREFIX}{repo_id}")`.\n'
            header = "" if about.startswith("---") else _HUB_HEADER.format(tag=type(self).__name__.lower())
            path = self.save_pretrained(Path(folder) / "model", header + about)
            load(path)  # what can't be read again is not published
            return hub.upload(path, repo_id, commit_message, revision, private, token)


# What the Hub shows and searches by. No licence: the weights are their trainer's, who says so in a card of their own.
_HUB_HEADER = """---
library_name: vlae
pipeline_tag: unconditional-image-generation
tags:
- pytorch
- variational-autoencoder
- {tag}
---

"""


def is_ours(cls: type) -> bool:
    """Whether a class is one of this package's."""
    return cls.__module__.partition(".")[0] == "vlae"


def entered_as(cls: type) -> str:
    """The name that a class has in saved models: its own, unless a class of this package has that."""
    known = _classes.get(cls.__name__)
    taken = known is not None and is_ours(known) and not is_ours(cls)
    return f"{cls.__module__}.{cls.__name__}" if taken else cls.__name__


def check_rebuilds(model: Savable) -> None:
    """Refuses a model that its recorded arguments would not build again: it could be saved, but not loaded.

    The generators of random numbers are left as they were.
    """
    kind = type(model).__name__
    try:
        with torch.random.fork_rng():
            again = build(entered_as(type(model)), model.config)
    except Exception as error:  # whatever a constructor raises
        raise VlaeError(
            f"this {kind} can't be built again from the arguments that it was built with ({one_line(error)}), and so "
            "could not be loaded: let its constructor take numbers, texts and lists of them, each under a name"
        ) from None
    shapes, others = ({k: tuple(v.shape) for k, v in each.state_dict().items()} for each in (model, again))
    if shapes != others:
        name = min(set(shapes.items()) ^ set(others.items()))[0]
        raise VlaeError(
            f"built again from its arguments this {kind} is another, in {name}: let its constructor make all of it"
        )


def known_models() -> list[type[Savable]]:
    """The classes that a saved model may be of."""
    return list(_classes.values())


def pretrained_names() -> list[str]:
    """The names of the models that come with the package."""
    root = resources.files("vlae") / "pretrained"
    return sorted(entry.name for entry in root.iterdir() if (entry / CONFIG).is_file()) if root.is_dir() else []


def locate(path_or_name: str | os.PathLike[str]) -> Path:
    """The directory of a saved model: from its path, a run directory with it in `model/`, a pretrained name, or
    "hf:org/name" (fetched from the Hugging Face Hub)."""
    name = str(path_or_name)
    if name.startswith(hub.PREFIX):
        return hub.download(name.removeprefix(hub.PREFIX), (CONFIG, WEIGHTS))
    path = Path(path_or_name)
    for candidate in (path, path / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    if name in pretrained_names():
        return Path(str(resources.files("vlae") / "pretrained" / name))
    if not path.exists() and (kept := set_aside(path)):
        raise VlaeError(f"{path} was being replaced when the process was killed: the old model is {kept[0]}")
    close = difflib.get_close_matches(name, pretrained_names(), 1)
    meant = f"did you mean {close[0]!r}? Else " if close else ""
    raise VlaeError(
        f"no saved model at {name!r}: {meant}give a directory with {CONFIG} and {WEIGHTS}, "
        f"a pretrained name (vlae models lists them), or {hub.PREFIX}ORGANISATION/NAME"
    )


def is_saved_model(path: Path) -> bool:
    """Whether a directory is one that `save_pretrained` has written, and not another's that has a `config.json` too."""
    try:
        return {"format", "model", "arguments", "sha256"} <= set(json.loads((path / CONFIG).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def fingerprint(model: LatentVariableModel) -> str:
    """128 bits that stand for a model's configuration and weights; the same in float32 and once it is float64."""
    digest = hashlib.sha256(json.dumps([entered_as(type(model)), model.config], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().double().numpy().astype("<f8").tobytes())
    return digest.hexdigest()[:32]


def build(kind: str, arguments: dict[str, Any]) -> LatentVariableModel:
    """A new model of the class with that name; only this package's models and registered subclasses are on the list."""
    if kind not in _classes:
        raise VlaeError(f"unknown model {kind!r}: expected one of {', '.join(_classes)}")
    return cast("LatentVariableModel", _classes[kind](**arguments))


def trained_on(model: LatentVariableModel) -> dict[str, Any]:
    """What a model's metadata say of its training data, as `DataSettings` has it; empty where they say nothing.

    Raises:
        VlaeError: metadata that no training of this package has written: the set would be loaded by them.
    """
    own = model.metadata.get("data")
    if not isinstance(own, dict):
        return {}
    kinds = {"name": str, "root": str | None, "binarize": str | None, "options": dict}
    for name, kind in kinds.items():
        if name in own and not isinstance(own[name], kind):
            raise VlaeError(f"the model's metadata say data.{name} = {own[name]!r}, which can't be: save it again")
    return own


def load(path_or_name: str | os.PathLike[str]) -> LatentVariableModel:
    """Loads a saved model, on the CPU and in eval mode, from a directory or a pretrained name.

    Only classes of this package are built, and the weights are checked against the checksum in the configuration.
    """
    path = locate(path_or_name)
    try:
        config = json.loads((path / CONFIG).read_text())
        if (version := config["format"]) != FORMAT:  # first: a later format may have other keys
            raise VlaeError(f"{path} has format {version!r} and this version of vlae reads {FORMAT}: update vlae")
        kind, arguments, checksum = config["model"], config["arguments"], config["sha256"]
        metadata = dict(config.get("metadata", {}))
    except VlaeError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise VlaeError(f"{path / CONFIG} is not the configuration of a saved model ({error}): save it again") from None
    if not isinstance(kind, str) or kind not in _classes:
        raise VlaeError(f"{path / CONFIG} names the unknown model {kind!r}: expected one of {', '.join(_classes)}")
    if not (path / WEIGHTS).is_file():
        raise VlaeError(f"{path} has no {WEIGHTS}: the saved model is incomplete")
    weights = (path / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != checksum:
        raise VlaeError(f"{path / WEIGHTS} does not match its checksum in {CONFIG}: damaged or of another model")
    try:
        state = safetensors.torch.load(weights)
        model = build(kind, arguments)
        dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
        model.to(dtype).load_state_dict(state)
    except VlaeError as error:  # of a constructor, which does not know where its arguments come from
        raise VlaeError(f"{path / CONFIG}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])  # PyTorch's second line is the reason
        raise VlaeError(f"{path} does not fit {kind} of this version of vlae: {reason}") from None
    model.metadata = metadata
    # As saved, without arguments that this version has added: they keep the model's fingerprint in compressed files.
    model.config = arguments
    return model.eval()
