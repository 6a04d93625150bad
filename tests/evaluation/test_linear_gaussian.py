"""A linear-Gaussian VAE, of which every number that an evaluation gives is known in closed form."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vlae.evaluation import evaluate, evaluate_nll, importance_nll
from vlae.evaluation.aggregate import information


def in_batches(x, size=250):
    return lambda: ((x[i : i + size], range(i, min(i + size, len(x)))) for i in range(0, len(x), size))


def marginal(model):
    """p(x) in closed form, over images in a row."""
    sigma = model.likelihood(torch.zeros(1, 1).double()).sigma
    return MultivariateNormal(model.bias, model.weight @ model.weight.T + sigma**2 * torch.eye(6, dtype=torch.float64))


@pytest.fixture
def exact(linear_gaussian):
    """The model with its exact posterior."""
    model = linear_gaussian()
    model.make_exact()
    return model


@pytest.fixture
def inexact(exact):
    """The model with a posterior that is off in mean, slope and scale."""
    with torch.no_grad():
        exact.encoder.weight.mul_(0.8)
        exact.encoder.bias.add_(torch.tensor([0.7, -0.4]))
        exact.encoder.log_stddev.add_(torch.tensor([0.2, 0.4]))  # wider, so that weights have no heavy tail
    return exact


@pytest.fixture
def draw():
    """Images x ~ p(x)."""

    def draw(model, count):
        with torch.no_grad():
            return marginal(model).sample((count,)).view(-1, 1, 2, 3)

    return draw


def aggregate(model):
    """q(z), the mean of q(z|x) over x ~ p(x), in closed form: A x + c + noise is Gaussian where x is."""
    p, slope = marginal(model), model.encoder.weight.detach()
    noise = torch.diag((2 * model.encoder.log_stddev.detach()).exp())
    mean = slope @ p.mean + model.encoder.bias
    return MultivariateNormal(mean.detach(), (slope @ p.covariance_matrix @ slope.T + noise).detach())


def mutual_information(model):
    """I_q(x; z): the entropy of q(z) less that of q(z|x)."""
    given = Independent(Normal(torch.zeros(2), model.encoder.log_stddev.detach().exp()), 1)
    return (aggregate(model).entropy() - given.entropy()).item()


def test_the_closed_forms_are_the_textbooks(exact):
    # With the exact posterior q(z) is the prior, and I = 1/2 log det(I + W W^T / sigma^2).
    assert torch.allclose(aggregate(exact).covariance_matrix, torch.eye(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(aggregate(exact).mean, torch.zeros(2, dtype=torch.float64), atol=1e-12)
    sigma, weight = 0.4, exact.weight.detach()
    textbook = 0.5 * torch.logdet(torch.eye(6, dtype=torch.float64) + weight @ weight.T / sigma**2)
    assert mutual_information(exact) == pytest.approx(textbook.item(), abs=1e-12)


def test_the_bound_is_the_evidence_less_the_gap(exact, inexact, draw):
    x = draw(inexact, 4000)
    evidence = inexact.evidence(x).mean().item()
    result = evaluate(inexact, in_batches(x))
    gap = inexact.gap(x).item()
    assert gap > 0.2
    assert -result.negative_elbo == pytest.approx(evidence - gap, abs=4 * result.negative_elbo_error)
    # The rate in closed form is exact, whatever was drawn.
    with torch.no_grad():
        q = inexact.encode(x)
    prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    rate = kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), prior).mean().item()
    assert result.rate == pytest.approx(rate, abs=1e-12)
    assert result.distortion == pytest.approx(result.negative_elbo - rate, abs=1e-12)


def test_with_the_exact_posterior_the_nll_is_the_evidence_at_every_k(exact, draw):
    x = draw(exact, 30)
    evidence = exact.evidence(x)
    counts = [1, 2, 17, 100]
    nll, ess = importance_nll(exact, in_batches(x, 7)(), counts)
    for values, sizes, count in zip(nll, ess, counts, strict=True):
        torch.testing.assert_close(-values, evidence, atol=1e-10, rtol=0)
        torch.testing.assert_close(sizes, torch.full_like(sizes, count), atol=0, rtol=1e-10)
    for row, count in zip(evaluate_nll(exact, in_batches(x, 7), counts), counts, strict=True):
        assert (row["samples"], row["bits_per_dim"]) == (count, None)
        assert row["nll"] == pytest.approx(-evidence.mean().item(), abs=1e-10)
        assert row["error"] == pytest.approx(evidence.std().item() / math.sqrt(30), abs=1e-10)
        assert row["ess"] == pytest.approx(count, rel=1e-10)


def test_the_nll_falls_from_the_bound_to_the_evidence(inexact, draw):
    x = draw(inexact, 400)
    evidence = -inexact.evidence(x).mean().item()
    one, ten, many = (row["nll"] for row in evaluate_nll(inexact, in_batches(x), [1, 10, 2000]))
    assert one == pytest.approx(evidence + inexact.gap(x).item(), abs=0.2)
    assert one > ten + 0.1 > evidence + 0.15
    assert many == pytest.approx(evidence, abs=0.01)


def test_with_the_exact_posterior_the_marginal_kl_is_zero(exact, draw):
    result = information(exact, in_batches(draw(exact, 2000)))
    expected = mutual_information(exact)
    assert 1 < expected < result.ceiling / 4
    assert result.mutual_information == pytest.approx(expected, abs=4 * result.mutual_information_error)
    assert result.marginal_kl == pytest.approx(0, abs=4 * result.marginal_kl_error)
    assert result.mutual_information_error < 0.03 and result.marginal_kl_error < 0.01


def test_of_a_posterior_that_is_off_both_are_known(inexact, draw):
    result = information(inexact, in_batches(draw(inexact, 2000)))
    prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    marginal_kl = kl_divergence(aggregate(inexact), prior).item()
    assert marginal_kl > 0.2
    assert result.mutual_information == pytest.approx(
        mutual_information(inexact), abs=4 * result.mutual_information_error
    )
    assert result.marginal_kl == pytest.approx(marginal_kl, abs=4 * result.marginal_kl_error)
    assert result.mutual_information_error < 0.03 and result.marginal_kl_error < 0.03
