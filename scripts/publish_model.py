"""Evaluates a finished run on its test split and saves it as a pretrained model of the package, with its model card.

    python scripts/publish_model.py outputs/mnist mnist-dynamic --command "make train-mnist"
    python scripts/publish_model.py mnist-dynamic mnist-dynamic        # once more: the same numbers, measured anew

The numbers go into the model's metadata, where `vlae eval --model NAME --check` finds them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import vlae
from vlae import cli
from vlae.evaluation import BITS, Evaluation
from vlae.evaluation.report import evaluate_dataset
from vlae.models.base import LatentVariableModel
from vlae.training.settings import DataSettings
from vlae.training.speed import machine

PRETRAINED = Path(__file__).parents[1] / "src" / "vlae" / "pretrained"
CARD = """# {name}

A `{kind}` with {parameters:,} parameters. Load it with `vlae.load("{name}")`.

- **Trained on** {protocol}; {epochs} epochs, {steps:,} steps{started}. The weights are the run's averaged (EMA) weights
  {chosen}.{note}
- **Configuration**: the constructor arguments in `config.json`. {field}.
- **Trained by** `{command}`.

## Expected numbers

On {test}. Nats per image; noise keyed by image, seed {seed}.

| | nats | bits |
|---|---|---|
{rows}

{code}{about_errors} Measured in float32 on {machine}.

**Checked by** `vlae eval --model {name} --check` (within 0.02 nats).
"""

BEST = "with the best bound on the validation split"
LAST = "at its end, for the validation images were trained on too"

CODE = (
    "Decoding an image with another image's z costs {shuffled_gap:.2f} nats more. {active_units} of {latent_dim} "
    "latent units\nare active."
)
CODES = (
    "Decoding an image with another image's codes costs {shuffled_gap:.2f} nats more. {codes_in_use} of {codes} codes "
    "are\nin use, their perplexity is {perplexity:.1f}."
)
NO_CODE = "The model has no z."


ABOUT_ERRORS = (
    " The ± of the NLL by\ndifference is of the mean of these images, the others are of the population behind them."
)


def code_of(result: Evaluation) -> str:
    """What the model card says of z."""
    if not result.latent_dim:
        return NO_CODE
    text = (CODE if result.codes is None else CODES).format(**result.to_dict())
    return text if result.ess is None else f"{text} Effective sample size of the NLL: {result.ess:.1f}."


def rows_of(result: Evaluation) -> str:
    """The table of the model card: what the model has of distortion, rate, bound and NLL."""
    images = f"{result.images:,} images"
    found: list[tuple[str, float | None, float | None]]
    if not result.latent_dim:
        found = [(f"-log p(x), exact, {images}", result.negative_elbo, result.negative_elbo_error)]
    else:
        some = f"{result.nll_images:,} images, a fixed choice" if result.nll_images < result.images else images
        found = [
            (f"distortion, {images}", result.distortion, None),
            ("rate", result.rate, None),
            ("-ELBO", result.negative_elbo, result.negative_elbo_error),
            (f"NLL, K = {result.nll_samples}, {some}", result.nll, result.nll_error),
            (
                f"NLL, K = {result.nll_samples}, all images, by difference",
                result.nll_of_all,
                result.nll_of_all_error,
            ),
        ]
    return "\n".join(
        f"| {label} | {value:.4f}{'' if error is None else f' ± {error:.4f}'} | {value * BITS:.2f} |"
        for label, value, error in found
        if value is not None
    )


def expected_numbers(result: Evaluation, seed: int) -> dict[str, float | None]:
    """What `--check` compares, and the settings that it needs."""
    names = ("distortion", "rate", "negative_elbo", "nll", "nll_samples", "nll_images", "nll_of_all")
    return {**{name: getattr(result, name) for name in names}, "seed": seed}


def card_of(model: LatentVariableModel, name: str, test: str, result: Evaluation, seed: int) -> str:
    """The model card, of numbers on the test set of this protocol."""
    metadata: dict[str, Any] = model.metadata
    return CARD.format(
        name=name,
        kind=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        field=getattr(getattr(model, "decoder", None), "receptive_field", "A factorised decoder"),
        test=test,
        seed=seed,
        machine=machine(),
        code=code_of(result),
        about_errors="" if result.nll_of_all is None else ABOUT_ERRORS,
        rows=rows_of(result),
        protocol=metadata["protocol"],
        epochs=metadata["epochs"],
        steps=metadata["steps"],
        command=metadata["command"],
        started=f", from the weights of `{start}`" if (start := metadata.get("started_from")) else "",
        chosen=LAST if "validation" in metadata["data"]["split"] else BEST,
        note=f" {metadata['note']}" if metadata.get("note") else "",
    )


def main() -> int:
    """Evaluates and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory, or the name of a pretrained model")
    parser.add_argument("name", help="of the pretrained model")
    parser.add_argument("--command", help="what trained it; else what its metadata says")
    parser.add_argument("--note", help="a sentence for the card, such as what was chosen how; else its metadata's")
    parser.add_argument("--nll_samples", type=int, help="K; else as before, or 128")
    parser.add_argument("--nll_images", type=int, help="else as before, or 500")
    parser.add_argument("--seed", type=int, help="else as before, or 0")
    arguments = parser.parse_args()
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", arguments.name):
        parser.error(f"the name is lower-case words and numbers joined by hyphens; got {arguments.name!r}")
    try:
        model = vlae.load(arguments.run)
    except vlae.VlaeError as error:
        return cli.fail(str(error))
    for key in ("command", "note"):
        if getattr(arguments, key) is not None:
            model.metadata[key] = getattr(arguments, key)
    start = model.metadata.get("started_from")
    if start and (start == arguments.name or (start not in vlae.models.pretrained_names() and start[:3] != "hf:")):
        parser.error(f"the model started from {start}, which others can't: publish that one first, under another name")
    if not model.metadata.get("command"):
        parser.error(f"{arguments.run} does not say what trained it: give --command")
    test = DataSettings(**model.metadata["data"]).load("test")
    settings = {"nll_samples": 128, "nll_images": 500, "seed": 0} | model.metadata.get("expected", {})
    settings |= {key: value for key, value in vars(arguments).items() if key in settings and value is not None}
    samples = settings["nll_samples"] if model.latent_size and model.has_bound else 0
    result = evaluate_dataset(model, test, samples, settings["nll_images"] or None, seed=settings["seed"])
    card = card_of(model, arguments.name, test.protocol, result, settings["seed"])
    model.metadata["data"]["root"] = None  # this machine's
    model.metadata["expected"] = expected_numbers(result, settings["seed"])
    print(card)
    print(f"saved: {model.save_pretrained(PRETRAINED / arguments.name, card=card)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
