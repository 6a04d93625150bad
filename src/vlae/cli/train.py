"""`vlae train`."""

from __future__ import annotations

import time

from vlae import processes
from vlae.errors import VlaeError
from vlae.training.configuration import build_model, check_nulls, find_config, list_options, parse, train_parser


def train(words: list[str]) -> int:
    """Trains one configuration into a run directory."""
    parser = train_parser()
    words, config_name = resolve_config(words)
    settings = parse(parser, words, flags=["--resume"], lists=list_options())
    if settings.get("model") is None:
        raise VlaeError("no model: give --config NAME (mnist, digits, ...) or --model VLAE")
    check_nulls(settings)
    from jsonargparse import Namespace

    from vlae.training.directory import choose_directory
    from vlae.training.run import train as train_run
    from vlae.training.settings import DataSettings

    model_settings, settings_without_model = settings.pop("model"), settings
    # What is kept says how to train the run, not how this command came upon it.
    kept = Namespace(**{**vars(settings_without_model), "model": model_settings})
    kept = kept.clone()
    kept.resume = kept.run.overwrite = False
    kept.run.name = kept.run.name or config_name
    text = parser.dump(kept, skip_unset=False)
    try:
        objects = parser.instantiate(settings_without_model)
    except TypeError as error:
        raise VlaeError(str(error)) from None
    import torch

    data: DataSettings = objects.data
    # Only the first process finds the directory as it was: the others may come when it has begun.
    directory = choose_directory(objects.run, config_name or data.name, settings.resume or not processes.first())
    torch.manual_seed(settings.seed)
    image_shape = data.load(data.split).image_shape
    try:
        model = build_model(model_settings, image_shape)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        raise VlaeError("there is not enough memory for a model of these sizes: choose smaller ones") from None
    started = time.monotonic()
    saved = train_run(
        model,
        objects.objective,
        objects.optimizer,
        data,
        objects.trainer,
        directory,
        text,
        seed=settings.seed,
        resume=settings.resume,
        start_from=settings.start_from,
        overwrite=settings.run.overwrite,
    )
    minutes = (time.monotonic() - started) / 60
    print(f"trained in {minutes:.1f} minutes; the model is {saved}, the log {directory / 'logs' / 'train.log'}")
    print(f"next: vlae eval --run {directory}")
    return 0


def resolve_config(words: list[str]) -> tuple[list[str], str | None]:
    """Replaces configuration names by their files, and returns the last one's name."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    resolved, name = list(words), None
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise VlaeError("--config needs a YAML file or a configuration's name")
            path = find_config(words[i + 1])
            resolved[i + 1], name = str(path), path.stem
    return resolved, name
