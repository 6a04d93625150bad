"""Images or files to .vlae and back."""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from vlae.codec import pictures
from vlae.codec.ans import make_coder
from vlae.codec.bitsback import BitsBack, CoderKind, Levels, ModelCoder
from vlae.codec.container import Container, Header, ranges, seeds_of, split_evenly
from vlae.codec.lossy import Lossy, Texture, step_for
from vlae.errors import VlaeError, require_positive
from vlae.files import check_target, replacing
from vlae.models.base import LatentVariableModel
from vlae.models.saving import fingerprint, load

IMAGES_PER_BLOCK = 256


# -- images -----------------------------------------------------------------------------------------------------------


def compress(
    model: LatentVariableModel,
    images: Tensor | np.ndarray,
    lossy_step: float | None = None,
    lossy_bits: float | None = None,
    images_per_block: int = IMAGES_PER_BLOCK,
    coder: CoderKind = "auto",
    verify: bool = True,
    name: str = "",
    workers: int = 1,
) -> bytes:
    """Images to the bytes of a .vlae file; without loss, unless `lossy_step` or `lossy_bits` is given.

    Args:
        model: with a discrete likelihood and a prior that can be scanned (`flow_order="same"`, or at most one step).
        images: [N, C, H, W] in [0, 1] at the model's levels, or uint8 levels 0 .. levels - 1.
        lossy_step: keep only z, in bins of this width.
        lossy_bits: keep only z, in bins of the width that takes so many bits an image.
        images_per_block: about how many images share a block. Larger blocks make smaller files, but a block can only
            be decoded as a whole.
        coder: "auto", "numpy" or "constriction": the bytes are the same.
        verify: decode what was written, and compare.
        name: of the model, kept for people.
        workers: processes that share the blocks; 1 works in this one, on PyTorch's threads.

    Raises:
        VlaeError: images or a model that can't be coded.

    Example:
        >>> import vlae
        >>> model = vlae.VLAE((1, 8, 8), latent_dim=2, encoder_widths=[4], decoder_layers=1, flow_order="same")
        >>> images = torch.randint(0, 2, (5, 1, 8, 8)).float()
        >>> data = compress(model, images)
        >>> torch.equal(decompress(model, data), images)
        True
    """
    levels = to_levels(model, images)
    count, channels, height, width = levels.shape
    entry = pictures.Entry("images.npz", "array", "L" if channels == 1 else "RGB", "grey", height, width, count)
    return _compress(model, levels, [entry], lossy_step, lossy_bits, images_per_block, coder, verify, name, workers)


def decompress(
    model: LatentVariableModel,
    data: bytes,
    images: slice | None = None,
    texture: Texture = "sample",
    seed: int = 0,
    coder: CoderKind = "auto",
    workers: int = 1,
) -> Tensor:
    """The images of a .vlae file, [N, C, H, W] in [0, 1], in the model's dtype.

    Args:
        model: the one that the file was written with.
        data: the file's bytes.
        images: only these, without a step: only their blocks are decoded.
        texture: of a lossy file: "sample", "greedy" or "mean" (see `Lossy.images`).
        seed: of a lossy file's texture.
        coder: "auto", "numpy" or "constriction".
        workers: processes that share the blocks.

    Raises:
        VlaeError: not such a file, of another model or a later version, or damaged. Wrong pixels are never returned.
    """
    container = _open(model, data)
    start, stop, step = (images or slice(None)).indices(container.header.count)
    if step != 1 or start >= stop:
        raise VlaeError(f"images must be a non-empty slice of the file's {container.header.count}; got {images}")
    dtype = next(model.parameters()).dtype
    return _decode(model, container, range(start, stop), texture, seed, coder, workers).to(dtype)


def to_levels(model: LatentVariableModel, images: Tensor | np.ndarray) -> Levels:
    """Images in [0, 1], or levels, as levels uint8 [N, C, H, W]."""
    ModelCoder(model)  # refuses models that can't be coded, before their images
    levels = model.likelihood.levels or 256
    x = torch.as_tensor(images)
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(model.image_shape) or not len(x):
        raise VlaeError(f"expected images [N, {', '.join(map(str, model.image_shape))}], N >= 1; got {list(x.shape)}")
    if x.dtype == torch.uint8:
        if int(x.max()) >= levels:
            raise VlaeError(f"uint8 images are levels and the model has {levels}: found {int(x.max())}")
        return x.cpu().numpy()
    model.check(x.to(next(model.parameters(), x).dtype))
    return (x.double() * (levels - 1)).round().to(torch.uint8).cpu().numpy()


def _compress(
    model: LatentVariableModel,
    levels: Levels,
    entries: Sequence[pictures.Entry],
    lossy_step: float | None,
    lossy_bits: float | None,
    images_per_block: int,
    coder: CoderKind,
    verify: bool,
    name: str,
    workers: int,
) -> bytes:
    require_positive("images_per_block", images_per_block)
    if lossy_step is not None and lossy_bits is not None:
        raise VlaeError("give lossy_step or lossy_bits, not both")
    if lossy_bits is not None:
        lossy_step = step_for(model, levels, lossy_bits)
    count = len(levels)
    header = Header(
        model="".join(filter(str.isprintable, name))[:200],
        fingerprint=fingerprint(model),
        shape=model.image_shape,
        levels=model.likelihood.levels or 256,
        mode="lossless" if lossy_step is None else "lossy",
        step=None if lossy_step is None else float(lossy_step),
        blocks=min(count, max(1, round(count / images_per_block))),
        entries=tuple(entries),
        content=hashlib.sha256(levels.tobytes()).hexdigest()[:16],
    )
    blocks = np.split(levels, np.cumsum(split_evenly(count, header.blocks))[:-1])
    method = _method(model, header, coder)
    contents = _run("encode", method, header, coder, workers, blocks, seeds_of(header))
    data = Container(header, tuple(contents)).to_bytes()
    try:
        Container.from_bytes(data)
    except VlaeError as error:
        raise VlaeError(f"these images can't be kept in one file that is safe to read ({error}): split them") from None
    if verify:
        _verify(method, data, levels, coder, workers)
    return data


def _verify(method: BitsBack | Lossy, data: bytes, levels: Levels, coder: CoderKind, workers: int) -> None:
    container = Container.from_bytes(data)
    header, parts = container.header, (container.blocks, container.header.sizes, container.seeds)
    try:
        decoded = np.concatenate(_run("decode", method, header, coder, workers, *parts))
    except VlaeError as error:
        raise VlaeError(f"what was compressed does not decode on this machine ({error}); nothing was kept") from None
    expected = levels
    if isinstance(method, Lossy):  # block by block, as when encoding: another batch may round a mean another way
        expected = np.concatenate([method.quantise(levels[block.start : block.stop]) for block in ranges(header.sizes)])
    if not np.array_equal(decoded, expected):
        raise VlaeError("what was compressed does not decode to the same on this machine; nothing was kept")


def _method(model: LatentVariableModel, header: Header, coder: CoderKind) -> BitsBack | Lossy:
    return BitsBack(model, coder) if header.step is None else Lossy(model, header.step, coder)


def _run(
    verb: str, method: BitsBack | Lossy, header: Header, coder: CoderKind, workers: int, *arguments: Sequence[Any]
) -> list[Any]:
    """`encode` or `decode` in one or several processes; each argument is a sequence over the blocks."""
    require_positive("workers", workers)
    workers = min(workers, len(arguments[0]))
    if workers == 1:
        return getattr(method, verb)(*arguments)
    places = ranges(split_evenly(len(arguments[0]), workers))
    parts = [[argument[place.start : place.stop] for argument in arguments] for place in places]
    with (
        tempfile.TemporaryDirectory() as folder,
        # Spawned, not forked: PyTorch's threads don't survive a fork.
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
    ):
        path = method.model.model.save_pretrained(Path(folder) / "model")
        jobs = [pool.submit(_work, str(path), header, coder, verb, part) for part in parts]
        return [block for job in jobs for block in job.result()]


def _work(path: str, header: Header, coder: CoderKind, verb: str, arguments: Sequence[Any]) -> list[Any]:
    """One process's share, on one thread."""
    torch.set_num_threads(1)
    return getattr(_method(load(path), header, coder), verb)(*arguments)


def _open(model: LatentVariableModel, data: bytes) -> Container:
    """The container, if it is this model's."""
    container = Container.from_bytes(data)
    if container.header.fingerprint != fingerprint(model):
        named = f" (it was called {container.header.model!r})" if container.header.model else ""
        raise VlaeError(
            f"the file was written with another model{named}: give that one, with the same weights (--model, --run or "
            "--config)"
        )
    if container.header.shape != tuple(model.image_shape) or container.header.levels != (
        model.likelihood.levels or 256
    ):
        raise VlaeError("the file is damaged: its header does not fit its own model")
    return container


def _decode(
    model: LatentVariableModel,
    container: Container,
    images: Sequence[int],
    texture: Texture,
    seed: int,
    coder: CoderKind,
    workers: int,
) -> Tensor:
    """Images of a container by their numbers, in ascending order: float64 [n, C, H, W] in [0, 1]."""
    require_positive("workers", workers)
    make_coder(coder, 1)
    if texture not in get_args(Texture):
        raise VlaeError(f"unknown texture {texture!r}: choose one of {', '.join(get_args(Texture))}")
    header = container.header
    every = ranges(header.sizes)
    needed = np.unique(np.searchsorted(np.cumsum(header.sizes), images, "right"))
    method = _method(model, header, coder)
    parts = [[values[i] for i in needed] for values in (container.blocks, header.sizes, container.seeds)]
    try:
        decoded = np.concatenate(_run("decode", method, header, coder, workers, *parts))
    except VlaeError as error:  # the model, the header and the arguments are known to be good
        raise VlaeError(f"the file is damaged in its blocks: {error}") from None
    whole = len(images) == header.count and header.step is None
    if whole and hashlib.sha256(decoded.tobytes()).hexdigest()[:16] != header.content:
        raise VlaeError("the images do not match the digest in the header: the file is damaged")
    held = np.concatenate([every[i] for i in needed])
    wanted: Any = decoded[np.searchsorted(held, images)]
    if isinstance(method, Lossy):
        batches = [slice(i, i + 256) for i in range(0, len(images), 256)]
        return torch.cat([method.images(wanted[batch], images[batch], texture, seed) for batch in batches])
    return method.model.images(wanted)


# -- files ------------------------------------------------------------------------------------------------------------


def compress_files(
    model: LatentVariableModel, paths: Sequence[str | Path], output: str | Path, **options: Any
) -> tuple[Header, int]:
    """Image files, directories of them and arrays to one .vlae file, written atomically.

    Pictures of other sizes than the model's are cut into tiles of its image shape; the last ones are filled up with the
    picture's edge.

    Args:
        model: as in `compress`.
        paths: files and directories (see `vlae.codec.pictures.collect`).
        output: the file to write.
        options: of `compress`.

    Returns:
        The header, and the file's size in bytes.

    Raises:
        VlaeError: as `compress`, and files that can't be read or coded. Nothing is written then.
        OSError: `output` can't be written; where that can be seen, before any work.
    """
    check_target(Path(output))
    ModelCoder(model)  # refuses models that can't be coded, before any file is read
    levels = model.likelihood.levels or 256
    found = pictures.read(paths, levels)
    tiles = pictures.tiles(found, model.image_shape, levels)
    settings = {
        "lossy_step": None,
        "lossy_bits": None,
        "images_per_block": IMAGES_PER_BLOCK,
        "coder": "auto",
        "verify": True,
        "name": "",
        "workers": 1,
        **options,
    }
    data = _compress(model, tiles, [picture.entry for picture in found], **settings)
    header = Container.from_bytes(data).header
    with replacing(Path(output)) as temporary:
        temporary.write_bytes(data)
    return header, len(data)


def decompress_files(
    model: LatentVariableModel,
    data: bytes,
    directory: str | Path,
    only: Sequence[str] = (),
    texture: Texture | None = None,
    seed: int | None = None,
    coder: CoderKind = "auto",
    overwrite: bool = False,
    workers: int = 1,
) -> list[Path]:
    """The pictures of a .vlae file into a directory: images as PNG, arrays as .npz; returns their paths.

    Args:
        model: the one that the file was written with.
        data: the file's bytes.
        directory: made if missing.
        only: names of pictures; only their blocks are decoded. None: all.
        texture: of a lossy file alone: "sample" (if None), "greedy" or "mean".
        seed: of a lossy file's texture; 0 if None.
        coder: "auto", "numpy" or "constriction".
        overwrite: replace files that exist.
        workers: processes that share the blocks.

    Raises:
        VlaeError: as `decompress`, an unknown name, a texture or its seed for a lossless file, or a file that exists
            or can't be written. Nothing is written then.
    """
    container = _open(model, data)
    header = container.header
    counts = [pictures.count_tiles(entry, header.shape) for entry in header.entries]
    spans = dict(zip((entry.name for entry in header.entries), ranges(counts), strict=True))
    for name in only:
        if name not in spans:
            raise VlaeError(f"the file holds no picture {name!r}: see vlae info")
    for name, value in {"texture": texture, "seed": seed}.items():
        if value is not None and header.step is None:
            raise VlaeError(f"{name} is for lossy files, and this one is lossless: leave it out")
    names = set(only) or spans.keys()
    entries = [entry for entry in header.entries if entry.name in names]
    pictures.targets(entries, directory, overwrite)
    # In one go, so that each block is decoded once, and all of them share their batches.
    images = [image for entry in entries for image in spans[entry.name]] if only else range(header.count)
    kind: Texture = "sample" if texture is None else texture
    x = _decode(model, container, images, kind, seed or 0, coder, workers).cpu().numpy()
    # The mean of a lossy file's texture lies between the levels: kept as 8-bit grey values.
    levels = 256 if kind == "mean" else header.levels
    tiles = np.rint(x * (levels - 1)).astype(np.uint8)
    return pictures.write(pictures.assemble(entries, tiles, levels), directory, overwrite)


def info(data: bytes) -> dict[str, Any]:
    """What a .vlae file holds, without its model: the header's fields, sizes and rates."""
    container = Container.from_bytes(data)
    header = container.header
    payload = sum(map(len, container.blocks))
    return {
        "mode": header.mode,
        "step": header.step,
        "model": header.model,
        "fingerprint": header.fingerprint,
        "image_shape": header.shape,
        "levels": header.levels,
        "images": header.count,
        "blocks": header.blocks,
        "pictures": [entry._asdict() for entry in header.entries],
        "bytes": len(data),
        "payload_bytes": payload,
        "bits_per_image": 8 * len(data) / header.count,
    }
