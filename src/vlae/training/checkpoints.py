"""Lightning's checkpoints: written so that none is ever half there, read without unpickling code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from vlae.errors import VlaeError, one_line
from vlae.files import set_aside, write_bytes
from vlae.models.base import LatentVariableModel
from vlae.models.saving import CONFIG, build, load
from vlae.nn.pixelcnn import GatedPixelCNN

if TYPE_CHECKING:
    from vlae.training.task import Task

RESUME = "resume with the run's own config.yaml, or choose another --run.name"
# Which images, also those that the best is chosen by; where they lie may change.
DATA = ("name", "binarize", "split", "options", "batch_size", "limit", "validation_limit")
FORMAT = 1  # of what `Task.on_save_checkpoint` adds; checkpoints from before it was written down have none


class BestAndLast(ModelCheckpoint):
    """`best.ckpt` by the validation bound, where there is one, and `last.ckpt`.

    A run may be moved, or seen under another path: what was best stays so. Lightning's own would forget it then, and
    the next epoch, however bad, would take its place.
    """

    def __init__(self, directory: Path, held_out: bool):
        super().__init__(
            directory,
            filename="best",
            monitor="validation/elbo" if held_out else None,
            mode="max",
            save_last=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint: Lightning's, as in runs from before this class."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state of a run that may have been elsewhere."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = ("kth_best_model_path", "best_model_path", "last_model_path")
        moved = {key: here(state_dict[key]) for key in paths if key in state_dict}
        best = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


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
        write_bytes(Path(path), buffer.getvalue())

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


def check_resumable(last: Path, model: LatentVariableModel) -> dict[str, Any]:
    """The checkpoint to resume from; refuses one that is missing, damaged, or of a model with other settings."""
    if not last.is_file():
        best, kept = last.with_name("best.ckpt"), set_aside(last.parent.parent)
        advice = "train without --resume"
        if best.is_file():
            advice = f"copy {best} over it to go on from there"
        elif kept:
            advice = f"the run before it, which was being overwritten, is {kept[0]}: move it back"
        raise VlaeError(f"nothing to resume: {last} does not exist; {advice}")
    checkpoint = read_checkpoint(last)
    rebuilt, advice = rebuild(checkpoint, last), RESUME
    was, now = type(rebuilt).__name__, type(model).__name__
    if was != now:  # they may have the same arguments
        raise VlaeError(f"{last} is of a {was}, not of a {now}: {advice}")
    if different := differences(rebuilt, model):
        raise VlaeError(f"{last} is of a model with another {', '.join(different)}: {advice}")
    return checkpoint


def check_training(last: Path, checkpoint: dict[str, Any], task: Task, epochs: int, averaged: bool) -> int:
    """Refuses to go on with another model's, data's or optimiser's training than that of a checkpoint.

    Args:
        last: where the checkpoint is.
        checkpoint: to go on from.
        task: the training that is asked for.
        epochs: it is to have, those of the checkpoint among them.
        averaged: whether it averages weights.

    Returns:
        How many epochs are behind it.
    """
    about, metadata = checkpoint["vlae"], task.model.metadata
    for key, was in about.get("training", {}).items():
        if task.kinds.get(key) != was:
            raise VlaeError(f"{last} was trained with {key} {was}, not {task.kinds.get(key)}: {RESUME}")
    for key, was in about["metadata"].get("data", {}).items():
        if key in DATA and (now := metadata["data"].get(key)) != was:
            raise VlaeError(f"{last} was trained with data.{key} {was}, not {now}: {RESUME}")
    if (was := "current_model_state" in checkpoint) != averaged:
        raise VlaeError(f"{last} has {'' if was else 'no '}averaged weights: leave trainer.ema_decay as it was")
    if (done := checkpoint["epoch"] + 1) > epochs:
        raise VlaeError(f"{last} has {done} epochs behind it: trainer.max_epochs must be as many or more; got {epochs}")
    if odd := sorted(set(task.state_dict()) ^ set(checkpoint["state_dict"])):
        raise VlaeError(f"{last} was trained with another objective or model, as {odd[0]} tells: {RESUME}")
    begun, asked = (each.get("started_from") for each in (about["metadata"], metadata))
    if begun != asked:
        raise VlaeError(f"{last} started from {begun or 'new weights'}, not from {asked or 'new ones'}: {RESUME}")
    return done


def differences(one: LatentVariableModel, other: LatentVariableModel) -> list[str]:
    """The arguments in which two models of one class differ, with the defaults of those that are new since."""
    return [key for key in {**one.config, **other.config} if one.config.get(key) != other.config.get(key)]


def load_any(place: str | Path) -> LatentVariableModel:
    """A model by whatever names one: as `load`, and of a run the best so far, though it be newer than what is saved.

    Nothing is written: a run with a saved model is a finished one.
    """
    best = unsaved(Path(place))
    return model_of(best).eval() if best else load(place)


def unsaved(run: Path) -> Path | None:
    """The best checkpoint of a run whose saved model is older, or not there yet; None where nothing is to be saved.

    Raises:
        VlaeError: a run without a finished epoch.
    """
    saved = run / "model" / CONFIG
    if not (run / "config.yaml").is_file():
        return None
    if not saved.is_file():
        return best_of(run)
    best = run / "ckpts" / "best.ckpt"
    return best if best.is_file() and saved.stat().st_mtime < best.stat().st_mtime else None


def best_of(run: Path) -> Path:
    """The best checkpoint of a run."""
    if not (best := run / "ckpts" / "best.ckpt").is_file():
        if why := error_of(run):
            raise VlaeError(f"{run} has no finished epoch: {why}")
        raise VlaeError(f"{run} has no finished epoch ({best} is missing): train it, or --resume it")
    return best


def error_of(run: Path) -> str:
    """The error that a run's log ends with; empty where it ends with something else, or there is none."""
    log = run / "logs" / "train.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    words = lines[-1].split(maxsplit=3) if lines else []  # date, time, level, text
    return words[3] if words[2:3] == ["ERROR"] else ""


PRIOR = ("prior", "prior_options", "flow_steps", "flow_hidden", "flow_affine", "flow_order")  # arguments of a prior


def take_weights(model: LatentVariableModel, start_from: str) -> list[str]:
    """Gives a new model the weights of a saved one, to be trained further: fine-tuning, or a longer training.

    A gated PixelCNN may have more layers than the saved one: the model computes what that does, to begin with. A prior
    of another kind, size or order begins anew, beside the saved model's posterior and decoder.

    Args:
        model: the new one, changed in place.
        start_from: what names one of the same class and arguments but `dropout` and those of the prior, see `load_any`.

    Returns:
        The arguments in which the prior is another, so that it begins anew; none where it is the saved one.

    Raises:
        VlaeError: there is none, or it is another model.
    """
    source = load_any(start_from)
    prior = "its prior, " if set(PRIOR) & set(model.config) else ""
    advice = (
        "a training starts from weights of the very model that its configuration names: "
        f"{prior}its dropout and how many gated layers it has may differ, no more"
    )
    was, now = type(source).__name__, type(model).__name__
    if was != now:
        raise VlaeError(f"start_from: {start_from} is a {was}, not a {now}; {advice}")
    # Built anew, it has arguments that are new since. Dropout is of the training.
    every = [name for name in differences(build(was, source.config), model) if name != "dropout"]
    different = [name for name in every if name not in PRIOR]
    anew = [name for name in every if name in PRIOR]
    own = {"prior_module."} if anew else set()  # what is not taken
    deep, shallow = (getattr(getattr(each, "decoder", None), "pixels", None) for each in (model, source))
    if different == ["decoder_layers"] and isinstance(deep, GatedPixelCNN) and isinstance(shallow, GatedPixelCNN):
        if len(deep.layers) < len(shallow.layers):
            raise VlaeError(
                f"start_from: {start_from} has {len(shallow.layers)} decoder_layers: set as many or more; "
                f"got {len(deep.layers)}"
            )
        deep.deepen(shallow)
        own.add("decoder.pixels.")
    elif different:
        raise VlaeError(f"start_from: {start_from} has another {', '.join(different)}; {advice}")
    taken = {name: weights for name, weights in source.state_dict().items() if not name.startswith(tuple(own))}
    model.load_state_dict({**model.state_dict(), **taken} if own else taken)
    return anew
