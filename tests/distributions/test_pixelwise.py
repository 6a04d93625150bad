"""Bit depths of the logistic mixture, and the mixture of whole colours with its channel-autoregressive means."""

import itertools
import math

import numpy as np
import pytest
import torch

from vlae import VlaeError
from vlae.distributions import Categorical, Factorised, LogisticMixture, make_likelihood
from vlae.distributions.pixelwise import PixelChannelMixture

BIT_DEPTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16]


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def coloured(levels, components=2, channels=3):
    return LogisticMixture(levels, components, channel_means=True, channels=channels)


def image(likelihood, batch=1, height=1, width=1, spread=2.0, temperature=1.0):
    shape = (batch, likelihood.channels, likelihood.parameters_per_value, height, width)
    return Factorised(likelihood, spread * double(*shape), temperature)


def every_colour(levels, channels):
    """All colours of one pixel, [levels ** channels, channels, 1, 1]."""
    values = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    return torch.cartesian_prod(*[values] * channels).view(-1, channels, 1, 1)


@pytest.mark.parametrize("bits", BIT_DEPTHS)
@pytest.mark.parametrize("spread", [0.5, 5.0])
def test_logistic_mixture_has_mass_one_at_every_bit_depth(bits, spread):
    levels = 2**bits
    pixels = LogisticMixture(levels, 3)(spread * double(8, 9))
    values = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    for masses in (pixels.log_prob(values[:, None]).exp().sum(0), pixels.log_masses.exp().sum(-1)):
        torch.testing.assert_close(masses, torch.ones(8).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bits", BIT_DEPTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_values_of_every_bit_depth_are_accepted_and_those_between_refused(bits, dtype):
    values = torch.linspace(0, 1, 2**bits, dtype=dtype)
    for likelihood in (LogisticMixture(2**bits, 1), Categorical(2**bits)):
        likelihood.check(values)
        likelihood.check(torch.arange(2**bits, dtype=dtype) / (2**bits - 1))
        with pytest.raises(VlaeError, match="levels"):
            likelihood.check(values[:-1] + 0.3 / (2**bits - 1))


@pytest.mark.parametrize(("levels", "channels"), [(4, 3), (2, 3), (16, 3), (3, 2), (3, 4), (5, 1)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_masses_of_all_colours_add_up_to_one(levels, channels, temperature):
    likelihood, colours = coloured(levels, 3, channels), every_colour(levels, channels)
    p = image(likelihood, temperature=temperature)
    repeated = Factorised(likelihood, p.parameters.expand(len(colours), -1, -1, -1, -1), temperature)
    assert likelihood.parameters_per_value == (3 + channels - 1) * 3
    torch.testing.assert_close(repeated.log_prob(colours).exp().sum().item(), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 4, 16, 256, 65536])
def test_each_colour_has_mass_one_given_the_ones_before(levels):
    p = image(coloured(levels), batch=1, height=2)
    x = torch.randint(0, levels, (1, 3, 2, 1)).double() / (levels - 1)
    for channel in range(3):
        varied = x.expand(levels, -1, -1, -1).clone()
        varied[:, channel] = (torch.arange(levels).double() / (levels - 1)).view(-1, 1, 1)
        masses = p.pixels.log_prob(varied)[:, channel].exp().sum(0)
        torch.testing.assert_close(masses, torch.ones(2, 1).double(), rtol=0, atol=1e-12)


def colour_by_definition(parameters, x, levels, components):
    """p(x) of one pixel: a sum over components of products over channels; parameters [C, P], x [C] whole levels."""
    channels, k = len(x), components
    logits = parameters[0, :k]
    weights = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    y = 2 * np.asarray(x) / (levels - 1) - 1
    total = 0.0
    for component in range(k):
        product = weights[component]
        for c in range(channels):
            mean, s = parameters[c, k + component], parameters[c, 2 * k + component]
            for j in range(c):
                mean += np.tanh(parameters[c, 3 * k + j * k + component]) * y[j]
            scale = 0.1 * np.exp(s / (1 + abs(s) / np.log(1000)))
            low = -np.inf if x[c] == 0 else y[c] - 1 / (levels - 1)
            high = np.inf if x[c] == levels - 1 else y[c] + 1 / (levels - 1)
            product *= (np.tanh((high - mean) / scale / 2) - np.tanh((low - mean) / scale / 2)) / 2
        total += product
    return total


@pytest.mark.parametrize(("levels", "channels", "components"), [(4, 3, 3), (5, 2, 2), (8, 4, 1)])
def test_colours_against_their_definition(levels, channels, components):
    likelihood = coloured(levels, components, channels)
    p = image(likelihood, batch=20, height=2, width=3, spread=0.7)
    levels_of_x = torch.randint(0, levels, (20, channels, 2, 3))
    log_probs = p.pixels.log_prob(levels_of_x.double() / (levels - 1)).sum(1)
    for b, i, j in itertools.product(range(20), range(2), range(3)):
        parameters, x = p.parameters[b, :, :, i, j].numpy(), levels_of_x[b, :, i, j].numpy()
        exact = colour_by_definition(parameters, x, levels, components)
        np.testing.assert_allclose(log_probs[b, i, j].exp(), exact, rtol=1e-9, atol=1e-14)


def test_visits_of_the_channels_give_the_shares_of_log_prob():
    p = image(coloured(16, 3), batch=3, height=2, width=2)
    x = torch.randint(0, 16, (3, 3, 2, 2)).double() / 15
    shares = []

    def visit(channel, conditional):
        shares.append(conditional.log_prob(x[:, channel]))
        return x[:, channel]

    assert torch.equal(p.pixels.scan(visit), x)
    torch.testing.assert_close(torch.stack(shares, 1), p.pixels.log_prob(x))


def test_draws_have_the_frequencies_of_the_masses():
    likelihood, n = coloured(3, 2), 20_000
    p = image(likelihood, spread=1.0)
    drawn = p.sample((n,), generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (n, 1, 3, 1, 1)
    codes = (drawn.view(n, 3) * 2).round().long() @ torch.tensor([9, 3, 1])
    frequency = torch.bincount(codes, minlength=27) / n
    mass = p.pixels.log_prob(every_colour(3, 3)).sum((1, 2, 3)).exp()
    assert ((frequency - mass).abs() < 4 * (mass * (1 - mass) / n).sqrt() + 1e-9).all()
    # Independent colours with the same marginals would fail by far.
    cube = mass.view(3, 3, 3)
    independent = torch.einsum("i,j,k->ijk", cube.sum((1, 2)), cube.sum((0, 2)), cube.sum((0, 1)))
    assert (cube - independent).abs().max() > 0.02


def test_draws_are_the_inverse_cdf_of_their_uniforms_channel_after_channel():
    p = image(coloured(4), batch=2, height=3, width=2)
    u = torch.rand(2, 3, 3, 2, dtype=torch.float64)
    drawn = p.sample(uniforms=u)
    assert torch.equal(p.sample(uniforms=u), drawn)
    low = torch.zeros_like(u)  # the mass under the drawn level, given the drawn levels before it
    for level in range(4):
        for channel in range(3):
            varied = drawn.clone()
            varied[:, channel] = level / 3
            share = p.pixels.log_prob(varied)[:, channel].exp()
            low[:, channel] += torch.where(level / 3 < drawn[:, channel] - 1e-9, share, 0)
    high = low + p.pixels.log_prob(drawn).exp()
    assert ((low <= u + 1e-12) & (u < high + 1e-12)).all()
    changed = u.clone()
    changed[:, 1] = 1 - changed[:, 1]
    assert torch.equal(p.sample(uniforms=changed)[:, 0], drawn[:, 0])
    a, b = (p.sample((2,), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(p.pixels.sample((2,), torch.Generator().manual_seed(3)), a)


def test_the_mode_is_greedy_and_the_mean_refers_to_it():
    p = image(coloured(4), batch=6)
    chosen = p.mode
    assert chosen.shape == (6, 3, 1, 1)
    for channel in range(3):
        masses = []
        for level in range(4):
            varied = chosen.clone()
            varied[:, channel] = level / 3
            masses.append(p.pixels.log_prob(varied)[:, channel])
        assert torch.equal(torch.stack(masses).argmax(0) / 3, chosen[:, channel].float())
    assert not p.has_mean
    with pytest.raises(VlaeError, match=r"use \.mode"):
        _ = p.mean
    with pytest.raises(VlaeError, match="channel_means=False"):
        _ = p.pixels.log_masses


def test_one_channel_or_no_dependence_is_the_plain_mixture():
    grey, plain = coloured(8, 3, channels=1), LogisticMixture(8, 3)
    parameters, x = double(4, 1, 9, 2, 2), torch.randint(0, 8, (4, 1, 2, 2)).double() / 7
    torch.testing.assert_close(Factorised(grey, parameters).log_prob(x), Factorised(plain, parameters).log_prob(x))
    assert torch.equal(Factorised(grey, parameters).mode, Factorised(plain, parameters).mode)
    # One component and coefficients of 0: nothing is left that joins the channels.
    parameters, x = double(4, 3, 3, 2, 2), torch.randint(0, 8, (4, 3, 2, 2)).double() / 7
    padded = torch.cat([parameters, torch.zeros(4, 3, 2, 2, 2).double()], 2)
    joint, apart = Factorised(coloured(8, 1), padded), Factorised(LogisticMixture(8, 1), parameters)
    torch.testing.assert_close(joint.log_prob(x), apart.log_prob(x))


def test_the_images_rounding_does_not_matter():
    p = image(coloured(256), batch=3)
    x = torch.randint(0, 256, (3, 3, 1, 1)).double() / 255
    torch.testing.assert_close(p.log_prob(x.float().double()), p.log_prob(x), rtol=1e-13, atol=0)


def test_the_parameters_that_say_they_are_used_are():
    likelihood = coloured(16, 2)
    parameters = double(1, 3, likelihood.parameters_per_value, 2, 1).requires_grad_()
    x = torch.randint(0, 16, (1, 3, 2, 1)).double() / 15
    (gradient,) = torch.autograd.grad(Factorised(likelihood, parameters).log_prob(x).sum(), parameters)
    used = torch.ones(3, 10, dtype=torch.bool)
    used[1:, :2] = False  # the other channels' logits
    used[0, 6:] = used[1, 8:] = False  # coefficients of channels that do not come before
    assert torch.equal((gradient != 0)[0, :, :, 0, 0], used)
    assert torch.equal((gradient != 0)[0, :, :, 1, 0], used)


@pytest.mark.parametrize(("levels", "channels"), [(2, 3), (5, 2)])
def test_gradients_of_colours_are_those_of_their_values(levels, channels):
    likelihood = coloured(levels, 2, channels)
    parameters = double(2, channels, likelihood.parameters_per_value, 1, 1).requires_grad_()
    x = torch.randint(0, levels, (2, channels, 1, 1)).double() / (levels - 1)
    assert torch.autograd.gradcheck(lambda p: Factorised(likelihood, p).log_prob(x), parameters)


def test_extreme_colours_are_finite_in_float32():
    likelihood = coloured(256, 2)
    extremes = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4])
    parameters = extremes[torch.randint(0, 5, (300, 3, likelihood.parameters_per_value, 1, 1))].requires_grad_()
    x = torch.randint(0, 256, (300, 3, 1, 1)) / 255
    x[:50], x[50:100] = 0, 1
    p = Factorised(likelihood, parameters)
    log_prob = p.log_prob(x)
    (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(gradient).all()
    assert (log_prob <= 1e-5).all()
    for drawn in (p.mode, p.sample()):
        likelihood.check(drawn.detach())


def test_log_prob_takes_several_images_at_once():
    p = image(coloured(4), batch=2)
    drawn = p.sample((5,))
    each = torch.stack([p.pixels.log_prob(one) for one in drawn])
    torch.testing.assert_close(p.pixels.log_prob(drawn), each)


def test_temperature_sharpens_weights_and_scales():
    parameters = double(2, 3, 10, 1, 1)
    sharp, plain = (Factorised(coloured(8, 2), parameters, t).pixels for t in (0.25, 1.0))
    assert isinstance(sharp, PixelChannelMixture)
    torch.testing.assert_close(sharp.logits, 4 * plain.logits)
    torch.testing.assert_close(sharp.log_scales, plain.log_scales + math.log(0.25))
    torch.testing.assert_close(sharp.coefficients, plain.coefficients)


def test_a_vae_models_how_colours_go_together(tiny_vae, all_images):
    options = {"levels": 2, "components": 2, "channel_means": True}
    model = tiny_vae((3, 1, 2), likelihood="logistic_mixture", likelihood_options=options)
    images = all_images((3, 1, 2), 2)
    mass = model.decode(double(1, 3).expand(len(images), -1)).log_prob(images).exp().sum()
    torch.testing.assert_close(mass.item(), 1.0, atol=1e-12, rtol=0)
    assert torch.isfinite(model.elbo(images).elbo).all()
    assert model.sample(3).shape == (3, 3, 1, 2)


def test_an_autoregressive_decoder_refuses_channel_means(tiny_vlae):
    with pytest.raises(VlaeError, match="channel_means"):
        tiny_vlae((3, 2, 2), likelihood="logistic_mixture", likelihood_options={"channel_means": True}).decode(
            double(1, 3)
        ).log_prob(torch.zeros(1, 3, 2, 2).double())


def test_images_of_other_channels_are_refused():
    with pytest.raises(VlaeError, match=r"channels=3 and the images have 1: set channels=1") as caught:
        Factorised(coloured(4), double(2, 1, 10, 2, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"channel_means": "yes"}, {"channel_means": 1}, {"channels": 0}, {"channels": 2.0}]
)
def test_impossible_channels_are_refused(options):
    with pytest.raises(VlaeError) as caught:
        make_likelihood("logistic_mixture", **options)
    assert "\n" not in str(caught.value)
