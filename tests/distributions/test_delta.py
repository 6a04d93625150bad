import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from vlae import VlaeError
from vlae.distributions import AR1, DeltaPrior, DiagonalGaussian, rate_per_dimension
from vlae.distributions.delta import minimum_rate
from vlae.distributions.posteriors import kl_ar1_per_dimension

CASES = [(dimensions, alpha) for dimensions in (1, 2, 3, 6) for alpha in (0.0, 0.3, 0.95)]


def ar1(dimensions, alpha):
    return DeltaPrior(dimensions, alpha).double()()


def exact(dimensions, alpha):
    """The same as a multivariate normal: unit variances, correlation alpha ** distance."""
    steps = torch.arange(dimensions).double()
    return MultivariateNormal(torch.zeros(dimensions).double(), alpha ** (steps[:, None] - steps).abs())


def gaussians(count, dimensions):
    mean, log_stddev = torch.randn(2, count, dimensions).double()
    return DiagonalGaussian(mean, log_stddev)


@pytest.mark.parametrize(("dimensions", "alpha"), CASES)
def test_log_prob_is_that_of_the_multivariate_normal(dimensions, alpha):
    z = torch.randn(4, 3, dimensions).double()
    torch.testing.assert_close(ar1(dimensions, alpha).log_prob(z), exact(dimensions, alpha).log_prob(z))


@pytest.mark.parametrize(("dimensions", "alpha"), CASES)
def test_analytic_kl_is_that_of_the_multivariate_normals(dimensions, alpha):
    q, p = gaussians(5, dimensions), ar1(dimensions, alpha)
    expected = kl_divergence(
        MultivariateNormal(q.mean, scale_tril=torch.diag_embed(q.stddev)), exact(dimensions, alpha)
    )
    torch.testing.assert_close(kl_divergence(q, p), expected)
    shares = rate_per_dimension(q, p, q.sample())
    assert shares.shape == (5, dimensions) and (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), expected)
    torch.testing.assert_close(shares, kl_ar1_per_dimension(q, p))


@pytest.mark.parametrize(("dimensions", "alpha"), CASES)
def test_minimum_rate_is_the_least_kl_over_all_means_and_scales(dimensions, alpha):
    p = ar1(dimensions, alpha)
    free = torch.randn(2, 1, dimensions).double().requires_grad_()
    optimiser = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = kl_divergence(DiagonalGaussian(*free), p).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert abs(closure().item() - p.minimum_rate) < 1e-8
    assert p.minimum_rate == DeltaPrior(dimensions, alpha).minimum_rate == minimum_rate(alpha, dimensions)
    assert (kl_divergence(gaussians(1000, dimensions), p) >= p.minimum_rate - 1e-12).all()
    assert (p.minimum_rate > 0) == (dimensions > 1 and alpha > 0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 2.0, 20.0])
@pytest.mark.parametrize("dimensions", [2, 3, 64])
def test_alpha_follows_from_the_committed_rate(dimensions, rate):
    if dimensions < 64 and rate > 5:
        pytest.skip("alpha would be 1 to nine digits")
    module = DeltaPrior(dimensions, rate=rate)
    assert math.isclose(module.minimum_rate, rate, rel_tol=1e-6, abs_tol=1e-9)
    assert 0 <= module.alpha < 1


def test_samples_have_the_covariance():
    z = ar1(4, 0.9).sample((60_000,), torch.Generator().manual_seed(0))
    assert (torch.cov(z.t()) - exact(4, 0.9).covariance_matrix).abs().max() < 0.02


def test_conditionals_are_those_of_a_first_order_process():
    p, z = ar1(3, 0.6), torch.tensor([[1.0, -2.0, 5.0]]).double()
    conditional = p.conditionals(z)
    torch.testing.assert_close(conditional.mean, torch.tensor([[0.0, 0.6, -1.2]]).double())
    torch.testing.assert_close(conditional.stddev, torch.tensor([[1.0, 0.8, 0.8]]).double())
    torch.testing.assert_close(p.noise_of(z), (z - conditional.mean) / conditional.stddev)


def test_repr_tells_the_committed_rate():
    assert repr(DeltaPrior(64)) == "DeltaPrior(alpha=0.95, minimum_rate=21.1 nats)"
    assert isinstance(DeltaPrior(2)(), AR1)


def test_alpha_and_rate_contradict_each_other():
    assert DeltaPrior(4).alpha == 0.95
    with pytest.raises(VlaeError, match="alpha or rate"):
        DeltaPrior(8, alpha=0.1, rate=2.0)
