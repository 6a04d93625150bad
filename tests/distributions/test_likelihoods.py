import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from vlae import VlaeError
from vlae.distributions import Bernoulli, Categorical, Factorised, Gaussian, LogisticMixture, make_likelihood
from vlae.distributions.likelihoods import PixelLogisticMixture


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_categorical_sums_to_one_over_its_levels(levels, temperature):
    pixels = Categorical(levels)(3 * double(4, levels), temperature)
    values = torch.linspace(0, 1, levels, dtype=torch.float64)
    mass = sum(pixels.log_prob(value).exp() for value in values)
    torch.testing.assert_close(mass, torch.ones(4).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("levels", [3, 17, 256])
def test_categorical_of_float32_images_takes_each_level_for_itself(levels):
    logits = torch.randn(levels)
    values = torch.arange(levels) / (levels - 1)
    log_prob = Categorical(levels)(logits.expand(levels, levels)).log_prob(values)
    torch.testing.assert_close(log_prob, logits.log_softmax(0))
    Categorical(levels).check(values)


@pytest.mark.parametrize("levels", [2, 3, 17])
def test_categorical_mean_mode_and_temperature(levels):
    logits = double(5, levels)
    pixels, sharp = Categorical(levels)(logits), Categorical(levels)(logits, 0.25)
    values = np.arange(levels) / (levels - 1)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    np.testing.assert_allclose(pixels.mean, p @ values)
    np.testing.assert_allclose(pixels.mode, values[p.argmax(1)])
    np.testing.assert_allclose(sharp.mode, pixels.mode)
    np.testing.assert_allclose(sharp.log_prob(pixels.mode).exp(), p.max(1) ** 4 / (p**4).sum(1))


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_categorical_inverse_cdf(levels):
    logits = double(200, levels)
    u = torch.rand(200, dtype=torch.float64)
    drawn = Categorical(levels)(logits).icdf(u).numpy() * (levels - 1)
    for row, uniform, level in zip(logits.numpy(), u.numpy(), drawn, strict=True):
        cdf = np.cumsum(np.exp(row) / np.exp(row).sum())
        assert round(level) == min(np.searchsorted(cdf, uniform, side="right"), levels - 1)


def test_categorical_inverse_cdf_at_the_ends():
    logits = torch.tensor([[-math.inf, 0.0, 0.0]]).expand(3, 3)
    drawn = Categorical(3)(logits).icdf(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert drawn.tolist() == [0.5, 1.0, 1.0]  # never the level without mass; half open intervals


def test_bernoulli_is_one_where_the_uniform_is_under_p():
    pixels = Bernoulli()(torch.tensor([[0.0]] * 4, dtype=torch.float64))
    u = torch.tensor([0.0, math.nextafter(0.5, 0), 0.5, 0.9], dtype=torch.float64)
    assert pixels.icdf(u).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_bernoulli_against_its_definition(temperature):
    logits = 3 * double(6, 1)
    pixels = Bernoulli()(logits, temperature)
    p = 1 / (1 + np.exp(-logits[:, 0].numpy() / temperature))
    np.testing.assert_allclose(pixels.log_prob(torch.ones(6).double()), np.log(p))
    np.testing.assert_allclose(pixels.log_prob(torch.zeros(6).double()), np.log(1 - p), atol=1e-13)
    np.testing.assert_allclose(pixels.mean, p)
    np.testing.assert_allclose(pixels.mode, p > 0.5)


def test_log_prob_of_extreme_logits_is_finite_and_right():
    pixels = Bernoulli()(torch.tensor([[200.0], [-200.0]]))
    assert pixels.log_prob(torch.tensor([0.0, 1.0])).tolist() == [-200, -200]


def extreme_mixture(n, components, levels, dtype=torch.float64):
    """Means far outside and inside the range, scales from a hundredth of a level to the whole range and beyond."""
    logits = 5 * torch.randn(n, components, dtype=dtype)
    means = torch.randn(n, components, dtype=dtype) * 10 ** torch.empty(n, 1, dtype=dtype).uniform_(-2, 2)
    log_scales = torch.empty(n, components, dtype=dtype).uniform_(math.log(1e-4), math.log(1e2))
    return PixelLogisticMixture(logits, means, log_scales, levels)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
def test_logistic_mixture_sums_to_one_over_its_levels(levels, dtype, tolerance):
    pixels = extreme_mixture(500, 4, levels, dtype)
    values = (torch.arange(levels) / (levels - 1)).to(dtype)
    log_probs = torch.stack([pixels.log_prob(value) for value in values], -1)
    for masses in (log_probs.exp(), pixels.log_masses.exp()):
        torch.testing.assert_close(masses.sum(-1), torch.ones(500, dtype=dtype), atol=tolerance, rtol=0)
    # float32 rounds the edges of bins to about 1e-7, a thousandth of the narrowest scale.
    torch.testing.assert_close(log_probs.exp(), pixels.log_masses.exp(), atol=tolerance, rtol=0)


def mixture_by_definition(logits, means, log_scales, level, levels):
    """log of the mixture's cumulative distribution over a level's bin, in 50 digits."""

    def sigmoid(t):
        return 1 / (1 + mpmath.exp(-t))

    mass = mpmath.mpf(0)
    for logit, mean, log_scale in zip(logits, means, log_scales, strict=True):
        low = (mpmath.mpf(2 * level - 1) / (levels - 1) - 1 - mean) / mpmath.exp(log_scale)
        high = (mpmath.mpf(2 * level + 1) / (levels - 1) - 1 - mean) / mpmath.exp(log_scale)
        low, high = low if level > 0 else -mpmath.inf, high if level < levels - 1 else mpmath.inf
        if low > 0:  # by symmetry, so that the two are not both 1 in all digits
            low, high = -high, -low
        mass += mpmath.exp(logit) * (sigmoid(high) - sigmoid(low))
    return float(mpmath.log(mass / sum(map(mpmath.exp, logits))))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_logistic_mixture_against_its_definition_in_many_digits(levels):
    pixels = extreme_mixture(200, 3, levels)
    level = torch.randint(0, levels, (200,))
    level[:20], level[20:40] = 0, levels - 1
    rows = zip(*(t.tolist() for t in (pixels.logits, pixels.means, pixels.log_scales, level)), strict=True)
    with mpmath.workdps(50):
        exact = torch.tensor([mixture_by_definition(*row, levels) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(pixels.log_prob(level.double() / (levels - 1)), exact, rtol=1e-10, atol=1e-10)
    masses = pixels.log_masses.gather(-1, level[:, None])[:, 0]
    torch.testing.assert_close(masses, exact.clamp(min=math.log(2**-1022)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("raw", [0.0, 30.0, -30.0, 1e6, -1e6])
def test_logistic_mixture_has_finite_gradients_in_float32_whatever_the_parameters(raw):
    values = torch.linspace(0, 1, 256)
    for means in (0.0, 1.0, -1.0, 1e4, -1e4):
        parameters = torch.tensor([0.0, 50.0, -50.0, means, means + 1e-3, -means, raw, raw, raw]).requires_grad_()
        log_prob = LogisticMixture(256, 3)(parameters.expand(256, -1)).log_prob(values)
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(gradient).all()
        assert (log_prob <= 0).all()


@pytest.mark.parametrize("levels", [2, 5])
def test_logistic_mixture_gradients_are_those_of_its_values(levels):
    parameters = double(levels, 6).requires_grad_()
    values = torch.linspace(0, 1, levels, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: LogisticMixture(levels, 2)(p).log_prob(values), parameters)
    assert torch.autograd.gradcheck(lambda p: LogisticMixture(levels, 2)(p).log_masses, parameters)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_logistic_mixture_mean_mode_and_inverse_cdf_by_enumeration(levels):
    pixels = LogisticMixture(levels, 3)(2 * double(50, 9))
    values = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    p = torch.stack([pixels.log_prob(value) for value in values], -1).exp()
    torch.testing.assert_close(pixels.mean, p @ values)
    assert torch.equal(pixels.mode, values[p.argmax(-1)])
    # Level k is drawn by the uniforms from the cumulative mass under k to that under k + 1, and by no others.
    edges = torch.cat([torch.zeros(50, 1), p.cumsum(-1)[:, :-1], torch.ones(50, 1)], -1)
    low, high = edges[:, :-1] + 1e-12, edges[:, 1:] - 1e-12
    for k in range(levels):
        holds = low[:, k] < high[:, k]
        assert (pixels.icdf(low[:, k])[holds] == values[k]).all()
        assert (pixels.icdf(high[:, k])[holds] == values[k]).all()
    assert (pixels.icdf(torch.full((50,), math.nextafter(1, 0), dtype=torch.float64)) <= 1).all()


def test_logistic_mixture_starts_wide_around_mid_grey_and_its_temperature_sharpens():
    zero = torch.zeros(1, 6, dtype=torch.float64)
    mixture = LogisticMixture(255, 2)
    torch.testing.assert_close(mixture(zero).mean.item(), 0.5)
    assert mixture(zero).mode.item() == 0.5
    spread = [mixture(zero, t).log_scales.exp() for t in (1.0, 0.5)]
    torch.testing.assert_close(spread[1], spread[0] / 2)
    logits = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(mixture(logits, 0.5).logits, torch.tensor([[2.0, 0]]))


@pytest.mark.parametrize("raw", [-1e9, 1e9])
def test_logistic_mixture_scales_are_bounded(raw):
    scales = LogisticMixture(256, 1)(torch.tensor([0.0, 0.0, raw])).log_scales.exp()
    torch.testing.assert_close(scales.item(), 0.1 * 1e3 ** math.copysign(1, raw), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(2, 1, 2), (3, 2, 1)])
@pytest.mark.parametrize("levels", [2, 3])
def test_vlae_with_a_logistic_mixture_gives_all_images_mass_one(tiny_vlae, all_images, shape, levels):
    options = {"levels": levels, "components": 2}
    model = tiny_vlae(shape, likelihood="logistic_mixture", likelihood_options=options)
    images = all_images(shape, levels)
    mass = model.decode(double(1, 3).expand(len(images), -1)).log_prob(images).exp().sum()
    torch.testing.assert_close(mass.item(), 1.0, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("likelihood", "parameters"), [(Bernoulli(), 1), (Categorical(5), 5), (LogisticMixture(5, 2), 6)]
)
def test_log_masses_are_the_log_prob_of_each_level(likelihood, parameters):
    pixels = likelihood(double(4, 3, parameters))
    values = torch.linspace(0, 1, likelihood.levels, dtype=torch.float64)
    each = [pixels.log_prob(value.expand(4, 3)) for value in values]
    torch.testing.assert_close(pixels.log_masses, torch.stack(each, -1), rtol=0, atol=1e-12)


def test_a_density_has_no_log_masses():
    with pytest.raises(VlaeError, match="a density has no levels"):
        _ = Gaussian(0.1)(double(2, 1)).log_masses


@pytest.mark.parametrize("sigma", [0.1, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gaussian_is_the_normal_density_around_the_sigmoid(sigma, temperature):
    parameters, x = double(5, 1), torch.rand(5, dtype=torch.float64)
    pixels = Gaussian(sigma)(parameters, temperature)
    exact = Normal(parameters[:, 0].sigmoid(), sigma * temperature)
    torch.testing.assert_close(pixels.log_prob(x), exact.log_prob(x))
    torch.testing.assert_close(pixels.icdf(x), exact.icdf(x))
    torch.testing.assert_close(pixels.mean, exact.mean)


def test_gaussian_draws_from_uniform_zero_are_finite():
    assert torch.isfinite(Gaussian(1.0)(torch.zeros(2, 1)).icdf(torch.tensor([0.0, 1 - 2**-24]))).all()


def test_learned_sigma_is_bounded_and_gets_a_gradient():
    likelihood = Gaussian().double()
    for raw in (-1e6, 0.0, 1e6):
        likelihood.log_sigma.data.fill_(raw)
        assert 0.999e-3 < likelihood(double(3, 1)).sigma < 1.001e3
    likelihood.log_sigma.data.fill_(-0.5)
    likelihood(double(3, 1)).log_prob(torch.zeros(3)).sum().backward()
    assert likelihood.log_sigma.grad != 0


@pytest.mark.parametrize(
    ("likelihood", "parameters"),
    [(Bernoulli(), 1), (Categorical(4), 4), (LogisticMixture(4, 2), 6), (Gaussian(0.2), 1)],
)
def test_samples_follow_the_distribution(likelihood, parameters):
    pixels = likelihood(double(3, parameters))
    n = 20_000
    drawn = pixels.sample((n,), generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (n, 3)
    error = drawn.std(0) / math.sqrt(n)
    assert ((drawn.mean(0) - pixels.mean).abs() < 4 * error).all()
    if likelihood.levels:
        for value in np.linspace(0, 1, likelihood.levels):
            p = pixels.log_prob(torch.tensor(value)).exp()
            frequency = ((drawn - value).abs() < 1e-9).double().mean(0)
            assert ((frequency - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()
    else:
        standard = (drawn[:, 0] - pixels.loc[0]) / pixels.sigma
        assert stats.kstest(standard.numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 1, 2)])
@pytest.mark.parametrize("levels", [2, 3])
def test_factorised_image_sums_to_one(all_images, shape, levels):
    images = all_images(shape, levels)
    parameters = double(1, shape[0], levels, *shape[1:]).expand(len(images), -1, -1, -1, -1)
    mass = Factorised(Categorical(levels), parameters).log_prob(images).exp().sum()
    torch.testing.assert_close(mass.item(), 1.0, atol=1e-12, rtol=0)


def test_factorised_adds_up_the_subpixels_of_each_image():
    logits, x = double(2, 3, 1, 4, 5), torch.randint(0, 2, (2, 3, 4, 5)).double()
    image = Factorised(Bernoulli(), logits)
    assert (image.batch_shape, image.event_shape) == ((2,), (3, 4, 5))
    p = logits[:, :, 0].sigmoid()
    exact = (x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3))
    torch.testing.assert_close(image.log_prob(x), exact)
    torch.testing.assert_close(image.mean, p)
    assert torch.equal(image.mode, (p > 0.5).double())


def test_factorised_samples_use_the_uniforms_or_the_generator():
    image = Factorised(Bernoulli(), double(2, 1, 1, 3, 3))
    u = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    assert torch.equal(image.sample(uniforms=u), (u < image.mean).double())
    a, b = (image.sample((5,), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert a.shape == (5, 2, 1, 3, 3)
    assert torch.equal(a, b)
    with pytest.raises(VlaeError, match="uniforms must be one per sub-pixel"):
        image.sample(uniforms=u[0])


@pytest.mark.parametrize(
    ("likelihood", "values"),
    [
        (Bernoulli(), [0.5]),
        (Bernoulli(), [float("nan")]),
        (Bernoulli(), [float("inf")]),
        (Bernoulli(), [-1.0]),
        (Bernoulli(), [2.0]),
        (Categorical(3), [0.25]),
        (Categorical(256), [0.5]),
        (Categorical(3), [1.5]),
        (LogisticMixture(3, 1), [0.25]),
        (Gaussian(), [1.01]),
        (Gaussian(), [float("nan")]),
    ],
)
def test_values_without_mass_are_refused(likelihood, values):
    with pytest.raises(VlaeError) as caught:
        likelihood.check(torch.tensor([0.0, 1.0, *values]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("poisson", {}),
        ("bernoulli", {"levels": 2}),
        ("categorical", {"levels": 1}),
        ("categorical", {"sigma": 1.0}),
        ("logistic_mixture", {"levels": 1}),
        ("logistic_mixture", {"levels": 2.5}),
        ("logistic_mixture", {"components": 0}),
        ("logistic_mixture", {"sigma": 1.0}),
        ("gaussian", {"sigma": 0.0}),
        ("gaussian", {"sigma": -1.0}),
        ("gaussian", {"sigma": float("nan")}),
    ],
)
def test_impossible_likelihoods_are_refused(name, options):
    with pytest.raises(VlaeError) as caught:
        make_likelihood(name, **options)
    assert "\n" not in str(caught.value)
