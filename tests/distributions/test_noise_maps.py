"""`from_noise` is the inverse of `noise_of`, for every prior that is made of Gaussian noise."""

import pytest
import torch
from torch.distributions import Normal

from vlae import VlaeError
from vlae.distributions import make_prior
from vlae.distributions.codemaps import CodeMapPrior
from vlae.distributions.fitted import FullGaussian
from vlae.distributions.ladder import LadderPrior
from vlae.distributions.mixtures import NormalMixture
from vlae.nn.quantise import CodePixelCNN


@pytest.mark.parametrize("dimensions", [1, 5, 12])
def test_there_and_back_in_both_directions(any_prior, case, dimensions):
    module = any_prior(case, dimensions, spread=0.2)
    prior, noise = module(), torch.randn(3, 2, *module.shape, dtype=torch.float64)
    z = prior.from_noise(noise)
    assert z.shape == noise.shape and z.dtype == noise.dtype and not z.requires_grad and not z.is_inference()
    torch.testing.assert_close(prior.noise_of(z), noise, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(prior.from_noise(prior.noise_of(z)), z, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(prior.from_noise(noise[2, 1]), z[2, 1], atol=1e-9, rtol=1e-9)


def test_values_of_a_mixture_have_the_cumulative_probability_of_the_noise():
    logits, means, log_scales = torch.randn(3, 40, 4, dtype=torch.float64)
    mixture, noise = NormalMixture(logits, 3 * means, log_scales), torch.linspace(-6, 6, 40, dtype=torch.float64)
    torch.testing.assert_close(
        mixture.cdf(mixture.from_noise(noise)), Normal(0.0, 1.0).cdf(noise), atol=1e-12, rtol=1e-9
    )
    alone = NormalMixture(torch.zeros(40, 1), means[:, :1], log_scales[:, :1])
    assert torch.equal(alone.from_noise(noise), means[:, 0] + log_scales[:, 0].exp() * noise)


def test_mixture_in_float32_is_as_good_as_float32():
    logits, means, log_scales = torch.randn(3, 40, 4)
    mixture, noise = NormalMixture(logits, 3 * means, log_scales), torch.linspace(-4, 4, 40)
    torch.testing.assert_close(mixture.noise_of(mixture.from_noise(noise)), noise, atol=1e-4, rtol=1e-4)


def test_noise_of_a_full_gaussian_is_standardised_by_its_factor():
    factor = torch.randn(3, 3, dtype=torch.float64).tril(-1) + torch.diag(torch.tensor([1.0, 0.2, 3.0]).double())
    prior, noise = FullGaussian(torch.randn(3, dtype=torch.float64), factor), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.from_noise(noise), prior.loc + (factor @ noise.t()).t())
    torch.testing.assert_close(prior.noise_of(prior.from_noise(noise)), noise)


def test_ladder_goes_down_from_its_noise():
    def below(level, above):
        return Normal(
            above[..., :1] * torch.tensor([1.0, 2.0]).double(), above[..., :1].exp().expand(*above.shape[:-1], 2)
        )

    prior, noise = LadderPrior(below, (2, 3), torch.zeros((), dtype=torch.float64)), torch.randn(4, 5).double()
    lower, upper = prior.from_noise(noise)
    assert torch.equal(upper, noise[:, 2:])
    torch.testing.assert_close(lower[:, 1], 2 * upper[:, 0] + upper[:, 0].exp() * noise[:, 1])
    torch.testing.assert_close(prior.noise_of((lower, upper)), noise)


def test_a_sample_is_made_of_the_noise_that_was_drawn():
    prior = make_prior("flow", (4,), hidden=(8,)).double()()
    noise = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = prior.sample((3,), torch.Generator().manual_seed(1), temperature=0.5)
    assert torch.equal(drawn, prior.from_noise(0.5 * noise))


def test_codes_have_no_noise():
    prior = CodeMapPrior(CodePixelCNN(4, "two", 4, layers=1, kernel_size=3, image_height=2), 4, (2, 2), torch.zeros(()))
    with pytest.raises(VlaeError, match="discrete codes"):
        prior.from_noise(torch.zeros(1, 2, 2))
