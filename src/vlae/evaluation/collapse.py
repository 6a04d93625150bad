"""A latent code that dies: when it is said to, and what to change. Training warns in the words that `doctor` uses."""

from __future__ import annotations

from collections.abc import Sequence

from vlae.evaluation.information import BITS
from vlae.models.base import LatentVariableModel
from vlae.objectives import ELBO, GECO, Capacity, Objective, SoftFreeBits, WithTerms
from vlae.objectives.schedules import Constant

DEAD_BITS = 0.1  # of a ladder's level: it is the level below that chooses to ignore it
COLLAPSED_BITS = 1.0  # under one bit an image, the code does not even tell two halves of the data apart


def is_collapsed(rate: float, model: LatentVariableModel) -> bool:
    """Whether a rate in nats per image is that of a dying code; never where there is no code, or no rate."""
    return bool(model.latent_size) and model.has_bound and rate * BITS < COLLAPSED_BITS  # NaN is another trouble


def collapse_evidence(rate: float, model: LatentVariableModel) -> str:
    """What a rate under one bit says."""
    why = "few codes are in use" if model.discrete else "the decoder ignores z"
    return f"the latent code is dying: its rate is {rate * BITS:.2f} bits per image, so {why}"


def collapse_advice(model: LatentVariableModel, objective: Objective) -> str:
    """What to change, in options of `vlae train`."""
    config, advice = model.config, []
    if config.get("decoder_layers"):
        advice.append(f"fewer decoder layers (--model.decoder_layers, now {config['decoder_layers']})")
    if config.get("kernel_size", 3) > 3:  # no smaller one sees a neighbour
        advice.append(f"a smaller kernel (--model.kernel_size, now {config['kernel_size']})")
    if config.get("stacks") == "row_lstm":
        advice.append("fewer rows to remember (--model.trunk_options '{memory: 1}')")
    outer, (objective, key) = objective, innermost(objective)
    if isinstance(objective, SoftFreeBits):
        advice.append(f"a higher target rate ({key}.target_nats, now {objective.target_nats:g})")
    elif isinstance(objective, Capacity):
        advice.append(f"a higher capacity ({key}.max_nats)")
    elif isinstance(objective, GECO):
        advice.append(f"a lower distortion to reach ({key}.{geco_target(objective)})")
    elif model.discrete:
        advice.append("more codes (--model.codes), a higher share under which they are revived (--model.revival)")
        advice.append("another seed (--seed)")
    elif isinstance(objective, ELBO):
        # The objective under terms is named as well: where it is a default, its options alone are not taken.
        named = "" if objective is outer else f"{key} {type(objective).__name__} "
        advice.extend(_advice_on_elbo(objective, named, key))
    else:
        advice.append(f"free bits ({key} ELBO {key}.free_nats 8)")
    return "; ".join(advice)


def _advice_on_elbo(objective: ELBO, named: str, key: str) -> list[str]:
    """More room for the rate than this objective gives it; `named` and `key` say how it is set."""
    advice, beta, free = [], objective.beta(1.0), objective.free_nats(1.0)
    if beta > 1:
        advice.append(f"a smaller beta ({named}{key}.beta 1, now {beta:g})")
    if not free:
        stay = "" if isinstance(objective.free_nats, Constant) else " that stay to the end"
        advice.append(f"free bits{stay} ({named}{key}.free_nats 8)")
    else:
        advice.append(f"more free bits ({named}{key}.free_nats {2 * free:g}, now {free:g})")
    if beta <= 1 and isinstance(objective.beta, Constant):
        schedule = "{class_path: Linear, init_args: {start: 0, end: 1, finish: 0.2}}"
        advice.append(f"annealing beta ({key}.beta '{schedule}')")
    return advice


def collapse_warning(rate: float, model: LatentVariableModel, objective: Objective) -> str | None:
    """What to change when the rate, in nats per image, is under one bit; None where it is not."""
    if not is_collapsed(rate, model):
        return None
    return f"{collapse_evidence(rate, model)}. Try {collapse_advice(model, objective)}."


def dead_levels(bits: Sequence[float]) -> str:
    """Which levels of a ladder, of these rates in bits, z_1 first, carry nothing; "" where all carry something."""
    dead = [f"z_{number} ({value:.2f} bits)" for number, value in enumerate(bits, 1) if value < DEAD_BITS]
    return f"{' and '.join(dead)} carr{'y' if len(dead) > 1 else 'ies'} nothing" if dead else ""


def levels_warning(bits: Sequence[float], model: LatentVariableModel, objective: Objective) -> str | None:
    """What to change when levels of a ladder, of these rates in bits, carry nothing; None where none does."""
    dead = dead_levels(bits)
    return f"{dead}: the levels below do without. Try {collapse_advice(model, objective)}." if dead else None


def innermost(objective: Objective) -> tuple[Objective, str]:
    """The objective under all terms that are added to it, and the option that it is set by."""
    key = "--objective"
    while isinstance(objective, WithTerms):
        objective, key = objective.objective, f"{key}.objective"
    return objective, key


def geco_target(objective: GECO) -> str:
    """Which of the two targets was given: both together are refused."""
    return "target_nats" if objective.target_per_dim is None else "target_per_dim"
