"""Hierarchies against quadrature, changes of variables by autograd, and the joint normal of linear ones."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vlae import VlaeError
from vlae.distributions.ladder import LadderPosterior, LadderPrior, precision_weighted, rates_of_levels

DIMS = (3, 2, 1)
TOTAL = sum(DIMS)
BATCH = 4


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture
def prior():
    """Three levels, means and scales not linear in the level above."""
    weights = [(double(above, size), double(above, size)) for size, above in pairwise(DIMS)]

    def below(level, above):
        mean, scale = weights[level]
        return Normal((above @ mean).tanh() * 2, (0.7 * (above @ scale).sin()).exp())

    return LadderPrior(below, DIMS, torch.zeros((), dtype=torch.float64))


@pytest.fixture
def posterior(prior):
    """A factory of posteriors of BATCH images under that prior."""
    messages = [Normal(double(BATCH, size), (0.5 * double(BATCH, size)).exp()) for size in DIMS]
    return lambda merged=True, images=slice(None): LadderPosterior(
        prior, [Normal(m.loc[images], m.scale[images]) for m in messages], merged
    )


def split(row):
    return row.split(DIMS, -1)


@pytest.mark.parametrize(("a", "b"), [((0.3, 0.5), (-1.0, 2.0)), ((2.0, 0.1), (0.0, 1.0)), ((0.0, 30.0), (1.0, 0.4))])
def test_precision_weighting_is_the_normalised_product(a, b):
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    first, second = (Normal(*map(torch.tensor, map(float, pair))) for pair in (a, b))
    product = (first.log_prob(grid) + second.log_prob(grid)).exp()
    product = product / torch.trapezoid(product, grid)
    merged = precision_weighted(first, second)
    mean = torch.trapezoid(grid * product, grid).item()
    assert merged.mean.item() == pytest.approx(mean, abs=1e-6)
    assert merged.variance.item() == pytest.approx(torch.trapezoid((grid - mean) ** 2 * product, grid).item(), rel=1e-5)
    other = precision_weighted(second, first)
    torch.testing.assert_close(merged.mean, other.mean)
    torch.testing.assert_close(merged.scale, other.scale)


@pytest.mark.parametrize("scales", [(1e-3, 1e3), (1e3, 1e-3)])
def test_precision_weighting_is_sound_at_the_bounds_of_the_scales(scales):
    merged = precision_weighted(*(Normal(torch.tensor(float(i)), torch.tensor(s)) for i, s in enumerate(scales)))
    assert merged.scale.item() == pytest.approx(1e-3, rel=1e-5)
    assert merged.mean.item() == pytest.approx(scales.index(1e-3), abs=1e-5)


def test_prior_is_a_change_of_variables_of_its_noise(prior):
    z = double(TOTAL)
    noise = prior.noise_of(split(z))
    jacobian = torch.autograd.functional.jacobian(lambda row: prior.noise_of(split(row)), z)
    expected = Normal(0.0, 1.0).log_prob(noise).sum() + jacobian.slogdet().logabsdet
    torch.testing.assert_close(prior.log_prob(split(z)), expected)


def test_prior_samples_are_its_noise_from_the_top_down(prior):
    z = prior.sample((5,), torch.Generator().manual_seed(1))
    noise = torch.randn(5, TOTAL, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert [tuple(level.shape) for level in z] == [(5, 3), (5, 2), (5, 1)]
    torch.testing.assert_close(prior.noise_of(z), noise)
    cool = prior.sample((5,), torch.Generator().manual_seed(1), temperature=0.3)
    torch.testing.assert_close(prior.noise_of(cool), 0.3 * noise)
    torch.testing.assert_close(z[2], noise[:, 5:])  # the top level is standard normal


@pytest.mark.parametrize("merged", [True, False])
def test_posterior_is_a_change_of_variables_of_its_noise(posterior, merged, monkeypatch):
    q = posterior(merged)
    noise = double(BATCH, TOTAL)
    monkeypatch.setattr("vlae.distributions.ladder.randn", lambda *_: noise)
    z = q.rsample()
    for image in range(BATCH):
        one = posterior(merged, slice(image, image + 1))
        jacobian = torch.autograd.functional.jacobian(
            lambda row, one=one: torch.cat(one._from_noise(row[None]), -1)[0], noise[image]
        )
        expected = Normal(0.0, 1.0).log_prob(noise[image]).sum() - jacobian.slogdet().logabsdet
        torch.testing.assert_close(q.log_prob(z)[image], expected)


@pytest.mark.parametrize("merged", [True, False])
def test_posterior_of_each_level_is_the_papers(posterior, prior, merged):
    q, z = posterior(merged), split(double(BATCH, TOTAL))
    levels = q.conditionals(z)
    torch.testing.assert_close(levels[2].loc, q.messages[2].loc)
    torch.testing.assert_close(levels[2].scale, q.messages[2].scale)
    for level in (0, 1):
        message, above = q.messages[level], prior.conditional(level, z[level + 1])
        if merged:
            precision = message.variance**-1 + above.variance**-1
            mean = (message.loc / message.variance + above.loc / above.variance) / precision
        else:
            precision, mean = message.variance**-1, message.loc
        torch.testing.assert_close(levels[level].variance, 1 / precision)
        torch.testing.assert_close(levels[level].loc, mean)


@pytest.mark.parametrize("merged", [True, False])
def test_mean_goes_down_by_means(posterior, merged):
    q = posterior(merged)
    z3 = q.messages[2].loc
    z2 = q.conditional(1, z3).loc
    for obtained, expected in zip(q.mean, (q.conditional(0, z2).loc, z2, z3), strict=True):
        assert torch.equal(obtained, expected)
    assert [tuple(level.shape) for level in q.mean] == [(BATCH, size) for size in DIMS]


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_densities_of_any_leading_dimensions(posterior, prior, merged, leading):
    q = posterior(merged)
    z = q.rsample(leading)
    other = split(double(*leading, BATCH, TOTAL))  # samples of something else
    for codes in (z, other):
        assert [tuple(level.shape) for level in codes] == [(*leading, BATCH, size) for size in DIMS]
        for p in (q, prior):
            together = p.log_prob(codes)
            assert together.shape == (*leading, BATCH)
            flat = [level.flatten(0, -3) if leading else level[None] for level in codes]
            apart = torch.stack([p.log_prob([level[i] for level in flat]) for i in range(len(flat[0]))])
            torch.testing.assert_close(together, apart.view(*leading, BATCH))
        assert prior.noise_of(codes).shape == q.log_prob_per_dimension(codes).shape == (*leading, BATCH, TOTAL)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("leading", [(), (3,)])
def test_noise_of_an_image_does_not_depend_on_the_batch(posterior, merged, leading):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    whole = posterior(merged).sample(leading, generators(*range(BATCH)))
    part = posterior(merged, slice(1, 3)).sample(leading, generators(1, 2))
    for one, two in zip(whole, part, strict=True):
        torch.testing.assert_close(one[..., 1:3, :], two)
    again = posterior(merged).sample(leading, generators(*range(BATCH)))
    assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))


def test_samples_have_gradients_only_if_asked_for(prior):
    loc = double(BATCH, 1).requires_grad_()
    messages = [*(Normal(double(BATCH, size), torch.ones(BATCH, size).double()) for size in DIMS[:2]), Normal(loc, 1.0)]
    q = LadderPosterior(prior, messages)
    assert all(level.requires_grad for level in q.rsample())
    assert not any(level.requires_grad for level in q.sample((2,)))


@pytest.mark.parametrize("merged", [True, False])
def test_rates_of_levels_add_up_to_the_divergence(posterior, prior, merged):
    q, samples = posterior(merged), 20_000
    z = q.sample((samples,), torch.Generator().manual_seed(0))
    analytic = torch.stack([rate.sum(-1) for rate in rates_of_levels(q, z)], -1)
    sampled = torch.stack([rate.sum(-1) for rate in rates_of_levels(q, z, analytic=False)], -1)
    by_definition = q.log_prob(z) - prior.log_prob(z)
    torch.testing.assert_close(sampled.sum(-1), by_definition)
    # Level by level and together, with the same upper samples; differences' standard errors, [B, levels].
    together = torch.cat([analytic - sampled, (analytic.sum(-1) - by_definition)[..., None]], -1)
    error = together.std(0) / math.sqrt(samples)
    assert (together.mean(0).abs() < 4 * error).all()
    assert (analytic >= 0).all()  # each is a divergence given the levels above
    assert (by_definition.mean(0) > 0).all()
    # The control: divergences from N(0, I) would not pass.
    wrong = sum(kl_divergence(level, Normal(0.0, 1.0)).sum(-1) for level in q.conditionals(z))
    difference = wrong - by_definition
    assert (difference.mean(0).abs() > 8 * difference.std(0) / math.sqrt(samples)).any()


def test_a_posterior_that_is_the_prior_has_rate_zero(prior):
    flat = [Normal(torch.zeros(1, size).double(), 1e8 * torch.ones(1, size).double()) for size in DIMS[:2]]
    q = LadderPosterior(prior, [*flat, Normal(torch.zeros(1, 1).double(), torch.ones(1, 1).double())])
    for rate in rates_of_levels(q, q.sample((10,))):
        torch.testing.assert_close(rate, torch.zeros_like(rate), atol=1e-12, rtol=0)


def test_a_linear_ladder_is_a_joint_normal_distribution():
    matrix, offset = double(2, 3), double(3)
    scale = double(3).exp()
    like = torch.zeros((), dtype=torch.float64)
    prior = LadderPrior(lambda _, above: Normal(above @ matrix + offset, scale), (3, 2), like)
    covariance = torch.zeros(5, 5).double()
    covariance[:3, :3] = matrix.T @ matrix + scale.square().diag()
    covariance[:3, 3:], covariance[3:, :3] = matrix.T, matrix
    covariance[3:, 3:] = torch.eye(2)
    mean = torch.cat([offset, torch.zeros(2).double()])
    joint = MultivariateNormal(mean, covariance)
    z = double(7, 5)
    torch.testing.assert_close(prior.log_prob(z.split((3, 2), -1)), joint.log_prob(z))
    # The posterior after one message about z_1 and one about z_2: precisions add, z_2's being that of q itself.
    message, top = Normal(double(1, 3), double(1, 3).exp()), Normal(double(1, 2), double(1, 2).exp())
    q = LadderPosterior(prior, [message, top])
    merged = 1 / (message.variance**-1 + scale**-2)[0]
    slope, constant = matrix * (merged / scale**2), merged * (offset / scale**2 + (message.loc / message.variance)[0])
    covariance = torch.zeros(5, 5).double()
    covariance[3:, 3:] = top.variance[0].diag()
    covariance[:3, 3:] = slope.T @ covariance[3:, 3:]
    covariance[3:, :3] = covariance[:3, 3:].T
    covariance[:3, :3] = slope.T @ covariance[3:, 3:] @ slope + merged.diag()
    exact = MultivariateNormal(torch.cat([top.loc[0] @ slope + constant, top.loc[0]]), covariance)
    codes = z[:, None]
    torch.testing.assert_close(q.log_prob(codes.split((3, 2), -1))[:, 0], exact.log_prob(z))
    torch.testing.assert_close(torch.cat(q.mean, -1)[0], exact.mean)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_levels_is_refused(posterior, prior, count):
    z = tuple(double(BATCH, 3) for _ in range(count))
    for use in (prior.log_prob, prior.noise_of, posterior().log_prob):
        with pytest.raises(VlaeError, match=f"3 tensors, one per level of z; got {count}"):
            use(z)


def test_a_ladder_is_not_scanned(prior):
    with pytest.raises(VlaeError, match=r"use sample\(\)") as caught:
        prior.scan(lambda sites, conditional: conditional.mean, 2)
    assert len(str(caught.value).splitlines()) == 1
