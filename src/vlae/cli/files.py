"""`vlae compress`, `vlae decompress` and `vlae info`: images to .vlae files and back."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlae.cli.choices import add_choice, add_data, choose_data, choose_model, parser_for
from vlae.errors import VlaeError
from vlae.files import check_target, replacing
from vlae.training.configuration import parse


def compress(words: list[str]) -> int:
    """Image files, directories or a data set to one .vlae file."""
    parser = parser_for("compress")
    parser.add_argument("paths", type=str, nargs="+", help="image files, directories or arrays, then the file to write")
    add_choice(parser, device=False, target=False)
    add_data(parser)
    parser.add_argument("--lossy_step", type=float | None, default=None, help="keep only z, in bins of this width")
    parser.add_argument("--lossy_bits", type=float | None, default=None, help="keep only z, in so many bits an image")
    parser.add_argument("--images_per_block", type=int, default=256, help="larger: smaller file; smaller: finer access")
    parser.add_argument("--coder", type=str, default="auto", help="auto, numpy or constriction: the bytes are the same")
    parser.add_argument("--verify", type=bool, default=True, help="decode what was written and compare")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the blocks")
    settings = parse(parser, names_first(words, ["--verify"]), flags=["--verify"])
    from vlae import codec

    *inputs, output = settings.paths
    if not inputs and settings.data.name is None:
        raise VlaeError("give what to compress and then the file to write: vlae compress DIR_OR_FILES OUT.vlae")
    if inputs and settings.data.name is not None:
        raise VlaeError("give files or --data.name, not both")
    others = [word.partition("=")[0] for word in words if word.startswith("--data.")]
    if inputs and others:
        raise VlaeError(f"{others[0]} is for a data set: give files, or --data.name with it")
    if Path(output).suffix != ".vlae":
        raise VlaeError(f"the last name is the file to write and should end in .vlae; got {output!r}")
    check_target(Path(output))
    model, directory = choose_model(settings)
    options = {
        key: settings[key] for key in ("lossy_step", "lossy_bits", "images_per_block", "coder", "verify", "workers")
    }
    options["name"] = Path(settings.model or settings.run or settings.config or directory).name
    started = time.monotonic()
    if inputs:
        codec.compress_files(model, inputs, output, **options)
    else:
        data = codec.compress(model, choose_data(settings, model).tensor(), **options)
        with replacing(Path(output)) as temporary:
            temporary.write_bytes(data)
    seconds = time.monotonic() - started
    found = codec.info(Path(output).read_bytes())
    count, size = found["images"], found["bytes"]
    ratio = raw_bits(found) / 8 / size
    shape = "x".join(map(str, found["image_shape"]))
    print(
        (f"{len(found['pictures']):,} files as " if inputs else "")
        + f"{count:,} images of {shape} in {size:,} bytes: {8 * size / count:.2f} bits an image, "
        + ("" if found["step"] is None else f"{8 * found['payload_bytes'] / count:.2f} of them codes; ")
        + (f"{ratio:.1f} times smaller than raw" if ratio >= 1 else f"{1 / ratio:.1f} times larger than raw")
        + f"; {count / seconds:.0f} images/s"
        + (", decoded again and compared" if settings.verify else "")
    )
    named = next((f" --{key} {shlex.quote(settings[key])}" for key in ("model", "run", "config") if settings[key]), "")
    print(
        f"{output}: vlae decompress {shlex.quote(output)} DIRECTORY{named or f' --run {shlex.quote(str(directory))}'}"
    )
    return 0


def raw_bits(found: dict[str, Any]) -> float:
    """The bits of what was compressed without any model: of files their own pixels, not those that tiles add."""
    values = (p["height"] * p["width"] * p["number"] * (3 if p["mode"] == "RGB" else 1) for p in found["pictures"])
    return sum(values) * math.log2(found["levels"])


def names_first(words: list[str], flags: Sequence[str]) -> list[str]:
    """The words with those of no option in front: what to compress may stand before, between and after options.

    `flags` are options that may stand without a value.

    Example:
        >>> names_first(["a.png", "--model", "photos", "--verify", "OUT.vlae"], ["--verify"])
        ['a.png', 'OUT.vlae', '--model', 'photos', '--verify']
    """
    names: list[str] = []
    options: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            names.append(word)
            continue
        options.append(word)
        takes_value = "=" not in word and (word not in flags or (rest[:1] and rest[0].lower() in ("true", "false")))
        if takes_value and rest and not rest[0].startswith("--"):
            options.append(rest.pop(0))
    return names + options


def decompress(words: list[str]) -> int:
    """The pictures of a .vlae file, into a directory."""
    parser = parser_for("decompress")
    parser.add_argument("file", type=str, help="the .vlae file")
    parser.add_argument("directory", type=str, help="where to put the pictures")
    add_choice(parser, device=False, target=False)
    parser.add_argument("--only", type=list[str], default=[], help="names of pictures: only their blocks are decoded")
    parser.add_argument(
        "--texture", type=str | None, default=None, help="of a lossy file: sample (if not given), greedy or mean"
    )
    parser.add_argument("--seed", type=int | None, default=None, help="of a lossy file's texture, 0 if not given")
    parser.add_argument("--coder", type=str, default="auto", help="auto, numpy or constriction")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace pictures that exist")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the blocks")
    settings = parse(parser, words, flags=["--overwrite"], lists=["--only"])
    from vlae import codec
    from vlae.models.saving import load, pretrained_names

    data = Path(settings.file).read_bytes()
    named = codec.info(data)["model"]
    if not any(settings.get(key) for key in ("model", "run", "config")) and named in pretrained_names():
        model = load(named)
    else:
        model, _ = choose_model(settings)
    started = time.monotonic()
    options = {key: settings[key] for key in ("only", "texture", "seed", "coder", "overwrite", "workers")}
    paths = codec.decompress_files(model, data, settings.directory, **options)
    shown = ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    print(f"{files} in {settings.directory}, {time.monotonic() - started:.1f} s: {shown}")
    return 0


def info(words: list[str]) -> int:
    """What a .vlae file holds; no model is needed."""
    parser = parser_for("info")
    parser.add_argument("file", type=str, help="the .vlae file")
    parser.add_argument("--json", type=bool, default=False, help="as JSON, every picture listed")
    settings = parse(parser, words, flags=["--json"])
    from vlae import codec

    found = codec.info(Path(settings.file).read_bytes())
    if settings.json:
        print(json.dumps(found, indent=2))
        return 0
    names = [entry["name"] for entry in found["pictures"]]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    mode = found["mode"] + ("" if found["step"] is None else f", only z, in bins of {found['step']:.4g}")
    rows = {
        "mode": mode,
        "model": f"{found['model'] or 'unnamed'}, fingerprint {found['fingerprint']}",
        "images": f"{found['images']:,} of {'x'.join(map(str, found['image_shape']))}, {found['levels']} levels",
        "pictures": f"{len(names)}: {shown}",
        "blocks": f"{found['blocks']}, each can be decoded alone",
        "size": f"{found['bytes']:,} bytes, {found['payload_bytes']:,} of them in blocks",
        "an image": f"{found['bits_per_image']:.2f} bits, {8 * found['payload_bytes'] / found['images']:.2f} in blocks",
    }
    for name, text in rows.items():
        print(f"{name:10s}{text}")
    return 0
