"""Each disease planted in a model or a run that is healthy otherwise: exactly its finding appears."""

import csv
import inspect
import json
import math
import re
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import vlae
from vlae import objectives
from vlae.data import ImageDataset
from vlae.distributions.densities import PixelGaussian
from vlae.distributions.likelihoods import Factorised, Likelihood
from vlae.distributions.posteriors import DiagonalGaussian
from vlae.distributions.priors import StandardNormalPrior
from vlae.errors import VlaeError
from vlae.evaluation import doctor, evaluate, model_checks, training_checks
from vlae.evaluation.aggregate import SATURATED
from vlae.evaluation.case import Case, LeftOut
from vlae.evaluation.evidence import Exchange, Outside, marginal_exchange
from vlae.evaluation.history import History
from vlae.models.base import LatentVariableModel
from vlae.training.settings import TrainerSettings
from vlae.training.task import OptimizerSettings

SIDE, SIGMA, DIM = 16, 0.02, 4


class Levels(Likelihood):
    """A normal density of fixed deviation around the decoder's output itself."""

    def check(self, x):
        pass

    def forward(self, parameters, temperature=1.0):
        return PixelGaussian(parameters.squeeze(-1), torch.tensor(SIGMA, dtype=parameters.dtype))


class Patches(LatentVariableModel):
    """x = base + W z + noise, W orthogonal patterns of squares, and q(z|x) the exact posterior: a healthy model.

    W is a transposed convolution of stride 2 from one place. With `beta`, q is what that beta makes of the posterior;
    `shift` moves the codes and lets the decoder move them back, so that only the prior does not know.
    """

    def __init__(self, widths=(8, 8), beta=1.0, shift=0.0, ignore=False):
        super().__init__()
        self.image_shape, self.latent_shape, self.likelihood = (1, SIDE, SIDE), (DIM,), Levels()
        self.encoder = nn.Identity()
        self.decoder = nn.ConvTranspose2d(DIM, 1, SIDE, stride=2).double()
        generator = torch.Generator().manual_seed(3)
        coarse = torch.linalg.qr(torch.randn(16, DIM, generator=generator, dtype=torch.float64)).Q.T
        self.patterns = F.interpolate(coarse.view(DIM, 1, 4, 4), scale_factor=4) * 0.08
        squares = torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float64)
        self.base = 0.3 + 0.4 * F.interpolate((squares > 0.5).double(), scale_factor=2)
        with torch.no_grad():
            self.decoder.weight.copy_(0 * self.patterns if ignore else self.patterns)
            self.decoder.bias.zero_()
        self.beta, self.shift = beta, shift
        self.prior_module = StandardNormalPrior(DIM).double()

    def encode(self, x):
        weight = self.decoder.weight.detach().flatten(1)
        precision = 1 + weight.square().sum(1) / (self.beta * SIGMA**2)
        mean = (x - self.base).flatten(1) @ weight.T / (self.beta * SIGMA**2) / precision
        return DiagonalGaussian(mean + self.shift, (-0.5 * precision.log()).expand_as(mean))

    def parameters_of(self, z):
        return self.decoder((z - self.shift)[:, :, None, None]) + self.base

    def decode(self, z, temperature=1.0):
        return Factorised(self.likelihood, self.parameters_of(z)[:, :, None], temperature)

    def prior(self):
        return self.prior_module()

    def networks(self):
        return [self.decoder]


class Blurred(Patches):
    def parameters_of(self, z):
        return F.avg_pool2d(F.pad(super().parameters_of(z), (2, 2, 2, 2), "replicate"), 5, 1)


class Checkered(Patches):
    def parameters_of(self, z):
        i = torch.arange(SIDE)
        return super().parameters_of(z) + 0.03 * (-1.0) ** (i[:, None] + i)


@pytest.fixture(scope="module")
def data():
    """400 images that `Patches` describes, in 256 levels."""
    generator = torch.Generator().manual_seed(17)
    model = Patches()
    z = torch.randn(400, DIM, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        x = model.parameters_of(z) + SIGMA * noise
    return ImageDataset((x.clamp(0, 1) * 255).round().to(torch.uint8), name="patches", split="test")


def in_batches(x, size=100):
    return lambda: ((x[i : i + size], range(i, min(i + size, len(x)))) for i in range(0, len(x), size))


def wrong(found):
    """The findings that are not healthy, by name, with their severity."""
    return {finding.name: finding.severity for finding in found.findings if finding.severity != "ok"}


def only(found, name):
    return next(finding for finding in found.findings if finding.name == name)


# -- planted in the model ---------------------------------------------------------------------------------------------


def test_a_healthy_model_has_no_finding(data):
    found = doctor.diagnose(Patches(), data)
    assert wrong(found) == {}
    assert {finding.name for finding in found.findings} == {
        "collapse",
        "over-regularisation",
        "holes",
        "blur",
        "checkerboard",
    }
    assert set(found.left_out) == {"instability", "overfitting", "unfinished training"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: Patches(ignore=True), "collapse"),
        (lambda: Patches(shift=3.0), "holes"),
        (lambda: Patches(beta=4.0), "over-regularisation"),
        (Blurred, "blur"),
        (Checkered, "checkerboard"),
    ],
)
def test_exactly_the_planted_disease_is_found(model, name, data):
    found = doctor.diagnose(model(), data)
    assert wrong(found) == {name: "problem"}
    assert found.findings[0].name == name and found.findings[0].advice


def test_a_code_that_is_paid_for_and_not_used_is_a_collapse(data):
    class Deaf(Patches):
        def parameters_of(self, z):
            return super().parameters_of(0 * z)

    finding = only(doctor.diagnose(Deaf(), data), "collapse")
    assert finding.severity == "problem" and "not used" in finding.evidence
    assert finding.values["shuffled_gap"] == 0 and finding.values["rate"] > 10


def test_idle_units_are_no_disease(data):
    model = Patches()
    with torch.no_grad():
        model.decoder.weight[1:] = 0
    finding = only(doctor.diagnose(model, data), "collapse")
    assert finding.severity == "ok" and "1 of 4 units" in finding.evidence and "normal" in finding.evidence


def test_a_level_of_a_ladder_that_carries_nothing_is_noticed(data):
    torch.manual_seed(0)
    model = vlae.LadderVAE((1, SIDE, SIDE), latent_dims=(4, 2), widths=[8], hidden=8, likelihood="gaussian")
    with torch.no_grad():
        measured = evaluate(model, in_batches(data.tensor()))
    assert len(measured.rate_per_level) == 2
    case = Case(model, data, measured)
    alive = replace(measured, rate=10.0, rate_bits=14.4, shuffled_gap=50.0, rate_per_level=[9.0, 1.0])
    for levels, severity in (([9.0, 1.0], "ok"), ([9.98, 0.02], "notice")):
        case.evaluation = replace(alive, rate_per_level=levels)
        finding = model_checks.collapse(case)
        assert finding.severity == severity
        assert ("z_2 (0.03 bits) carries nothing" in finding.evidence) == (severity == "notice")


def test_weights_that_are_not_numbers(data):
    model = Patches()
    with torch.no_grad():
        model.decoder.bias.fill_(math.nan)
    found = doctor.diagnose(model, data)
    assert wrong(found) == {"instability": "problem"} and "blur" in found.left_out


def test_the_batch_size_changes_nothing(data):
    few = data.subset(120)
    one, other = (doctor.diagnose(Patches(beta=2.0), few, batch_size=size) for size in (7, 120))
    for a, b in zip(one.findings, other.findings, strict=True):
        assert (a.name, a.severity) == (b.name, b.severity)
        assert a.values == pytest.approx(b.values, abs=1e-9)


def test_dead_codes():
    torch.manual_seed(0)
    model = vlae.VQVAE((1, 8, 8), codes=16, code_dim=4, widths=[8], prior_layers=1, likelihood="categorical",
                       likelihood_options={"levels": 17}).eval()  # fmt: skip
    digits = vlae.data.load("digits", split="test").subset(100)
    with torch.no_grad():
        model.initialise(digits.tensor())
    healthy = only(doctor.diagnose(model, digits), "codebook")
    assert healthy.values["codes_in_use"] == 16 and healthy.severity == "ok"
    model.codebook.vectors[4:] = 1e3  # no feature is near
    finding = only(doctor.diagnose(model, digits), "codebook")
    assert finding.severity == "problem" and "4 of 16" in finding.evidence and "--model.revival" in finding.advice
    assert "codebook" in doctor.diagnose(model, digits.subset(5)).left_out


@pytest.mark.parametrize(
    ("make", "absent"),
    [
        (
            lambda **o: vlae.PixelCNN(decoder_layers=1, channels=4, **o),
            ["collapse", "holes", "over-regularisation", "checkerboard"],
        ),
        (lambda **o: vlae.DenoisingAutoencoder(latent_dim=2, **o), ["holes", "over-regularisation"]),
        (lambda **o: vlae.LadderVAE(latent_dims=(3, 2), hidden=8, **o), ["over-regularisation", "checkerboard"]),
        (lambda **o: vlae.VAE(latent_dim=2, posterior="iaf", widths=[4], **o), ["over-regularisation"]),
        (lambda **o: vlae.ConditionalVAE(classes=10, latent_dim=2, latent_maps=2, widths=[4], **o), []),
        (
            lambda **o: vlae.VLAE(latent_dim=2, encoder_widths=[4], channels=4, decoder_layers=0, **o),
            ["over-regularisation"],
        ),
    ],
)
def test_every_model_is_examined_as_far_as_it_goes(make, absent):
    model = make(image_shape=(1, 8, 8)).eval()  # of random weights, so that an autoregressive decoder ignores z
    digits = vlae.data.load("digits", split="test", binarize="threshold").subset(100)
    found = doctor.diagnose(model, digits)
    training = {"instability", "overfitting", "unfinished training"}
    assert set(found.left_out) == {*absent, *training} and all(found.left_out.values())
    assert {finding.name for finding in found.findings} == set(doctor.CHECKS) - {"codebook"} - set(found.left_out)


def test_mean_images_of_binarised_data_are_set_beside_the_greys(tiny_vae):
    digits = vlae.data.load("digits", split="test", binarize="static").subset(30)
    case = doctor.gather(tiny_vae((1, 8, 8)), digits, None, 30, 0, lambda stage: None)
    assert torch.equal(case.expected, digits.binarized(None).tensor().double())
    drawn = doctor.gather(vlae.VLAE((1, 8, 8), encoder_widths=[4]).eval(), digits, None, 30, 0, lambda stage: None)
    assert torch.equal(drawn.expected, digits.tensor())  # what is drawn is binary


def test_data_of_another_kind_are_refused(data):
    with pytest.raises(VlaeError, match="levels"):
        doctor.diagnose(vlae.VAE((1, SIDE, SIDE)), data)
    with pytest.raises(VlaeError, match="images must be at least 2"):
        doctor.diagnose(Patches(), data, images=1)
    with pytest.raises(VlaeError, match="patches test has 1 image:"):
        doctor.diagnose(Patches(), data.subset(1))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_prior_whose_draws_are_no_numbers(share, data):
    class Overflowing(Patches):
        def prior(self):
            found, draw = super().prior(), super().prior().sample

            def sample(shape, generator=None):
                z = draw(shape, generator=generator)
                z[: round(share * len(z))] = math.nan
                return z

            found.sample = sample
            return found

    found = doctor.diagnose(Overflowing(), data)
    assert wrong(found) == {"holes": "problem"}  # the reconstructions are still looked at
    finding = only(found, "holes")
    assert f"{round(share * 200)} of 200 draws from the prior are not finite numbers" in finding.evidence
    assert "--optimizer.lr" in finding.advice and finding.values["broken"] == round(share * 200)


# -- planted in what was measured -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(data):
    """The case of a healthy model."""
    return doctor.gather(Patches(), data.subset(120), None, 120, 0, lambda stage: None)


def judged(case, name):
    """The finding of one check, or the reason why it was left out."""
    findings, left_out = doctor.examine(case)
    return left_out[name] if name in left_out else next(finding for finding in findings if finding.name == name)


@pytest.mark.parametrize(
    ("value", "error"), [(math.nan, math.nan), (math.inf, math.nan), (-math.inf, 0.1), (3.0, math.inf)]
)
def test_an_exchange_that_is_no_number_is_no_finding(value, error, healthy):
    case = replace(healthy, exchange=Exchange(value, error), history=History({}, objectives.ELBO(free_nats=3.0)))
    assert judged(case, "over-regularisation") == "the slope of the rate is not measurable"
    case.outside = Outside(0.9, 0.05, 20.0, 60, 0)
    finding = judged(case, "holes")
    assert finding.severity == "problem" and "a nat of rate" not in finding.advice
    case.exchange = Exchange(0.1, 0.01)
    assert "a nat of rate" in judged(case, "holes").advice


def test_the_slope_has_its_source(healthy):
    assert "-dD/dR" in judged(healthy, "over-regularisation").evidence
    assert all("Alemi et al. 2018" in text for text in (marginal_exchange.__doc__,
               judged(healthy, "over-regularisation").evidence))  # fmt: skip


def test_a_gap_that_is_no_number_does_not_say_that_the_code_is_used(healthy):
    def of(**changes):
        return judged(replace(healthy, evaluation=replace(healthy.evaluation, **changes)), "collapse")

    assert "not a number" in of(shuffled_gap=math.nan)
    assert "not a number" in of(shuffled_gap=math.nan, rate=None, rate_bits=None)
    dying = of(shuffled_gap=math.nan, rate=0.1, rate_bits=0.1 / math.log(2))
    assert dying.severity == "problem" and "nan" not in dying.evidence
    assert of(shuffled_gap=math.inf).severity == "ok"


def test_a_pattern_that_is_no_finding_is_said_to_be_faint_or_of_the_data(healthy):
    i = torch.arange(SIDE)
    board = (-1.0) ** (i[:, None] + i)
    noise = 0.5 + 0.01 * torch.randn(100, 1, SIDE, SIDE)
    faint = replace(healthy, images=noise, reconstructions=0.5 + 0.1 * (noise - 0.5) + 0.002 * board, samples=noise)
    finding = judged(faint, "checkerboard")
    assert finding.values["reconstructions_peak_2"] > 3 and finding.severity == "ok"
    assert "0.5 of 255 grey levels, under the 1.5 that can be seen" in finding.evidence
    learned = replace(healthy, images=noise + 0.03 * board, reconstructions=noise + 0.03 * board, samples=noise)
    finding = judged(learned, "checkerboard")
    assert finding.values["reconstructions_peak_2"] > 3 and finding.severity == "ok"
    data_peak = finding.values["data_peak_2"]
    assert f"the data have it too: {data_peak:.2f} times" in finding.evidence and "under" not in finding.evidence
    made = replace(healthy, images=noise, reconstructions=noise + 0.03 * board, samples=noise)
    assert judged(made, "checkerboard").severity == "problem"
    flat = judged(replace(healthy, images=noise, reconstructions=noise, samples=noise), "checkerboard")
    assert max(v for k, v in flat.values.items() if "peak" in k) < 3 and "no pattern" in flat.evidence


def test_blurred_means_are_said_to_be_expected_of_a_factorised_decoder(healthy):
    grey = healthy.expected.mean((2, 3), keepdim=True)
    for share in (0.6, 0.3):  # of the contrast: of the variance its square
        pictures = grey + share * (healthy.expected - grey)
        case = replace(healthy, reconstructions=pictures, samples=pictures)
        finding = judged(case, "blur")
        assert finding.severity == ("notice" if share == 0.6 else "problem")
        assert "a factorised VAE is expected to be blurred" in finding.evidence and "30% to 60%" in finding.evidence
        case.model = vlae.VLAE((1, SIDE, SIDE), encoder_widths=[4])
        assert "expected" not in judged(case, "blur").evidence


def test_a_marginal_kl_counts_where_few_images_are_at_the_ceiling(healthy):
    info = replace(healthy.information, mutual_information=3.0, marginal_kl=7.0, rate=10.0)
    assert healthy.outside.share < 0.3
    at = {share: judged(replace(healthy, information=replace(info, saturated=share)), "holes") for share in (0, 0.1, 1)}
    assert SATURATED == 0.1 and [finding.severity for finding in at.values()] == ["problem", "problem", "ok"]
    near = replace(info, mutual_information=info.ceiling - 0.5, saturated=0.05)  # how many images, not how near
    assert judged(replace(healthy, information=near), "holes").severity == "problem"


# -- planted in the run -----------------------------------------------------------------------------------------------


def bounds(train, validation, **more):
    """Rows of metrics.csv: distortions of training and validation, the rate 10 nats."""
    return [
        {
            "epoch": k + 1.0,
            "step": 100.0 * (k + 1),
            "train/distortion": t,
            "train/rate": 10.0,
            "validation/distortion": v,
            "validation/rate": 10.0,
            "train/bad_steps": 0.0,
        }
        | {name.replace("_", "/", 1): values[k] for name, values in more.items()}
        for k, (t, v) in enumerate(zip(train, validation, strict=True))
    ]


def settings(**changes):
    chosen = {
        "objective": {"class_path": "vlae.objectives.ELBO", "init_args": {"beta": 1.0, "free_nats": 0.0}},
        "trainer": {"max_epochs": 8, "early_stopping": 0, "ema_decay": 0.998, "gradient_clip": 100.0},
        "optimizer": {"lr": 0.002, "warmup_steps": 0, "weight_decay": 0.0},
        "data": {"split": "train", "binarize": None},
    }
    return {name: {**part, **changes.get(name, {})} for name, part in chosen.items()}


def write_run(directory, rows, **changes):
    (directory / "logs").mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(settings(**changes)))
    with (directory / "logs" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return directory


FALLING = [200.0, 150, 130, 120, 115, 112.3, 112.1, 112.0]
SMOOTH = [t + 3 for t in FALLING]


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        (bounds(FALLING, SMOOTH), {}, {}),
        (bounds(FALLING, [203, 153, 133, 124, 126, 128, 130, 132]), {}, {"overfitting": "problem"}),
        (bounds(FALLING, [203, 153, 133, 124, 123, 122.8, 123, 124]), {}, {"overfitting": "notice"}),
        (bounds(FALLING, [t + 20 for t in FALLING]), {}, {"overfitting": "notice"}),
        (bounds(FALLING, [210, 190, 175, 160, 145, 133, 124, 116]), {}, {"unfinished training": "notice"}),
        (bounds(FALLING[:5], SMOOTH[:5]), {}, {"unfinished training": "notice"}),
        (
            bounds(FALLING[:7], SMOOTH[:7]),
            {"trainer": {"early_stopping": 2, "max_epochs": 30, "ema_decay": 0.9}},
            {},
        ),
        (bounds(FALLING, SMOOTH, train_bad_steps=[3.0] * 8), {}, {"instability": "notice"}),
        (bounds(FALLING, SMOOTH, train_bad_steps=[90.0] * 8), {}, {"instability": "problem"}),
        (bounds([200, 150, 130, 190, 119, 112.3, 112.1, 112.0], SMOOTH), {}, {"instability": "notice"}),
        (bounds(FALLING, [203, 125, 150, 122, 150, 115, 145, 115.0]), {}, {"instability": "problem"}),
        (bounds(FALLING, [203, math.nan, 133, 123, 118, 115.3, 115.1, 115.0]), {}, {"instability": "problem"}),
        # What training itself loses is no overfitting.
        (
            bounds([200, 150, 130, 120, 115, 118, 121, 124], [203, 153, 133, 123, 118, 121, 124, 127]),
            {},
            {"instability": "notice"},
        ),
        # A schedule of beta or of the capacity moves the rate on purpose; free bits let it rise.
        (
            bounds(FALLING, SMOOTH, train_rate=[10, 40, 10, 40, 10, 9, 9, 9], validation_rate=[10.0, 40] * 2 + [9] * 4),
            {"objective": {"class_path": "vlae.objectives.Capacity", "init_args": {}}},
            {},
        ),
        (
            bounds(FALLING, SMOOTH, train_rate=[10, 40, 10, 40, 10, 9, 9, 9], validation_rate=[10.0, 40] * 2 + [9] * 4),
            {},
            {"instability": "notice"},
        ),
    ],
)
def test_exactly_what_the_log_shows_is_found(rows, changes, expected, tmp_path, data):
    found = doctor.diagnose(Patches(), data.subset(100), write_run(tmp_path / "run", rows, **changes))
    assert wrong(found) == expected


def test_the_best_epoch_is_named_where_epochs_are_missing(healthy):
    rows = bounds(FALLING, [203, 153, 133, 124, 126, 128, 130, 132])
    rows[1] = {"epoch": 2.0, "step": 200.0}
    finding = judged(replace(healthy, history=History(settings(), objectives.ELBO(), rows)), "overfitting")
    assert finding.values["best_epoch"] == 4 and "since epoch 4" in finding.evidence
    for row in rows[::2]:  # validated at every other epoch only
        del row["validation/rate"], row["validation/distortion"]
    finding = judged(replace(healthy, history=History(settings(), objectives.ELBO(), rows)), "overfitting")
    assert finding.values["best_epoch"] == 4 and finding.values["gap"] == pytest.approx(20)


@pytest.mark.parametrize("broken", [1, 7])
def test_a_drift_is_that_of_the_epochs_that_are_numbers(broken, healthy):
    rows = bounds([115, 114, 112, 114, 116, 118, 120, 122], SMOOTH)
    rows[broken]["train/distortion"] = math.nan
    finding = judged(replace(healthy, history=History(settings(), objectives.ELBO(), rows)), "instability")
    assert finding.values["drift"] == pytest.approx(10 if broken == 1 else 8) and finding.severity == "problem"
    assert "drifted upwards" in finding.evidence


def test_over_regularisation_names_the_beta_of_the_run(tmp_path, data):
    objective = {"class_path": "vlae.objectives.ELBO", "init_args": {"beta": 4.0}}
    run = write_run(tmp_path / "run", bounds(FALLING, SMOOTH), objective=objective)
    finding = only(doctor.diagnose(Patches(beta=4.0), data.subset(100), run), "over-regularisation")
    assert "beta = 4" in finding.evidence and "--objective.beta 1, now 4" in finding.advice
    # Where the code has died, there is no noise left to measure by, but beta is to blame as well.
    found = doctor.diagnose(Patches(ignore=True), data.subset(100), run)
    assert wrong(found) == {"collapse": "problem", "over-regularisation": "problem"}


def test_the_warnings_of_the_log_are_counted(tmp_path, data):
    run = write_run(tmp_path / "run", bounds(FALLING, SMOOTH))
    line = "2026-01-01 10:00:00,000 {} the latent code is dying: its rate is 0.2 bits per image\n"
    (run / "logs" / "train.log").write_text(line.format("WARNING") * 3 + line.format("INFO"))
    found = doctor.diagnose(Patches(ignore=True), data.subset(100), run)
    assert len(found.warnings) == 3 and "training warned of it 3 times" in only(found, "collapse").evidence


def test_a_run_that_trains_on_validation_has_no_overfitting_to_show(tmp_path, data):
    rows = bounds(FALLING, [203, 153, 133, 124, 126, 128, 130, 132])
    run = write_run(tmp_path / "run", rows, data={"split": "train+validation"})
    assert "overfitting" in doctor.diagnose(Patches(), data.subset(100), run).left_out


# -- advice and output ------------------------------------------------------------------------------------------------


def known_options():
    """The last names of all options of `vlae train`."""
    names = {"model", "objective", "seed", "resume", "images"}
    classes = [c for c in vars(vlae).values() if isinstance(c, type) and issubclass(c, LatentVariableModel)]
    for each in classes:
        names |= {f"model.{name}" for name in each.argument_names()}
    for each in vars(objectives).values():
        if isinstance(each, type):
            names |= {f"objective.{name}" for name in inspect.signature(each).parameters}
    for prefix, each in (("trainer", TrainerSettings), ("optimizer", OptimizerSettings)):
        names |= {f"{prefix}.{name}" for name in inspect.signature(each).parameters}
    return names | {"data.binarize", "data.limit"}


def test_advice_names_options_that_there_are(tmp_path, data):
    rows = bounds(FALLING, [203, math.nan, 133, 124, 126, 128, 130, 132], train_bad_steps=[90.0] * 8)
    said = []
    models = [
        vlae.VAE((1, 8, 8), latent_dim=2, posterior_options={"stddev_floor": 0.1}),
        vlae.VLAE((1, 8, 8), latent_dim=2, kernel_size=5, prior="mixture"),
        vlae.VLAE((1, 8, 8), latent_maps=2),
        vlae.LadderVAE((1, 8, 8)),
        vlae.DenoisingAutoencoder((1, 8, 8)),
    ]
    kinds = [objectives.ELBO(4.0), objectives.ELBO(0.5), objectives.ELBO(free_nats=3.0), objectives.Capacity()]
    kinds += [objectives.GECO(target_nats=3.0), objectives.IWAE(), objectives.WithTerms([objectives.LatentNoise()])]
    digits = vlae.data.load("digits", split="test", binarize="threshold").subset(5)
    for model in models:
        case = doctor.gather(model.eval(), digits, None, 5, 0, lambda stage: None)
        for objective in kinds:
            case.history = History(settings(data={"binarize": "static", "limit": 5}), objective, rows)
            for low in (0.1, 5.0):
                case.exchange = Exchange(low, 0.01)
                beta = case.objective.beta(1.0) if hasattr(case.objective, "beta") else None
                said += [
                    model_checks._less_pressure(case, beta),
                    model_checks._better_prior(case),
                    model_checks._sharper(case),
                ]
            said += [training_checks._generalise(case, case.history), training_checks.steadier(case.history)]
            said += [finding.advice for finding in doctor.examine(case)[0]]
    used = {
        re.sub(r"^objective\.(objective\.)+", "objective.", name)
        for name in re.findall(r"--([a-z_.]+)", " ".join(said))
    }
    assert len(used) > 20 and used - {"model.", "objective."} <= known_options() | {"objective"}


def test_what_is_printed_and_written(tmp_path, data, capsys):
    assert doctor.run(Patches(), data.subset(100), tmp_path / "reports", strict=True) == 0
    assert "5 checks: 0 problems, 0 notices" in capsys.readouterr().out
    model = Patches(beta=4.0)
    assert doctor.run(model, data.subset(100), tmp_path / "reports") == 0
    assert doctor.run(model, data.subset(100), tmp_path / "reports", strict=True) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.index("problem over-regularisation") < out.index("ok collapse") < out.index("left out overfitting")
    values = json.loads((tmp_path / "reports" / "doctor.json").read_text())
    assert values["findings"][0]["name"] == "over-regularisation" and values["run"] is None
    assert values["findings"][0]["values"]["exchange"] == pytest.approx(4, abs=0.6)


def test_numbers_that_are_none_are_null_in_the_file(tmp_path, data):
    model = Patches()
    with torch.no_grad():
        model.decoder.bias.fill_(math.nan)
    rows = bounds(FALLING, [203, math.nan, *SMOOTH[2:]])
    assert doctor.run(model, data.subset(100), tmp_path, write_run(tmp_path / "run", rows)) == 0
    assert json.loads((tmp_path / "doctor.json").read_text())["findings"][0]["severity"] == "problem"


def test_a_check_is_left_out_with_its_reason(data):
    case = Case(Patches(), data, doctor.evaluate(Patches(), in_batches(data.tensor().double())))
    with pytest.raises(LeftOut, match="no run"):
        training_checks.overfitting(case)
