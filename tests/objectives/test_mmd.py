"""The estimator of MMD against its definition and the closed form of Gaussians, and InfoVAE against its formula."""

import math

import pytest
import torch

from vlae import VlaeError
from vlae.models import LadderVAE
from vlae.objectives import ELBO, InfoVAE, mmd
from vlae.objectives.codes import in_rows


def kernel(kind, u, v, width):
    squares = ((u - v) ** 2).sum().item()
    return math.exp(-squares / (2 * width**2)) if kind == "rbf" else 1 / (1 + squares / (2 * width**2))


@pytest.mark.parametrize("kind", ["rbf", "imq"])
@pytest.mark.parametrize("bandwidth", [None, 0.7])
def test_it_is_the_definition(kind, bandwidth):
    a, b = torch.randn(4, 3).double(), 1 + torch.randn(6, 3).double()
    width = math.sqrt(3) if bandwidth is None else bandwidth
    within = [
        sum(kernel(kind, s[i], s[j], width) for i in range(len(s)) for j in range(len(s)) if i != j)
        / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    between = sum(kernel(kind, u, v, width) for u in a for v in b) / 24
    assert mmd(a, b, kind, bandwidth).item() == pytest.approx(sum(within) - 2 * between, abs=1e-12)


@pytest.mark.parametrize("kind", ["rbf", "imq"])
def test_it_is_zero_on_average_for_equal_distributions(kind):
    draws = torch.stack([mmd(torch.randn(5, 2).double(), torch.randn(4, 2).double(), kind) for _ in range(4000)])
    assert draws.mean().abs() < 4 * draws.std() / math.sqrt(4000)
    assert (draws < 0).any()


def test_gaussians_have_a_closed_form():
    """E k = (s^2 / (s^2 + v))^(D/2) exp(-|m|^2 / (2 (s^2 + v))), for a difference N(m, v I) and bandwidth s."""
    mean, deviation, width, dims = torch.tensor([0.5, -1.0, 0.3]).double(), 0.6, 1.3, 3

    def expected(squares, variance):
        total = width**2 + variance
        return (width**2 / total) ** (dims / 2) * math.exp(-squares / (2 * total))

    exact = expected(0, 2 * deviation**2) + expected(0, 2) - 2 * expected((mean**2).sum().item(), 1 + deviation**2)
    draws = []
    for _ in range(300):
        a = mean + deviation * torch.randn(60, dims).double()
        draws.append(mmd(a, torch.randn(50, dims).double(), "rbf", width))
    found = torch.stack(draws)
    assert abs(found.mean().item() - exact) < 4 * found.std().item() / math.sqrt(300)
    assert exact > 20 * found.std().item() / math.sqrt(300)


@pytest.mark.parametrize("kind", ["rbf", "imq"])
def test_its_gradient(kind):
    a, b = (torch.randn(n, 3).double().requires_grad_() for n in (4, 5))
    assert torch.autograd.gradcheck(lambda a, b: mmd(a, b, kind), (a, b))


def test_an_unknown_kernel_is_refused():
    with pytest.raises(VlaeError, match="the kernel must be one of rbf, imq; got 'cosine'"):
        mmd(torch.zeros(3, 2), torch.zeros(3, 2), "cosine")


def test_single_samples_are_refused():
    with pytest.raises(VlaeError, match="larger batches"):
        mmd(torch.zeros(1, 2), torch.zeros(5, 2))


def computed(objective, model, x):
    torch.manual_seed(3)
    return objective.compute(model, x, 0.0)


@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 10.0), (1.0, 7.0), (0.3, 0.7), (-1.0, 5.0)])
def test_infovae_is_its_formula(alpha, lambda_, linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(6)
    loss, bound = computed(InfoVAE(alpha, lambda_, "imq", 0.8), model, x)
    torch.manual_seed(3)
    own = model.elbo(x)
    prior = torch.randn(6, 2, dtype=torch.float64)
    expected = own.distortion.mean() + (1 - alpha) * own.rate.mean()
    expected = expected + (alpha + lambda_ - 1) * mmd(own.z, prior, "imq", 0.8)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(bound.elbo, own.elbo)


def test_alpha_0_and_lambda_1_is_the_elbo(linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(6)
    torch.testing.assert_close(computed(InfoVAE(0.0, 1.0), model, x)[0], computed(ELBO(), model, x)[0])


def test_gradient_by_differences(linear_gaussian, flat_images, gradients_are_right):
    assert gradients_are_right(InfoVAE(0.5, 20.0), linear_gaussian(), flat_images(4))


def test_the_divergence_leaves_a_learned_prior_alone(tiny_vae, binary, gradients_of):
    model, x = tiny_vae(flow_steps=1), binary(6)
    gradients = gradients_of(computed(InfoVAE(1.0, 10.0), model, x)[0], model)
    assert all(not g.any() for name, g in gradients.items() if name.startswith("prior_module"))
    assert any(g.any() for name, g in gradients.items() if name.startswith("encoder"))


def test_training_brings_codes_to_the_prior(linear_gaussian, flat_images):
    """Without any rate (alpha = 1) codes that start far from N(0, I) are brought there."""
    model, x = linear_gaussian(), flat_images(128)
    with torch.no_grad():
        model.encoder.bias.add_(2.0)
    before = model.encode(x).mean.mean(0).abs().min().item()
    optimizer, objective = torch.optim.Adam(model.parameters(), lr=0.02), InfoVAE(1.0, 500.0)
    for _ in range(300):
        optimizer.zero_grad()
        objective.compute(model, x, 0.0)[0].backward()
        optimizer.step()
    z = model.encode(x.repeat(20, 1, 1, 1)).rsample()
    assert before > 1 and z.mean(0).abs().max() < 0.35
    assert ((z.std(0) > 0.7) & (z.std(0) < 1.3)).all()


def test_maps_ladders_and_conditional_models(tiny_vae, binary):
    x = binary(4)
    maps = tiny_vae(architecture="conv", widths=[4], latent_maps=2)
    ladder = LadderVAE((1, 5, 4), latent_dims=(3, 2), widths=[6], hidden=8).double()
    for model, context in [(maps, None), (ladder, None), (tiny_vae(classes=3), torch.tensor([0, 2, 1, 0]))]:
        loss, _ = InfoVAE().compute(model, x, 0.0, context)
        assert loss.isfinite()
    assert in_rows(ladder.elbo(x).z).shape == (4, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.5},
        {"lambda_": 0.5},
        {"kernel": "cosine"},
        {"bandwidth": 0.0},
        {"alpha": float("nan")},
        {"lambda_": float("inf")},
        {"alpha": -float("inf"), "lambda_": float("inf")},
        {"bandwidth": float("inf")},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(VlaeError):
        InfoVAE(**options)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan"), "1"])
def test_a_bad_bandwidth_is_refused(bandwidth):
    with pytest.raises(VlaeError, match="bandwidth must be positive"):
        mmd(torch.randn(4, 2), torch.randn(4, 2), bandwidth=bandwidth)


def test_models_without_a_prior_density_are_refused(linear_gaussian, flat_images):
    model = linear_gaussian()
    model.has_bound = False
    with pytest.raises(VlaeError, match="train it by ELBO"):
        InfoVAE().compute(model, flat_images(3), 0.0)
