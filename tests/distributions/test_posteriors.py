import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vlae.distributions import AutoregressiveFlowPrior, DiagonalGaussian, StandardNormal
from vlae.distributions.posteriors import kl_per_dimension, rate_per_dimension, soft_bounded_log


@pytest.fixture(params=[(3,), (2, 3, 4)])
def q(request):
    shape = (5, *request.param)
    return DiagonalGaussian(torch.randn(*shape).double(), 0.5 * torch.randn(*shape).double())


def oracle(q):
    return Independent(Normal(q.mean, q.stddev), q.mean.ndim - 1)


def test_log_prob_and_kl_are_pytorchs_summed_over_all_dimensions(q):
    z = torch.randn(7, *q.mean.shape).double()
    torch.testing.assert_close(q.log_prob(z), oracle(q).log_prob(z))
    torch.testing.assert_close(q.log_prob_per_dimension(z), Normal(q.mean, q.stddev).log_prob(z))
    prior = StandardNormal(q.event_shape, q.mean)
    kl = kl_divergence(q, prior)
    assert kl.shape == (5,)
    torch.testing.assert_close(kl, kl_divergence(Normal(q.mean, q.stddev), Normal(0.0, 1.0)).flatten(1).sum(1))
    torch.testing.assert_close(prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).flatten(2).sum(2))


def test_moments(q):
    torch.testing.assert_close(q.variance, q.stddev**2)
    z = q.rsample((20_000,), torch.Generator().manual_seed(0))
    assert ((z.mean(0) - q.mean).abs() < 5 * q.stddev / math.sqrt(20_000)).all()
    assert ((z.std(0) / q.stddev - 1).abs() < 0.03).all()


def test_kl_is_zero_for_the_prior_itself_and_positive_elsewhere(q):
    same = DiagonalGaussian(torch.zeros(2, 3).double(), torch.zeros(2, 3).double())
    assert (kl_per_dimension(same) == 0).all()
    assert (kl_per_dimension(q) > 0).all()


def test_rsample_carries_gradients_and_sample_does_not():
    mean, log_stddev = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    q = DiagonalGaussian(mean, log_stddev)
    z = q.rsample(generator=torch.Generator().manual_seed(0))
    z.sum().backward()
    assert (mean.grad == 1).all()
    torch.testing.assert_close(log_stddev.grad, z.detach())  # d z / d log sigma = sigma * noise
    assert not q.sample().requires_grad


@pytest.mark.parametrize("flow", [False, True])
def test_analytic_and_monte_carlo_rates_agree(flow):
    q = DiagonalGaussian(torch.tensor([[0.3, -1.0, 0.1]]).double(), torch.tensor([[-0.5, 0.2, -0.1]]).double())
    prior = AutoregressiveFlowPrior(3, 2, (8,)).double()() if flow else StandardNormal((3,), q.mean)
    n = 20_000
    many = DiagonalGaussian(q.mean.expand(n, 3), q.log_stddev.expand(n, 3))
    z = many.sample(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rates = rate_per_dimension(many, prior, z, analytic=False)
        torch.testing.assert_close(rates.sum(1), q.log_prob(z) - prior.log_prob(z))
        if flow:  # no closed form: asking for it changes nothing
            assert torch.equal(rate_per_dimension(many, prior, z), rates)
            assert rates.sum(1).mean() > 0
            return
    exact = rate_per_dimension(q, prior, z[:1])
    assert ((rates.mean(0) - exact).abs() < 4 * rates.std(0) / math.sqrt(n)).all()
    assert not torch.equal(rates[:1], exact)


def test_scales_are_bounded_softly_and_keep_a_gradient():
    s = torch.tensor([-1e3, -1.0, 0.0, 1.0, 1e3], dtype=torch.float64, requires_grad=True)
    bounded = soft_bounded_log(s)
    assert (bounded.abs() < math.log(1e3)).all()
    assert bounded[2] == 0
    (gradient,) = torch.autograd.grad(bounded.sum(), s)
    assert (gradient > 0).all() and gradient[2] == 1
