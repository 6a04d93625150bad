"""`vlae viz`: charts of a model's code, window, training, and place in the rate-distortion plane."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlae.cli.choices import (
    add_choice,
    add_data,
    check_one_choice,
    choose_data,
    choose_model,
    choose_run,
    parse_choice,
    parser_for,
    run_of,
    take_target,
)
from vlae.cli.output import add_output, check_output, output_path
from vlae.errors import VlaeError
from vlae.training.configuration import parse

MOST_SHARES = 16  # samples of z per image where the rate has no closed form


def viz_latent_scatter(words: list[str]) -> int:
    """The posterior means of held-out images in a plane, coloured and numbered by label."""
    parser = parser_for("viz latent-scatter")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--count", type=int, default=2000, help="how many images, at most")
    parser.add_argument(
        "--projection",
        type=str | None,
        default=None,
        help="first or informative (two dimensions of z), pca or umap (of all); informative where there is a rate",
    )
    parser.add_argument("--dims", type=list[int] | None, default=None, help="these two dimensions: --dims 3 5")
    parser.add_argument("--space", type=str, default="latent", help="latent, or the prior's noise that z stands for")
    parser.add_argument("--seed", type=int, default=0, help="of sampled rates and of UMAP")
    add_output(parser, "the run's grids/latent_scatter.png")
    settings = parse_choice(parser, words, lists=["--dims"])
    check_output(settings)
    from vlae import figures
    from vlae.evaluation import codes
    from vlae.evaluation.projection import project

    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "latent_scatter.png")
    codes.check_code(model, settings.space)
    data = _some(choose_data(settings, model), model, settings.count)
    found = project(model, data, settings.projection, settings.dims, settings.space, settings.seed)
    what = "posterior means, as noise ε = f⁻¹(z)," if settings.space == "noise" else "posterior means"
    title = f"{directory.name}: {what} of {_images(data)}\n{found.about}"
    if data.labels is None:
        title += "; no labels to colour by"
    figures.save(figures.latent_scatter(found.points, data.labels, found.axes, title), path)
    unlabelled = ", in one colour, as there are no labels" if data.labels is None else ""
    print(f"{len(data)} posterior means{unlabelled}; {found.about}: {path}")
    return 0


def viz_aggregate_posterior(words: list[str]) -> int:
    """The most informative dimensions of z: draws of the aggregate posterior beside the prior."""
    parser = parser_for("viz aggregate-posterior")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--count", type=int, default=5000, help="how many images, at most")
    parser.add_argument("--top", type=int | None, default=None, help="so many, those of the largest rate; else 5")
    parser.add_argument("--dims", type=list[int] | None, default=None, help="or these: --dims 0 1 2")
    parser.add_argument("--space", type=str, default="latent", help="latent, or the prior's noise that z stands for")
    parser.add_argument("--seed", type=int, default=0, help="of all noise")
    add_output(parser, "the run's grids/aggregate_posterior.png")
    settings = parse_choice(parser, words, lists=["--dims"])
    check_output(settings)
    from vlae import figures
    from vlae.evaluation import codes

    if settings.top is not None and settings.dims is not None:
        raise VlaeError("give --top or --dims, not both")
    top = 5 if settings.top is None else settings.top
    if top < 1:
        raise VlaeError(f"top must be at least 1; got {top}")
    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "aggregate_posterior.png")
    codes.check_code(model, settings.space)
    data = _some(choose_data(settings, model), model, settings.count)
    draws = codes.code_draws(model, data, settings.space, settings.seed)
    dimensions, names = _dimensions(model, data, settings, top)
    prior = codes.prior_draws(model, len(draws), settings.space, settings.seed)
    exact = codes.has_normal_marginals(model, settings.space)
    what = "noise ε = f⁻¹(z)" if settings.space == "noise" else "z"
    title = f"{directory.name}: aggregate posterior q, one {what} for each of {_images(data)}\n"
    title += f"beside the prior p, {'exact marginals and ' if exact else ''}{len(prior):,} draws"
    figures.save(figures.aggregate_posterior(draws[:, dimensions], prior[:, dimensions], names, exact, title), path)
    print(f"{len(draws)} codes beside {len(prior)} of the prior, dimensions {_listed(dimensions)}: {path}")
    return 0


def viz_bits(words: list[str]) -> int:
    """What each image spends on each dimension of z, in bits, and the mean."""
    parser = parser_for("viz bits")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--count", type=int, default=300, help="how many images, at most")
    parser.add_argument(
        "--draws",
        type=int | None,
        default=None,
        help=f"samples of z per image; {MOST_SHARES} where the rate has no closed form, else 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of these samples")
    add_output(parser, "the run's grids/bits.png")
    settings = parse_choice(parser, words)
    check_output(settings)
    from vlae import figures
    from vlae.evaluation import codes

    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "bits.png")
    codes.check_code(model)
    codes.check_bound(model)
    data = _some(choose_data(settings, model), model, settings.count)
    closed = codes.has_closed_rate(model)
    draws = settings.draws if settings.draws is not None else 1 if closed else MOST_SHARES
    bits = codes.code_bits(model, data, draws, settings.seed)
    how = "" if closed else f", each share of {draws} z ~ q(z|x)"
    title = f"{directory.name}: bits of each latent dimension, {_images(data)}{how}"
    figures.save(figures.bits_heatmap(bits, codes.dimension_names(model), data.labels, title), path)
    print(f"{bits.sum(1).mean():.2f} bits per image in {bits.shape[1]} dimensions, {len(data)} images: {path}")
    return 0


def viz_receptive_field(words: list[str]) -> int:
    """The earlier pixels that a pixel of an autoregressive decoder sees; exit 1 if a check finds others."""
    parser = parser_for("viz receptive-field")
    add_choice(parser)
    parser.add_argument(
        "--check", type=bool, default=False, help="measure it by gradients as well; exit 1 if it differs"
    )
    parser.add_argument("--steps", type=bool, default=False, help="write the wavefront's steps into the cells")
    add_output(parser, "the run's grids/receptive_field.png")
    settings = parse_choice(parser, words, flags=["--check", "--steps"])
    check_output(settings)
    from vlae import figures
    from vlae.evaluation.window import declared_window, measure_window

    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "receptive_field.png")
    field = declared_window(model)
    slope = field.slope if settings.steps else None
    if not settings.check:
        figures.save(figures.receptive_field(field.mask, slope), path)
        print(f"{field.size} pixels, wavefront slope {field.slope}: {path}")
        return 0
    measured = measure_window(model)
    figures.save(figures.receptive_field(measured.declared.mask, slope, measured.seen.mask), path)
    where = f"pixel {measured.pixel} sees {measured.seen.size} earlier pixels"
    if measured.cut:
        where += f" (the image cuts its window of {field.size})"
    if measured.agrees:
        print(f"{where}, exactly those declared: {path}")
        return 0
    leaks = f", and it depends on later values at offsets {_listed(measured.leaks)}" if measured.leaks else ""
    print(f"{where}, and {measured.declared.size} are declared: they differ{leaks}: {path}")
    return 1


def viz_training_curves(words: list[str]) -> int:
    """How distortion, rate and -ELBO moved in a run, from its logs/metrics.csv."""
    parser = parser_for("viz training-curves")
    add_choice(parser, device=False)
    add_output(parser, "the run's grids/training_curves.png")
    settings = parse_choice(parser, words)
    check_output(settings)
    from vlae import figures
    from vlae.evaluation.history import curves_of, read_rows

    check_one_choice(settings)
    directory = _run_of_model(settings) if settings.model else choose_run(settings)
    path = output_path(settings, directory / "grids" / "training_curves.png")
    rows = read_rows(directory / "logs" / "metrics.csv")
    if not rows:
        raise VlaeError(f"{directory} has no logs/metrics.csv with an epoch in it: give the run of a training")
    figures.save(figures.training_curves(curves_of(rows), directory.name), path)
    print(f"{len({row['epoch'] for row in rows})} epochs: {path}")
    return 0


def viz_rate_distortion(words: list[str]) -> int:
    """Models or runs in the rate-distortion plane, measured on the same held-out images."""
    parser = parser_for("viz rate-distortion")
    parser.add_argument(
        "targets",
        type=str,
        nargs="*",
        default=[],
        help="runs, saved models, pretrained names; else the newest run",
    )
    add_choice(parser, target=False)
    add_data(parser)
    parser.add_argument("--count", type=int, default=1000, help="measure on so many images, at most")
    parser.add_argument("--seed", type=int, default=0, help="of all noise")
    add_output(parser, "outputs/rate_distortion.png, of one model its grids/rate_distortion.png,")
    settings = parse(parser, words)
    check_output(settings)
    from vlae import figures
    from vlae.evaluation import codes
    from vlae.evaluation.bounds import evaluate
    from vlae.evaluation.passes import batches_of
    from vlae.figures.studies import Point, rate_distortion

    measured: list[tuple[str, Any, Any]] = []
    for target in settings.targets or [None]:
        chosen = _of_one(settings, target)
        model, directory = choose_model(chosen)
        codes.check_bound(model)
        data = _some(choose_data(chosen, model), model, settings.count)
        if measured and data.protocol != measured[0][2].protocol:
            raise VlaeError(
                f"{measured[0][0]} and {directory.name} are of different data, which can't be compared: say which with "
                "--data.name and --data.binarize"
            )
        measured.append((_unused(directory.name, [name for name, _, _ in measured]), model, data))
    default = directory / "grids" if len(settings.targets) < 2 else Path("outputs")
    path = output_path(settings, default / "rate_distortion.png")
    points: list[Point] = []
    for name, model, data in measured:
        found = evaluate(model, partial(batches_of, model, data), seed=settings.seed)
        assert found.rate is not None
        points.append(Point(name, found.distortion, found.rate))
        print(f"{name}: rate {found.rate:.3f}, distortion {found.distortion:.3f}, "
              f"-ELBO {found.negative_elbo:.3f} nats per image")  # fmt: skip
    on = _images(measured[0][2])
    figures.save(rate_distortion(points, f"rate and distortion of {on}"), path)
    print(f"{len(points)} {'model' if len(points) == 1 else 'models'} in the rate-distortion plane: {path}")
    return 0


def _of_one(settings: Any, target: str | None) -> Any:
    """The settings of one target; None: of the model that was chosen by an option, if any."""
    chosen = settings.clone()
    chosen.target = target
    return take_target(chosen)


def _unused(name: str, taken: Sequence[str]) -> str:
    """The name, numbered where it is taken."""
    again = [other for other in taken if other == name or other.startswith(f"{name} (")]
    return f"{name} ({len(again) + 1})" if again else name


def _run_of_model(settings: Any) -> Path:
    """The run that a saved model lies in."""
    path = Path(settings.model)
    run = run_of(settings, path.parent if path.name == "model" else path)
    if run is None:
        raise VlaeError(
            f"{settings.model} is a model without its training log: give --run, the directory of a training"
        )
    return run


def _dimensions(model: Any, data: Any, settings: Any, count: int) -> tuple[list[int], list[str]]:
    """The dimensions that were asked for, else those of the largest rate, and their names with the rates."""
    from vlae.evaluation import codes

    bits = codes.code_bits(model, data, seed=settings.seed) if model.has_bound else None
    names = codes.dimension_names(model, settings.space)
    if settings.dims is not None:
        dimensions = codes.check_dimensions(settings.dims, len(names))
    elif bits is None:
        dimensions = list(range(min(count, len(names))))
    else:
        dimensions = codes.largest(bits, count)
    return dimensions, [codes.with_bits(names[d], bits, d) for d in dimensions]


def _some(data: Any, model: Any, count: int) -> Any:
    """The first images, at most so many, of a data set that the model is of."""
    from vlae.evaluation.suite import check_images

    if count < 1:
        raise VlaeError(f"count must be at least 1; got {count}")
    check_images(model, data)
    return data.subset(min(count, len(data)))


def _images(data: Any) -> str:
    """How many images of what, in words."""
    return f"{len(data):,} {data.split} images of {data.name}"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
