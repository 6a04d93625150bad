"""The checks of `doctor`: from what was measured to findings in plain words.

Each check takes the case and gives one finding. It raises `LeftOut` where it does not apply. Advice names options of
`vlae train`. The thresholds stand beside each other here; which numbers they were set by is said with each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor, nn

from vlae.data import ImageDataset
from vlae.evaluation.aggregate import Information
from vlae.evaluation.bounds import Evaluation
from vlae.evaluation.collapse import collapse_advice, collapse_evidence, geco_target, innermost, is_collapsed
from vlae.evaluation.evidence import Exchange, Outside, Periodic, periodic_energy
from vlae.evaluation.history import History, is_finite
from vlae.evaluation.information import BITS
from vlae.evaluation.quality import sharpness
from vlae.models.base import LatentVariableModel
from vlae.models.decoders import ARCHITECTURES
from vlae.models.vqvae import VQVAE
from vlae.objectives import ELBO, GECO, IWAE, Capacity, Objective

OK, NOTICE, PROBLEM = "ok", "notice", "problem"

# A code whose loss costs less than this share of what the code costs is paid for and not used. In models that use it,
# another image's code costs several times the rate.
UNUSED_SHARE = 0.1
UNUSED_NATS = 0.5  # the same where no rate says what the code costs
LITTLE_BITS = 2.0  # a code near collapse (one bit); what says which of ten digits it is has 3.3
# Of `marginal_exchange`, less two standard errors. Models trained for the bound have 1.0 to 1.1; beta = 2 has 2.
EXCHANGE_NOTICE, EXCHANGE_PROBLEM = 1.25, 1.5
# Of the prior's draws below the 5% quantile of the codes' density. Good flow priors have 0.1 to 0.2, a standard normal
# prior 0.2 to 0.3 where it is met well, and 0.6 to 0.9 where it is not.
OUTSIDE_NOTICE, OUTSIDE_PROBLEM = 0.35, 0.6
# Marginal KL as a share of the rate, where its estimate can be trusted: so much of the rate says nothing of the image.
MARGINAL_NOTICE, MARGINAL_PROBLEM = 0.35, 0.6
LEAST_MARGINAL = 1.0  # nats; less is no hole worth a word
BELOW_CEILING = 1.0  # nats: a mutual information nearer to log N may be any larger, and the marginal KL smaller
LEAST_OUTSIDE_IMAGES = 50  # a 5% quantile of fewer codes is nobody's
# Sharpness of what the decoder makes, over that of the images. Mean images of good VAEs have 0.3 to 0.6.
BLUR_NOTICE, BLUR_PROBLEM = 0.5, 0.2
# Energy at the stride's frequencies over that beside them: 0.7 to 1.8 where there is no pattern. And the least
# amplitude that is a pattern on a screen: about one and a half of 256 grey levels.
PEAK, VISIBLE = 3.0, 0.006
# A rise from one epoch to the next that is no noise: a share of |-ELBO|, and nats (densities have bounds around 0).
SPIKE_SHARE, SPIKE_NATS = 0.05, 2.0
MANY_SPIKES = 3
BAD_STEPS = 0.01  # skipped steps as a share of all; fewer are a notice
# Validation: a rise since the best epoch, a gap to training, as shares of |-ELBO|; and the least in nats.
RISE_NOTICE, RISE_PROBLEM, GAP_NOTICE, LEAST_NATS = 0.005, 0.02, 0.05, 0.5
SLOPE = 0.002  # improvement per epoch as a share of |-ELBO| over the last quarter: more is unfinished
# Of a codebook: codes in use, and perplexity, as shares of all codes.
IN_USE_NOTICE, IN_USE_PROBLEM = 0.8, 0.5
PERPLEXITY_NOTICE = 0.2
PLACES_PER_CODE = 20  # fewer codes seen than this many times the book, and one that is not seen may be in use


AUTOENCODER_ADVICE = "train longer (--trainer.max_epochs), or from images that are corrupted less (--model.noise)"


class LeftOut(Exception):
    """A check does not apply; its message says why, and without one it is not worth a word."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the symptom.
        severity: "ok", "notice" or "problem".
        evidence: a sentence with the numbers and what they are held against.
        advice: what to change; empty where nothing is wrong.
        values: the numbers by name.
    """

    name: str
    severity: str
    evidence: str
    advice: str = ""
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Case:
    """All that is known of a model when the checks begin.

    Attributes:
        model, data: what is examined, and the images that it is examined on.
        evaluation: the bound.
        exchange, outside, information: see `vlae.evaluation.evidence` and `aggregate`; None where they don't apply.
        images: the data's; `expected` the images that a mean image is to be set beside: the greys of binarised data.
        reconstructions, samples: as the decoder is looked at: drawn if autoregressive, else mean images. None where
            there are none.
        history: of the run; None for a model without one.
    """

    model: LatentVariableModel
    data: ImageDataset
    evaluation: Evaluation
    exchange: Exchange | None = None
    outside: Outside | None = None
    information: Information | None = None
    images: Tensor | None = None
    expected: Tensor | None = None
    reconstructions: Tensor | None = None
    samples: Tensor | None = None
    history: History | None = None

    @property
    def kind(self) -> str:
        """The model's class."""
        return type(self.model).__name__

    @property
    def objective(self) -> Objective:
        """What the model was trained by, under all added terms; the plain ELBO where that is not known."""
        return innermost(self.whole_objective)[0]

    @property
    def whole_objective(self) -> Objective:
        """The objective with its terms."""
        known = self.history.objective if self.history else None
        return ELBO() if known is None else known

    @property
    def key(self) -> str:
        """The option that sets `objective`."""
        return innermost(self.whole_objective)[1]

    def trained(self) -> History:
        """The history; without one the check is left out."""
        if self.history is None:
            raise LeftOut("there is no run to read, only a model")
        if not self.history.rows:
            raise LeftOut("the run has no logs/metrics.csv, or no finished epoch in it")
        return self.history

    def coded(self) -> None:
        """Leaves the check out where there is no code."""
        if not self.model.latent_size:
            raise LeftOut(f"a {self.kind} has no latent code")


def examine(case: Case) -> tuple[list[Finding], dict[str, str]]:
    """The findings, the worst first, and why the other checks were left out."""
    findings, left_out = [], {}
    for name, check in CHECKS.items():
        try:
            findings.append(check(case))
        except LeftOut as reason:
            if reason.args:
                left_out[name] = str(reason)
    order = [PROBLEM, NOTICE, OK]
    return sorted(findings, key=lambda finding: order.index(finding.severity)), left_out


# -- the code ---------------------------------------------------------------------------------------------------------


def finite(case: Case) -> None:
    """Leaves a check out where the bound is not a number: what else is measured is none either."""
    if not math.isfinite(case.evaluation.distortion + (case.evaluation.rate or 0)):
        raise LeftOut("the bound is not a finite number")


def collapse(case: Case) -> Finding:
    """Whether the code carries anything, and whether the decoder uses it."""
    case.coded()
    finite(case)
    found, rate = case.evaluation, case.evaluation.rate
    units = "" if found.active_units is None else f"; {found.active_units} of {found.latent_dim} units are active"
    values = {"shuffled_gap": found.shuffled_gap}
    if found.active_units is not None:
        values |= {"active_units": found.active_units, "latent_size": found.latent_dim}
    shuffled = f"another image's code costs {found.shuffled_gap:.2f} nats"
    if rate is None:  # an autoencoder: nothing says what the code costs
        if found.shuffled_gap < UNUSED_NATS:
            evidence = f"{shuffled} (under {UNUSED_NATS:g}): the decoder ignores the code{units}"
            return Finding("collapse", PROBLEM, evidence, AUTOENCODER_ADVICE, values)
        return Finding("collapse", OK, f"the code is used: {shuffled}{units}", values=values)
    values["rate"] = rate
    bits = f"{rate:.2f} nats ({found.rate_bits:.1f} bits)"
    if is_collapsed(rate, case.model):
        warned = 0 if case.history is None else sum("code is dying" in line for line in case.history.warnings)
        said = f"; training warned of it {_times(warned, 'time')}" if warned else ""
        evidence = f"{collapse_evidence(rate, case.model)}; {shuffled}{units}{said}"
        return Finding("collapse", PROBLEM, evidence, f"try {_advice_on_collapse(case)}", values)
    if found.shuffled_gap < UNUSED_SHARE * rate:
        evidence = f"the code costs {bits} and is not used: {shuffled}, less than {UNUSED_SHARE:.0%} of its cost{units}"
        return Finding("collapse", PROBLEM, evidence, f"try {_advice_on_collapse(case)}", values)
    if found.active_units is not None and found.active_units < found.latent_dim:
        units += " (that the others are idle is normal: they cost nothing)"
    if rate * BITS < LITTLE_BITS:
        evidence = f"the code carries little: its rate is {bits}, under {LITTLE_BITS:g} bits; {shuffled}{units}"
        return Finding("collapse", NOTICE, evidence, f"try {_advice_on_collapse(case)}", values)
    return Finding("collapse", OK, f"the code is used: its rate is {bits}, and {shuffled}{units}", values=values)


def _advice_on_collapse(case: Case) -> str:
    return collapse_advice(case.model, case.whole_objective)


def codebook(case: Case) -> Finding:
    """Dead codes of a VQ-VAE."""
    if not isinstance(case.model, VQVAE):
        raise LeftOut  # nobody expects one
    found, config = case.evaluation, case.model.config
    assert found.codes is not None and found.codes_in_use is not None and found.perplexity is not None
    share, effective = found.codes_in_use / found.codes, found.perplexity / found.codes
    values = {"codes": found.codes, "codes_in_use": found.codes_in_use, "perplexity": found.perplexity}
    evidence = (
        f"{found.codes_in_use} of {found.codes} codes are in use ({share:.0%}), their perplexity is "
        f"{found.perplexity:.1f} ({effective:.0%})"
    )
    if found.images * found.latent_dim < PLACES_PER_CODE * found.codes:
        raise LeftOut(f"{found.images} images have too few codes to tell dead ones: give more --images")
    severity = PROBLEM if share < IN_USE_PROBLEM else OK
    if severity == OK and (share < IN_USE_NOTICE or effective < PERPLEXITY_NOTICE):
        severity = NOTICE
    if severity == OK:
        return Finding("codebook", OK, evidence, values=values)
    line = f"; healthy are {IN_USE_NOTICE:.0%} in use and a perplexity of {PERPLEXITY_NOTICE:.0%}"
    advice = (
        f"revive codes earlier (--model.revival, now {config.get('revival', 0.05):g}), or take a smaller codebook "
        f"(--model.codes, now {found.codes})"
    )
    return Finding("codebook", severity, evidence + line, advice, values)


def regularisation(case: Case) -> Finding:
    """Whether the rate is held below what the bound asks for."""
    case.coded()
    if not case.model.has_bound or case.model.discrete:
        raise LeftOut(f"a {case.kind} has no rate that is weighed against the distortion")
    finite(case)
    rate, exchange, objective = case.evaluation.rate or 0.0, case.exchange, case.objective
    beta = objective.beta(1.0) if isinstance(objective, ELBO) else None
    values = {"rate": rate} | ({} if beta is None else {"beta": beta})
    if isinstance(objective, IWAE):
        raise LeftOut("IWAE wants a posterior that is wider than the bound's best")
    if exchange is None or is_collapsed(rate, case.model):
        # A collapsed posterior has no noise that carries anything: what was set is all there is to judge by.
        if beta is None or beta <= 1:
            why = "its posterior is no Gaussian" if exchange is None else "the code is dying"
            raise LeftOut(f"what a nat of rate is worth can't be measured: {why}")
        evidence = f"training ended with beta = {beta:g}: a nat of rate had to save {beta:g} nats of distortion"
        return Finding("over-regularisation", PROBLEM, evidence, _less_pressure(case, beta), values)
    values |= {"exchange": exchange.value, "exchange_error": exchange.error}
    evidence = (
        f"one more nat of rate would save {exchange.value:.2f} ± {exchange.error:.2f} nats of distortion "
        f"(at the best bound 1)"
    )
    least = exchange.value - 2 * exchange.error
    if least < EXCHANGE_NOTICE:
        return Finding("over-regularisation", OK, evidence, values=values)
    cause = f", with beta = {beta:g} at the end of training" if beta is not None and beta > 1 else ""
    evidence += f": the rate of {rate:.2f} nats is held too low, and less pressure on it would lower -ELBO{cause}"
    severity = PROBLEM if least > EXCHANGE_PROBLEM else NOTICE
    return Finding("over-regularisation", severity, evidence, _less_pressure(case, beta), values)


def _less_pressure(case: Case, beta: float | None) -> str:
    objective, key = case.objective, case.key
    if beta is not None and beta > 1:
        return f"lower beta ({key}.beta 1, now {beta:g}), unless the disentangled code that it buys is what you want"
    if isinstance(objective, Capacity):
        return f"raise the capacity ({key}.max_nats, now {objective.capacity(1.0):g})"
    if isinstance(objective, GECO):
        return f"ask for a lower distortion ({key}.{geco_target(objective)})"
    floor = case.model.config.get("posterior_options") or {}
    if "stddev_floor" in floor:
        return "lower the floor of the posterior's deviations (--model.posterior_options '{stddev_floor: null}')"
    return "train longer (--trainer.max_epochs): the posterior is still wider than the bound wants it"


def holes(case: Case) -> Finding:
    """Whether the prior puts its samples where no codes are."""
    case.coded()
    finite(case)
    if case.outside is None:
        if case.model.discrete or not case.model.has_bound:
            raise LeftOut(f"a {case.kind} has no density of codes to compare with its prior")
        raise LeftOut(f"it takes {2 * LEAST_OUTSIDE_IMAGES} images or more: give more --images")
    outside, severity, info = case.outside, OK, case.information
    values = {"outside": outside.share, "expected": outside.expected, "density_gap": outside.gap}
    said = [
        f"{outside.share:.0%} of {outside.draws} draws from the prior lie where hardly any code is "
        f"({outside.expected:.0%} if prior and codes agree)"
    ]
    if outside.share > OUTSIDE_NOTICE:
        said[0] += f", over {OUTSIDE_NOTICE:.0%}: such samples decode to nothing that was learned"
        severity = PROBLEM if outside.share > OUTSIDE_PROBLEM else NOTICE
    if info is not None:
        values |= {"marginal_kl": info.marginal_kl, "mutual_information": info.mutual_information}
        trusted = info.mutual_information < info.ceiling - BELOW_CEILING
        if trusted and info.marginal_kl > max(MARGINAL_NOTICE * info.rate, LEAST_MARGINAL):
            said.append(
                f"{info.marginal_kl:.2f} of {info.rate:.2f} nats of rate are KL(q(z) || p(z)), over "
                f"{MARGINAL_NOTICE:.0%}: they are spent on codes being elsewhere than the prior, and say "
                "nothing of the image"
            )
            severe = severity == PROBLEM or info.marginal_kl > MARGINAL_PROBLEM * info.rate
            severity = PROBLEM if severe else NOTICE
    if severity == OK:
        return Finding("holes", OK, f"samples are drawn from where codes are: {said[0]}", values=values)
    return Finding("holes", severity, "; ".join(said), _better_prior(case), values)


def _better_prior(case: Case) -> str:
    config, advice = case.model.config, []
    objective, exchange = case.objective, case.exchange
    if exchange is not None and exchange.value + 2 * exchange.error < 1 / EXCHANGE_NOTICE:
        low = f"a nat of rate saves {exchange.value:.2f} nats of distortion"
        if isinstance(objective, Capacity):
            advice.append(f"a lower capacity ({case.key}.max_nats, now {objective.capacity(1.0):g}): {low}")
        elif isinstance(objective, ELBO) and objective.free_nats(1.0):
            advice.append(f"no free bits at the end of training ({case.key}.free_nats): {low}")
        elif isinstance(objective, ELBO) and objective.beta(1.0) < 1:
            advice.append(f"a higher beta ({case.key}.beta 1, now {objective.beta(1.0):g}): {low}")
    prior = config.get("prior", "flow")
    if "flow_steps" in config:
        if prior == "flow" and config["flow_steps"]:
            advice.append(f"more steps of the flow prior (--model.flow_steps, now {config['flow_steps']})")
        else:
            other = "" if prior == "flow" else "--model.prior flow "
            advice.append(f"a flow prior ({other}--model.flow_steps 2)")
        conditional = config.get("classes") or config.get("attributes")
        normed = "mean_norm" in (config.get("posterior_options") or {})
        if prior != "vamp" and config.get("posterior", "gaussian") == "gaussian" and not conditional and not normed:
            advice.append("a VampPrior (--model.prior vamp)")
    advice.append("longer training (--trainer.max_epochs)")
    for size in ("latent_maps", "latent_dim", "latent_dims"):
        if config.get(size):
            advice.append(f"a smaller code (--model.{size}, now {config[size]})")
            break
    return "; ".join(advice)


# -- what the decoder makes -------------------------------------------------------------------------------------------


def blur(case: Case) -> Finding:
    """Whether what the decoder makes is less sharp than the images."""
    finite(case)
    if case.samples is None or case.expected is None:
        raise LeftOut("there are no pictures of 3 x 3 pixels or more to judge")
    expected = sharpness(case.expected).mean().item()
    if not expected > 0:
        raise LeftOut("the images themselves are flat")
    made = {"reconstructions": case.reconstructions, "samples": case.samples}
    shares = {name: sharpness(x).mean().item() / expected for name, x in made.items() if x is not None}
    what = "drawn images" if case.model.autoregressive else "mean images"
    greys = ", the greys behind the binary ones" if case.expected is not case.images else ""
    evidence = " and ".join(f"{name} have {share:.0%}" for name, share in shares.items())
    evidence += f" of the sharpness of the data{greys} (variance of the Laplacian {expected:.4f}; {what})"
    values = {"data_sharpness": expected} | {f"{name}_share": share for name, share in shares.items()}
    if max(shares.values()) > 2:
        evidence += "; noise counts as sharp"
    worst = min(shares.values())
    if worst >= BLUR_NOTICE:
        return Finding("blur", OK, evidence, values=values)
    severity = PROBLEM if worst < BLUR_PROBLEM else NOTICE
    return Finding("blur", severity, f"{evidence}: under {BLUR_NOTICE:.0%} is blurred", _sharper(case), values)


def _sharper(case: Case) -> str:
    model, config, advice = case.model, case.model.config, []
    if not model.autoregressive:
        advice.append("an autoregressive decoder, which draws sharp texture (--model VLAE)")
        if model.likelihood.levels is None:
            levels = case.data.effective_levels
            advice.append(
                "a likelihood of levels (--model.likelihood logistic_mixture "
                f"--model.likelihood_options '{{levels: {levels}}}')"
            )
    for size in ("latent_maps", "latent_dim", "latent_dims", "code_dim"):
        if config.get(size):
            advice.append(f"a larger code (--model.{size}, now {config[size]})")
            break
    if isinstance(case.objective, ELBO) and case.objective.beta(1.0) > 1:
        advice.append(f"a lower beta ({case.key}.beta 1)")
    advice.append("longer training (--trainer.max_epochs)")
    return "; ".join(advice)


def checkerboard(case: Case) -> Finding:
    """Whether what the decoder makes has a pattern of its stride's periods."""
    finite(case)
    stages = stages_of(case.model)
    if not stages:
        raise LeftOut("the decoder does not double any resolution, so it has no stride to show")
    if case.samples is None or case.images is None:
        raise LeftOut("there are no pictures to judge")
    worst: tuple[float, str, Periodic, Periodic] | None = None
    values: dict[str, float] = {}
    made = {"reconstructions": case.reconstructions, "samples": case.samples}
    for period in (2**k for k in range(1, stages + 1)):
        data = periodic_energy(case.images, period)
        for name, pictures in made.items():
            found = None if pictures is None else periodic_energy(pictures, period)
            if found is None or data is None:
                continue
            values |= {f"{name}_peak_{period}": found.peak, f"{name}_amplitude_{period}": found.amplitude}
            values[f"data_peak_{period}"] = data.peak
            # A pattern that the data have as well is learned, not made by the decoder.
            excess = found.peak / max(data.peak, 1.0) if found.amplitude > VISIBLE else 0.0
            if worst is None or excess > worst[0]:
                worst = (excess, name, found, data)
    if worst is None:
        raise LeftOut("the images are too small: four periods of the decoder's stride do not fit in")
    excess, name, found, data = worst
    if excess < PEAK:
        peaks = [value for key, value in values.items() if "_peak_" in key and not key.startswith("data")]
        evidence = (
            f"no pattern of the decoder's stride can be seen: at its periods the energy is at most {max(peaks):.2f} "
            f"times that of the frequencies beside them (a visible pattern: {PEAK:g} times)"
        )
        return Finding("checkerboard", OK, evidence, values=values)
    evidence = (
        f"{name} have a pattern of period {found.period}, a stride of the decoder: the energy there is "
        f"{found.peak:.1f} times that of the frequencies beside it ({PEAK:g} is a pattern; data {data.peak:.2f}), its "
        f"amplitude {255 * found.amplitude:.1f} of 255 grey levels"
    )
    advice = (
        "the transposed convolutions are 3 wide at stride 2, so that neighbours get unequal shares: train longer "
        "(--trainer.max_epochs), which evens them out; fewer stages (--model."
        + ("encoder_widths" if "encoder_widths" in case.model.config else "widths")
        + ")"
    )
    if not case.model.autoregressive:
        advice += "; a decoder without strides (--model.architecture mlp), or one whose PixelCNN has the last word "
        advice += "(--model VLAE)"
    return Finding("checkerboard", PROBLEM, evidence, advice, values)


def stages_of(model: LatentVariableModel) -> int:
    """How many times the decoder doubles the resolution."""
    if not any(isinstance(module, nn.ConvTranspose2d) and module.stride[0] > 1 for module in model.modules()):
        return 0
    config = model.config
    widths = config.get("encoder_widths") or config.get("widths") or ARCHITECTURES[config["architecture"]][2]
    return len(widths)


# -- training ---------------------------------------------------------------------------------------------------------


def instability(case: Case) -> Finding:
    """Skipped steps, numbers that are none, and jumps of the bound."""
    broken = not math.isfinite(case.evaluation.distortion + (case.evaluation.rate or 0))
    if broken:
        evidence = "the bound of the saved model is not a finite number"
        return Finding("instability", PROBLEM, evidence, _steadier(case.history))
    history = case.trained()
    last, bad_rows = history.rows[-1], [row for row in history.rows if not is_finite(row)]
    bad, steps = last.get("train/bad_steps", 0.0), last.get("step", 0.0)
    jumps = {}
    for stage in ("train", "validation"):
        level = [abs(value) for value in history.negative_elbos(stage) if math.isfinite(value)]
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
        said.append(f"numbers of {_times(len(bad_rows), 'epoch')} are not finite")
    if count:
        where = " and ".join(stage for stage, found in jumps.items() if found)
        said.append(
            f"the {where} loss jumped {_times(count, 'time')} from one epoch to the next, by at most {highest:.1f} "
            f"nats (a jump is more than {SPIKE_SHARE:.0%} of it and {SPIKE_NATS:g} nats)"
        )
    scale = abs(history.negative_elbos("train")[-1]) if len(course) > 1 else 0.0
    if not count and drift > max(RISE_PROBLEM * scale, SPIKE_NATS):
        said.append(
            f"the training loss has drifted upwards, to {drift:.1f} nats above its lowest (over {RISE_PROBLEM:.0%})"
        )
    if not said:
        evidence = f"no skipped step and no jump of the bound in {_times(len(history.rows), 'epoch')}"
        return Finding("instability", OK, evidence, values=values)
    severe = bad_rows or count >= MANY_SPIKES or bad > BAD_STEPS * (steps + bad)
    return Finding("instability", PROBLEM if severe else NOTICE, "; ".join(said), _steadier(history), values)


def _times(count: int, what: str) -> str:
    """A number of things, in the singular or the plural."""
    return f"{count} {what}{'s' * (count != 1)}"


def _steadier(history: History | None) -> str:
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
    train, validation = history.negative_elbos("train"), history.negative_elbos("validation")
    if len(validation) < 2 or len(train) != len(validation) or not all(map(math.isfinite, train + validation)):
        raise LeftOut("it takes two epochs or more, with finite numbers")
    best = min(range(len(validation)), key=validation.__getitem__)
    rise, gap, scale = validation[-1] - validation[best], validation[-1] - train[-1], abs(validation[best])
    values = {"best_epoch": history.rows[best]["epoch"], "rise": rise, "gap": gap}
    name = "-ELBO" if case.model.has_bound else "distortion"
    numbers = f"the last {name} is {train[-1]:.2f} nats in training and {validation[-1]:.2f} in validation"
    if rise > max(RISE_NOTICE * scale, LEAST_NATS) and train[-1] < train[best]:
        evidence = (
            f"validation has been getting worse since epoch {values['best_epoch']:.0f}, by {rise:.2f} nats (over "
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
    bounds = history.negative_elbos(stage)
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


CHECKS: dict[str, Callable[[Case], Finding]] = {
    "collapse": collapse,
    "codebook": codebook,
    "over-regularisation": regularisation,
    "holes": holes,
    "blur": blur,
    "checkerboard": checkerboard,
    "instability": instability,
    "overfitting": overfitting,
    "unfinished training": unfinished,
}
