"""The registry of scalar metrics: their words, units and forms, for console tables, reports and experiments alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from vlae.errors import VlaeError


@dataclass(frozen=True)
class Metric:
    """What a number is called and how it is written.

    Attributes:
        name: in files and on the command line.
        label: in tables.
        unit: "nats", "bits", "dB", or "" where it has none.
        group: what it is measured with.
        form: of its digits, a format specification.
        better: "lower", "higher", or "" where neither is.
        about: what it means, in a line.
    """

    name: str
    label: str
    unit: str
    group: str
    form: str
    better: str
    about: str

    @property
    def heading(self) -> str:
        """Label and unit: "rate [nats]"."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    def written(self, value: float | None, error: float | None = None) -> str:
        """The number as tables show it, with its standard error where it has one; "-" where there is none.

        Example:
            >>> METRICS["nll"].written(79.734, 0.451), METRICS["nll"].written(None)
            ('79.73 ± 0.45', '-')
        """
        if value is None:
            return "-"
        text = format(value, self.form)
        return text if error is None else f"{text} ± {format(error, self.form)}"


GROUPS: dict[str, str] = {
    "bound": "the evidence lower bound, its two terms, and whether z is used",
    "nll": "the importance-weighted bound on -log p(x), at several numbers of samples",
    "information": "the rate, cut in two: what z says of x, and how far the codes as a whole are from the prior",
    "reconstruction": "images decoded from their own codes, beside the images",
    "samples": "images decoded from the prior's codes, judged by a small classifier trained on the data set",
    "standard": "the same by the field's standard network, where its weights can be had",
    "probes": "what simple predictors make of the posterior means",
    "disentanglement": "whether single dimensions of z follow single factors of the data",
}

_IMAGES = (
    # name, label, unit, form, better, about
    ("mse", "MSE", "", ".4f", "lower", "mean squared error per value"),
    ("l1", "L1", "", ".4f", "lower", "mean absolute error per value"),
    ("psnr", "PSNR", "dB", ".2f", "higher", "peak signal-to-noise ratio"),
    ("ssim", "SSIM", "", ".4f", "higher", "structural similarity, 1 for equal images"),
    ("sharpness", "sharpness", "", ".4f", "", "variance of the Laplacian, to be read beside the data's"),
    ("lpips", "LPIPS", "", ".4f", "lower", "distance of the features of a standard network"),
)
_SAMPLES = (
    ("sharpness", "sharpness", "", ".4f", "", "variance of the Laplacian, to be read beside the data's"),
    ("frechet", "Frechet distance (own classifier)", "", ".2f", "lower", "of the small classifier's features"),
    ("inception_score", "Inception Score (own classifier)", "", ".3f", "higher", "of the small classifier's classes"),
    ("confidence", "confidence", "", ".3f", "higher", "mean probability of the likeliest class"),
    ("confident", "confident share", "", ".3f", "higher", "images with a class above 0.9"),
)


def _registry() -> Iterable[Metric]:
    def of(group: str, *rows: tuple[str, str, str, str, str, str]) -> Iterable[Metric]:
        for name, label, unit, form, better, about in rows:
            yield Metric(name, label, unit, group, form, better, about)

    yield from of(
        "bound",
        ("parameters", "parameters", "", ",.0f", "", "weights of the model"),
        ("latent_size", "numbers in z", "", ".0f", "", "dimensions of the code"),
        ("distortion", "distortion", "nats", ".2f", "lower", "-log p(x|z), z ~ q(z|x)"),
        ("rate", "rate", "nats", ".2f", "", "KL(q(z|x) || p(z))"),
        ("rate_bits", "rate", "bits", ".2f", "", "KL(q(z|x) || p(z))"),
        ("negative_elbo", "-ELBO", "nats", ".2f", "lower", "distortion + rate, a bound on -log p(x)"),
        ("bits_per_dim", "-ELBO per sub-pixel", "bits/dim", ".4f", "lower", "-ELBO over the values of an image"),
        (
            "shuffled_gap",
            "shuffled z costs",
            "nats",
            ".2f",
            "",
            "distortion with another image's z, less the distortion",
        ),
        ("active_units", "active units", "", ".0f", "", "dimensions whose posterior mean varies by more than 0.01"),
        ("perplexity", "perplexity", "codes", ".2f", "", "codes used in effect"),
        ("codes_in_use", "codes in use", "codes", ".0f", "", "codes that occur at all"),
    )
    yield from of(
        "nll",
        ("nll", "NLL", "nats", ".2f", "lower", "-log (1/K) sum of the importance weights, a bound on -log p(x)"),
        ("nll_bits_per_dim", "NLL per sub-pixel", "bits/dim", ".4f", "lower", "NLL over the values of an image"),
        ("nll_of_all", "NLL of all images", "nats", ".2f", "lower", "-ELBO of all, less the gap to the NLL of some"),
        ("ess", "effective samples", "", ".1f", "higher", "(sum w)^2 / sum w^2, of the K"),
    )
    yield from of(
        "information",
        ("mutual_information", "mutual information", "nats", ".3f", "", "I_q(x; z), at most log N"),
        ("marginal_kl", "marginal KL", "nats", ".3f", "lower", "KL(q(z) || p(z)), q(z) the mean of the posteriors"),
        ("information_ceiling", "ceiling log N", "nats", ".3f", "", "the most that N images can show of I_q(x; z)"),
    )
    for prefix, words in (("", "reconstructions"), ("drawn_", "drawn reconstructions")):
        for name, label, unit, form, better, about in _IMAGES:
            yield Metric(f"{prefix}{name}", f"{words}: {label}", unit, "reconstruction", form, better, about)
    yield from of(
        "reconstruction",
        ("data_sharpness", "data: sharpness", "", ".4f", "", "variance of the Laplacian of the images themselves"),
    )
    for prefix, words in (("sample_", "samples"), ("drawn_sample_", "drawn samples"), ("data_", "data")):
        for name, label, unit, form, better, about in _SAMPLES:
            if (prefix, name) != ("data_", "sharpness"):
                yield Metric(f"{prefix}{name}", f"{words}: {label}", unit, "samples", form, better, about)
    yield from of(
        "standard",
        ("fid", "samples: FID", "", ".2f", "lower", "Frechet distance of the Inception network's features"),
        ("inception_score", "samples: Inception Score", "", ".3f", "higher", "of the Inception network's classes"),
    )
    yield from of(
        "probes",
        ("linear_probe", "linear probe of z: accuracy", "", ".3f", "higher", "logistic regression on posterior means"),
        ("knn", "nearest neighbours in z: accuracy", "", ".3f", "higher", "vote of 5 posterior means"),
        ("factor_r2", "factors from z: mean R²", "", ".3f", "higher", "variance of factors that z explains linearly"),
    )
    yield from of(
        "disentanglement",
        ("mig", "MIG", "", ".3f", "higher", "mutual information gap"),
        ("sap", "SAP", "", ".3f", "higher", "separated attribute predictability"),
        ("dci_disentanglement", "DCI: disentanglement", "", ".3f", "higher", "each dimension tells of one factor"),
        ("dci_completeness", "DCI: completeness", "", ".3f", "higher", "each factor is told by one dimension"),
        ("dci_informativeness", "DCI: informativeness", "", ".3f", "higher", "accuracy of factors predicted from z"),
        ("factor_vae", "FactorVAE score", "", ".3f", "higher", "accuracy of the vote of the least varying dimension"),
    )


METRICS: dict[str, Metric] = {metric.name: metric for metric in _registry()}

# What the small classifier says: nothing of this needs to be trained for where none of it is asked for.
JUDGED = frozenset(m.name for m in METRICS.values() if m.group == "samples" and not m.name.endswith("sharpness"))

# What published networks say: large to fetch and slow to run.
STANDARD = frozenset(m.name for m in METRICS.values() if m.group == "standard" or m.name.endswith("lpips"))


def chosen(only: Iterable[str]) -> list[str]:
    """The metrics that groups and names choose, in the order of tables; all of them where nothing is named.

    Raises:
        VlaeError: an unknown name.

    Example:
        >>> chosen(["information", "mig"])
        ['mutual_information', 'marginal_kl', 'information_ceiling', 'mig']
    """
    only = list(only)
    for name in only:
        if name not in METRICS and name not in GROUPS:
            close = difflib.get_close_matches(name, [*GROUPS, *METRICS], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"groups are {', '.join(GROUPS)}"
            raise VlaeError(f"no metric or group {name!r}: {hint}")
    # A name that is both, such as nll, means the group.
    return [
        m.name for m in METRICS.values() if not only or m.group in only or (m.name in only and m.name not in GROUPS)
    ]
