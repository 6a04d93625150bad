"""What success means, as criteria that a model meets or not: each with its numbers and its threshold.

They are those of a Variational Lossy Autoencoder on binary MNIST. Each is a function of plain numbers; what is not in
the evaluation already is measured here.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vlae import codec
from vlae.data import ImageDataset
from vlae.distributions.autoregressive import Autoregressive
from vlae.errors import VlaeError
from vlae.evaluation import pictures, quality
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.groups import Progress
from vlae.evaluation.history import read_history
from vlae.evaluation.information import BITS
from vlae.evaluation.measurements import Measurements, Settings
from vlae.evaluation.suite import check_images
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.saving import load, pretrained_names, trained_on

RATE_BITS = (5.0, 20.0)
GAP_NATS = 5.0
ACCURACY, MOST, NEAR, ABOVE = 0.99, 0.5, 0.15, 0.1  # shares of images
SPEED = 100.0  # two orders of magnitude
SIZE, FULL = 0.005, 10_000  # relative, images
SPEED_BATCH, CHECKED_IMAGES, TIMES = 64, 2, 3
SURE = 2.0  # standard errors
ENOUGH = 500  # images, or samples, below which a mean or a share of them decides nothing

# -log p(x) in nats on the whole test set (Chen et al. 2017, tables 1 and 3), by data set and binarisation; its images.
PUBLISHED = {
    ("binarized_mnist", None): ("static MNIST", 79.03, 10_000),
    ("mnist", "dynamic"): ("dynamic MNIST", 78.53, 10_000),
    ("caltech101_silhouettes", None): ("Caltech-101 Silhouettes", 77.36, 2_307),
}

NEEDED = (
    "rate_bits",
    "negative_elbo",
    "shuffled_gap",
    "nll",
    "sharpness",
    "data_sharpness",
    "sample_confident",
    "drawn_sample_confident",
)


@dataclass(frozen=True)
class Criterion:
    """One criterion and what came of it.

    Attributes:
        name: in files.
        title: what is asked for, with its threshold.
        met: True, False, or None where it could not be checked.
        evidence: the numbers, or why there are none.
    """

    name: str
    title: str
    met: bool | None
    evidence: str

    @property
    def verdict(self) -> str:
        """ "met", "NOT met" or "not checked"."""
        return {True: "met", False: "NOT met", None: "not checked"}[self.met]


@dataclass(frozen=True)
class References:
    """What a model is compared with: a PixelCNN without a code, and a VAE of MLPs.

    Attributes:
        pixelcnn, vae: the models; None where there is none for these images.
        why: for each that is None, by its name, why.
    """

    pixelcnn: LatentVariableModel | None
    vae: LatentVariableModel | None
    why: dict[str, str]


def load_references(test: ImageDataset, pixelcnn: str | None = None, vae: str | None = None) -> References:
    """The models at these paths, else the pretrained ones where they are of the same data set and binarisation."""
    found: dict[str, LatentVariableModel | None] = {}
    why = {}
    for name, path, shipped in (("pixelcnn", pixelcnn, "mnist-pixelcnn"), ("vae", vae, "mnist-vae-mlp")):
        found[name] = None
        if path is not None:
            found[name] = model = load(path)
            check_images(model, test)
            continue
        if shipped not in pretrained_names():
            why[name] = f"there is no model to compare with: give --{name}"
            continue
        model = load(shipped)
        own = trained_on(model)
        same = (own.get("name"), own.get("binarize")) == (test.name, test.binarize)
        if same and model.image_shape == test.image_shape:
            found[name] = model
        else:
            why[name] = f"{shipped}, the model to compare with, is of other images: give --{name}"
    return References(found["pixelcnn"], found["vae"], why)


def needed(metrics: Iterable[str]) -> list[str]:
    """What has to be measured for the criteria besides these metrics."""
    return [name for name in NEEDED if name not in set(metrics)]


def check_criteria(
    model: LatentVariableModel,
    test: ImageDataset,
    found: Measurements,
    judge: Classifier | None,
    references: References,
    settings: Settings,
    free_nats: float | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> list[Criterion]:
    """All criteria.

    Args:
        model: what was measured.
        test: on which images.
        found: what was found, the metrics `NEEDED` among it as far as they apply.
        judge: the classifier that judges samples; None: there is none.
        references: what is compared with.
        settings: as it was measured; as many images are made by the references.
        free_nats: floor of the rate at the end of training, as `free_nats_at_end` gives it.
        progress: told "criteria", and how many are done.
    """
    values, checks = found.values, []

    def done(criterion: Criterion) -> None:
        checks.append(criterion)
        progress("criteria", len(checks), 7)

    progress("criteria", 0, 7)
    part = test.subset(min(settings.quality_images, len(test)))
    done(enough(settled(values.get("rate_bits") if model.latent_size else None, free_nats), len(test)))
    done(enough(used(values.get("shuffled_gap") if model.latent_size else None), len(test)))
    done(enough(legible(model, part, values, judge, references, settings), min(len(part), settings.quality_images)))
    done(enough(sharper(part, values, references, settings), len(part)))
    done(
        reached(
            test,
            values.get("nll"),
            found.errors.get("nll"),
            found.images.get("nll", 0),
            max(settings.nll_samples, default=0),
            of_all(found) if found.images.get("bound") == len(test) else None,
        )
    )
    on_cpu = copy.deepcopy(model).cpu()  # where the speed and the codec are promised
    done(fast(on_cpu, test))
    done(compact(on_cpu, test, values.get("negative_elbo")))
    return checks


def free_nats_at_end(model: LatentVariableModel, run: Path | None) -> float | None:
    """The floor that free bits held the rate above at the end of training, nats; None where that is not known.

    As the model's metadata say, else as the configuration of its run does.
    """
    if "free_nats_at_end" in model.metadata:
        return model.metadata["free_nats_at_end"]
    if run is None:
        return None
    objective = read_history(run).objective
    return None if objective is None else objective.floor(1.0)


# -- the criteria -----------------------------------------------------------------------------------------------------


def enough(criterion: Criterion, images: int) -> Criterion:
    """The criterion, undecided where it was measured on fewer images, or samples, than decide anything."""
    if criterion.met is None or images >= ENOUGH:
        return criterion
    return replace(criterion, met=None, evidence=f"{criterion.evidence}: of {images:,}, too few (under {ENOUGH})")


def settled(rate_bits: float | None, free_nats: float | None) -> Criterion:
    """The code holds something, but not everything, of its own accord."""
    low, high = RATE_BITS
    name, title = "rate", f"the rate is between {low:g} and {high:g} bits, with free bits off at the end"
    if rate_bits is None:
        return Criterion(name, title, None, "the model has no code, or no density of it")
    inside = low <= rate_bits <= high
    evidence = f"{rate_bits:.2f} bits"
    if free_nats is None:
        evidence += "; whether anything held the rate up at the end of training is not known"
        return Criterion(name, title, None if inside else False, evidence)
    evidence += "; free bits off" if free_nats == 0 else f"; {free_nats:g} nats were free at the end"
    return Criterion(name, title, inside and free_nats == 0, evidence)


def used(gap: float | None) -> Criterion:
    """The decoder reads the code."""
    name, title = "used", f"giving each image another image's z costs at least {GAP_NATS:g} nats"
    if gap is None:
        return Criterion(name, title, None, "the model has no code")
    return Criterion(name, title, gap >= GAP_NATS, f"{gap:.2f} nats")


def legible(
    model: LatentVariableModel,
    part: ImageDataset,
    values: dict[str, float],
    judge: Classifier | None,
    references: References,
    settings: Settings,
) -> Criterion:
    """Samples read as digits; `part` are the real images that are judged beside them."""
    drawn = "drawn" if model.autoregressive else "mean"
    share = values.get("drawn_sample_confident" if model.autoregressive else "sample_confident")
    if judge is None or share is None:
        return judged(math.nan, share, math.nan, None, "no classifier judges these samples: it needs labelled images")
    real = confident(judge, part.tensor())
    baseline, why = None, references.why.get("pixelcnn", "")
    if references.pixelcnn is not None:
        context = references.pixelcnn.context_of(part.labels, part.factors)
        made = pictures.samples(references.pixelcnn, settings.quality_images, context, settings.seed)
        baseline = confident(judge, made.drawn)
    return judged(judge.test_accuracy, share, real, baseline, why, f"{settings.quality_images:,} {drawn} samples")


def judged(
    accuracy: float, share: float | None, real: float, baseline: float | None, why: str = "", of: str = "samples"
) -> Criterion:
    """The verdict on samples by the shares of images that a classifier is sure of.

    Args:
        accuracy: the classifier's, on test images.
        share: of the model's samples; None: not known.
        real: of real test images.
        baseline: of an unconditional PixelCNN's samples; None: there is none, and `why`.
        why: the reason.
        of: what was judged, in words.
    """
    name = "samples"
    title = (
        f"a classifier of at least {ACCURACY:.0%} test accuracy is more than 0.9 confident on most drawn samples: on "
        f"more than {MOST:.0%}, at most {NEAR:g} from the share of real test images, and at least {ABOVE:g} above the "
        "unconditional PixelCNN's"
    )
    if share is None or math.isnan(accuracy):
        return Criterion(name, title, None, why)
    evidence = f"share {share:.3f} of {of}, of test images {real:.3f}"
    evidence += "" if baseline is None else f", of the PixelCNN's samples {baseline:.3f}"
    evidence += f"; the classifier is right on {accuracy:.2%}"
    if accuracy < ACCURACY:
        return Criterion(name, title, None, f"{evidence}, too few to judge")
    own = share > MOST and abs(share - real) <= NEAR
    if baseline is None:
        return Criterion(name, title, None if own else False, f"{evidence}; {why}")
    return Criterion(name, title, own and share - baseline >= ABOVE, evidence)


def confident(judge: Classifier, images: Tensor) -> float:
    """The share of images that the classifier is more than 0.9 confident on."""
    return (judge.confidence(images) > 0.9).double().mean().item()


def sharper(part: ImageDataset, values: dict[str, float], references: References, settings: Settings) -> Criterion:
    """Reconstructions are not blurred: compared with a VAE's of the same images, `part`."""
    reference = None
    if references.vae is not None:
        x = references.vae.placed(part.tensor())
        context = references.vae.context_of(part.labels, part.factors)
        decoded = pictures.reconstructions(references.vae, x, context, settings.seed).decoded
        reference = quality.sharpness(decoded).mean().item()
    return sharpness(
        values.get("sharpness"), reference, values.get("data_sharpness", math.nan), references.why.get("vae", "")
    )


def sharpness(own: float | None, reference: float | None, data: float, why: str = "") -> Criterion:
    """The verdict on the variance of the Laplacian of reconstructions, of a VAE's, and of the images."""
    name = "sharpness"
    title = "greedy reconstructions are sharper than an MLP-VAE's mean images (variance of the Laplacian)"
    if own is None:
        return Criterion(name, title, None, "the model has no code to reconstruct images from")
    evidence = f"{own:.4f}" + ("" if reference is None else f" against {reference:.4f}") + f"; the data's is {data:.4f}"
    if reference is None:
        return Criterion(name, title, None, f"{evidence}; {why}")
    return Criterion(name, title, own > reference, evidence)


def of_all(found: Measurements) -> tuple[float, float] | None:
    """The NLL of all images told from that of some, and its standard error; None where it was not told."""
    if "nll_of_all" not in found.values or "nll_of_all" not in found.errors:
        return None
    return found.values["nll_of_all"], found.errors["nll_of_all"]


def reached(
    test: ImageDataset,
    nll: float | None,
    error: float | None,
    images: int,
    samples: int,
    told: tuple[float, float] | None = None,
) -> Criterion:
    """The published likelihood.

    Args:
        test: the images.
        nll, error: in nats, by `samples` importance samples on `images` of them.
        told: the NLL of all of them by difference, and its standard error: it decides where it is surely on one side.
    """
    name, title = "nll", "the paper's NLL is reached on the whole test set"
    known = PUBLISHED.get((test.name, test.binarize))
    if known is None or test.split != "test" or test.image_shape != (1, 28, 28):
        return Criterion(name, title, None, "the paper has no number for these images")
    what, published, whole = known
    title = f"the paper's NLL of {what} is reached on the whole test set: {published} nats"
    if nll is None:
        return Criterion(name, title, None, "no NLL was measured")
    evidence = f"{nll:.2f}" + ("" if error is None else f" ± {error:.2f}") + f", K = {samples:,}"
    if images == whole:
        return Criterion(name, title, nll <= published, f"{evidence} on all {images:,}; published {published}")
    if told is None or len(test) != whole:
        evidence = f"not on the whole test set: {evidence} on {images:,} of {whole:,}; published {published}"
        return Criterion(name, title, None, evidence)
    value, spread = told
    evidence = f"{value:.2f} ± {spread:.2f} on all by difference, K = {samples:,} on {images:,}; published {published}"
    if abs(value - published) <= SURE * spread:
        return Criterion(name, title, None, f"{evidence}: too near to tell, measure more images")
    return Criterion(name, title, value < published, evidence)


def fast(model: LatentVariableModel, test: ImageDataset) -> Criterion:
    """Sampling along the wavefront, against the obvious loop of a full pass for each sub-pixel."""
    if not model.autoregressive:
        return speed(None, math.nan, 1, False)
    with model.evaluating(), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        part = test.subset(min(SPEED_BATCH, len(test)))
        context = model.context_of(part.labels, part.factors)
        if context is not None:
            context = context.repeat(-(-SPEED_BATCH // len(context)), *[1] * (context.ndim - 1))[:SPEED_BATCH]

        def decode(count: int) -> Autoregressive:
            told = given(model.check_context(None if context is None else context[:count], count))
            p = model.decode(model.prior(**told).sample((count,), generator=generator), **told)
            assert isinstance(p, Autoregressive)
            return p

        few, many = decode(CHECKED_IMAGES), decode(SPEED_BATCH)
        dtype = many.context.dtype
        u = torch.rand(SPEED_BATCH, *model.image_shape, generator=generator, dtype=dtype).to(many.context.device)
        drawn, loop = (few.sample(uniforms=u[:CHECKED_IMAGES], method=method) for method in ("wavefront", "raster"))
        # The values of a density differ in their last bits.
        same = torch.equal(drawn, loop) if model.likelihood.levels else torch.allclose(drawn, loop, atol=1e-4)
        x = torch.zeros_like(u)
        wavefront = statistics.median(seconds(lambda: many.sample(uniforms=u)) for _ in range(TIMES))
        one_pass = statistics.median(seconds(lambda: many.network(x, many.context)) for _ in range(TIMES))
    return speed(wavefront, one_pass, math.prod(model.image_shape), same)


def seconds(call) -> float:  # type: ignore[no-untyped-def]
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def speed(wavefront: float | None, one_pass: float, sub_pixels: int, same: bool) -> Criterion:
    """The verdict on seconds of a batch along the wavefront, and of one full pass, of which the loop makes many."""
    name = "speed"
    title = (
        f"sampling a batch of {SPEED_BATCH} is {SPEED:g} times faster than the obvious loop, with identical pixels "
        f"(compared on {CHECKED_IMAGES})"
    )
    if wavefront is None:
        return Criterion(name, title, None, "the decoder is not autoregressive: there is no loop to be faster than")
    loop = one_pass * sub_pixels
    evidence = (
        f"{loop / wavefront:.0f} times: {wavefront:.3f} s against {loop:.1f} s, extrapolated from one full pass of "
        f"{one_pass:.4f} s for each of {sub_pixels:,} sub-pixels; pixels "
        f"{'identical' if same else 'NOT identical'} for {CHECKED_IMAGES} images drawn both ways"
    )
    return Criterion(name, title, same and loop / wavefront >= SPEED, evidence)


def compact(model: LatentVariableModel, test: ImageDataset, negative_elbo: float | None) -> Criterion:
    """Compresses the test images, decodes them again, and compares the size with their -ELBO (nats per image)."""
    if negative_elbo is None:
        return size(None, math.nan, len(test), "the model has no bound")
    try:
        data = codec.compress(model, test.tensor(), verify=True)
    except VlaeError as error:
        return size(None, math.nan, len(test), str(error))
    return size(8 * len(data), negative_elbo * BITS * len(test), len(test))


def size(bits: float | None, bound: float, images: int, why: str = "") -> Criterion:
    """The verdict on the size of a file of `images` images and the sum of their -ELBO, both in bits."""
    name = "codec"
    title = f"compressed files are the size that the bound says, within {SIZE:.1%} on {FULL:,} images"
    if bits is None:
        return Criterion(name, title, None, why)
    excess = bits / bound - 1
    evidence = f"{excess:+.3%}: {bits / images:.3f} bits an image against {bound / images:.3f}, {images:,} images"
    if images < FULL:
        return Criterion(name, title, None, f"{evidence}: too few, the file's head and the first bits weigh more")
    return Criterion(name, title, abs(excess) <= SIZE, evidence)
