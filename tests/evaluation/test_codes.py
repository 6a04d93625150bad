"""Codes and their rates of a data set: against the model's own bound, and against closed forms."""

import math

import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.data import ImageDataset
from vlae.evaluation import keyed_generators
from vlae.evaluation.codes import (
    check_dimensions,
    code_bits,
    code_draws,
    code_means,
    dimension_names,
    has_closed_rate,
    has_normal_marginals,
    prior_draws,
)
from vlae.models import VQVAE, ConditionalVAE, DenoisingAutoencoder, LadderVAE, PixelCNN

SHAPE = (1, 5, 4)


def images(count=7, labels=True):
    x = torch.randint(0, 2, (count, *SHAPE)).double()
    return ImageDataset.from_any(x, levels=2, labels=torch.arange(count) % 3 if labels else None, split="test")


MODELS = {
    "normal": lambda: vlae.VAE(SHAPE, latent_dim=3, architecture="mlp", widths=[6]),
    "flow": lambda: vlae.VAE(SHAPE, latent_dim=3, architecture="mlp", widths=[6], flow_steps=2, flow_hidden=(8,)),
    "iaf": lambda: vlae.VAE(SHAPE, latent_dim=3, architecture="mlp", widths=[6], posterior="iaf"),
    "maps": lambda: vlae.VAE(SHAPE, architecture="conv", widths=[4], latent_maps=2),
    "delta": lambda: vlae.VAE(SHAPE, latent_dim=3, architecture="mlp", widths=[6], prior="delta"),
    "conditional": lambda: ConditionalVAE(SHAPE, classes=3, latent_dim=3, architecture="mlp", widths=[6]),
    "ladder": lambda: LadderVAE(SHAPE, latent_dims=(4, 2), hidden=8),
    "vqvae": lambda: VQVAE(SHAPE, codes=5, code_dim=3, widths=[4], prior_channels=4),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]().double().eval()


def test_bits_are_the_bounds_own_and_sum_to_the_rate(model):
    data = images()
    context = model.context_of(data.labels, data.factors)
    bound = model.elbo(data.tensor().double(), generator=keyed_generators(range(7), 3), context=context)
    bits = code_bits(model, data, seed=3)
    torch.testing.assert_close(bits * math.log(2), bound.rate_per_dimension.flatten(1).detach())
    torch.testing.assert_close(bits.sum(1) * math.log(2), bound.rate.detach())
    assert len(dimension_names(model)) == bits.shape[1]


def test_codes_do_not_depend_on_the_batch_size(model):
    data = images()
    torch.testing.assert_close(code_means(model, data, batch_size=2), code_means(model, data))
    torch.testing.assert_close(code_bits(model, data, 3, batch_size=2), code_bits(model, data, 3))
    if not model.discrete:
        torch.testing.assert_close(code_draws(model, data, batch_size=2), code_draws(model, data))


def test_draws_of_a_share_approach_its_closed_form():
    model = MODELS["normal"]().double().eval()
    x = torch.zeros(1, *SHAPE).double()
    data = ImageDataset.from_any(x, levels=2, split="test")
    exact = code_bits(model, data)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vlae.sampling.traversal.rate_per_dimension",
            lambda q, p, z: q.log_prob_per_dimension(z) - p.log_prob_per_dimension(z),
        )
        estimate = code_bits(model, data, 4000)[0]
        assert (code_bits(model, data, 1)[0] - exact).abs().max() > 1e-4  # one draw is not enough
    torch.testing.assert_close(estimate, exact, atol=0.05, rtol=0)


def test_noise_is_that_of_the_prior():
    model, data = MODELS["flow"]().double().eval(), images()
    prior = model.prior()
    torch.testing.assert_close(
        code_means(model, data, "noise"), prior.noise_of(model.encode(data.tensor().double()).mean).detach()
    )
    z, noise = code_draws(model, data, seed=2), code_draws(model, data, "noise", seed=2)
    torch.testing.assert_close(noise, prior.noise_of(z).detach())
    z, noise = prior_draws(model, 6, seed=2), prior_draws(model, 6, "noise", seed=2)
    torch.testing.assert_close(noise, prior.noise_of(z).detach())
    plain = MODELS["normal"]().double().eval()
    assert torch.equal(code_means(plain, data, "noise"), code_means(plain, data))


@pytest.mark.parametrize(
    ("name", "space"), [("normal", "latent"), ("delta", "latent"), ("flow", "noise"), ("ladder", "noise")]
)
def test_what_is_called_standard_normal_is(name, space):
    model = MODELS[name]().double().eval()
    assert has_normal_marginals(model, space)
    draws = prior_draws(model, 4000, space).T
    grid = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)
    below = (draws[:, :, None] <= grid).double().mean(1)
    exact = torch.distributions.Normal(0, 1).cdf(grid).expand_as(below)
    torch.testing.assert_close(below, exact, atol=0.04, rtol=0)  # Kolmogorov-Smirnov: 1e-5 at 0.04


def test_other_priors_are_not_called_standard_normal():
    flow = MODELS["flow"]().double()
    with torch.no_grad():
        for parameter in flow.prior_module.parameters():
            parameter.mul_(3)
    draws = prior_draws(flow, 2000)
    assert not has_normal_marginals(flow) and ((draws.mean(0).abs() > 0.2) | ((draws.std(0) - 1).abs() > 0.2)).any()


def test_the_aggregate_posterior_of_an_exact_posterior_is_the_prior(linear_gaussian):
    model = linear_gaussian()
    model.make_exact()
    x = model.decode(model.prior().sample((4000,))).sample()
    with pytest.MonkeyPatch.context() as patch:  # its pixels are any real numbers, which no data set holds
        patch.setattr("vlae.evaluation.codes.batches_of", lambda *_: [(x, range(len(x)), None)])
        draws = code_draws(model, None)
    torch.testing.assert_close(draws.T.cov(), torch.eye(2, dtype=torch.float64), atol=0.08, rtol=0)
    torch.testing.assert_close(draws.mean(0), torch.zeros(2, dtype=torch.float64), atol=0.06, rtol=0)


@pytest.mark.parametrize(("name", "closed"), [("normal", True), ("delta", True), ("vqvae", True), ("flow", False)])
def test_closed_rates_are_never_negative_and_never_change(name, closed):
    model, data = MODELS[name]().double().eval(), images()
    assert has_closed_rate(model) is closed
    several = [code_bits(model, data, seed=seed) for seed in range(20)]
    same = all(torch.equal(several[0], each) for each in several)
    assert same is closed and (torch.stack(several).min() >= 0) == closed


def test_an_iaf_posterior_has_no_closed_rate():
    assert not has_closed_rate(MODELS["iaf"]()) and not has_closed_rate(MODELS["ladder"]())


def test_dimensions_have_names():
    assert dimension_names(MODELS["normal"]()) == ["z_0", "z_1", "z_2"]
    assert dimension_names(MODELS["flow"](), "noise") == ["ε_0", "ε_1", "ε_2"]
    assert dimension_names(MODELS["ladder"]())[3:5] == ["z_1[3]", "z_2[0]"]
    assert dimension_names(MODELS["maps"]())[:3] == ["z[0, 0, 0]", "z[0, 0, 1]", "z[0, 1, 0]"]
    assert dimension_names(MODELS["vqvae"]())[:2] == ["k[0, 0]", "k[0, 1]"]


def test_models_without_what_is_asked_for_are_refused():
    data = images()
    with pytest.raises(VlaeError, match="PixelCNN has no latent code"):
        code_means(PixelCNN(SHAPE), data)
    autoencoder = DenoisingAutoencoder(SHAPE, latent_dim=2, architecture="mlp")
    with pytest.raises(VlaeError, match="no density of z"):
        code_bits(autoencoder, data)
    assert code_means(autoencoder, data).shape == (7, 2)
    vqvae = MODELS["vqvae"]()
    with pytest.raises(VlaeError, match="numbers in no order"):
        code_draws(vqvae, data)
    with pytest.raises(VlaeError, match="no noise"):
        code_means(vqvae, data, "noise")
    with pytest.raises(VlaeError, match="latent and noise"):
        code_means(MODELS["normal"](), data, "pixels")
    with pytest.raises(VlaeError, match="draws must be at least 1"):
        code_bits(MODELS["normal"](), data, 0)


def test_dimensions_that_are_not_there_are_refused():
    assert check_dimensions([2, 0], 3) == [2, 0]
    for wrong in ([3], [-1]):
        with pytest.raises(VlaeError, match="the code has 3, from 0 to 2"):
            check_dimensions(wrong, 3)
    with pytest.raises(VlaeError, match="twice"):
        check_dimensions([1, 1], 3)
