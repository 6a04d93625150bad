import pytest
import torch
from torch.distributions import MultivariateNormal

from vlae import VlaeError
from vlae.distributions.fitted import FLOOR, FittedGaussian, FullGaussian


def batches(count=5, size=40, dim=3):
    mix = torch.randn(dim, dim, dtype=torch.float64)
    return [torch.randn(size, dim, dtype=torch.float64) @ mix + i for i in range(count)]


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.99])
def test_mean_and_covariance_are_those_of_the_weighted_batches(decay):
    module, seen = FittedGaussian(3, decay).double(), batches()
    for z in seen:
        module.update(z)
    weights = torch.tensor([decay ** (len(seen) - 1 - i) for i in range(len(seen))], dtype=torch.float64)
    weights = (weights / weights.sum()).repeat_interleave(40) / 40
    z = torch.cat(seen)
    mean = weights @ z
    covariance = (z - mean).t() @ (weights[:, None] * (z - mean))
    torch.testing.assert_close(module.center, mean)
    torch.testing.assert_close(module.covariance, covariance)


def test_density_is_the_gaussians_and_its_shares_sum_to_it():
    module = FittedGaussian(3).double()
    for z in batches():
        module.update(z)
    prior, z = module(), torch.randn(2, 7, 3, dtype=torch.float64)
    floor = FLOOR * module.covariance.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    oracle = MultivariateNormal(module.center, module.covariance + floor)
    torch.testing.assert_close(prior.log_prob(z), oracle.log_prob(z))
    torch.testing.assert_close(prior.log_prob_per_dimension(z).sum(-1), oracle.log_prob(z))
    changed = z.clone()
    changed[..., 2] += 1
    assert torch.equal(prior.log_prob_per_dimension(z)[..., :2], prior.log_prob_per_dimension(changed)[..., :2])


def test_samples_have_the_mean_and_covariance_and_their_noise_is_white():
    factor = torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [-1, 0.3, 1]], dtype=torch.float64)
    prior = FullGaussian(torch.tensor([1.0, -2, 3], dtype=torch.float64), factor)
    z = prior.sample((40_000,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(z.mean(0), prior.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.t().cov(), factor @ factor.t(), atol=0.1, rtol=0)
    torch.testing.assert_close(prior.noise_of(z).t().cov(), torch.eye(3, dtype=torch.float64), atol=0.03, rtol=0)
    assert torch.equal(prior.sample((2,), temperature=0.0), prior.mean.expand(2, 3))
    torch.testing.assert_close(
        prior.sample((4,), torch.Generator().manual_seed(2), 0.5) - prior.mean,
        0.5 * (prior.sample((4,), torch.Generator().manual_seed(2)) - prior.mean),
    )


def test_before_any_codes_it_is_the_standard_normal():
    prior = FittedGaussian(2).double()()
    z = torch.randn(5, 2, dtype=torch.float64)
    expected = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("codes", [torch.zeros(4, 6), torch.ones(1, 6), torch.randn(2, 6), 1e3 + torch.randn(99, 6)])
def test_codes_that_fill_no_dimension_still_have_a_density(codes):
    module = FittedGaussian(6)
    module.update(codes)
    prior = module()
    assert prior.log_prob(codes).isfinite().all()
    assert prior.sample((3,)).isfinite().all()


def test_codes_that_are_not_finite_are_left_out():
    module = FittedGaussian(2)
    module.update(torch.randn(5, 2))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.update(torch.tensor([[0.0, torch.nan]]))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_impossible_settings_are_refused():
    for options in ({"latent_dim": 0}, {"latent_dim": 2, "decay": 1.0}):
        with pytest.raises(VlaeError):
            FittedGaussian(**options)
