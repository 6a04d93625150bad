"""What `doctor` measures itself, against closed forms."""

import math
from dataclasses import astuple

import pytest
import torch

from vlae.errors import VlaeError
from vlae.evaluation.evidence import marginal_exchange, periodic_energy, prior_outside

SIGMA = 0.4  # of the noise of `linear_gaussian`


def in_batches(x, size=100):
    return lambda: ((x[i : i + size], range(i, min(i + size, len(x)))) for i in range(0, len(x), size))


@pytest.fixture
def tempered(linear_gaussian):
    """A factory of linear-Gaussian VAEs whose q(z|x) minimises distortion + beta * rate, moved by `shift`."""

    @torch.no_grad()
    def make(beta=1.0, shift=0.0):
        model = linear_gaussian()
        model.make_exact()
        variance = beta * SIGMA**2
        precision = 1 + model.weight.square().sum(0) / variance
        model.encoder.weight.copy_(model.weight.T / variance / precision[:, None])
        model.encoder.bias.copy_(shift - model.encoder.weight @ model.bias)
        model.encoder.log_stddev.copy_(-0.5 * precision.log())
        return model

    return make


@torch.no_grad()
def drawn_from(model, count):
    """Images x ~ p(x) of a linear-Gaussian VAE."""
    z = torch.randn(count, 2, dtype=torch.float64)
    x = z @ model.weight.T + model.bias + SIGMA * torch.randn(count, 6, dtype=torch.float64)
    return x.view(count, 1, 2, 3)


# -- the slope of the rate-distortion curve ---------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_the_exchange_at_the_optimum_of_a_beta_is_that_beta(beta, tempered):
    model = tempered(beta)
    found = marginal_exchange(model, in_batches(drawn_from(model, 4000)))
    assert found.error < 0.1 * beta
    assert abs(found.value - beta) < 4 * found.error + 0.01 * beta


def test_the_exchange_is_minus_the_ratio_of_the_slopes(linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(2000)
    found = marginal_exchange(model, in_batches(x))
    with torch.no_grad():
        q = model.encode(x)
        # In closed form: d/dlog s of sum |w_k|^2 s^2 sigma_k^2 / (2 * 0.4^2), and of the analytic rate.
        slope = ((model.weight**2).sum(0) * q.variance / SIGMA**2).sum(1).mean()
        rate = (q.variance - 1).sum(1).mean()
    # A central difference of s^2 is (e^0.2 - e^-0.2) / 0.4 times its derivative; log s is straight.
    scale = math.sinh(0.2) / 0.2
    expected = -(scale * slope / (scale * (rate + 2) - 2)).item()
    assert abs(found.value - expected) < 4 * found.error


def test_no_exchange_where_the_posterior_is_no_gaussian(tiny_vae, binary):
    assert marginal_exchange(tiny_vae(posterior="iaf"), in_batches(binary(4))) is None


# -- draws of the prior among the codes -------------------------------------------------------------------------------


def test_draws_of_a_prior_that_is_met_are_outside_as_often_as_the_quantile_says(tempered):
    model = tempered()
    x = drawn_from(model, 1000)
    for quantile in (0.05, 0.5):
        found = prior_outside(model, in_batches(x), quantile=quantile)
        error = math.sqrt(2 * quantile * (1 - quantile) / found.draws)  # of the share, and of the quantile itself
        assert abs(found.share - quantile) < 4 * error and found.broken == 0
    assert prior_outside(tempered(shift=5.0), in_batches(x)).share > 0.95


@pytest.mark.parametrize("dimension", [0, 1])
def test_the_order_of_the_images_does_not_matter(dimension, tempered):
    model = tempered(shift=2.0)
    x = drawn_from(model, 1000)
    shuffled = prior_outside(model, in_batches(x))
    assert 0.3 < shuffled.share < 0.9
    with torch.no_grad():
        order = model.encode(x).mean[:, dimension].argsort()
    for images in (x[order], x[order.flip(0)], torch.stack([x[order][:500], x[order][500:]], 1).flatten(0, 1)):
        found = prior_outside(model, in_batches(images))
        # Two draws of halves: errors of the share, and of the 5% quantile carried over to it.
        assert found.share == pytest.approx(shuffled.share, abs=0.1)
        assert found.gap == pytest.approx(shuffled.gap, abs=0.4)


def test_the_share_outside_does_not_depend_on_the_batch_size(tempered):
    model = tempered(shift=1.0)
    x = drawn_from(model, 50)
    one, other = (astuple(prior_outside(model, in_batches(x, size))) for size in (1, 7))
    assert one == pytest.approx(other, abs=1e-9)


def test_the_density_gap_is_that_of_two_normals(linear_gaussian):
    # Every image's posterior is N(2, I), the prior N(0, I): a draw's log density is lower by |2|^2 / 2 on average for
    # each of the two dimensions, and by about that in the median.
    model = linear_gaussian()
    with torch.no_grad():
        model.encoder.weight.zero_()
        model.encoder.bias.fill_(2)
        model.encoder.log_stddev.zero_()
    found = prior_outside(model, in_batches(torch.zeros(4000, 1, 2, 3).double()), images=4000)
    assert found.gap == pytest.approx(2 * 2**2 / 2, abs=0.4)
    with pytest.raises(VlaeError, match="4 images"):
        prior_outside(model, in_batches(torch.zeros(3, 1, 2, 3).double()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_draws_that_are_no_numbers_are_outside(value, tempered):
    model = tempered()
    x, whole = drawn_from(model, 1000), model.prior
    healthy = prior_outside(model, in_batches(x))

    def prior(part):
        found, draw = whole(), whole().sample

        def sample(shape, generator=None):
            z = draw(shape, generator=generator)
            z[: int(part * len(z)), 0] = value
            return z

        found.sample = sample
        return found

    model.prior = lambda: prior(0.5)
    found = prior_outside(model, in_batches(x))
    assert found.broken == 250 and found.share == pytest.approx(0.5 + healthy.share / 2, abs=0.03)
    assert found.gap == pytest.approx(healthy.gap, abs=0.3)  # of the draws that are numbers
    model.prior = lambda: prior(1)
    found = prior_outside(model, in_batches(x))
    assert (found.broken, found.share) == (500, 1) and math.isnan(found.gap)


# -- patterns ---------------------------------------------------------------------------------------------------------


def test_the_energy_of_a_checkerboard_is_known():
    torch.manual_seed(0)
    i = torch.arange(32)
    board = (-1.0) ** (i[:, None] + i)
    found = periodic_energy(0.25 * board[None, None], 2)
    assert found.amplitude == pytest.approx(0.25) and found.peak > 1e20  # nothing beside it but rounding
    # In noise of variance v each of the 32^2 frequencies has v / 32^2, and the board a^2 at one of three.
    noise = 0.1 * torch.randn(500, 1, 32, 32)
    found = periodic_energy(noise + 0.01 * board, 2)
    assert found.peak == pytest.approx(1 + 0.01**2 / (3 * 0.1**2 / 32**2), rel=0.1)
    assert found.amplitude == pytest.approx(0.01, rel=0.1)
    assert periodic_energy(noise, 2).peak == pytest.approx(1, abs=0.15)


def test_a_period_has_its_own_frequencies():
    i = torch.arange(32)
    stripes = {p: torch.cos(2 * math.pi * i / p).expand(1, 1, 32, 32).double() for p in (2, 4, 8)}
    for p, image in stripes.items():
        for q in (2, 4, 8):
            expected = image.square().mean().sqrt().item() if p == q else 0.0
            assert periodic_energy(image, q).amplitude == pytest.approx(expected, abs=1e-6)
    assert periodic_energy(stripes[2], 16) is None  # four periods do not fit in
    assert periodic_energy(stripes[2][..., :31, :30], 2).amplitude == pytest.approx(1)  # cut to whole periods
    with pytest.raises(VlaeError, match="2 pixels"):
        periodic_energy(stripes[2], 1)
