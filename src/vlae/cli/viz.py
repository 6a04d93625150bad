"""`vlae viz`: figures of a model."""

from __future__ import annotations

from vlae.cli.choices import add_choice, add_data, choose_data, choose_model, parse_choice, parser_for
from vlae.cli.output import add_output, check_output, output_path


def viz_recon_grid(words: list[str]) -> int:
    """Held-out images above their reconstructions, deterministic and (autoregressive decoders) drawn."""
    parser = parser_for("viz recon-grid")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--count", type=int, default=20, help="how many images")
    add_output(parser, "the run's grids/recon_grid.png")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn reconstructions")
    settings = parse_choice(parser, words)
    check_output(settings)
    from vlae import figures
    from vlae.sampling import decompressions

    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "recon_grid.png")
    data = choose_data(settings, model).subset(settings.count)
    x = model.placed(data.tensor())
    context = model.context_of(data.labels, data.factors, data.name)
    rows = {"reconstruction": model.reconstruct(x, context=context)}
    if model.autoregressive:
        rows = {"greedy": rows["reconstruction"], "drawn": decompressions(model, x, settings.seed, context)}
    figures.save(figures.recon_grid(x, rows), path)
    print(f"{len(x)} reconstructions: {path}")
    return 0


def viz_samples(words: list[str]) -> int:
    """Held-out images beside samples from the prior."""
    parser = parser_for("viz samples")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--count", type=int, default=20, help="how many of each")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the prior")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    add_output(parser, "the run's grids/samples.png")
    settings = parse_choice(parser, words)
    check_output(settings)
    from vlae import figures
    from vlae.sampling import prior_samples

    model, directory = choose_model(settings)
    path = output_path(settings, directory / "grids" / "samples.png")
    data = choose_data(settings, model).subset(settings.count)
    x, context = data.tensor(), model.context_of(data.labels, data.factors, data.name)
    samples = prior_samples(model, len(x), settings.temperature, seed=settings.seed, context=context)
    figures.save(figures.recon_grid(x, samples, row_labels=("data", "sample")), path)
    print(f"{len(x)} samples beside data: {path}")
    return 0
