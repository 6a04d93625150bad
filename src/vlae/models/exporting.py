"""A model's networks as programs that run without this package: torch.export (.pt2) and, where wished for, ONNX.

    encoder        x -> mean, stddev of q(z|x)              (without a stddev where q is certain of its z)
    decoder        z -> parameters of p(x|z) [B, C, P, H, W], or of an autoregressive decoder its context [B, F, H, W]
    conditionals   x, z -> parameters of p(x_k | earlier ones in the window, z) [B, C, P, H, W], all in one pass

What the P parameters mean is the likelihood's, named in `export.json`. Conditional models take their context as a
further input, labels int64 [B] or attributes [B, A]. Any batch size goes.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vlae.distributions.likelihoods import LocationScale
from vlae.distributions.posteriors import DiagonalGaussian
from vlae.errors import VlaeError
from vlae.files import write_together
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.denoising import DenoisingAutoencoder
from vlae.models.pixelcnn import PixelCNN
from vlae.models.vae import SingleLevelModel
from vlae.models.vqvae import VQVAE

Inputs = dict[str, Tensor]

TRACED, CHECKED = 3, 5  # batch sizes: the program is made with one and has to be right at another


class Part(nn.Module):
    """A function of tensors that uses a model's networks, as a module."""

    def __init__(self, model: LatentVariableModel, function: Callable[..., Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Any:
        """The function of the inputs."""
        return self.function(*inputs)


def export(model: LatentVariableModel, directory: str | Path, onnx: bool = False) -> dict[str, float]:
    """Writes each part of a model as `<part>.pt2`, with `onnx` also as `<part>.onnx`, and `export.json` about them.

    Every program is run on random inputs of another batch size than it was made with, and compared with the model's own
    distributions, before anything is written.

    Returns:
        For each file the greatest difference from the model's own numbers, relative to the greatest of them.

    Raises:
        VlaeError: a model of which there is no such program, one that differs from the model, or no ONNX packages.
    """
    directory = Path(directory)
    if onnx:
        _need_onnx()
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    expected = _reference(model)
    differences: dict[str, float] = {}
    files: dict[str, bytes] = {}
    about: dict[str, Any] = {}
    for name, part in parts(model).items():
        inputs, others = _inputs(model, name, TRACED, seed=0), _inputs(model, name, CHECKED, seed=1)
        with _quiet(), torch.no_grad():
            program = _program(name, part, inputs, model)
            made = {f"{name}.pt2": _saved(program)}
            answers = {f"{name}.pt2": _tensors(_loaded(made[f"{name}.pt2"])(*others.values()))}
            wanted = expected[name](**others)
            if onnx:
                made[f"{name}.onnx"] = _as_onnx(name, program, inputs, len(wanted))
                answers[f"{name}.onnx"] = _run_onnx(name, made[f"{name}.onnx"], others)
        for file, found in answers.items():
            differences[file] = _difference(file, found, wanted)
        files |= made
        about[name] = {
            "inputs": {key: _described(value) for key, value in inputs.items()},
            "outputs": [_described(value) for value in wanted],
        }
    likelihood: dict[str, Any] = {"name": type(model.likelihood).__name__, "levels": model.likelihood.levels}
    if isinstance(model.likelihood, LocationScale) and (scale := model.likelihood.one_scale()) is not None:
        likelihood[model.likelihood.name] = scale.item()  # learned ones are no output of the decoder's
    text = {"model": type(model).__name__, "likelihood": likelihood, "arguments": model.config, "parts": about}
    files["export.json"] = (json.dumps(text, indent=2) + "\n").encode()
    write_together({directory / file: data for file, data in files.items()})
    return differences


def parts(model: LatentVariableModel) -> dict[str, Part]:
    """The parts of a model by their names, as functions of the inputs that the module's text lists.

    Raises:
        VlaeError: a model whose encoder and decoder are no functions of single tensors.
    """
    if isinstance(model, PixelCNN):
        return {"conditionals": Part(model, lambda x: model.decoder(x, x.new_zeros(x.shape[0], 0, *x.shape[2:])))}
    if isinstance(model, VQVAE):
        return {
            "encoder": Part(model, lambda x: (model.encode(x).mean,)),
            "decoder": Part(model, lambda z: _per_channel(model, model.decoder(model.codebook(z).movedim(-1, 1)))),
        }
    if isinstance(model, DenoisingAutoencoder):
        return {
            "encoder": Part(model, lambda x: (model.encoder(x),)),
            "decoder": Part(model, lambda z: _per_channel(model, model.decoder(z))),
        }
    if not isinstance(model, SingleLevelModel):
        raise VlaeError(
            f"a {type(model).__name__} can't be exported: its code is no single tensor; VAE, VLAE, VQVAE, PixelCNN and "
            "DenoisingAutoencoder can"
        )
    if not isinstance(model.encode(*_inputs(model, "encoder", 2, seed=0).values()), DiagonalGaussian):
        raise VlaeError(
            "this model can't be exported: its posterior is an inverse autoregressive flow, which has no mean and no "
            "standard deviation in closed form"
        )
    autoregressive = model.autoregressive

    def encoder(x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        if model.condition is not None:
            x = model.context_plane(x, model.condition(*context))
        q = cast(Any, model.posterior_module(model.encoder(x)))
        return q.mean, q.stddev

    def decoder(z: Tensor, *context: Tensor) -> Tensor:
        if model.condition is not None:
            embedding = model.condition(*context)
            if z.ndim == 4:
                embedding = embedding[:, :, None, None].expand(-1, -1, *z.shape[2:])
            z = torch.cat([z, embedding], 1)
        decoded = cast(Any, model).decoder(z)
        return decoded if autoregressive else _per_channel(model, decoded)

    def conditionals(x: Tensor, z: Tensor, *context: Tensor) -> Tensor:
        return cast(Any, model).decoder.pixels(x, decoder(z, *context))

    found = {"encoder": Part(model, encoder), "decoder": Part(model, decoder)}
    return {**found, "conditionals": Part(model, conditionals)} if autoregressive else found


def _reference(model: LatentVariableModel) -> dict[str, Callable[..., Sequence[Tensor]]]:
    """The same numbers from the model's own distributions, for comparison."""

    def encoder(x: Tensor, context: Tensor | None = None) -> Sequence[Tensor]:
        q = model.encode(x, **given(context))
        return (q.mean, q.stddev) if isinstance(q, DiagonalGaussian) else (q.mean,)

    def decoder(z: Tensor, context: Tensor | None = None) -> Sequence[Tensor]:
        p = cast(Any, model.decode(z, **given(context)))
        return (p.context if model.autoregressive else p.parameters,)

    def conditionals(x: Tensor, z: Tensor | None = None, context: Tensor | None = None) -> Sequence[Tensor]:
        p = cast(Any, model.decode(x.new_zeros(len(x), 0) if z is None else z, **given(context)))
        return (p.network(x, p.context),)

    return {"encoder": encoder, "decoder": decoder, "conditionals": conditionals}


def _inputs(model: LatentVariableModel, part: str, batch: int, seed: int) -> Inputs:
    """Random inputs of a part: images, codes, and labels or attributes."""
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    found: Inputs = {}
    if part != "decoder":
        levels = model.likelihood.levels or 256
        x = torch.randint(0, levels, (batch, *model.image_shape), generator=generator)
        found["x"] = x.to(like.dtype) / (levels - 1)
    if part != "encoder" and isinstance(model, VQVAE):
        codes = len(model.codebook.vectors)
        found["z"] = torch.randint(0, codes, (batch, *model.latent_shape), generator=generator)
    elif part != "encoder" and not isinstance(model, PixelCNN):
        found["z"] = torch.randn((batch, *model.latent_shape), generator=generator, dtype=like.dtype)
    if model.condition is not None and model.condition.classes:
        found["context"] = torch.randint(0, model.condition.classes, (batch,), generator=generator)
    elif model.condition is not None:
        found["context"] = torch.randn((batch, model.condition.attributes), generator=generator, dtype=like.dtype)
    return found


def _per_channel(model: LatentVariableModel, parameters: Tensor) -> Tensor:
    """[B, C P, H, W] -> [B, C, P, H, W]."""
    return parameters.unflatten(1, (model.image_shape[0], -1))


def _program(name: str, part: Part, inputs: Inputs, model: LatentVariableModel) -> ExportedProgram:
    batch = Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in inputs),)
    try:
        return torch.export.export(part, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises many kinds, whose first line says what it is about
        reason = str(error).strip().partition("\n")[0][:200]
        raise VlaeError(
            f"the {name} of this {type(model).__name__} can't be exported ({type(error).__name__}: {reason})"
        ) from None


def _saved(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _loaded(data: bytes) -> Callable[..., Any]:
    return torch.export.load(io.BytesIO(data)).module()


def _need_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise VlaeError(f"ONNX needs {error.name}: pip install 'vlae[onnx]', or leave out --onnx") from None


def _as_onnx(name: str, program: ExportedProgram, inputs: Inputs, outputs: int) -> bytes:
    names = [f"output{i}" for i in range(outputs)]
    try:
        made = torch.onnx.export(program, input_names=list(inputs), output_names=names, dynamo=True, verbose=False)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise VlaeError(f"the {name} has no form in ONNX ({reason}): leave out --onnx") from None
    assert made is not None
    return made.model_proto.SerializeToString()


def _run_onnx(name: str, data: bytes, inputs: Inputs) -> Sequence[Tensor]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        given = {place.name: value.numpy() for place, value in zip(session.get_inputs(), inputs.values(), strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, given)]
    except Exception as error:  # it has no convolutions of float64, for one
        reason = str(error).strip().partition("\n")[0][:200]
        raise VlaeError(
            f"ONNX Runtime can't run the {name} ({reason}): export a float32 model (model.float()), or leave out --onnx"
        ) from None


def _tensors(found: Any) -> Sequence[Tensor]:
    return (found,) if isinstance(found, Tensor) else found


def _difference(file: str, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The greatest difference, relative to the greatest number; refuses what is more than rounding."""
    tolerance = 1e-3 if any(value.dtype == torch.float32 for value in wanted) else 1e-9
    worst = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape:
            raise VlaeError(f"{file} gives {list(ours.shape)} where the model gives {list(theirs.shape)}")
        scale = max(float(theirs.abs().max()), 1e-6)
        worst = max(worst, float((ours - theirs).abs().max()) / scale)
    if not worst <= tolerance:
        raise VlaeError(f"{file} differs from the model by {worst:.1e} of its greatest number: nothing was written")
    return worst


def _described(value: Tensor) -> dict[str, Any]:
    return {"shape": ["batch", *value.shape[1:]], "dtype": str(value.dtype).removeprefix("torch.")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own log lines and warnings: what counts is checked."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
