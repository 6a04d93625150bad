"""The checks of `doctor` that look at a training: from its log to findings in plain words.

As those of a model in `model_checks`: one finding each, or `LeftOut`.
"""

from __future__ import annotations

import math
from itertools import accumulate

from vlae.evaluation.case import NOTICE, OK, PROBLEM, Case, Finding, LeftOut, times
from vlae.evaluation.history import History, is_finite

# A rise from one epoch to the next that is no noise: a share of |-ELBO|, and nats (densities have bounds around 0).
SPIKE_SHARE, SPIKE_NATS = 0.05, 2.0
MANY_SPIKES = 3
BAD_STEPS = 0.01  # skipped steps as a share of all; fewer are a notice
# Validation: a rise since the best epoch, a gap to training, as shares of |-ELBO|; and the least in nats.
RISE_NOTICE, RISE_PROBLEM, GAP_NOTICE, LEAST_NATS = 0.005, 0.02, 0.05, 0.5
SLOPE = 0.002  # improvement per epoch as a share of |-ELBO| over the last quarter: more is unfinished


def instability(case: Case) -> Finding:
    """Skipped steps, numbers that are none, and jumps of the bound."""
    if not case.is_finite:
        evidence = "the bound of the saved model is not a finite number"
        return Finding("instability", PROBLEM, evidence, steadier(case.history))
    history = case.trained()
    last, bad_rows = history.rows[-1], [row for row in history.rows if not is_finite(row)]
    bad, steps = last.get("train/bad_steps", 0.0), last.get("step", 0.0)
    jumps = {}
    for stage in ("train", "validation"):
        level = [abs(value) for _, value in history.negative_elbos(stage) if math.isfinite(value)]
        tolerance = max(SPIKE_SHARE * min(level, default=0.0), SPIKE_NATS)
        jumps[stage] = [rise for rise in history.rises(stage) if rise > tolerance]
    count, highest = max(map(len, jumps.values())), max([0.0, *jumps["train"], *jumps["validation"]])
    values = {"bad_steps": bad, "steps": steps, "jumps": count, "highest_jump": highest, "bad_epochs": len(bad_rows)}
    course = [0.0, *accumulate(history.rises("train"))]  # of what training minimised, from its first epoch
    drift = course[-1] - min(course)
    values["drift"] = drift
    said = []
    if bad:
        share = bad / max(steps + bad, 1)
        said.append(
            f"{bad:.0f} training steps of {steps + bad:.0f} were skipped, since their loss or gradient was NaN or "
            f"infinite ({share:.1%}; {BAD_STEPS:.0%} is many)"
        )
    if bad_rows:
        said.append(f"numbers of {times(len(bad_rows), 'epoch')} are not finite")
    if count:
        where = " and ".join(stage for stage, found in jumps.items() if found)
        said.append(
            f"the {where} loss jumped {times(count, 'time')} from one epoch to the next, by at most {highest:.1f} "
            f"nats (a jump is more than {SPIKE_SHARE:.0%} of it and {SPIKE_NATS:g} nats)"
        )
    scale = next((abs(bound) for _, bound in history.negative_elbos("train")[::-1] if math.isfinite(bound)), 0.0)
    if not count and drift > max(RISE_PROBLEM * scale, SPIKE_NATS):
        said.append(
            f"the training loss has drifted upwards, to {drift:.1f} nats above its lowest (over {RISE_PROBLEM:.0%})"
        )
    if not said:
        evidence = f"no skipped step and no jump of the bound in {times(len(history.rows), 'epoch')}"
        return Finding("instability", OK, evidence, values=values)
    severe = bad_rows or count >= MANY_SPIKES or bad > BAD_STEPS * (steps + bad)
    return Finding("instability", PROBLEM if severe else NOTICE, "; ".join(said), steadier(history), values)


def steadier(history: History | None) -> str:
    """What makes training steadier, in options of `vlae train`."""

    def now(key: str) -> str:
        value = None if history is None else history.setting(key)
        return f"--{key}" if value is None else f"--{key}, now {value:g}"

    return (
        f"a lower learning rate ({now('optimizer.lr')}), a longer warm-up ({now('optimizer.warmup_steps')}), a tighter "
        f"gradient clip ({now('trainer.gradient_clip')})"
    )


def overfitting(case: Case) -> Finding:
    """Whether the validation bound gets worse while that of training gets better."""
    history = case.trained()
    if "validation" in str(history.setting("data.split", "train")):
        raise LeftOut("the run trained on its validation images")
    train, validation = dict(history.negative_elbos("train")), dict(history.negative_elbos("validation"))
    epochs = [epoch for epoch in validation if epoch in train]
    if len(epochs) < 2 or not all(math.isfinite(train[epoch] + validation[epoch]) for epoch in epochs):
        raise LeftOut("it takes two epochs or more, with finite numbers")
    best, last = min(epochs, key=validation.__getitem__), epochs[-1]
    rise, gap, scale = validation[last] - validation[best], validation[last] - train[last], abs(validation[best])
    values = {"best_epoch": best, "rise": rise, "gap": gap}
    name = "-ELBO" if case.model.has_bound else "distortion"
    numbers = f"the last {name} is {train[last]:.2f} nats in training and {validation[last]:.2f} in validation"
    if rise > max(RISE_NOTICE * scale, LEAST_NATS) and train[last] < train[best]:
        evidence = (
            f"validation has been getting worse since epoch {best}, by {rise:.2f} nats (over "
            f"{RISE_NOTICE:.1%}), while training still gets better: {numbers}"
        )
        severity = PROBLEM if rise > max(RISE_PROBLEM * scale, LEAST_NATS) else NOTICE
        return Finding("overfitting", severity, evidence, _generalise(case, history), values)
    if gap > max(GAP_NOTICE * scale, LEAST_NATS):
        evidence = f"{numbers}: a gap of {gap:.2f} (over {GAP_NOTICE:.0%}), though validation is not getting worse"
        return Finding("overfitting", NOTICE, evidence, _generalise(case, history), values)
    return Finding("overfitting", OK, f"{numbers}, and validation is not getting worse", values=values)


def _generalise(case: Case, history: History) -> str:
    advice, config = [], case.model.config
    if not history.setting("trainer.early_stopping", 0):
        advice.append("stop early (--trainer.early_stopping 5); the model that is kept is the best epoch's anyway")
    if history.setting("data.binarize") in ("static", "threshold"):
        advice.append("draw the pixels anew at each visit (--data.binarize dynamic)")
    if not history.setting("trainer.ema_decay", 0):
        advice.append("average the weights (--trainer.ema_decay 0.998)")
    if history.setting("data.limit"):
        advice.append(f"more images (--data.limit, now {history.setting('data.limit')})")
    if not history.setting("optimizer.weight_decay", 0):
        advice.append("weight decay (--optimizer.name adamw --optimizer.weight_decay 0.01)")
    for size in ("channels", "widths", "hidden"):
        if size in config:
            advice.append(f"a smaller model (--model.{size})")
            break
    return "; ".join(advice)


def unfinished(case: Case) -> Finding:
    """Whether training ended before the bound was settled."""
    history = case.trained()
    planned, epochs = history.setting("trainer.max_epochs"), int(history.rows[-1]["epoch"])
    early = history.setting("trainer.early_stopping", 0)
    if planned and epochs < planned and not early:
        evidence = f"the run stopped after {epochs} of {planned} epochs"
        return Finding("unfinished training", NOTICE, evidence, "go on with --resume", {"epochs": epochs})
    stage = "train" if "validation" in str(history.setting("data.split", "train")) else "validation"
    bounds = [bound for _, bound in history.negative_elbos(stage)]
    if len(bounds) < 2 or not all(map(math.isfinite, bounds)):
        raise LeftOut("it takes two epochs or more, with finite numbers")
    span = max(1, len(bounds) // 4)
    slope = (bounds[-1 - span] - bounds[-1]) / span
    values = {"epochs": epochs, "improvement_per_epoch": slope}
    name = "-ELBO" if case.model.has_bound else "distortion"
    past = "the last epoch" if span == 1 else f"each of the last {span} epochs"
    way = "fell" if slope >= 0 else "rose"
    evidence = f"the {stage} {name} of {bounds[-1]:.2f} nats {way} by {abs(slope):.2f} in {past}"
    if slope > max(SLOPE * abs(bounds[-1]), LEAST_NATS / 10):
        evidence += f" (over {SLOPE:.1%}): it is not settled"
        advice = f"train longer (--trainer.max_epochs {2 * epochs}, now {planned or epochs})"
        return Finding("unfinished training", NOTICE, evidence, advice, values)
    return Finding("unfinished training", OK, f"{evidence}: it no longer falls", values=values)
