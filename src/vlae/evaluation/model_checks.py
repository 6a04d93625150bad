"""The checks of `doctor` that look at a model: from what was measured to findings in plain words.

Each check takes the case and gives one finding. It raises `LeftOut` where it does not apply. Advice names options of
`vlae train`. The thresholds stand beside each other here; which numbers they were set by is said with each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from vlae.evaluation.aggregate import SATURATED
from vlae.evaluation.case import NOTICE, OK, PROBLEM, Case, Finding, LeftOut, times
from vlae.evaluation.collapse import collapse_advice, collapse_evidence, dead_levels, geco_target, is_collapsed
from vlae.evaluation.evidence import Periodic, periodic_energy
from vlae.evaluation.information import BITS
from vlae.evaluation.quality import sharpness
from vlae.evaluation.training_checks import steadier
from vlae.models.base import LatentVariableModel
from vlae.models.decoders import ARCHITECTURES
from vlae.models.vqvae import VQVAE
from vlae.objectives import ELBO, GECO, IWAE, Capacity

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
# Marginal KL as a share of the rate, where few images are at the ceiling of the estimate: so much of the rate says
# nothing of the image.
MARGINAL_NOTICE, MARGINAL_PROBLEM = 0.35, 0.6
LEAST_MARGINAL = 1.0  # nats; less is no hole worth a word
LEAST_OUTSIDE_IMAGES = 50  # a 5% quantile of fewer codes is nobody's
# Sharpness of what the decoder makes, over that of the images; and what the mean images of good factorised VAEs have.
# Many of those get the notice: a factorised VAE is expected to be blurred, and the finding says so.
BLUR_NOTICE, BLUR_PROBLEM = 0.5, 0.2
FACTORISED = 0.3, 0.6
# Energy at the stride's frequencies over that beside them: 0.7 to 1.8 where there is no pattern. And the least
# amplitude that is a pattern on a screen: about one and a half of 256 grey levels.
PEAK, VISIBLE = 3.0, 0.006
# Of a codebook: codes in use, and perplexity, as shares of all codes.
IN_USE_NOTICE, IN_USE_PROBLEM = 0.8, 0.5
PERPLEXITY_NOTICE = 0.2
PLACES_PER_CODE = 20  # fewer codes seen than this many times the book, and one that is not seen may be in use

AUTOENCODER_ADVICE = "train longer (--trainer.max_epochs), or from images that are corrupted less (--model.noise)"


# -- the code ---------------------------------------------------------------------------------------------------------


def collapse(case: Case) -> Finding:
    """Whether the code carries anything, and whether the decoder uses it."""
    case.coded()
    case.finite()
    found, rate = case.evaluation, case.evaluation.rate
    units = "" if found.active_units is None else f"; {found.active_units} of {found.latent_dim} units are active"
    shuffled, told = f"another image's code costs {found.shuffled_gap:.2f} nats", not math.isnan(found.shuffled_gap)
    values = {"shuffled_gap": found.shuffled_gap}
    if not told:
        shuffled = "what another image's code costs is not a number"
    if found.active_units is not None:
        values |= {"active_units": found.active_units, "latent_size": found.latent_dim}
    if not told and (rate is None or not is_collapsed(rate, case.model)):
        raise LeftOut(f"{shuffled}, so that nothing says whether the code is used")
    if rate is None:  # an autoencoder: nothing says what the code costs
        if found.shuffled_gap < UNUSED_NATS:
            evidence = f"{shuffled} (under {UNUSED_NATS:g}): the decoder ignores the code{units}"
            return Finding("collapse", PROBLEM, evidence, AUTOENCODER_ADVICE, values)
        return Finding("collapse", OK, f"the code is used: {shuffled}{units}", values=values)
    values["rate"] = rate
    bits = f"{rate:.2f} nats ({found.rate_bits:.1f} bits)"
    if is_collapsed(rate, case.model):
        warned = 0 if case.history is None else sum("code is dying" in line for line in case.history.warnings)
        said = f"; training warned of it {times(warned, 'time')}" if warned else ""
        evidence = f"{collapse_evidence(rate, case.model)}; {shuffled}{units}{said}"
        return Finding("collapse", PROBLEM, evidence, f"try {_advice_on_collapse(case)}", values)
    if found.shuffled_gap < UNUSED_SHARE * rate:
        evidence = f"the code costs {bits} and is not used: {shuffled}, less than {UNUSED_SHARE:.0%} of its cost{units}"
        return Finding("collapse", PROBLEM, evidence, f"try {_advice_on_collapse(case)}", values)
    if found.active_units is not None and found.active_units < found.latent_dim:
        units += " (that the others are idle is normal: they cost nothing)"
    if dead := dead_levels([level * BITS for level in found.rate_per_level]):
        evidence = f"{dead}: the levels below do without; the code costs {bits}, and {shuffled}{units}"
        return Finding("collapse", NOTICE, evidence, f"try {_advice_on_collapse(case)}", values)
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
    case.finite()
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
    if not exchange.is_finite:
        raise LeftOut("the slope of the rate is not measurable")
    values |= {"exchange": exchange.value, "exchange_error": exchange.error}
    evidence = (
        f"one more nat of rate would save {exchange.value:.2f} ± {exchange.error:.2f} nats of distortion "
        f"(at the best bound 1; it is the slope -dD/dR of the rate-distortion curve, Alemi et al. 2018)"
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
    case.finite()
    if case.outside is None:
        if case.model.discrete or not case.model.has_bound:
            raise LeftOut(f"a {case.kind} has no density of codes to compare with its prior")
        raise LeftOut(f"it takes {2 * LEAST_OUTSIDE_IMAGES} images or more: give more --images")
    outside, severity, info = case.outside, OK, case.information
    values = {"outside": outside.share, "expected": outside.expected, "density_gap": outside.gap}
    values["broken"] = outside.broken
    if outside.broken:
        evidence = f"{outside.broken} of {times(outside.draws, 'draw')} from the prior are not finite numbers"
        advice = f"train the prior again, with {steadier(case.history)}"
        return Finding("holes", PROBLEM, evidence, advice, values)
    said = [
        f"{outside.share:.0%} of {outside.draws} draws from the prior lie where hardly any code is "
        f"({outside.expected:.0%} if prior and codes agree)"
    ]
    if outside.share > OUTSIDE_NOTICE:
        said[0] += f", over {OUTSIDE_NOTICE:.0%}: such samples decode to nothing that was learned"
        severity = PROBLEM if outside.share > OUTSIDE_PROBLEM else NOTICE
    if info is not None:
        values |= {"marginal_kl": info.marginal_kl, "mutual_information": info.mutual_information}
        if info.saturated <= SATURATED and info.marginal_kl > max(MARGINAL_NOTICE * info.rate, LEAST_MARGINAL):
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
    if exchange is not None and exchange.is_finite and exchange.value + 2 * exchange.error < 1 / EXCHANGE_NOTICE:
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
            advice.append("a VampPrior (--model.prior vamp --model.flow_steps 0)")
    advice.append("longer training (--trainer.max_epochs)")
    for size in ("latent_maps", "latent_dim", "latent_dims"):
        if config.get(size):
            advice.append(f"a smaller code (--model.{size}, now {config[size]})")
            break
    return "; ".join(advice)


# -- what the decoder makes -------------------------------------------------------------------------------------------


def blur(case: Case) -> Finding:
    """Whether what the decoder makes is less sharp than the images."""
    case.finite()
    made = case.made
    if not made or case.expected is None:
        raise LeftOut("there are no pictures of 3 x 3 pixels or more to judge, or not all of their pixels are numbers")
    expected = sharpness(case.expected).mean().item()
    if not expected > 0:
        raise LeftOut("the images themselves are flat")
    shares = {name: sharpness(x).mean().item() / expected for name, x in made.items()}
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
    evidence += f": under {BLUR_NOTICE:.0%} is blurred"
    if not case.model.autoregressive:
        low, high = FACTORISED
        evidence += f"; a factorised VAE is expected to be blurred, good ones have {low:.0%} to {high:.0%}"
    return Finding("blur", PROBLEM if worst < BLUR_PROBLEM else NOTICE, evidence, _sharper(case), values)


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


@dataclass(frozen=True)
class Pattern:
    """What pictures of a kind, and the data, have of one period."""

    name: str
    found: Periodic
    data: Periodic

    @property
    def excess(self) -> float:
        """The peak over the data's, since what the data have as well is learned; 0 where it can't be seen."""
        if self.found.amplitude <= VISIBLE or math.isinf(self.data.peak):
            return 0.0
        return self.found.peak / max(self.data.peak, 1.0)


def checkerboard(case: Case) -> Finding:
    """Whether what the decoder makes has a pattern of its stride's periods."""
    case.finite()
    stages = stages_of(case.model)
    if not stages:
        raise LeftOut("the decoder does not double any resolution, so it has no stride to show")
    made = case.made
    if not made or case.images is None:
        raise LeftOut("there are no pictures to judge, or not all of their pixels are numbers")
    patterns: list[Pattern] = []
    values: dict[str, float] = {}
    for period in (2**k for k in range(1, stages + 1)):
        data = periodic_energy(case.images, period)
        for name, pictures in made.items():
            found = periodic_energy(pictures, period)
            if found is None or data is None:
                continue
            values |= {f"{name}_peak_{period}": found.peak, f"{name}_amplitude_{period}": found.amplitude}
            values[f"data_peak_{period}"] = data.peak
            patterns.append(Pattern(name, found, data))
    if not patterns:
        raise LeftOut("the images are too small: four periods of the decoder's stride do not fit in")
    worst = max(patterns, key=lambda pattern: pattern.excess)
    if worst.excess < PEAK:
        return Finding("checkerboard", OK, _harmless(patterns), values=values)
    found, data = worst.found, worst.data
    evidence = (
        f"{worst.name} have a pattern of period {found.period}, a stride of the decoder: the energy there is "
        f"{found.peak:.1f} times that of the frequencies beside it (data {data.peak:.2f}; {PEAK:g} times that of the "
        f"data is a pattern), its amplitude {255 * found.amplitude:.1f} of 255 grey levels"
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


def _harmless(patterns: list[Pattern]) -> str:
    """Why the highest peak is no pattern of the decoder: it is low, or too faint to be seen, or the data have it."""
    highest = max(patterns, key=lambda pattern: pattern.found.peak)
    found, data = highest.found, highest.data
    beside = "times that of the frequencies beside it"
    if found.peak < PEAK:
        return (
            f"no pattern of the decoder's stride: the energy at its periods is at most {found.peak:.2f} {beside} "
            f"({PEAK:g} is a pattern)"
        )
    evidence = f"{highest.name} have {found.peak:.2f} {beside} at period {found.period}, a stride of the decoder, but "
    if found.amplitude <= VISIBLE:
        faint, least = 255 * found.amplitude, 255 * VISIBLE
        return evidence + f"its amplitude is {faint:.1f} of 255 grey levels, under the {least:.1f} that can be seen"
    return evidence + f"the data have it too: {data.peak:.2f} times (a pattern has {PEAK:g} times that)"


def stages_of(model: LatentVariableModel) -> int:
    """How many times the decoder doubles the resolution."""
    if not any(isinstance(module, nn.ConvTranspose2d) and module.stride[0] > 1 for module in model.modules()):
        return 0
    config = model.config
    widths = config.get("encoder_widths") or config.get("widths") or ARCHITECTURES[config["architecture"]][2]
    return len(widths)
