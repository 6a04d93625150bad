import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from vlae import VlaeError
from vlae.distributions import Bernoulli, Categorical, Factorised, Gaussian, make_likelihood


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


@pytest.mark.parametrize(("likelihood", "parameters"), [(Bernoulli(), 1), (Categorical(4), 4), (Gaussian(0.2), 1)])
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
        assert stats.kstest(drawn[:, 0].numpy(), "norm", (pixels.loc[0].item(), pixels.sigma.item())).pvalue > 1e-4


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
        ("gaussian", {"sigma": 0.0}),
        ("gaussian", {"sigma": -1.0}),
        ("gaussian", {"sigma": float("nan")}),
    ],
)
def test_impossible_likelihoods_are_refused(name, options):
    with pytest.raises(VlaeError) as caught:
        make_likelihood(name, **options)
    assert "\n" not in str(caught.value)
