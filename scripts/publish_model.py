"""Evaluates a finished run on its test split and saves it as a pretrained model of the package, with its model card.

    python scripts/publish_model.py outputs/mnist mnist-dynamic --command "make train-mnist"

The numbers go into the model's metadata, where `vlae eval --model NAME --check` finds them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import vlae
from vlae.evaluation import Evaluation
from vlae.evaluation.report import evaluate_dataset
from vlae.training.run import DataSettings
from vlae.training.speed import machine

PRETRAINED = Path(__file__).parents[1] / "src" / "vlae" / "pretrained"
CARD = """# {name}

A `{kind}` with {parameters:,} parameters. Load it with `vlae.load("{name}")`.

- **Trained on** {protocol}; {epochs} epochs, {steps:,} steps. The weights are the run's averaged (EMA) weights with the
  best bound on the validation split.
- **Configuration**: the constructor arguments in `config.json`. {field}.
- **Trained by** `{command}`.

## Expected numbers

On {test}. Nats per image; noise keyed by image, seed {seed}.

| | nats | bits |
|---|---|---|
| distortion | {distortion:.4f} | {distortion_bits:.2f} |
| rate | {rate:.4f} | {rate_bits:.2f} |
| -ELBO, {images:,} images | {negative_elbo:.4f} ± {negative_elbo_error:.4f} | {negative_elbo_bits:.2f} |
| NLL, K = {nll_samples}, first {nll_images} images | {nll:.4f} ± {nll_error:.4f} | {nll_bits:.2f} |

{code} Measured in float32 on {machine}.

**Checked by** `vlae eval --model {name} --check` (within 0.02 nats).
"""


CODE = (
    "Decoding an image with another image's z costs {shuffled_gap:.2f} nats more. {active_units} of {latent_dim} "
    "latent units\nare active. Effective sample size of the NLL: {ess:.1f}."
)
CODES = (
    "Decoding an image with another image's codes costs {shuffled_gap:.2f} nats more. {codes_in_use} of {codes} codes "
    "are\nin use, their perplexity is {perplexity:.1f}."
)
NO_CODE = "The model has no z: -ELBO is the exact negative log-likelihood."


def code_of(numbers: dict[str, Any]) -> str:
    """What the model card says of z."""
    if not numbers["latent_dim"]:
        return NO_CODE
    return (CODE if numbers["codes"] is None else CODES).format(**numbers)


def expected_numbers(result: Evaluation, seed: int) -> dict[str, float]:
    """What `--check` compares, and the settings that it needs."""
    names = ("distortion", "rate", "negative_elbo", "nll", "nll_samples", "nll_images")
    return {**{name: getattr(result, name) for name in names}, "seed": seed}


def main() -> int:
    """Evaluates and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run directory")
    parser.add_argument("name", help="of the pretrained model")
    parser.add_argument("--command", required=True, help="what trained it")
    parser.add_argument("--nll_samples", type=int, default=128)
    parser.add_argument("--nll_images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = vlae.load(arguments.run)
    test = DataSettings(**model.metadata["data"]).load("test")
    result = evaluate_dataset(model, test, arguments.nll_samples, arguments.nll_images, seed=arguments.seed)
    numbers = result.to_dict()
    bits = {f"{name}_bits": numbers[name] * vlae.evaluation.BITS for name in ("distortion", "negative_elbo", "nll")}
    card = CARD.format(
        name=arguments.name,
        kind=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        field=getattr(model.decoder, "receptive_field", "A factorised decoder"),
        command=arguments.command,
        test=test.protocol,
        seed=arguments.seed,
        machine=machine(),
        code=code_of(numbers),
        **model.metadata,
        **numbers,
        **bits,
    )
    model.metadata["data"]["root"] = None  # this machine's
    model.metadata["expected"] = expected_numbers(result, arguments.seed)
    print(card)
    print(f"saved: {model.save_pretrained(PRETRAINED / arguments.name, card=card)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
