import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td

import vlae
from vlae import VlaeError
from vlae.distributions import Factorised, Gaussian, make_likelihood
from vlae.distributions.densities import PixelContinuousBernoulli

SCALES = {"gaussian": "sigma", "laplace": "scale", "charbonnier": "scale"}
DENSITIES = [("continuous_bernoulli", {}), ("gaussian", {"sigma": "optimal"})] + [
    (name, {option: value}) for name, option in SCALES.items() for value in (0.2, None, "pixel")
]
LOGITS = [0.0, 1e-9, 1e-5, 1e-3, 0.1, 0.5, 0.999, 1.0, 1.001, 3.0, 12.0, 40.0, 100.0, 700.0]


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def nodes(edges):
    """Nodes and weights of 20-point Gauss-Legendre quadrature on each panel between two edges."""
    x, w = np.polynomial.legendre.leggauss(20)
    low, high = edges[:-1, None], edges[1:, None]
    points, weights = (low + high) / 2 + (high - low) / 2 * x, (high - low) / 2 * w
    return torch.from_numpy(points.ravel()), torch.from_numpy(weights.ravel())


def mass(pixels):
    """The integral of the density of each sub-pixel, [...], with panels that narrow towards its location."""
    if isinstance(pixels, PixelContinuousBernoulli):
        x, weight = nodes(np.linspace(0, 1, 200))
        return sum(w * pixels.log_prob(value).exp() for value, w in zip(x, weight, strict=True))
    r, weight = nodes(np.concatenate([[0], np.geomspace(1e-6, 100, 60)]))
    total = 0
    for side in (-1, 1):
        for value, w in zip(r, weight, strict=True):
            total = total + w * pixels.log_prob(pixels.mean + side * value).exp()
    return total


@pytest.mark.parametrize(("name", "options"), DENSITIES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_mass_of_every_density_is_one(name, options, temperature):
    likelihood = make_likelihood(name, **options).double().eval()
    pixels = likelihood(2 * double(7, likelihood.parameters_per_value), temperature)
    torch.testing.assert_close(mass(pixels), torch.ones(7).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("name", "options"), DENSITIES)
def test_every_gradient_is_that_of_the_value(name, options):
    likelihood = make_likelihood(name, **options).double()
    parameters = (2 * double(6, likelihood.parameters_per_value)).requires_grad_()
    x = torch.rand(6, dtype=torch.float64, requires_grad=True)

    def log_prob(parameters, x, *shared):
        return torch.func.functional_call(likelihood, dict(zip(names, shared, strict=True)), parameters).log_prob(x)

    names = [name for name, _ in likelihood.named_parameters()]
    shared = [parameter.detach().clone().requires_grad_() for parameter in likelihood.parameters()]
    assert torch.autograd.gradcheck(log_prob, (parameters, x, *shared))


@pytest.mark.parametrize(("name", "options"), DENSITIES)
@pytest.mark.parametrize("training", [True, False])
def test_extreme_parameters_are_finite_in_float32(name, options, training):
    likelihood = make_likelihood(name, **options).train(training)
    extremes = torch.tensor([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
    parameters = torch.cartesian_prod(*[extremes] * likelihood.parameters_per_value).view(
        -1, likelihood.parameters_per_value
    )
    parameters = parameters.requires_grad_()
    for raw in extremes if options.get("sigma", options.get("scale", "")) is None else [0]:
        for learned in likelihood.parameters():
            learned.data.fill_(raw)
        pixels = likelihood(parameters)
        log_probs = [pixels.log_prob(x) for x in (0.0, 1e-3, 0.5, 1.0) for x in [torch.tensor(x)]]
        gradients = torch.autograd.grad(
            sum(log_prob.sum() for log_prob in log_probs), [parameters, *likelihood.parameters()]
        )
        drawn = [pixels.icdf(torch.full_like(pixels.mean, u)) for u in (0.0, 2**-24, 0.5, 1 - 2**-24)]
        for values in (*log_probs, *gradients, *drawn, pixels.mean, pixels.mode):
            assert torch.isfinite(values).all()


@pytest.mark.parametrize(("name", "options"), DENSITIES)
def test_draws_follow_the_density(name, options):
    likelihood = make_likelihood(name, **options).double().eval()
    pixels = likelihood(2 * double(3, likelihood.parameters_per_value))
    drawn = pixels.sample((4000,), generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 3)
    again = pixels.sample((4000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    # The mass between two draws, by quadrature of the density that the tests above know to be right.
    low, high = drawn.kthvalue(1000, 0).values, drawn.kthvalue(3000, 0).values
    x, weight = nodes(np.linspace(0, 1, 60))
    between = sum(w * pixels.log_prob(low + (high - low) * t).exp() for t, w in zip(x, weight, strict=True))
    torch.testing.assert_close(between * (high - low), torch.full((3,), 0.5).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.mean(0), pixels.mean, atol=0.03, rtol=0)


@pytest.mark.parametrize(("name", "options"), DENSITIES)
def test_an_image_is_the_product_of_its_subpixels(name, options):
    likelihood = make_likelihood(name, **options).double().eval()
    parameters = double(2, 3, likelihood.parameters_per_value, 4, 5)
    image, x = Factorised(likelihood, parameters), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    each = likelihood(parameters.movedim(2, -1))
    torch.testing.assert_close(image.log_prob(x), each.log_prob(x).sum((1, 2, 3)))
    assert image.has_mean
    assert image.sample((2,)).shape == (2, 2, 3, 4, 5)
    with pytest.raises(VlaeError, match="a density has no levels"):
        _ = each.log_masses


# -- continuous Bernoulli


def exact_log_density(logit, x):
    """log of exp(l x) over its integral from 0 to 1, in 50 digits."""
    logit, x = mpmath.mpf(logit), mpmath.mpf(x)
    normaliser = (mpmath.exp(logit) - 1) / logit if logit else 1
    return logit * x - mpmath.log(normaliser)


def exact_mean(logit):
    logit = mpmath.mpf(logit)
    return 1 / (1 - mpmath.exp(-logit)) - 1 / logit if logit else mpmath.mpf("0.5")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("sign", [1, -1])
def test_continuous_bernoulli_and_its_derivatives_in_many_digits(dtype, tolerance, sign):
    logits = (sign * torch.tensor(LOGITS, dtype=torch.float64)).to(dtype)
    x = torch.tensor(0.3, dtype=dtype).expand_as(logits)
    parameters = logits[:, None].clone().requires_grad_()
    pixels = make_likelihood("continuous_bernoulli")(parameters)
    log_prob = pixels.log_prob(x)
    (first,) = torch.autograd.grad(log_prob.sum(), parameters, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), parameters, retain_graph=True)
    (slope,) = torch.autograd.grad(pixels.mean.sum(), parameters, retain_graph=True)
    with mpmath.workdps(60):
        given = [(mpmath.mpf(t), mpmath.mpf(v)) for t, v in zip(logits.tolist(), x.tolist(), strict=True)]
        exact = [float(exact_log_density(t, v)) for t, v in given]
        means = [float(exact_mean(t)) for t, _ in given]
        variances = [1 / 12 if t == 0 else float(mpmath.diff(exact_mean, t)) for t, _ in given]
    exact, means, variances = (torch.tensor(t, dtype=torch.float64) for t in (exact, means, variances))
    torch.testing.assert_close(log_prob.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(pixels.mean.double(), means, rtol=tolerance, atol=tolerance)
    # An exponential family: the first derivative is x - mean, the second minus the variance, the mean's slope.
    torch.testing.assert_close(first[:, 0].double(), x.double() - means, rtol=4 * tolerance, atol=4 * tolerance)
    torch.testing.assert_close(second[:, 0].double(), -variances, rtol=20 * tolerance, atol=20 * tolerance)
    torch.testing.assert_close(slope[:, 0].double(), variances, rtol=20 * tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_continuous_bernoulli_against_pytorch(temperature):
    logits, x = 3 * double(50, 1), torch.rand(50, dtype=torch.float64)
    pixels = make_likelihood("continuous_bernoulli")(logits, temperature)
    exact = td.ContinuousBernoulli(logits=logits[:, 0] / temperature)
    torch.testing.assert_close(pixels.log_prob(x), exact.log_prob(x))
    torch.testing.assert_close(pixels.mean, exact.mean)
    torch.testing.assert_close(pixels.icdf(x), exact.icdf(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_continuous_bernoulli_inverse_cdf(dtype, tolerance):
    logits = torch.tensor([sign * t for t in LOGITS for sign in (1, -1)], dtype=dtype)
    pixels = PixelContinuousBernoulli(logits)
    for u in (0.0, 2**-24, 0.01, 0.3, 0.5, 0.8, 1 - 2**-24):
        x = pixels.icdf(torch.full_like(logits, u))
        assert ((x >= 0) & (x <= 1)).all()
        with mpmath.workdps(60):
            exact = [
                float(mpmath.log1p(mpmath.mpf(u) * mpmath.expm1(t)) / t) if t else u
                for t in map(mpmath.mpf, logits.tolist())
            ]
        torch.testing.assert_close(x.double(), torch.tensor(exact, dtype=torch.float64), rtol=0, atol=tolerance)


def test_continuous_bernoulli_mode():
    pixels = PixelContinuousBernoulli(torch.tensor([-3.0, -1e-6, 0.0, 1e-6, 3.0]))
    assert pixels.mode.tolist() == [0, 0, 0.5, 1, 1]


def test_continuous_bernoulli_takes_grey_pixels_and_nothing_outside():
    likelihood = make_likelihood("continuous_bernoulli")
    likelihood.check(torch.tensor([0.0, 0.123, 1.0]))
    for value in (-0.01, 1.01, math.nan, math.inf):
        with pytest.raises(VlaeError, match=r"\[0, 1\]"):
            likelihood.check(torch.tensor([0.5, value]))


# -- scales: fixed, learned, per pixel


@pytest.mark.parametrize(("name", "oracle"), [("gaussian", td.Normal), ("laplace", td.Laplace)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("scale", [0.1, 2, "pixel", None])
def test_location_and_scale_against_pytorch(name, oracle, temperature, scale):
    likelihood = make_likelihood(name, **{SCALES[name]: scale}).double()
    parameters, x = double(9, likelihood.parameters_per_value), torch.rand(9, dtype=torch.float64)
    s = {None: [p.item() for p in likelihood.parameters()], "pixel": parameters[:, -1] + math.log(0.3)}.get(scale)
    expected = scale
    if s is not None:
        s = torch.as_tensor(s, dtype=torch.float64)
        expected = torch.exp(s / (1 + s.abs() / math.log(1000)))
    exact = oracle(parameters[:, 0].sigmoid(), expected * temperature)
    pixels = likelihood(parameters, temperature)
    torch.testing.assert_close(pixels.log_prob(x), exact.log_prob(x))
    torch.testing.assert_close(pixels.icdf(x), exact.icdf(x))
    torch.testing.assert_close(pixels.mean, exact.mean)
    torch.testing.assert_close(pixels.mode, exact.mean)


@pytest.mark.parametrize("name", list(SCALES))
def test_learned_and_pixel_scales_start_alike_and_are_bounded(name):
    learned, pixel = (make_likelihood(name, **{SCALES[name]: choice}).double() for choice in (None, "pixel"))
    attribute = SCALES[name]
    start = getattr(learned(torch.zeros(1, 1).double()), attribute)
    assert 0.3 < start < 0.4
    torch.testing.assert_close(getattr(pixel(torch.zeros(1, 2).double()), attribute)[0], start, rtol=1e-6, atol=0)
    for raw, bound in ((-1e7, 1e-3), (1e7, 1e3)):
        (parameter,) = learned.parameters()
        parameter.data.fill_(raw)
        for scale in (learned(torch.zeros(1, 1).double()), pixel(torch.tensor([[0, raw]]).double())):
            torch.testing.assert_close(getattr(scale, attribute).item(), bound, rtol=1e-5, atol=0)
    assert learned.parameters_per_value == 1
    assert pixel.parameters_per_value == 2


@pytest.mark.parametrize("name", list(SCALES))
@pytest.mark.parametrize("scale", [0.0, -0.1, math.nan, math.inf, "pixels", "0.1", True, [0.1]])
def test_impossible_scales_are_refused(name, scale):
    option = SCALES[name]
    with pytest.raises(VlaeError, match=f"{option} must be a positive number, None") as caught:
        make_likelihood(name, **{option: scale})
    assert "\n" not in str(caught.value)


def test_only_a_gaussian_has_an_optimal_scale():
    with pytest.raises(VlaeError, match="scale must be"):
        make_likelihood("laplace", scale="optimal")
    with pytest.raises(VlaeError, match="likelihood 'laplace' has no option 'sigma'"):
        make_likelihood("laplace", sigma=0.1)


# -- the optimal sigma


def test_optimal_sigma_is_the_error_of_the_batch_in_training_mode():
    likelihood, parameters = Gaussian("optimal").double(), double(4, 3, 1, 5, 5)
    x = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    distortion = -Factorised(likelihood, parameters).log_prob(x)
    sigma = (((x - parameters[:, :, 0].sigmoid()) ** 2).mean() + 1e-6).sqrt()
    exact = td.Normal(parameters[:, :, 0].sigmoid(), sigma).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(distortion, -exact)
    # The paper's loss, D log sigma and a constant; the least sigma is all that it lacks.
    paper = x.numel() * (sigma.log() + 0.5 * math.log(2 * math.pi * math.e))
    torch.testing.assert_close(distortion.sum(), paper, rtol=1e-4, atol=0)


def test_temperature_multiplies_the_optimal_sigma_too():
    likelihood, parameters, x = Gaussian("optimal").double(), double(9, 1), torch.rand(9, dtype=torch.float64)
    sigma = (((x - parameters[:, 0].sigmoid()) ** 2).mean() + 1e-6).sqrt()
    exact = td.Normal(parameters[:, 0].sigmoid(), 0.5 * sigma).log_prob(x)
    torch.testing.assert_close(likelihood(parameters, 0.5).log_prob(x), exact)


def test_no_fixed_sigma_is_better_than_the_optimal_one():
    parameters, x = double(4, 3, 1, 5, 5), torch.rand(4, 3, 5, 5, dtype=torch.float64)
    best = Factorised(Gaussian("optimal"), parameters).log_prob(x).sum()
    others = [Factorised(Gaussian(s), parameters).log_prob(x).sum() for s in np.geomspace(0.05, 2, 100)]
    assert best > max(others) - 1e-2
    assert best < max(others) + 1.0


def test_optimal_sigma_is_a_bias_corrected_average_once_trained():
    likelihood, errors = Gaussian("optimal").double(), []
    for _ in range(5):
        parameters, x = double(6, 1), torch.rand(6, dtype=torch.float64)
        likelihood(parameters).log_prob(x)
        errors.append(((x - parameters[:, 0].sigmoid()) ** 2).mean())
    weights = [0.99**age for age in range(4, -1, -1)]
    average = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    for mode in (True, False):
        sigma = likelihood.train(mode)(double(2, 1), 0.5).sigma
        torch.testing.assert_close(sigma, 0.5 * (average + 1e-6).sqrt())


def test_optimal_sigma_is_frozen_and_independent_of_the_batch_in_eval_mode():
    likelihood = Gaussian("optimal").double()
    parameters, x = double(4, 3, 1, 5, 5), torch.rand(4, 3, 5, 5, dtype=torch.float64)
    Factorised(likelihood, parameters).log_prob(x)
    likelihood.eval()
    before = {name: value.clone() for name, value in likelihood.state_dict().items()}
    together = Factorised(likelihood, parameters).log_prob(x)
    alone = torch.cat([Factorised(likelihood, parameters[[i]]).log_prob(x[[i]]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in likelihood.state_dict().items())


def test_only_training_steps_enter_the_average():
    likelihood = Gaussian("optimal").double()
    x = torch.rand(3, dtype=torch.float64)
    assert likelihood(double(3, 1)).sigma == 0.3  # before any training
    assert likelihood.eval()(double(3, 1)).sigma == 0.3
    likelihood.train()
    with torch.no_grad():
        likelihood(double(3, 1)).log_prob(x)
    likelihood(double(3, 1)).icdf(x)
    likelihood(math.nan * double(3, 1)).log_prob(x)
    likelihood(double(3, 1)).log_prob(math.inf * x)
    assert likelihood(double(3, 1)).sigma == 0.3
    likelihood(double(3, 1)).log_prob(x)
    assert likelihood(double(3, 1)).sigma != 0.3


def test_optimal_sigma_of_a_perfect_reconstruction_is_bounded():
    likelihood, parameters = Gaussian("optimal"), torch.zeros(5, 1, requires_grad=True)
    log_prob = likelihood(parameters).log_prob(torch.full((5,), 0.5))
    log_prob.sum().backward()
    torch.testing.assert_close(log_prob, td.Normal(0.0, 1e-3).log_prob(torch.zeros(5)), rtol=1e-5, atol=0)
    assert torch.isfinite(parameters.grad).all()
    torch.testing.assert_close(likelihood.eval()(parameters).sigma.item(), 1e-3, rtol=1e-5, atol=0)


def test_optimal_sigma_is_saved_with_the_model(tiny_vae, tmp_path):
    model = tiny_vae((3, 4, 4), likelihood="gaussian", likelihood_options={"sigma": "optimal"})
    x = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    model.train().elbo(x).elbo.sum().backward()
    z = double(5, 3)
    sigma = model.eval().decode(z).pixels.sigma
    assert sigma != 0.3
    model.save_pretrained(tmp_path / "model")
    again = vlae.load(tmp_path / "model")
    assert torch.equal(again.decode(z).pixels.sigma, sigma)
    assert torch.equal(again.decode(z).log_prob(x), model.decode(z).log_prob(x))


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_quantiles_are_the_library_s(name):
    pixels = make_likelihood(name, **{SCALES[name]: 0.2})(torch.zeros(7, 1).double())
    u = torch.tensor([1e-12, 1e-3, 0.2, 0.5, 0.7, 0.999, 1 - 1e-12], dtype=torch.float64)
    oracle = {"gaussian": stats.norm, "laplace": stats.laplace}[name]
    np.testing.assert_allclose(pixels.icdf(u), oracle.ppf(u.numpy(), 0.5, 0.2), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gaussian", "laplace", "logistic_mixture", "charbonnier", "continuous_bernoulli"])
def test_images_are_drawn_in_16_bits(name, dtype):
    model = vlae.VAE((1, 4, 4), latent_dim=2, architecture="mlp", likelihood=name).to(dtype)
    images = model.sample(5)
    assert images.dtype == dtype and images.isfinite().all()
