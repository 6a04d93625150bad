import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vlae import VlaeError
from vlae.distributions import (
    AutoregressiveFlowPrior,
    DiagonalGaussian,
    StandardNormal,
    StandardNormalPrior,
    make_posterior,
)
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


@pytest.mark.parametrize("posterior", ["gaussian", "iaf"])
def test_the_rate_of_every_pair_is_a_kl(any_prior, case, posterior):
    """On average 0 or more, its shares sum to it, and where it has a closed form, Monte Carlo agrees."""
    if posterior == "iaf" and "map" in case:
        pytest.skip("an IAF is over vectors")
    count, module = 4000, any_prior(case, 5, spread=0.2)
    options = {} if posterior == "gaussian" else {"steps": 1, "hidden": (8,), "context": 2}
    head = make_posterior(posterior, module.shape, **options).double()
    tail = module.shape[1:]
    features = torch.randn(1, head.features_needed, *tail).double()
    q, prior = head(features.expand(count, *features.shape[1:])), module()
    with torch.no_grad():
        z = q.rsample(generator=torch.Generator().manual_seed(0))
        rates = rate_per_dimension(q, prior, z, analytic=False)
        total = rates.flatten(1).sum(1)
        assert rates.shape == (count, *module.shape)
        torch.testing.assert_close(total, q.log_prob(z) - prior.log_prob(z))
        standard_error = total.std() / math.sqrt(count)
        assert total.mean() > 4 * standard_error
        default = rate_per_dimension(q, prior, z)
        if posterior == "gaussian" and case.split()[0] in ("normal", "delta"):
            exact = default[:1]
            assert ((rates.mean(0) - exact).abs() < 4.5 * rates.std(0) / math.sqrt(count)).all()
            assert abs(total.mean() - exact.sum()) < 4 * standard_error
            torch.testing.assert_close(kl_divergence(q, prior)[:1], exact.flatten(1).sum(1))
        else:
            assert torch.equal(default, rates)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_a_gaussian_head_takes_means_and_bounded_scales_from_the_features(shape):
    head = make_posterior("gaussian", shape, 17)
    assert head.features_needed == 2 * shape[0]
    features = 5 * torch.randn(6, head.features_needed, *shape[1:])
    q = head(features)
    assert q.event_shape == shape and q.batch_shape == (6,)
    assert torch.equal(q.mean, features[:, : shape[0]])
    torch.testing.assert_close(q.log_stddev, soft_bounded_log(features[:, shape[0] :]))


def test_a_floor_of_the_standard_deviation():
    features = torch.tensor([[0.0, -1e3], [0.0, 0.0], [0.0, 3.0]], requires_grad=True)
    free, floored = (make_posterior("gaussian", (1,), stddev_floor=floor)(features) for floor in (None, 0.1))
    torch.testing.assert_close(floored.variance, free.variance + 0.01)
    assert (floored.stddev >= 0.1).all() and free.stddev.min() < 0.01
    floored.stddev.sum().backward()
    assert features.grad[:, 1].isfinite().all() and (features.grad[1:, 1] > 0).all()


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
@pytest.mark.parametrize("spread", [10.0, 1.0, 1e-3])
def test_normalised_means_keep_the_rate_above_its_floor(shape, spread):
    """BN-VAE: whatever the encoder puts out, and however small it makes the means' variance."""
    gamma, dimensions = 0.6, math.prod(shape)
    head = make_posterior("gaussian", shape, mean_norm=gamma).double()
    features = torch.randn(20, head.features_needed, *shape[1:]).double()
    features[:, : shape[0]] = 7 + spread * features[:, : shape[0]]
    features[:, shape[0] :] = 0  # scale 1: what costs the least
    q = head(features)
    squares = (q.mean**2).mean(0)
    assert ((squares - gamma**2).abs() < 1e-4).all()
    rate = rate_per_dimension(q, StandardNormalPrior(shape).double()(), q.mean).flatten(1).sum(1).mean()
    assert abs(rate - dimensions * gamma**2 / 2) < 1e-3
    with torch.no_grad():
        head.mean_norm.shift.add_(torch.randn(dimensions))
    assert ((head(features).mean ** 2).mean(0) > gamma**2 - 1e-4).all()


def test_normalised_means_in_eval_mode_do_not_depend_on_the_batch():
    head = make_posterior("gaussian", (3,), mean_norm=0.5).double()
    data = 3 + 2 * torch.randn(4000, 6).double()
    for batch in data.split(50):
        head(batch)
    assert not torch.allclose(head(data[:10]).mean, head(data[:20]).mean[:10])
    head.eval()
    together = head(data).mean
    torch.testing.assert_close(head(data[:1]).mean, together[:1])
    assert ((together**2).mean(0).sqrt() / 0.5 - 1).abs().max() < 0.1  # the running statistics are the data's
    assert {name for name, _ in head.named_parameters()} == {"mean_norm.shift"}


def test_normalised_means_need_a_batch_in_training():
    head = make_posterior("gaussian", (3,), mean_norm=0.5)
    with pytest.raises(VlaeError, match="batches of 2 images or more"):
        head(torch.zeros(1, 6))
    assert head.eval()(torch.zeros(1, 6)).mean.shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("normal", {}, "unknown posterior 'normal': choose one of gaussian, iaf"),
        ("gaussian", {"norm": 1}, "'gaussian' has no option 'norm': its options are mean_norm, stddev_floor"),
        ("gaussian", {"mean_norm": 0.0}, "mean_norm must be positive, or None; got 0.0"),
        ("gaussian", {"stddev_floor": -1.0}, "stddev_floor must be positive, or None; got -1.0"),
    ],
)
def test_impossible_posteriors_are_refused(name, options, message):
    with pytest.raises(VlaeError, match=message):
        make_posterior(name, (3,), 8, **options)
