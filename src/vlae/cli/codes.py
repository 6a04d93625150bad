"""`vlae viz traverse | decompressions`: figures of what codes hold."""

from __future__ import annotations

import math
from typing import Any

from vlae.cli.choices import (
    add_choice,
    add_data,
    add_pixels,
    choose_data,
    choose_images,
    choose_model,
    drawn_pixels,
    parse_choice,
    parser_for,
)
from vlae.cli.output import add_output, check_output, output_path
from vlae.errors import VlaeError, require_positive
from vlae.models.context import given

QUANTILES = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]
RATED = 500  # images that the rates of dimensions are averaged over


def viz_traverse(words: list[str]) -> int:
    """One dimension of a held-out image's code moves through the prior's quantiles, the others stay."""
    parser = parser_for("viz traverse")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--dims", type=list[int], default=[], help="these dimensions, a picture for each")
    parser.add_argument("--dim", type=int | None, default=None, help="the same for one")
    parser.add_argument(
        "--count",
        type=int | None,
        default=None,
        help="or so many, the most informative; else 8",
    )
    parser.add_argument("--image", type=list[int], default=[0], help="number of the image; with --dims also several")
    parser.add_argument("--quantiles", type=list[float], default=QUANTILES, help="their probabilities")
    parser.add_argument("--space", type=str, default="noise", help="what moves: noise (the prior's), or latent (z)")
    add_pixels(parser)
    add_output(parser, "the run's grids/traverse.png or traverse_dim_K.png")
    settings = parse_choice(parser, words, flags=["--greedy"], lists=["--dims", "--image", "--quantiles"])
    check_output(settings)
    from vlae import figures
    from vlae.evaluation.codes import SPACES
    from vlae.sampling import dimension_rates
    from vlae.sampling.decoding import require_autoregressive, require_continuous
    from vlae.sampling.traversal import check_dimensions

    named = [*settings.dims, *([] if settings.dim is None else [settings.dim])]
    if settings.space not in SPACES:
        raise VlaeError(f"the space must be {' or '.join(map(repr, SPACES))}; got {settings.space!r}")
    if named and settings.count is not None:
        raise VlaeError("give --count or dimensions by number, not both")
    settings["count"] = 8 if settings.count is None else settings.count
    if len(settings.image) > 1 and not named:
        raise VlaeError("several images are for --dims, a picture for each dimension: give one --image, or --dims")
    if settings.output and len(named) > 1:
        raise VlaeError(f"--output names one picture, and {len(named)} dimensions are asked for: leave it out")
    require_positive("count", settings.count)
    model, directory = choose_model(settings)
    require_continuous(model, "a traversal")
    if settings.greedy:
        require_autoregressive(model, "--greedy")
    check_dimensions(model, named)
    names = [f"traverse_dim_{dimension}.png" for dimension in named] or ["traverse.png"]
    paths = [output_path(settings, directory / "grids" / name) for name in names]
    data = choose_data(settings, model)
    x, context = choose_images(data, model, list(settings.image))
    rates = None
    if model.has_bound or not named:
        rates = dimension_rates(model, *choose_images(data, model, list(range(min(RATED, len(data))))))
    if named:
        pictures = [[dimension] for dimension in named]
    else:
        assert rates is not None
        pictures = [rates.argsort(descending=True, stable=True)[: settings.count].tolist()]
    for path, dimensions in zip(paths, pictures, strict=True):
        figures.save(_traversals(settings, model, x, context, dimensions, rates), path)
        said = f"dimension {dimensions[0]}" if named else f"the {len(dimensions)} most informative dimensions"
        print(f"{said} of z at {len(settings.quantiles)} quantiles: {path}")
    return 0


def _traversals(settings: Any, model: Any, x: Any, context: Any, dimensions: list[int], rates: Any) -> Any:
    """The picture of all these dimensions from each of the images x; `rates` in nats, where there are any."""
    import torch

    from vlae import figures
    from vlae.distributions import StandardNormal
    from vlae.models.latents import some
    from vlae.sampling import decode, posterior_means, prior_quantiles, traverse, traverse_noise
    from vlae.sampling.decoding import one_code
    from vlae.sampling.traversal import normal_quantiles

    of_noise = settings.space == "noise" and not isinstance(model.prior(), StandardNormal)  # whose noise is z
    if of_noise:
        values = normal_quantiles(settings.quantiles).expand(len(dimensions), -1)
    else:
        values = prior_quantiles(model, dimensions, settings.quantiles)
    drawn, said = drawn_pixels(settings, model)
    symbol = "ε" if of_noise else "z"
    named = [f"{symbol} {d}" + ("" if rates is None else f"\n{rates[d] / math.log(2):.2f} bits") for d in dimensions]
    codes, images, starts = posterior_means(model, x, context), [], []
    for k in range(len(x)):
        own = None if context is None else context[k : k + 1]
        starts.append(decode(model, some(codes, k, k + 1), drawn, settings.seed, own))
        one = one_code(codes, k)
        for dimension, value in zip(dimensions, values, strict=True):
            moved = traverse_noise(model, one, dimension, value) if of_noise else traverse(one, dimension, value)
            told = None if own is None else own.expand(len(value), *own.shape[1:])
            images.append(decode(model, moved, drawn, settings.seed, told))
    what = "one dimension of the prior's noise ε moves, z = f(ε)" if of_noise else "one dimension of z moves"
    rows, title = named, f"{what}, the others stay\n{said}"
    if len(dimensions) == 1:
        rows, title = [f"image {number}" for number in settings.image], f"{', '.join(named[0].splitlines())}: {title}"
    columns = [f"{p:g}" for p in settings.quantiles]
    first = {"image": x, "code": torch.cat(starts)}
    return figures.traversals(torch.stack(images), rows, columns, first, title=title)


def viz_decompressions(words: list[str]) -> int:
    """Held-out images beside several x ~ p(x|z), z ~ q(z|x): what the code keeps, in new texture."""
    parser = parser_for("viz decompressions")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--count", type=int, default=8, help="how many images")
    parser.add_argument("--draws", type=int, default=6, help="of each")
    parser.add_argument("--seed", type=int, default=0, help="of all noise")
    add_output(parser, "the run's grids/decompressions.png")
    settings = parse_choice(parser, words)
    check_output(settings)
    import torch

    from vlae import figures
    from vlae.distributions.pointmass import PointMass
    from vlae.sampling import decompressions

    require_positive("draws", settings.draws)
    require_positive("count", settings.count)
    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "decompressions.png")
    name = type(model).__name__
    if not model.latent_size:
        raise VlaeError(f"a {name} has no z to decode: vlae sample prior draws its images")
    x, context = choose_images(choose_data(settings, model), model, list(range(settings.count)))
    drawn = model.autoregressive
    with torch.no_grad():
        certain = isinstance(model.encode(x[:1], **given(None if context is None else context[:1])), PointMass)
    if certain and not drawn:
        raise VlaeError(f"z of a {name} is certain, so that all draws are one: vlae viz recon-grid shows it")
    draws = [decompressions(model, x, settings.seed + k, context, drawn) for k in range(settings.draws)]
    said = "x ~ p(x|z), z ~ q(z|x)" if drawn else "mean images of p(x|z), z ~ q(z|x)"
    figures.save(figures.decompressions(x, torch.stack(draws, 1), said), path)
    print(f"{settings.draws} decompressions of {len(x)} images: {path}")
    return 0
