"""The importance-weighted objective against the explicit formula, and its estimators against each other."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

import vlae
from vlae import VlaeError
from vlae.objectives import ELBO, IWAE

SIGMA = 0.4


def explicit_log_weights(model, x, samples):
    """log w_k [K, B] by PyTorch's own distributions, at the noise that `IWAE.compute` draws after seed 1."""
    torch.manual_seed(1)
    model.elbo(x)  # the sample of the bound that is reported
    mean, deviation = model.encoder(x.flatten(1)), model.encoder.log_stddev.exp()
    z = mean + deviation * torch.randn(samples, len(x), 2, dtype=torch.float64)
    pixels = (z @ model.weight.T + model.bias).view(samples, *x.shape)
    return (
        Independent(Normal(pixels, SIGMA), 3).log_prob(x)
        + Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)
        - Independent(Normal(mean, deviation.expand_as(mean)), 1).log_prob(z)
    )


def seeded(model, x, **options):
    torch.manual_seed(1)
    return IWAE(**options).compute(model, x, 0.0)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_value_and_gradient_are_those_of_the_formula(samples, linear_gaussian, flat_images, gradients_of):
    model, x = linear_gaussian(), flat_images(5)
    loss, _ = seeded(model, x, samples=samples)
    log_w = explicit_log_weights(model, x, samples)
    value = -(log_w.exp().mean(0).log()).mean()
    torch.testing.assert_close(loss, value, atol=1e-10, rtol=1e-10)
    # The gradient of Burda et al., equation 14: the samples' gradients weighed by their normalised weights.
    shares = (log_w.exp() / log_w.exp().sum(0)).detach()
    expected = gradients_of(-(shares * log_w).sum(0).mean(), model)
    found = gradients_of(loss, model)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-9, rtol=1e-9)
    wrong = gradients_of(-((-log_w.detach()).softmax(0) * log_w).sum(0).mean(), model)
    assert samples == 1 or not torch.allclose(found["weight"], wrong["weight"], rtol=0.05)


def test_one_sample_is_the_monte_carlo_elbo(linear_gaussian, flat_images, gradients_of):
    model, x = linear_gaussian(), flat_images(5)
    loss, _ = seeded(model, x, samples=1)
    torch.manual_seed(1)
    model.elbo(x)
    elbo = -model.elbo(x, analytic=False).elbo.mean()
    torch.testing.assert_close(loss, elbo)
    for name, gradient in gradients_of(elbo, model).items():
        torch.testing.assert_close(gradients_of(loss, model)[name], gradient)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_bounds_rise_from_the_elbo_to_the_evidence(estimator, linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(4)
    many = x.repeat(2000, 1, 1, 1)
    with torch.no_grad():
        bounds = [model.elbo(many).elbo.mean().item()]
        bounds += [-seeded(model, many, samples=k, estimator=estimator)[0].item() for k in (1, 2, 8, 64)]
    evidence = model.evidence(x).mean().item()
    assert abs(bounds[0] - bounds[1]) < 0.2
    assert bounds[1] + 0.1 < bounds[2] and bounds[2] + 0.1 < bounds[3] and bounds[3] + 0.05 < bounds[4]
    assert bounds[4] < evidence + 0.02


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_with_the_exact_posterior_the_loss_is_minus_the_evidence(estimator, linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(4)
    model.make_exact()
    for samples in (1, 5):
        loss, _ = seeded(model, x, samples=samples, estimator=estimator)
        torch.testing.assert_close(loss, -model.evidence(x).mean(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_the_bound_that_is_reported_is_the_elbo(estimator, linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(4)
    loss, bound = seeded(model, x, samples=9, estimator=estimator)
    torch.manual_seed(1)
    own = model.elbo(x)
    assert torch.equal(bound.distortion, own.distortion) and torch.equal(bound.rate, own.rate)
    assert loss.item() != pytest.approx(-bound.elbo.mean().item())
    torch.manual_seed(1)
    assert torch.equal(ELBO().compute(model, x, 0.0)[1].elbo, bound.elbo)


def test_gradient_by_differences(linear_gaussian, flat_images, gradients_are_right):
    assert gradients_are_right(IWAE(samples=3), linear_gaussian(), flat_images(3))


def test_dreg_is_the_same_loss_and_the_same_gradient_for_the_generator(linear_gaussian, flat_images, gradients_of):
    model, x = linear_gaussian(), flat_images(5)
    (plain, _), (doubly, _) = (seeded(model, x, samples=6, estimator=name) for name in ("iwae", "dreg"))
    torch.testing.assert_close(plain, doubly, atol=1e-10, rtol=0)
    one, other = gradients_of(plain, model), gradients_of(doubly, model)
    for name in ("weight", "bias"):
        torch.testing.assert_close(one[name], other[name], atol=1e-10, rtol=0)
    assert not torch.allclose(one["encoder.weight"], other["encoder.weight"])


def test_dreg_is_the_formula_of_tucker(linear_gaussian, flat_images, gradients_of):
    """sum_k softmax_k^2 dlog w_k/dz_k dz_k/dphi, with log w a function of z alone."""
    model, x, samples = linear_gaussian(), flat_images(3), 4
    loss, _ = seeded(model, x, samples=samples, estimator="dreg")
    torch.manual_seed(1)
    model.elbo(x)
    q = model.encode(x)
    z = q.rsample((samples,))
    leaf = z.detach().requires_grad_()
    fixed = Normal(q.mean.detach(), q.stddev.detach())
    pixels = (leaf @ model.weight.detach().T + model.bias.detach()).view(samples, *x.shape)
    log_w = (
        Independent(Normal(pixels, SIGMA), 3).log_prob(x)
        + Normal(0.0, 1.0).log_prob(leaf).sum(-1)
        - fixed.log_prob(leaf).sum(-1)
    )
    (by_z,) = torch.autograd.grad(log_w.sum(), leaf)
    shares = log_w.detach().softmax(0)[..., None]
    expected = gradients_of(-(shares**2 * by_z * z).sum() / len(x), model)
    for name in ("encoder.weight", "encoder.bias", "encoder.log_stddev"):
        torch.testing.assert_close(gradients_of(loss, model)[name], expected[name], atol=1e-9, rtol=1e-9)


def test_dreg_is_unbiased_and_less_noisy(linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(1)
    draws = {}
    for estimator in ("iwae", "dreg"):
        rows = []
        for _ in range(600):
            loss, _ = IWAE(16, estimator).compute(model, x, 0.0)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.encoder.parameters()))]))
        draws[estimator] = torch.stack(rows)
    means = {name: rows.mean(0) for name, rows in draws.items()}
    errors = {name: rows.std(0) / math.sqrt(600) for name, rows in draws.items()}
    spread = (errors["iwae"] ** 2 + errors["dreg"] ** 2).sqrt()
    assert ((means["iwae"] - means["dreg"]).abs() < 4.5 * spread).all()
    assert (means["dreg"].abs() > 4.5 * errors["dreg"]).any()  # the equality is not one of zeros
    assert draws["dreg"].var(0).sum() < draws["iwae"].var(0).sum()


def test_with_the_exact_posterior_dregs_encoder_rests(linear_gaussian, flat_images, gradients_of):
    model, x = linear_gaussian(), flat_images(4)
    model.make_exact()
    doubly, plain = (gradients_of(seeded(model, x, samples=5, estimator=e)[0], model) for e in ("dreg", "iwae"))
    assert doubly["encoder.weight"].abs().max() < 1e-9 < plain["encoder.weight"].abs().max()


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_conditional_and_autoregressive_models(estimator, tiny_vae, tiny_vlae, binary):
    x = binary(4)
    loss, _ = IWAE(3, estimator).compute(tiny_vae(classes=3, context_features=4), x, 0.0, torch.tensor([0, 1, 2, 0]))
    other, _ = IWAE(3, estimator).compute(tiny_vlae(), x, 0.0)
    assert loss.isfinite() and other.isfinite()


def test_what_it_cannot_do_is_refused_in_one_line(tiny_vae, binary):
    for options in ({"samples": 0}, {"samples": 2.5}, {"estimator": "vimco"}):
        with pytest.raises(VlaeError):
            IWAE(**options)
    with pytest.raises(VlaeError, match="needs a diagonal Gaussian posterior, not IAFPosterior: use 'iwae'"):
        IWAE(2, "dreg").compute(tiny_vae(posterior="iaf"), binary(2), 0.0)
    model = vlae.VAE((1, 5, 4), latent_dim=2, architecture="mlp").double()
    model.has_bound = False
    with pytest.raises(VlaeError, match="no importance weights"):
        IWAE().compute(model, binary(2), 0.0)
