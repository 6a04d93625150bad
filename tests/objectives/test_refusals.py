"""Objectives and models that make no sense together are refused in one line, before anything is written."""

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.objectives import (
    ELBO,
    GECO,
    IWAE,
    Adversarial,
    Capacity,
    Constant,
    Contrastive,
    Cyclical,
    InfoVAE,
    LaggingInference,
    LatentNoise,
    Linear,
    Perceptual,
    SoftFreeBits,
    WithTerms,
)
from vlae.training import configuration, run
from vlae.training.callbacks import collapse_warning
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings, Task

SHAPE = (1, 8, 8)


def dae():
    return vlae.DenoisingAutoencoder(SHAPE, latent_dim=3, architecture="mlp", widths=[8])


def vqvae():
    return vlae.VQVAE(SHAPE, codes=8, widths=[4, 4])


RATES = [Capacity(), GECO(80.0), SoftFreeBits(3.0), LaggingInference(), ELBO(free_nats=2.0), ELBO(beta=Linear(0, 1))]
RAISING = [Capacity(), SoftFreeBits(3.0), ELBO(free_nats=2.0), ELBO(free_nats=Linear(4.0, 0.0))]


@pytest.mark.parametrize("objective", [*RATES, WithTerms([LatentNoise()], Capacity())], ids=lambda o: type(o).__name__)
def test_a_model_without_a_rate_has_none_to_weigh(objective):
    with pytest.raises(VlaeError, match="DenoisingAutoencoder") as caught:
        objective.check(dae())
    assert len(str(caught.value).splitlines()) == 1
    objective.check(vlae.VAE(SHAPE, latent_dim=2))


@pytest.mark.parametrize("objective", RAISING, ids=lambda o: type(o).__name__)
def test_the_rate_of_discrete_codes_is_not_to_be_raised(objective):
    with pytest.raises(VlaeError, match="VQVAE"):
        objective.check(vqvae())


def test_a_plain_bound_trains_all():
    for model in (dae(), vqvae(), vlae.PixelCNN(SHAPE), vlae.LadderVAE(SHAPE)):
        ELBO().check(model)
    GECO(80.0).check(vqvae())  # lowers the rate alone


def test_a_refused_run_leaves_what_was_there(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text("old")
    data, trainer = DataSettings("digits", binarize="threshold"), TrainerSettings(max_epochs=1)
    with pytest.raises(VlaeError, match="Capacity"):
        run.train(dae(), Capacity(), OptimizerSettings(), data, trainer, directory, "new")
    assert (directory / "config.yaml").read_text() == "old"


@pytest.mark.parametrize("target", [{"target_nats": float("nan")}, {"target_per_dim": float("inf")}])
def test_a_target_is_a_number(target):
    with pytest.raises(VlaeError, match="finite"):
        GECO(**target)


def optimal():
    options = {"likelihood": "gaussian", "likelihood_options": {"sigma": "optimal"}}
    return vlae.VAE(SHAPE, latent_dim=2, architecture="mlp", widths=[8], **options)


def test_importance_weights_need_a_sigma_of_their_own():
    model, x = optimal(), torch.rand(4, *SHAPE)
    with pytest.raises(VlaeError, match="optimal"):
        IWAE(samples=2).compute(model.train(), x, 0.0)
    model.elbo(x)
    loss, _ = IWAE(samples=2).compute(model.eval(), x, 0.0)  # frozen, each image stands for itself
    assert loss.isfinite()


def test_noisy_codes_do_not_enter_the_optimal_sigma():
    x = torch.rand(16, *SHAPE)
    errors = []
    for objective in (ELBO(), WithTerms([LatentNoise(sigma=5.0)])):
        torch.manual_seed(0)
        model = optimal().train()
        objective.compute(model, x, 0.0)
        likelihood = model.likelihood
        errors.append((likelihood.error_sum.clone(), likelihood.error_weight.clone()))
    assert torch.equal(errors[0][0], errors[1][0]) and torch.equal(errors[0][1], errors[1][1])
    model.elbo(x)
    assert likelihood.error_weight > errors[1][1]  # it observes again


@pytest.mark.parametrize(
    ("objective", "advice", "absent"),
    [
        (ELBO(), "--objective.free_nats", "max_nats"),
        (WithTerms([LatentNoise()]), "--objective.objective.free_nats", "max_nats"),
        (Capacity(), "--objective.max_nats", "free_nats"),
        (GECO(80.0), "--objective.target_nats", "free_nats"),
        (WithTerms([LatentNoise()], SoftFreeBits(3.0)), "--objective.objective.target_nats", "free_nats"),
        (IWAE(), "--objective ELBO", "beta"),
        (InfoVAE(), "--objective ELBO", "beta"),
        (GECO(target_per_dim=1.0), "--objective.target_per_dim", "target_nats"),
        (WithTerms([LatentNoise()]), "(--objective.objective ELBO --objective.objective.free_nats", "max_nats"),
        (WithTerms([LatentNoise()], IWAE()), "(--objective.objective ELBO --objective.objective.free_nats", "beta"),
        (
            WithTerms([LatentNoise()], WithTerms([LatentNoise()])),
            "--objective.objective.objective.free_nats",
            "max_nats",
        ),
    ],
)
def test_advice_names_options_that_there_are(objective, advice, absent):
    task = Task(vlae.VAE(SHAPE, latent_dim=2, architecture="mlp"), objective, OptimizerSettings())
    text = collapse_warning(0.1, task)
    assert advice in text and absent not in text


@pytest.mark.parametrize(
    ("objective", "said", "unsaid"),
    [
        (ELBO(), ["free bits (--objective.free_nats 8)", "annealing beta"], ["smaller beta", "more free"]),
        (
            ELBO(free_nats=8),
            ["more free bits (--objective.free_nats 16, now 8)", "annealing"],
            ["--objective.free_nats 8"],
        ),
        (ELBO(free_nats=Linear(10, 0)), ["free bits that stay to the end (--objective.free_nats 8)"], ["more free"]),
        (ELBO(beta=Linear(0, 1, 0, 0.2)), ["free bits"], ["annealing"]),
        (ELBO(beta=4), ["a smaller beta (--objective.beta 1, now 4); free bits"], ["annealing"]),
    ],
)
def test_advice_is_not_what_is_set_already(objective, said, unsaid):
    text = collapse_warning(
        0.1, Task(vlae.VAE(SHAPE, latent_dim=2, architecture="mlp"), objective, OptimizerSettings())
    )
    assert all(words in text for words in said) and not any(words in text for words in unsaid), text


def test_advice_for_discrete_codes_is_about_the_codebook():
    text = collapse_warning(0.1, Task(vqvae(), ELBO(), OptimizerSettings()))
    assert "few codes" in text and "--model.codes" in text and "--model.revival" in text
    assert "decoder ignores" not in text and "free_nats" not in text and "beta" not in text


@pytest.mark.parametrize(
    "inner", [[], ["--objective.objective", "LaggingInference"], ["--objective.objective", "IWAE"]]
)
def test_advice_under_terms_is_taken_by_the_command_line(inner):
    noise = ["--objective", "WithTerms", "--objective.terms", "[{class_path: vlae.objectives.LatentNoise}]", *inner]
    parser = configuration.train_parser()
    objective = parser.instantiate(configuration.parse(parser, noise)).objective
    model = vlae.VAE(SHAPE, latent_dim=2, architecture="mlp")
    advice = collapse_warning(0.1, Task(model, objective, OptimizerSettings()))
    words = advice.split("free bits (")[1].split(")")[0].split()
    taken = configuration.parse(configuration.train_parser(), [*noise, *words]).objective.init_args.objective.init_args
    assert taken.free_nats == 8


def factorised(**options):
    return vlae.VAE(SHAPE, latent_dim=2, architecture="mlp", widths=[8], **options)


@pytest.mark.parametrize(
    ("objective", "model", "reason"),
    [
        (IWAE(), vqvae, "continuous z"),
        (IWAE(), dae, "no density of z"),
        (IWAE(), optimal, "optimal"),
        (InfoVAE(), vqvae, "continuous z"),
        (InfoVAE(), dae, "no prior density"),
        (LaggingInference(), lambda: vlae.PixelCNN(SHAPE, decoder_layers=0), "no inference network"),
        (WithTerms([LatentNoise()]), vqvae, "continuous z"),
        (WithTerms([Contrastive()]), vqvae, "continuous z"),
        (WithTerms([Contrastive()]), dae, r"q\(z\|x\)"),
        (WithTerms([Perceptual()]), lambda: vlae.VLAE(SHAPE, encoder_widths=[4], decoder_layers=0), "mean image"),
        (WithTerms([Adversarial()]), lambda: vlae.VLAE(SHAPE, encoder_widths=[4], decoder_layers=0), "mean image"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(objective, model, reason):
    with pytest.raises(VlaeError, match=reason):
        objective.check(model())
    objective.check(factorised())  # and this can


def test_nothing_is_trained_on_held_out_images(tmp_path):
    data, trainer = (
        DataSettings("digits", binarize="threshold", split="test"),
        TrainerSettings(max_epochs=1),
    )
    with pytest.raises(VlaeError, match=r"train or train\+validation"):
        run.train(factorised(), ELBO(), OptimizerSettings(), data, trainer, tmp_path / "run", "new")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("beta", [Linear(-1, 1), "x", None, -1.0, True, float("nan"), 10**400, 1j, Linear])
def test_a_weight_is_no_negative_number_at_any_time(beta):
    with pytest.raises(VlaeError, match="must be a number of 0 or more, or a schedule"):
        ELBO(beta=beta)


@pytest.mark.parametrize("options", [{"step": 2}, {"step": 0}, {"tolerance": -1}, {"minimum": 0}])
def test_soft_free_bits_move_by_shares(options):
    with pytest.raises(VlaeError, match="step between 0 and 1"):
        SoftFreeBits(1.0, **options)
    with pytest.raises(VlaeError, match="target_nats"):
        SoftFreeBits(float("nan"))


ARGUMENTS = {
    Constant: {"value": 1.0},
    Linear: {"start": 0.0, "end": 1.0, "begin": 0.0, "finish": 1.0},
    Cyclical: {"start": 0.0, "end": 1.0, "cycles": 4, "rising": 0.5},
    ELBO: {"beta": 1.0, "free_nats": 0.0, "per": "image"},
    SoftFreeBits: {"target_nats": 3.0, "interval": 20, "step": 0.1, "tolerance": 0.05, "minimum": 0.1},
    GECO: {"target_nats": 80.0, "speed": 0.01, "decay": 0.9, "limit": 10.0},
    IWAE: {"samples": 2, "estimator": "iwae"},
    LaggingInference: {"inner_steps": 2, "until": 0.5, "beta": 1.0, "free_nats": 0.0, "per": "image"},
    InfoVAE: {"alpha": 0.0, "lambda_": 10.0, "kernel": "rbf", "bandwidth": 1.0},
    Capacity: {"max_nats": 5.0, "gamma": 10.0, "finish": 0.5},
    Adversarial: {"weight": 1.0, "channels": 4, "stages": 2, "lr": 0.1, "betas": (0.5, 0.9)},
    Contrastive: {"weight": 1.0, "temperature": 0.1, "noise": 0.0},
    LatentNoise: {"weight": 1.0, "sigma": 0.1},
    Perceptual: {"weight": 1.0, "network": "classifier", "dataset": "digits"},
    WithTerms: {"terms": [LatentNoise()], "objective": ELBO()},
}
OPTIONAL = [(InfoVAE, "bandwidth"), (Perceptual, "dataset"), (WithTerms, "objective")]  # None has a meaning there


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, options in ARGUMENTS.items() for name in options], ids=str
)
def test_every_argument_is_held_to_its_type_when_it_is_given(kind, name):
    kind(**ARGUMENTS[kind])
    assert set(inspect.signature(kind).parameters) - {"target_per_dim"} == set(ARGUMENTS[kind])
    wrong = [3j, [1], {}, True, math.nan, math.inf, 10**400, *([] if name == "dataset" else ["a", "1"])]
    whole = isinstance(ARGUMENTS[kind][name], int)
    for value in [*wrong, *([] if (kind, name) in OPTIONAL else [None]), *([1.5] if whole else [])]:
        if whole and value == 10**400:
            continue
        with pytest.raises(VlaeError) as caught:
            kind(**{**ARGUMENTS[kind], name: value})
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(beta=Linear("a", 1)), "Linear needs a finite number for start; got 'a'"),
        (lambda: SoftFreeBits(3.0, interval=1.5), "interval of soft free bits must be a whole number of 1 or more"),
        (lambda: GECO(target_per_dim="a"), "GECO needs a finite number for target_per_dim; got 'a'"),
        (lambda: Adversarial(betas=(0.5, "a")), r"two betas in \[0, 1\); got .*'a'"),
        (lambda: Adversarial(betas=(0.5,)), r"two betas in \[0, 1\)"),
        (lambda: WithTerms(None), "got a NoneType"),
        (lambda: WithTerms([LatentNoise()], LatentNoise()), "objective of WithTerms .* got a LatentNoise"),
    ],
)
def test_a_wrong_type_is_named_with_its_argument(make, message):
    with pytest.raises(VlaeError, match=message):
        make()


def test_numbers_may_be_of_any_real_type():
    assert ELBO(beta=np.float32(0.5)).beta(0.0) == 0.5
    assert Linear(np.int64(0), Fraction(1, 2))(1.0) == 0.5


def test_only_terms_are_terms():
    with pytest.raises(VlaeError, match="got a GECO"):
        WithTerms([GECO(80.0)])
    with pytest.raises(VlaeError, match="got a ELBO"):
        WithTerms([LatentNoise(0.1), ELBO()])
    assert len(WithTerms(LatentNoise(0.1)).terms) == 1
