"""Each criterion met, not met and not checked on planted values, and what is measured for them."""

import math

import pytest
import torch

import vlae
from vlae import VlaeError, models
from vlae.data import ImageDataset
from vlae.evaluation import criteria, pictures, quality
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.criteria import Criterion, References, load_references
from vlae.evaluation.information import BITS
from vlae.evaluation.measurements import Settings
from vlae.evaluation.suite import measure
from vlae.objectives import ELBO, GECO, IWAE, Capacity, InfoVAE, LatentNoise, Linear, SoftFreeBits, WithTerms

NOBODY = References(None, None, {"pixelcnn": "give --pixelcnn", "vae": "give --vae"})


def images(count=6, shape=(1, 8, 8), name="noise", labels=True, split="test", **options):
    pixels = torch.randint(0, 2, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return ImageDataset(
        pixels, 2, name=name, split=split, labels=torch.arange(count) % 2 if labels else None, **options
    )


# -- the rate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "free", "met", "said"),
    [
        (13.8, 0.0, True, "13.80 bits; free bits off"),
        (5.0, 0.0, True, "5.00"),
        (20.0, 0.0, True, "20.00"),
        (4.99, 0.0, False, "4.99"),
        (20.01, 0.0, False, "20.01"),
        (13.8, 7.84, False, "7.84 nats were free"),
        (13.8, None, None, "not known"),
        (0.3, None, False, "0.30"),
        (None, 0.0, None, "no code"),
    ],
)
def test_the_rate(rate, free, met, said):
    found = criteria.settled(rate, free)
    assert found.met is met and said in found.evidence


def test_free_bits_at_the_end_are_those_of_the_metadata_or_the_run(tiny_vae, tmp_path):
    model = tiny_vae()
    assert criteria.free_nats_at_end(model, None) is None
    (tmp_path / "config.yaml").write_text(
        "objective:\n  class_path: vlae.objectives.ELBO\n  init_args:\n    free_nats:\n"
        "      class_path: vlae.objectives.Linear\n      init_args: {start: 8.0, end: 0.5}\n"
    )
    assert criteria.free_nats_at_end(model, tmp_path) == 0.5
    model.metadata["free_nats_at_end"] = 0.25
    assert criteria.free_nats_at_end(model, tmp_path) == criteria.free_nats_at_end(model, None) == 0.25
    model.metadata["free_nats_at_end"] = None  # the rate was held up by something else
    assert criteria.free_nats_at_end(model, tmp_path) is None


@pytest.mark.parametrize(
    ("objective", "floors"),
    [
        (ELBO(), (0.0, 0.0)),
        (ELBO(free_nats=3.0), (3.0, 3.0)),
        (ELBO(free_nats=Linear(8.0, 0.0, 0.5, 0.75)), (8.0, 0.0)),
        (WithTerms([LatentNoise(0.1)], ELBO(free_nats=Linear(8.0, 0.0))), (8.0, 0.0)),
        (IWAE(samples=2), (0.0, 0.0)),
        (SoftFreeBits(5.0), (None, None)),
        (Capacity(5.0), (None, None)),
    ],
)
def test_objectives_know_their_floor(objective, floors):
    assert (objective.floor(0.0), objective.floor(1.0)) == floors


def test_pretrained_models_know_theirs():
    for name in ("mnist-dynamic", "mnist-codec"):
        assert criteria.free_nats_at_end(vlae.load(name), None) == 0.0


# -- z is used --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "met"), [(5.0, True), (83.0, True), (4.99, False), (-0.1, False), (None, None)])
def test_the_shuffled_gap(gap, met):
    assert criteria.used(gap).met is met


# -- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "share", "real", "baseline", "met"),
    [
        (0.99, 0.9, 0.97, 0.6, True),
        (0.99, 0.851, 1.0, 0.75, True),  # just near enough, and just above enough
        (0.989, 0.9, 0.97, 0.6, None),  # a judge that is no judge
        (0.99, 0.5, 0.6, 0.2, False),  # not most
        (0.99, 0.8, 0.97, 0.2, False),  # not near the data's
        (0.99, 0.9, 0.97, 0.81, False),  # not well above the PixelCNN's
        (0.99, 0.9, 0.97, None, None),
        (0.99, 0.4, 0.97, None, False),  # whatever a PixelCNN's would be
        (0.99, None, 0.97, 0.6, None),
        (math.nan, 0.9, 0.97, 0.6, None),
    ],
)
def test_samples(accuracy, share, real, baseline, met):
    found = criteria.judged(accuracy, share, real, baseline, "give --pixelcnn")
    assert found.met is met
    if accuracy == 0.99 and share is not None:
        assert f"{share:.3f}" in found.evidence and f"{real:.3f}" in found.evidence
        assert (f"{baseline:.3f}" if baseline is not None else "--pixelcnn") in found.evidence


class Bright:
    """A judge that is sure of an image if its first pixel is white."""

    test_accuracy = 0.995

    def confidence(self, x):
        return 0.5 + 0.5 * x[:, 0, 0, 0]


def test_samples_are_judged_beside_the_data_and_the_reference(monkeypatch):
    part, settings = images(8), Settings(quality_images=8)
    model = vlae.VLAE((1, 8, 8), latent_dim=2, decoder_layers=1, channels=4, encoder_widths=[4])
    reference = models.PixelCNN((1, 8, 8), decoder_layers=1, channels=4)
    share = (part.tensor()[:, 0, 0, 0] > 0.8).double().mean().item()
    drawn = pictures.samples(reference, 8).drawn[:, 0, 0, 0].double().mean().item()
    references = References(reference, None, {})
    found = criteria.legible(model, part, {"drawn_sample_confident": 0.7}, Bright(), references, settings)
    for number in (0.7, share, drawn):
        assert f"{number:.3f}" in found.evidence
    assert "8 drawn samples" in found.evidence
    vae = vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp")
    values = {"sample_confident": 0.25, "drawn_sample_confident": 0.75}
    assert "0.250 of 8 mean samples" in criteria.legible(vae, part, values, Bright(), NOBODY, settings).evidence
    unjudged = criteria.legible(model, part, {}, None, NOBODY, settings)
    assert unjudged.met is None and "labelled" in unjudged.evidence


# -- sharpness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "reference", "met"),
    [(0.3, 0.2, True), (0.2, 0.2, False), (0.1, 0.2, False), (0.3, None, None), (None, 0.2, None)],
)
def test_sharpness(own, reference, met):
    found = criteria.sharpness(own, reference, 0.6, "give --vae")
    assert found.met is met
    assert own is None or "data's is 0.6000" in found.evidence


def test_sharpness_is_compared_on_the_same_images():
    part, reference = images(5), vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp")
    decoded = reference.eval().reconstruct(part.tensor())
    values = {"sharpness": 0.5, "data_sharpness": 0.75}
    found = criteria.sharper(part, values, References(None, reference, {}), Settings())
    assert f"against {quality.sharpness(decoded).mean().item():.4f}" in found.evidence and "0.7500" in found.evidence
    assert "--vae" in criteria.sharper(part, values, NOBODY, Settings()).evidence


# -- the likelihood ---------------------------------------------------------------------------------------------------


def test_the_published_likelihood(monkeypatch):
    monkeypatch.setitem(criteria.PUBLISHED, ("binarized_mnist", None), ("static MNIST", 79.03, 6))
    test = images(6, (1, 28, 28), name="binarized_mnist")
    assert criteria.reached(test, 79.03, 0.2, 6, 1000).met is True
    assert criteria.reached(test, 79.04, 0.2, 6, 1000).met is False
    few = criteria.reached(test, 70.0, 0.2, 5, 1000)
    assert few.met is None
    assert few.evidence == "not on the whole test set: 70.00 ± 0.20, K = 1,000 on 5 of 6; published 79.03"
    assert criteria.reached(test, None, None, 0, 0).met is None
    assert criteria.reached(test, 70.0, 0.2, 5, 1000, (78.92, 0.05)).met is True
    assert criteria.reached(test, 70.0, 0.2, 5, 1000, (79.14, 0.05)).met is False
    near = criteria.reached(test, 70.0, 0.2, 5, 1000, (78.94, 0.05))
    assert near.met is None and "78.94 ± 0.05 on all by difference, K = 1,000 on 5" in near.evidence
    assert "too near to tell" in near.evidence
    assert criteria.reached(images(5, (1, 28, 28), name="binarized_mnist"), 70.0, 0.2, 3, 9, (1.0, 0.1)).met is None
    validation = images(6, (1, 28, 28), name="binarized_mnist", split="validation")
    for other in (images(6), validation, images(6, (1, 14, 14), name="binarized_mnist")):
        found = criteria.reached(other, 1.0, 0.1, 6, 10)
        assert found.met is None and "no number" in found.evidence


def test_published_numbers_are_the_papers():
    numbers = {key: nll for key, (_, nll, _) in criteria.PUBLISHED.items()}
    expected = {("binarized_mnist", None): 79.03, ("mnist", "dynamic"): 78.53, ("caltech101_silhouettes", None): 77.36}
    assert numbers == expected


# -- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wavefront", "one_pass", "sub_pixels", "same", "met"),
    [
        (0.5, 0.1, 784, True, True),
        (0.784, 0.1, 784, True, True),  # 100 times, exactly
        (0.8, 0.1, 784, True, False),
        (0.5, 0.1, 784, False, False),
        (None, 1.0, 1, True, None),
    ],
)
def test_speed(wavefront, one_pass, sub_pixels, same, met):
    found = criteria.speed(wavefront, one_pass, sub_pixels, same)
    assert found.met is met
    if met is not None:
        assert "extrapolated" in found.evidence and ("NOT identical" in found.evidence) == (not same)


@pytest.mark.parametrize("options", [{}, {"classes": 2}, {"likelihood": "gaussian"}])
def test_speed_is_measured_and_the_pixels_compared(options, monkeypatch):
    monkeypatch.setattr(criteria, "SPEED_BATCH", 5)
    model = vlae.VLAE((1, 8, 8), latent_dim=2, decoder_layers=1, channels=4, encoder_widths=[4], **options).train()
    found = criteria.fast(model, images(3))
    assert model.training
    assert found.met is not None and "pixels identical for 2 images" in found.evidence
    assert "each of 64 sub-pixels" in found.evidence
    assert criteria.fast(vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp"), images(3)).met is None


def test_other_pixels_are_noticed(monkeypatch):
    from vlae.distributions.autoregressive import Autoregressive

    sample = Autoregressive.sample

    def wrong(self, *arguments, method="wavefront", **options):
        x = sample(self, *arguments, method=method, **options)
        return 1 - x if method == "raster" else x

    monkeypatch.setattr(Autoregressive, "sample", wrong)
    found = criteria.fast(vlae.VLAE((1, 8, 8), latent_dim=2, channels=4, encoder_widths=[4]), images(3))
    assert found.met is False and "NOT identical" in found.evidence


# -- the codec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "bound", "count", "met"),
    [
        (1005.0, 1000.0, 10_000, True),
        (1005.1, 1000.0, 10_000, False),
        (994.0, 1000.0, 10_000, False),  # not the size that the bound says
        (1004.0, 1000.0, 10, None),
        (990.0, 1000.0, 50, None),
        (1040.0, 1000.0, 10, None),  # so few images prove nothing
        (None, 1000.0, 10, None),
    ],
)
def test_the_size_of_files(bits, bound, count, met):
    found = criteria.size(bits, bound, count, "why not")
    assert found.met is met
    assert f"{count:,} images" in found.evidence or found.evidence == "why not"


def test_files_are_compared_with_the_bound():
    test = images(12)
    model = models.PixelCNN((1, 8, 8), decoder_layers=1, channels=4).eval()
    nats = -model.elbo(test.tensor()).elbo.mean().item()
    found = criteria.compact(model, test, nats)
    data = vlae.codec.compress(model, test.tensor())
    assert f"{8 * len(data) / 12:.3f} bits an image against {nats * BITS:.3f}, 12 images" in found.evidence
    reversing = vlae.VLAE((1, 8, 8), latent_dim=3, channels=4, encoder_widths=[4], flow_steps=2)
    assert "flow_order='same'" in criteria.compact(reversing, test, 1.0).evidence
    assert criteria.compact(model, test, None).met is None


# -- all together -----------------------------------------------------------------------------------------------------


def test_references_are_of_the_same_images(tmp_path, monkeypatch):
    for name, binarize in (("mnist-pixelcnn", "dynamic"), ("mnist-vae-mlp", "static")):
        model = vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp")
        model.metadata["data"] = {"name": "mnist", "binarize": binarize}
        model.save_pretrained(tmp_path / name)
    monkeypatch.setattr(criteria, "pretrained_names", lambda: ["mnist-pixelcnn", "mnist-vae-mlp"])
    monkeypatch.setattr(criteria, "load", lambda name: vlae.load(tmp_path / name))
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    mnist = ImageDataset(pixels, 256, name="mnist", split="test", binarize="dynamic")
    found = load_references(mnist)
    assert found.pixelcnn is not None and found.vae is None
    assert found.why == {"vae": "mnist-vae-mlp, the model to compare with, is of other images: give --vae"}
    given = load_references(images(), vae="mnist-vae-mlp")
    assert given.vae is not None and given.pixelcnn is None and "--pixelcnn" in given.why["pixelcnn"]
    with pytest.raises(VlaeError, match="1x8x8 images and those of noise are 1x5x4"):
        load_references(images(shape=(1, 5, 4)), pixelcnn="mnist-pixelcnn")
    monkeypatch.setattr(criteria, "pretrained_names", lambda: [])
    assert load_references(mnist).why["vae"] == "there is no model to compare with: give --vae"


def test_all_are_checked_and_said(monkeypatch):
    monkeypatch.setattr(criteria, "ENOUGH", 1)
    monkeypatch.setattr(criteria, "SPEED_BATCH", 4)
    test, train = images(6), images(20, split="train")
    model = vlae.VLAE((1, 8, 8), latent_dim=3, decoder_layers=1, channels=4, encoder_widths=[4], flow_steps=0)
    judge = Classifier((1, 8, 8), classes=2).eval()
    judge.test_accuracy = 1.0
    settings = Settings(only=("knn", *criteria.needed(["knn"])), quality_images=5, nll_samples=(2,))
    found = measure(model, test, train, settings, judge)
    assert set(criteria.NEEDED) <= found.values.keys()
    steps = []
    checks = criteria.check_criteria(
        model, test, found, judge, NOBODY, settings, 0.0, lambda stage, done, total: steps.append((done, total))
    )
    assert [check.name for check in checks] == ["rate", "used", "samples", "sharpness", "nll", "speed", "codec"]
    assert steps == [(done, 7) for done in range(8)]
    assert all(isinstance(check, Criterion) and check.evidence and "\n" not in check.evidence for check in checks)
    assert checks[1].met is False and f"{found.values['shuffled_gap']:.2f}" in checks[1].evidence
    assert checks[6].met is not True  # six images: the file's head weighs more than half a per cent


@pytest.mark.parametrize("kind", ["PixelCNN", "DenoisingAutoencoder", "VAE"])
def test_models_of_which_some_can_not_be_asked(kind, monkeypatch):
    monkeypatch.setattr(criteria, "ENOUGH", 1)
    options = {"decoder_layers": 1, "channels": 4} if kind == "PixelCNN" else {"latent_dim": 2, "architecture": "mlp"}
    model, test = getattr(models, kind)((1, 8, 8), **options), images(4)
    settings = Settings(quality_images=4, nll_samples=(2,))
    found = measure(model, test, None, settings)
    checks = {c.name: c for c in criteria.check_criteria(model, test, found, None, NOBODY, settings, 0.0)}
    assert len(checks) == 7
    if kind != "VAE":
        assert checks["rate"].met is None
    assert (checks["used"].met is None) == (kind == "PixelCNN")
    assert (checks["speed"].met is None) == (kind != "PixelCNN")


def test_a_few_images_decide_nothing():
    met = Criterion("used", "z is used", True, "83 nats")
    assert criteria.enough(met, 500) == met
    few = criteria.enough(met, 8)
    assert few.met is None and "of 8, too few" in few.evidence and "83 nats" in few.evidence
    undecided = Criterion("used", "z is used", None, "no code")
    assert criteria.enough(undecided, 8) == undecided


@pytest.mark.parametrize("objective", [ELBO(beta=0.1), ELBO(beta=Linear(start=0.0, end=0.5)), InfoVAE(), GECO(50.0)])
def test_a_rate_that_is_cheaper_than_the_bound_makes_it_is_not_free_of_floors(objective):
    assert objective.floor(1.0) is None
    assert ELBO(beta=4.0).floor(1.0) == 0.0
