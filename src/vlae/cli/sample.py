"""`vlae sample`: images that a model makes, as pictures and as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlae.cli.choices import (
    add_choice,
    add_context,
    add_data,
    add_pixels,
    choose_context,
    choose_data,
    choose_images,
    choose_model,
    drawn_pixels,
    images_of_label,
    parse_choice,
    parser_for,
)
from vlae.cli.output import add_output, check_output, output_path
from vlae.errors import VlaeError, require_positive

SETS = ("base", "plus", "minus")
LABELLED = 100  # images of a label
DRAWS = 4  # images of each code of latent arithmetic
SHOWN = 8  # images of a set in the picture of latent arithmetic


def sample_prior(words: list[str]) -> int:
    """Images x ~ p(x|z), z ~ p(z): a picture, and the pixels as an array."""
    parser = parser_for("sample prior")
    add_choice(parser)
    parser.add_argument("--count", type=int, default=64, help="how many images")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the prior")
    parser.add_argument("--pixel_temperature", type=float, default=1.0, help="of each pixel's distribution")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    add_context(parser)
    add_output(parser, "the run's samples/prior_samples.png", array=True)
    settings = parse_choice(parser, words, lists=["--attributes"])
    check_output(settings, array=True)
    from vlae import figures
    from vlae.sampling import prior_samples, save_array

    model, directory = choose_model(settings)
    path = output_path(settings, directory / "samples" / "prior_samples.png", array=True)
    if not model.latent_size and settings.temperature != 1:
        raise VlaeError(f"a {type(model).__name__} has no z whose prior had a temperature: give --pixel_temperature")
    context = choose_context(settings, model, settings.count)
    images = prior_samples(
        model, settings.count, settings.temperature, settings.pixel_temperature, settings.seed, context=context
    )
    figures.save(figures.image_grid(images), path)
    print(f"{len(images)} samples: {path} and {save_array(images, path.with_suffix('.npz'))}")
    return 0


def sample_arithmetic(words: list[str]) -> int:
    """Images of mean(base) + mean(plus) - mean(minus), means of the codes of held-out images."""
    parser = parser_for("sample arithmetic")
    add_choice(parser)
    add_data(parser)
    for name in SETS:
        parser.add_argument(f"--{name}", type=list[int], default=[], help="numbers of images")
        parser.add_argument(f"--{name}_label", type=int | None, default=None, help="or images of this label")
    parser.add_argument(
        "--label_images", type=int | None, default=None, help=f"the first so many images of a label, else {LABELLED}"
    )
    parser.add_argument(
        "--draws", type=int | None, default=None, help=f"images of each code, where pixels are drawn; else {DRAWS}"
    )
    add_pixels(parser)
    add_output(parser, "the run's grids/arithmetic.png")
    settings = parse_choice(parser, words, flags=["--greedy"], lists=[f"--{name}" for name in SETS])
    check_output(settings)
    import torch

    from vlae import figures
    from vlae.sampling import decode
    from vlae.sampling.arithmetic import combine, mean_code
    from vlae.sampling.decoding import require_autoregressive, require_continuous

    count = DRAWS if settings.draws is None else settings.draws
    labelled = LABELLED if settings.label_images is None else settings.label_images
    for name, value in {"draws": count, "label_images": labelled}.items():
        require_positive(name, value)
    if settings.label_images is not None and all(settings[f"{name}_label"] is None for name in SETS):
        raise VlaeError("--label_images is of sets that are chosen by a label: give --base_label, or leave it out")
    if settings.greedy and settings.draws is not None:
        raise VlaeError("give --draws or --greedy, not both: the greedy image of a code is one and the same")
    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "arithmetic.png")
    require_continuous(model, "arithmetic")
    for name in ("draws", "greedy"):
        if settings[name]:
            require_autoregressive(model, f"--{name}")
    data = choose_data(settings, model)
    rows = {name: _rows_of(settings, name, data, labelled) for name in SETS}
    chosen = {name: choose_images(data, model, numbers) for name, numbers in rows.items()}
    images, contexts = ([pair[k] for pair in chosen.values()] for k in (0, 1))
    codes = [mean_code(model, x, own) for x, own in zip(images, contexts, strict=True)]
    codes.append(combine(*codes))
    drawn, said = drawn_pixels(settings, model)
    told = None if contexts[0] is None else contexts[0][0]  # all are decoded as the first base image is
    draws = [
        [decode(model, z, drawn, settings.seed + draw, told) for draw in range(count if drawn else 1)] for z in codes
    ]
    labels = [f"{sign} {_name_of(settings, name)}".strip() for sign, name in zip(("", "+", "−"), SETS, strict=True)]
    decoded = dict(zip([*labels, "= result"], map(torch.cat, draws), strict=True))
    originals = {label: x[:SHOWN] for label, x in zip(labels, images, strict=True)}
    said = said.replace("all images", "each column")
    figures.save(figures.latent_arithmetic(decoded, originals, f"base + plus − minus, of codes; {said}"), path)
    counts = {name: len(numbers) for name, numbers in rows.items()}
    print(f"base ({counts['base']} images) + plus ({counts['plus']}) - minus ({counts['minus']}): {path}")
    return 0


def _rows_of(settings: Any, name: str, data: Any, labelled: int) -> list[int]:
    """The numbers of the images of one set."""
    label = settings[f"{name}_label"]
    if (label is None) == (not settings[name]):
        raise VlaeError(
            f"give --{name} or --{name}_label, one of the two: --{name} 0 1 takes images by number, "
            f"--{name}_label 7 those of a label"
        )
    return list(settings[name]) if label is None else images_of_label(data, label, labelled)


def _name_of(settings: Any, name: str) -> str:
    label = settings[f"{name}_label"]
    return f"{name}\n{' '.join(map(str, settings[name])) if label is None else f'label {label}'}"


def sample_complete(words: list[str]) -> int:
    """Held-out images of which a part is given, and several ways in which the model draws the rest."""
    parser = parser_for("sample complete")
    add_choice(parser)
    add_data(parser)
    parser.add_argument(
        "--given",
        type=str | None,
        default=None,
        help="upper (as if not given), lower, left or right half; or a share of the rows, from above",
    )
    parser.add_argument("--mask", type=str | None, default=None, help="PNG of the images' size, white where given")
    parser.add_argument("--images", type=list[int], default=[0, 1, 2, 3], help="numbers of the images")
    parser.add_argument("--count", type=int, default=6, help="completions of each")
    parser.add_argument("--candidates", type=int, default=64, help="z's per completion and round")
    parser.add_argument("--rounds", type=int, default=2, help="of proposals for z")
    parser.add_argument("--seed", type=int, default=0, help="of all noise")
    add_output(parser, "the run's samples/completions.png", array=True)
    settings = parse_choice(parser, words, lists=["--images"])
    check_output(settings, array=True)
    import torch

    from vlae import figures
    from vlae.sampling import complete, save_array

    require_positive("count", settings.count)
    model, directory = choose_model(settings)
    path = output_path(settings, directory / "samples" / "completions.png", array=True)
    mask, said = _mask(settings, model)
    x, context = choose_images(choose_data(settings, model), model, list(settings.images))
    completed, labels = [], []
    for k, number in enumerate(settings.images):
        known = x[k].expand(settings.count, *x.shape[1:])
        told = None if context is None else context[k]
        found = complete(model, known, mask, settings.candidates, settings.rounds, settings.seed + number, told)
        effective = found.effective_candidates.median().item()
        completed.append(found.images)
        labels.append(f"image {number}\n{effective:.1f} effective\ncandidates")
        print(f"image {number}: {effective:.1f} effective candidates of {settings.candidates}, the median")
    images = torch.stack(completed)
    title = f"completions, {said} given"
    figures.save(figures.completions(x, mask, images, labels, title), path)
    array = save_array(images.flatten(0, 1), path.with_suffix(".npz"))
    print(f"{settings.count} completions of {len(x)} images: {path} and {array}")
    return 0


def _mask(settings: Any, model: Any) -> tuple[Any, str]:
    """Which pixels are given, bool [1, 1, H, W], and in words."""
    import torch

    _, height, width = model.image_shape
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    if settings.mask is not None:
        if settings.given is not None:
            raise VlaeError("give --given or --mask, not both")
        return _read_mask(Path(settings.mask), height, width), f"the white of {Path(settings.mask).name}"
    wanted = settings.given or "upper"
    halves = {
        "upper": (slice(height // 2), slice(None)),
        "lower": (slice(height - height // 2, None), slice(None)),
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width - width // 2, None)),
    }
    if wanted in halves:
        mask[:, :, *halves[wanted]] = True
        return mask, f"the {wanted} half"
    try:
        share = float(wanted)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise VlaeError(f"--given is upper, lower, left or right, or a share of the rows from 0 to 1; got {wanted!r}")
    mask[:, :, : round(share * height)] = True
    return mask, f"the upper {share:g} of the rows"


def _read_mask(path: Path, height: int, width: int) -> Any:
    import numpy as np
    import torch

    from vlae.data.formats import open_image, reading

    if not path.is_file():
        raise VlaeError(f"there is no file {path}: give --mask a PNG, white where a pixel is given")
    with reading(path, "mask", "give a PNG, white where a pixel is given"), open_image(path) as picture:
        if picture.mode.startswith(("I", "F")):  # Pillow would cut them off at white
            raise VlaeError(f"{path}: pixels of more than 8 bits ({picture.mode}); save the mask with 8 bits")
        if picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise VlaeError(f"{path}: has transparent pixels; save the mask without transparency, white where given")
        levels = np.asarray(picture.convert("L"))
    if levels.shape != (height, width):
        raise VlaeError(
            f"{path} has {levels.shape[1]}x{levels.shape[0]} pixels and the images have {width}x{height}: "
            "give the mask the images' size"
        )
    return torch.from_numpy(levels >= 128)[None, None]
