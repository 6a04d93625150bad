"""`vlae sample interpolate`: paths between two codes."""

from __future__ import annotations

from dataclasses import dataclass
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


def sample_interpolate(words: list[str]) -> int:
    """Paths between the codes of held-out images, or between draws from the prior, decoded step by step."""
    parser = parser_for("sample interpolate")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--pairs", type=int | None, default=None, help="how many pairs of ends; 6 if not given")
    parser.add_argument("--steps", type=int, default=9, help="of each path, with both ends")
    parser.add_argument("--path", type=str, default="spherical", help="linear, spherical or both")
    parser.add_argument("--images", type=list[int], default=[], help="numbers of the images at the ends, two a pair")
    parser.add_argument("--prior", type=bool, default=False, help="between draws from the prior instead")
    add_context(parser)
    add_pixels(parser)
    add_output(parser, "the run's grids/interpolations.png")
    settings = parse_choice(parser, words, flags=["--prior", "--greedy"], lists=["--images", "--attributes"])
    check_output(settings)
    import torch

    from vlae import figures
    from vlae.models.latents import joined
    from vlae.sampling import decode, interpolate
    from vlae.sampling.decoding import one_code, require_autoregressive, require_continuous
    from vlae.sampling.interpolation import PATHS

    if settings.path not in (*PATHS, "both"):
        raise VlaeError(f"--path must be {', '.join(map(repr, PATHS))} or 'both'; got {settings.path!r}")
    kinds = list(PATHS) if settings.path == "both" else [settings.path]
    if settings.prior and (of_images := [word.partition("=")[0] for word in words if word.startswith("--data.")]):
        raise VlaeError(f"draws from the prior are of no images: with --prior leave out {' and '.join(of_images)}")
    if settings.pairs is not None and settings.images:
        raise VlaeError("give --pairs or --images, not both: two images make a pair")
    settings["pairs"] = 6 if settings.pairs is None else settings.pairs
    require_positive("pairs", settings.pairs)
    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "interpolations.png")
    require_continuous(model, "an interpolation")
    if settings.greedy:
        require_autoregressive(model, "--greedy")
    ends = _drawn_ends(settings, model) if settings.prior else _image_ends(settings, model)
    codes, contexts, rows = [], [], []
    for pair, name in enumerate(ends.names):
        first, second = (one_code(ends.z, 2 * pair + k) for k in (0, 1))
        for kind in kinds:
            codes.append(interpolate(model, first, second, settings.steps, kind))
            contexts.append(ends.context_between(pair, settings.steps))
            rows.append(f"{name}\n{kind}" if len(kinds) > 1 else name)
    drawn, said = drawn_pixels(settings, model)
    context = None if ends.context is None else torch.cat(contexts)
    images = decode(model, joined(codes), drawn, settings.seed, context).unflatten(0, (len(rows), settings.steps))
    originals = None
    if ends.images is not None:
        originals = tuple(ends.images[k::2].repeat_interleave(len(kinds), 0) for k in (0, 1))
    title = f"{' and '.join(kinds)} paths between {ends.said}; {said}"
    figures.save(figures.interpolations(images, rows, originals, title, group=len(kinds)), path)
    print(f"{len(rows)} paths of {settings.steps} steps: {path}")
    return 0


@dataclass(frozen=True)
class _Ends:
    """Codes z [2 P, *latent_shape], those of a pair next to each other, and what belongs to them."""

    z: Any
    context: Any
    images: Any  # [2 P, C, H, W], or None
    names: list[str]
    said: str

    def context_between(self, pair: int, steps: int) -> Any:
        """The context of each step between the ends of a pair: attributes change evenly, labels must be the same."""
        import torch

        if self.context is None:
            return None
        first, second = self.context[2 * pair], self.context[2 * pair + 1]
        if first.ndim:
            return torch.lerp(first.double(), second.double(), torch.linspace(0, 1, steps).double()[:, None])
        if first != second:
            raise VlaeError(
                f"{self.names[pair]} are of labels {int(first)} and {int(second)}, and this model is conditional on "
                "the label: choose images of one label for each pair"
            )
        return first.expand(steps)


def _image_ends(settings: Any, model: Any) -> _Ends:
    """The codes of the images that were asked for; for a conditional model, by default, of one label in each pair."""
    from vlae.sampling import posterior_means

    if settings.attributes is not None:
        raise VlaeError("--attributes are for --prior: images have their own")
    data, rows = choose_data(settings, model), list(settings.images)
    if rows and settings.label is not None:
        raise VlaeError("give --images or --label, not both: a label chooses the images")
    if len(rows) % 2:
        raise VlaeError(f"--images takes two numbers for each pair; got {len(rows)}")
    labels = _labels_of_pairs(settings, model)
    for pair, label in enumerate(labels if not rows else []):
        needed = 2 * labels[: pair + 1].count(label)
        found = images_of_label(data, label, needed)
        if len(found) < needed:
            raise VlaeError(f"{data.name} {data.split} has too few images of label {label}: {len(found)}, not {needed}")
        rows += found[-2:]
    rows = rows or list(range(2 * settings.pairs))
    x, context = choose_images(data, model, rows)
    z = posterior_means(model, x, context)
    names = [f"{first} → {second}" for first, second in zip(rows[::2], rows[1::2], strict=True)]
    return _Ends(z, context, x, names, f"codes of {data.name} images")


def _labels_of_pairs(settings: Any, model: Any) -> list[int]:
    """The label of both ends of each pair; none where it does not matter."""
    if settings.label is not None:
        return [settings.label] * settings.pairs
    classes = 0 if model.condition is None else model.condition.classes
    return [pair % classes for pair in range(settings.pairs)] if classes else []


def _drawn_ends(settings: Any, model: Any) -> _Ends:
    """Draws from the prior; a context is the same at both ends."""
    import torch

    from vlae.models.context import given

    if settings.images:
        raise VlaeError("give --images or --prior, not both")
    context = choose_context(settings, model, settings.pairs)
    context = None if context is None else context.repeat_interleave(2, 0)
    generator = torch.Generator().manual_seed(settings.seed)
    z = model.prior(**given(context)).sample((2 * settings.pairs,), generator=generator)
    return _Ends(z, context, None, [f"pair {pair + 1}" for pair in range(settings.pairs)], "draws from the prior")
