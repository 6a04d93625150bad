"""Lightning's checkpoints: written so that none is ever half there, read without unpickling code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from vlae.data.sources import one_line
from vlae.errors import VlaeError
from vlae.files import set_aside, write_bytes
from vlae.models.base import LatentVariableModel
from vlae.models.saving import build, load

FORMAT = 1  # of what `Task.on_save_checkpoint` adds; checkpoints from before it was written down have none


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning's own writes to the system's folder for temporary files, from where a move to another file system is a
    copy: a process that is killed then, or a full disk, leaves half a checkpoint where the last whole one was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the file `path`; raises `OSError`, and leaves what was there, where it can't."""
        # Into memory first: on a full disk torch.save raises errors of its own that do not say so.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Reads the file `path`, weights only whatever is asked for."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint of this package, read without unpickling code.

    Raises:
        VlaeError: it is damaged, holds other things than tensors and plain values, or is of another version of vlae.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        about = checkpoint["vlae"]
        version = about.get("format", FORMAT)
        if version == FORMAT:  # another one may have other keys
            _expect(checkpoint, {"state_dict": dict, "epoch": int, "global_step": int})
            _expect(about, {"model": str, "arguments": object, "metadata": dict})
    except Exception as error:  # torch.load raises many kinds for damaged files
        best = path.with_name("best.ckpt")
        other = f", or copy {best} over it and resume from there" if path != best and best.is_file() else ""
        raise VlaeError(
            f"{path} is not a whole checkpoint of vlae ({type(error).__name__}): train again{other}"
        ) from None
    if version != FORMAT:
        raise VlaeError(
            f"{path} is of another version of vlae (format {version!r}, and this one reads {FORMAT}): use that "
            "version, or train again"
        )
    return checkpoint


def _expect(values: dict[str, Any], kinds: dict[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            raise TypeError(name)


def rebuild(checkpoint: dict[str, Any], path: Path) -> LatentVariableModel:
    """The new model that a checkpoint, read from `path`, is of; not yet its weights.

    Raises:
        VlaeError: this version of vlae has no such model.
    """
    about = checkpoint["vlae"]
    try:
        return build(about["model"], about["arguments"])
    except Exception as error:  # of arguments that no constructor checks, anything
        raise VlaeError(f"{path} is of a model that this version of vlae does not build ({one_line(error)})") from None


def model_of(path: Path) -> LatentVariableModel:
    """The model of a checkpoint, with its averaged weights and its metadata.

    Raises:
        VlaeError: as `read_checkpoint` and `rebuild`, or weights that are not the model's.
    """
    checkpoint = read_checkpoint(path)
    model = rebuild(checkpoint, path)
    prefix = "model."
    try:
        state = {k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        dtype = next(v.dtype for v in state.values() if v.is_floating_point())
        model.to(dtype).load_state_dict(state)
    except Exception as error:
        raise VlaeError(f"{path} holds weights that are not those of its model ({one_line(error)})") from None
    metadata = checkpoint["vlae"]["metadata"]
    model.metadata = {**metadata, "epochs": checkpoint["epoch"] + 1, "steps": checkpoint["global_step"]}
    return model


def check_resumable(last: Path, model: LatentVariableModel) -> None:
    """Refuses to resume from a checkpoint that is missing, damaged, or of a model with other settings."""
    if not last.is_file():
        best, kept = last.with_name("best.ckpt"), set_aside(last.parent.parent)
        advice = "train without --resume"
        if best.is_file():
            advice = f"copy {best} over it to go on from there"
        elif kept:
            advice = f"the run before it, which was being overwritten, is {kept[0]}: move it back"
        raise VlaeError(f"nothing to resume: {last} does not exist; {advice}")
    rebuilt = rebuild(read_checkpoint(last), last)
    advice = "resume with the run's own config.yaml, or choose another --run.name"
    was, now = type(rebuilt).__name__, type(model).__name__
    if was != now:  # they may have the same arguments
        raise VlaeError(f"{last} is of a {was}, not of a {now}: {advice}")
    if different := differences(rebuilt, model):
        raise VlaeError(f"{last} is of a model with another {', '.join(different)}: {advice}")


def differences(one: LatentVariableModel, other: LatentVariableModel) -> list[str]:
    """The arguments in which two models of one class differ, with the defaults of those that are new since."""
    return [key for key in {**one.config, **other.config} if one.config.get(key) != other.config.get(key)]


def take_weights(model: LatentVariableModel, start_from: str) -> None:
    """Gives a new model the weights of a saved one, to be trained further: fine-tuning, or a longer training.

    Args:
        model: the new one, changed in place.
        start_from: a saved model of the same class and arguments: a run, a directory, a pretrained name, hf:org/name.

    Raises:
        VlaeError: there is none, or it is another model.
    """
    source, advice = load(start_from), "a training starts from weights of the very model that its configuration names"
    was, now = type(source).__name__, type(model).__name__
    if was != now:
        raise VlaeError(f"start_from: {start_from} is a {was}, not a {now}; {advice}")
    if different := differences(build(was, source.config), model):  # built anew, it has arguments that are new since
        raise VlaeError(f"start_from: {start_from} has another {', '.join(different)}; {advice}")
    model.load_state_dict(source.state_dict())
