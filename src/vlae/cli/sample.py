"""`vlae sample`: images that a model makes, as pictures and as arrays."""

from __future__ import annotations

from pathlib import Path

from vlae.cli.choices import add_choice, add_context, choose_context, choose_model, parser_for
from vlae.training.configuration import parse


def sample_prior(words: list[str]) -> int:
    """Images x ~ p(x|z), z ~ p(z): a picture, and the pixels as an array."""
    parser = parser_for("sample prior")
    add_choice(parser)
    parser.add_argument("--count", type=int, default=64, help="how many images")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the prior")
    parser.add_argument("--pixel_temperature", type=float, default=1.0, help="of each pixel's distribution")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    add_context(parser)
    parser.add_argument(
        "--output", type=str | None, default=None, help="PNG; the run's samples/prior_samples.png if not given"
    )
    settings = parse(parser, words)
    from vlae import figures
    from vlae.sampling import prior_samples, save_array

    model, directory = choose_model(settings)
    context = choose_context(settings, model, settings.count)
    images = prior_samples(
        model, settings.count, settings.temperature, settings.pixel_temperature, settings.seed, context=context
    )
    path = Path(settings.output or directory / "samples" / "prior_samples.png")
    figures.save(figures.image_grid(images), path)
    print(f"{len(images)} samples: {path} and {save_array(images, path.with_suffix('.npz'))}")
    return 0
