import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch.autograd import gradcheck, gradgradcheck

from vlae import VlaeError
from vlae.distributions import Charbonnier, make_likelihood
from vlae.distributions.charbonnier import PixelCharbonnier, log_k1e

SHARPNESS = [1e-9, 1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6]  # eps / scale


def pixels(loc, scale, eps, dtype=torch.float64, count=1):
    return PixelCharbonnier(torch.full((count,), loc, dtype=dtype), torch.tensor(scale, dtype=dtype), eps)


@pytest.mark.parametrize("q", [0.01, 0.5, 3.0, 40.0])
def test_charbonnier_is_the_hyperbolic_distribution_of_scipy(q):
    eps, loc = 0.2, 0.4
    x = np.linspace(-1, 2, 41)
    exact = stats.genhyperbolic(p=1, a=q, b=0, loc=loc, scale=eps)
    log_prob = pixels(loc, eps / q, eps, count=41).log_prob(torch.from_numpy(x))
    np.testing.assert_allclose(log_prob, exact.logpdf(x), rtol=1e-10)
    np.testing.assert_allclose(pixels(loc, eps / q, eps, count=5).cdf(torch.from_numpy(x[15:20])), exact.cdf(x[15:20]))


@pytest.mark.parametrize("q", SHARPNESS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_charbonnier_log_density_in_many_digits(q, dtype, tolerance):
    eps = 0.5
    scale = eps / q
    for distance in (0.0, 1e-8, 1e-3, 0.3, 4.0):
        value = torch.tensor([distance], dtype=dtype)
        log_prob = pixels(0.0, scale, eps, dtype).log_prob(value).item()
        with mpmath.workdps(40):
            r, b = mpmath.mpf(value.item()), mpmath.mpf(torch.tensor(scale, dtype=dtype).item())
            normaliser = 2 * eps * mpmath.besselk(1, eps / b)
            exact = float(-mpmath.sqrt(r**2 + mpmath.mpf(eps) ** 2) / b - mpmath.log(normaliser))
        assert abs(log_prob - exact) <= tolerance * max(1, abs(exact))


@pytest.mark.parametrize("q", SHARPNESS)
def test_charbonnier_quantiles_have_the_mass_that_was_asked_for(q):
    eps = 0.5
    u = torch.tensor([1e-16, 1e-9, 1e-3, 0.2, 0.4999, 0.5, 0.7, 0.999, 1 - 1e-12], dtype=torch.float64)
    density = pixels(0.25, eps / q, eps, count=len(u))
    x = density.icdf(u)
    torch.testing.assert_close(density.cdf(x), u, rtol=1e-11, atol=1e-15)
    assert (x.diff() > 0).all()
    torch.testing.assert_close(x[5].item(), 0.25, rtol=0, atol=1e-12)
    if q > 1e3:
        return  # mpmath's quadrature would need care
    with mpmath.workdps(30):
        for value, uniform in zip(x.tolist(), u.tolist(), strict=True):
            q_ = mpmath.mpf(q)
            r = abs(mpmath.mpf(value) - mpmath.mpf(0.25)) / eps  # the tail by r = sinh(s), whose integrand is smooth
            start, end = mpmath.asinh(r), mpmath.acosh(mpmath.sqrt(1 + r**2) + 60 / q_)
            tail = mpmath.quad(
                lambda s, q_=q_: mpmath.cosh(s) * mpmath.exp(-q_ * (mpmath.cosh(s) - 1)), mpmath.linspace(start, end, 8)
            ) / (2 * mpmath.besselk(1, q_) * mpmath.exp(q_))
            smaller = min(uniform, 1 - uniform)
            # The mean of 0.25 rounds x to 1e-17, which the tiny distances to it feel.
            assert abs(tail - smaller) < 1e-11 * smaller + 1e-16 / (2 * min(eps / q, 1))


def test_charbonnier_quantiles_in_float32_are_those_of_float64():
    u = torch.rand(200)
    for q in SHARPNESS:
        single = pixels(0.25, 0.5 / q, 0.5, torch.float32, 200).icdf(u)
        exact = pixels(0.25, 0.5 / q, 0.5, count=200).icdf(u.double())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=1e-7)


def test_charbonnier_without_a_tip_is_laplace_and_with_a_wide_one_gaussian():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    laplace = torch.distributions.Laplace(0.0, torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(pixels(0.0, 0.3, 1e-6, count=9).log_prob(x), laplace.log_prob(x), atol=1e-5, rtol=0)
    normal = torch.distributions.Normal(0.0, torch.tensor(0.3, dtype=torch.float64))
    wide = pixels(0.0, 0.09 / 1e4, 1e4, count=9)  # variance eps * scale
    torch.testing.assert_close(wide.log_prob(x), normal.log_prob(x), atol=1e-6, rtol=0)
    u = (x + 1) / 2 * 0.98 + 0.01
    torch.testing.assert_close(wide.icdf(u), normal.icdf(u), atol=1e-6, rtol=0)


def test_the_penalty_is_charbonnier_s():
    x = torch.rand(9, dtype=torch.float64)
    density = pixels(0.3, 0.07, 0.02, count=9)
    penalty = ((x - 0.3) ** 2 + 0.02**2).sqrt() / 0.07
    shifted = density.log_prob(x) + penalty
    torch.testing.assert_close(shifted, shifted[:1].expand(9))


@pytest.mark.parametrize("q", [1e-6, 1e-2, 1.0, 30.0, 1e3])
def test_log_k1e_and_its_derivative_in_many_digits(q):
    argument = torch.tensor(q, dtype=torch.float64, requires_grad=True)
    value = log_k1e(argument)
    (first,) = torch.autograd.grad(value, argument)
    with mpmath.workdps(40):
        exact = mpmath.log(mpmath.besselk(1, q)) + q
        slope = 1 + mpmath.diff(lambda t: mpmath.besselk(1, t), q) / mpmath.besselk(1, q)
    torch.testing.assert_close(value.item(), float(exact), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.item(), float(slope), rtol=1e-11, atol=1e-14)


def test_log_k1e_has_every_derivative():
    q = torch.tensor([0.05, 0.7, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(log_k1e, q)
    assert gradgradcheck(log_k1e, q)


def test_charbonnier_temperature_multiplies_the_scale():
    parameters, x = torch.randn(5, 1).double(), torch.rand(5).double()
    sharp = Charbonnier(0.2)(parameters, 0.5).log_prob(x)
    torch.testing.assert_close(sharp, Charbonnier(0.1)(parameters).log_prob(x))


@pytest.mark.parametrize("eps", [0, -1.0, 1e-9, float("nan"), float("inf"), "small", True])
def test_impossible_tips_are_refused(eps):
    with pytest.raises(VlaeError, match="eps must be a number of at least 1e-6") as caught:
        make_likelihood("charbonnier", eps=eps)
    assert "\n" not in str(caught.value)
