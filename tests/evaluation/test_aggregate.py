import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

import vlae
from vlae import VlaeError
from vlae.distributions import DiagonalGaussian
from vlae.distributions.pointmass import PointMass
from vlae.evaluation import evaluate, keyed_generators
from vlae.evaluation.aggregate import aggregated_log_density, aggregated_mass, gaussian_log_densities, information
from vlae.models.context import given
from vlae.models.latents import some

CONV = {"architecture": "conv", "widths": [4]}
FAMILY = {
    "vector": {},
    "maps": {**CONV, "latent_maps": 2},
    "flow prior": {"flow_steps": 2},
    "mixture prior": {"prior": "mixture", "prior_options": {"components": 3}},
    "vamp prior": {"prior": "vamp", "prior_options": {"components": 3}},
    "iaf": {"posterior": "iaf", "posterior_options": {"hidden": (8,), "context": 4}},
    "vlae": {"kind": "vlae", "flow_steps": 2},
    "vlae iaf": {"kind": "vlae", "posterior": "iaf", "posterior_options": {"hidden": (8,), "context": 4, "steps": 1}},
    "labels": {"classes": 3},
    "labels iaf": {"classes": 3, "posterior": "iaf", "posterior_options": {"hidden": (8,), "context": 4}},
    "ladder": {"kind": "ladder"},
    "ladder bottom up": {"kind": "ladder", "posterior": "bottom_up"},
    "codes": {"kind": "vqvae"},
    "pixelcnn": {"kind": "pixelcnn"},
}


@pytest.fixture(params=FAMILY)
def name(request):
    return request.param


@pytest.fixture
def family(tiny_vae, tiny_vlae):
    """A factory of every kind of model, in float64 with weights far from where training starts."""

    def make(name):
        options = dict(FAMILY[name])
        kind = options.pop("kind", "vae")
        if kind in ("vae", "vlae"):
            model = {"vae": tiny_vae, "vlae": tiny_vlae}[kind](**options)
        elif kind == "ladder":
            model = vlae.LadderVAE((1, 5, 4), latent_dims=(3, 2), widths=[6], hidden=7, **options)
        elif kind == "vqvae":
            model = vlae.VQVAE((1, 5, 4), codes=3, code_dim=2, widths=[4, 4], prior_layers=1, prior_channels=4)
        else:
            model = vlae.PixelCNN((1, 5, 4), decoder_layers=1, channels=5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model = model.double().eval()
        if kind == "vqvae":  # codes that images do have
            model.initialise(torch.randint(0, 2, (4, 1, 5, 4), dtype=torch.float64))
        return model

    return make


def batches(x, size=8, context=None):
    def one_pass():
        for start in range(0, len(x), size):
            stop = min(start + size, len(x))
            yield x[start:stop], range(start, stop), None if context is None else context[start:stop]

    return one_pass


def far_apart(model, scale=300.0):
    """Makes a linear encoder's means so far apart, and its deviations so small, that no two posteriors meet."""
    with torch.no_grad():
        last = model.encoder.layers[-1]
        last.weight[:3].mul_(scale)
        last.weight[3:].zero_()
        last.bias[3:].fill_(-4.0)
    return model


def test_it_is_a_double_loop_over_scipys_densities(tiny_vae, binary):
    model, x = tiny_vae(), binary(20)
    with torch.no_grad():
        model.encoder.layers[-1].weight.mul_(3)
        q = model.encode(x)
        z = q.rsample(generator=keyed_generators(range(20), 4, stream=2)).numpy()
    means, deviations = q.mean.numpy(), q.stddev.numpy()
    gains, excesses = [], []
    for i in range(20):
        pairs = [norm.logpdf(z[i], means[j], deviations[j]).sum() for j in range(20)]
        aggregated = logsumexp(pairs) - math.log(20)
        gains.append(pairs[i] - aggregated)
        excesses.append(aggregated - norm.logpdf(z[i]).sum())
    result = information(model, batches(x), seed=4)
    assert 0.3 < result.mutual_information < 0.9 * math.log(20)
    assert result.mutual_information == pytest.approx(np.mean(gains), abs=1e-12)
    assert result.mutual_information_error == pytest.approx(np.std(gains, ddof=1) / math.sqrt(20), abs=1e-12)
    assert result.marginal_kl == pytest.approx(np.mean(excesses), abs=1e-12)
    assert result.marginal_kl_error == pytest.approx(np.std(excesses, ddof=1) / math.sqrt(20), abs=1e-12)
    assert (result.ceiling, result.images) == (math.log(20), 20)


def test_every_model_is_what_its_posteriors_say_one_pair_at_a_time(name, family, binary):
    model, x = family(name), binary(9)
    context = torch.arange(9) % 3 if model.condition is not None else None

    def posterior(j):
        return model.encode(x[j : j + 1], **given(None if context is None else context[j : j + 1]))

    with torch.no_grad():
        z = model.encode(x, **given(context)).rsample(generator=keyed_generators(range(9), 0, stream=2))
        pairs = np.array([[posterior(j).log_prob(some(z, i, i + 1)).item() for j in range(9)] for i in range(9)])
        prior = model.prior(**given(context)).log_prob(z).numpy()
    aggregated = logsumexp(pairs, axis=1) - math.log(9)
    result = information(model, batches(x, 4, context))
    assert result.mutual_information == pytest.approx((pairs.diagonal() - aggregated).mean(), abs=1e-9)
    assert result.marginal_kl == pytest.approx((aggregated - prior).mean(), abs=1e-9)
    assert result.rate == pytest.approx((pairs.diagonal() - prior).mean(), abs=1e-9)
    assert result.mutual_information + result.marginal_kl == result.rate
    assert result.mutual_information <= result.ceiling
    assert abs(result.mutual_information) > 0.01 or name == "pixelcnn"  # an estimate of it may be negative


def test_it_does_not_depend_on_batch_size_or_chunk(name, family, binary):
    model, x = family(name), binary(13)
    context = torch.arange(13) % 3 if model.condition is not None else None
    first, *others = (
        vars(information(model.train(), batches(x, size, context), chunk=chunk))
        for size, chunk in [(13, 2**15), (1, 2**15), (5, 1), (4, 7), (13, 26)]
    )
    assert model.training
    for other in others:
        assert other == pytest.approx(first, abs=1e-9, rel=0)


def test_the_rate_is_the_bounds_where_the_bounds_is_drawn_too(family, binary):
    # Both estimate E log q - log p: another z of the same posteriors, as many as make the noise small.
    model, x = family("flow prior"), binary(40).repeat(100, 1, 1, 1)
    result, bound = information(model, batches(x, 500), images=4000), evaluate(model, batches(x, 500))
    assert result.rate == pytest.approx(bound.rate, abs=0.1)
    assert bound.rate > 0.5


def test_posteriors_that_do_not_meet_reach_the_ceiling(tiny_vae):
    model, x = far_apart(tiny_vae()), torch.eye(20).view(20, 1, 5, 4).double()
    result = information(model, batches(x))
    assert result.mutual_information == pytest.approx(math.log(20), abs=1e-12)
    assert result.mutual_information <= result.ceiling
    assert result.mutual_information_error < 1e-12
    assert result.marginal_kl > 10
    assert result.saturated == 1


def test_of_pairs_of_equal_images_half_can_be_told_apart(tiny_vae):
    model, x = far_apart(tiny_vae()), torch.eye(20).view(20, 1, 5, 4).double().repeat(2, 1, 1, 1)
    assert information(model, batches(x, 7)).mutual_information == pytest.approx(math.log(40) - math.log(2), abs=1e-9)


def test_a_collapsed_posterior_says_nothing(tiny_vae, binary):
    model = tiny_vae()
    with torch.no_grad():
        model.encoder.layers[-1].weight.zero_()
        model.encoder.layers[-1].bias.copy_(torch.tensor([1.0, -1.0, 0.5, 0.0, 0.3, -0.3]))
    result = information(model, batches(binary(50)))
    assert result.mutual_information == pytest.approx(0, abs=1e-12)
    assert result.marginal_kl == result.rate > 0.3


def test_without_a_code_all_is_zero(family, binary):
    result = information(family("pixelcnn"), batches(binary(10)))
    found = (result.mutual_information, result.mutual_information_error, result.marginal_kl, result.marginal_kl_error)
    assert found == pytest.approx((0, 0, 0, 0), abs=1e-12)


def test_codes_share_their_mass(family, binary):
    # Images with the code map of k others among N: log q(z) = log (k / N).
    model, x = family("codes"), binary(200)
    with torch.no_grad():
        codes = model.encode(x).mean
    _, counts = np.unique(codes.flatten(1).numpy(), axis=0, return_counts=True)
    shares = counts / 200
    assert 1 < len(counts) < 200
    result = information(model, batches(x, 30))
    assert result.mutual_information == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-12)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
def test_the_matrix_product_is_exact_for_sharp_posteriors_far_from_zero(shape):
    rng = np.random.default_rng(0)
    mean = 50 + 5 * rng.normal(size=(7, *shape))
    log_stddev = rng.uniform(math.log(1e-3), 0, size=(7, *shape))
    z = mean[:5] + np.exp(log_stddev[:5]) * rng.normal(size=(5, *shape))
    q = DiagonalGaussian(torch.tensor(mean).float(), torch.tensor(log_stddev).float())
    codes = torch.tensor(z).float()
    found = gaussian_log_densities(q)(codes)
    assert found.dtype == torch.float64 and found.shape == (5, 7)
    parameters = q.mean.double().numpy()[None], np.exp(q.log_stddev.double().numpy())[None]
    expected = norm.logpdf(codes.double().numpy()[:, None], *parameters).reshape(5, 7, -1).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-6)


def test_a_float32_model_is_within_its_rounding_of_the_same_in_float64(family, binary):
    # The noise of the two precisions is not the same, so the codes are given.
    model, x = family("vector"), binary(30)
    with torch.no_grad():
        q = model.encode(x)
        z = q.rsample()
        single = DiagonalGaussian(q.mean.float(), q.log_stddev.float())
        both = [
            aggregated_log_density([p], codes, p.log_prob(codes).double(), 100)
            for p, codes in ((q, z), (single, z.float()))
        ]
    torch.testing.assert_close(*both, atol=1e-5, rtol=0)
    assert information(model.float(), batches(x.float())).mutual_information > 0.01


def test_own_mass_counts_where_all_else_is_impossible():
    q = PointMass(torch.tensor([[0], [1], [0], [2]]), torch.float64)
    for found in (
        aggregated_log_density([q], q.value, torch.zeros(4, dtype=torch.float64), 3),
        aggregated_mass(q.value),
    ):
        np.testing.assert_allclose(found, np.log([0.5, 0.25, 0.5, 0.25]), rtol=1e-14)


def test_only_the_first_images_count(tiny_vae, binary):
    model, x = tiny_vae(), binary(30)
    some_images = information(model, batches(x, 8), images=11)
    assert some_images == information(model, batches(x[:11], 8))
    assert some_images.images == 11 and some_images.ceiling == math.log(11)
    assert information(model, batches(x, 8), images=100).images == 30
    one = information(model, batches(x, 8), images=1)
    assert (one.ceiling, one.mutual_information, one.marginal_kl) == (0, 0, one.rate)


def test_the_seed_is_the_noise_and_no_other_noise_is_its(tiny_vae, binary):
    model, x = tiny_vae(), binary(10)
    state = torch.get_rng_state()
    assert information(model, batches(x), seed=1) == information(model, batches(x), seed=1)
    assert information(model, batches(x), seed=1) != information(model, batches(x), seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    # The bound's codes are others: else the two estimates of the rate would be one.
    with torch.no_grad():
        drawn = model.elbo(x, analytic=False, generator=keyed_generators(range(10), 0)).rate.mean().item()
    assert information(model, batches(x), seed=0).rate != pytest.approx(drawn, abs=1e-6)


def test_progress_counts_the_images(tiny_vae, binary):
    done = []
    information(tiny_vae(), batches(binary(30), 8), images=21, progress=lambda *step: done.append(step))
    assert done == [("information", 8), ("information", 8), ("information", 5)]


def test_what_cannot_be_measured_is_refused_in_a_line(tiny_vae, binary):
    autoencoder = vlae.DenoisingAutoencoder((1, 5, 4), latent_dim=2, architecture="mlp", widths=[4]).double()
    with pytest.raises(VlaeError, match="DenoisingAutoencoder has no density of z"):
        information(autoencoder, batches(binary(4)))
    with pytest.raises(VlaeError, match="empty"):
        information(tiny_vae(), batches(binary(0)))
    for options in ({"images": 0}, {"images": -2}, {"chunk": 0}):
        with pytest.raises(VlaeError, match="1 or more"):
            information(tiny_vae(), batches(binary(4)), **options)
    with pytest.raises(VlaeError, match="labels"):
        information(tiny_vae(classes=3), batches(binary(4)))


def test_images_near_the_ceiling_are_counted(tiny_vae):
    """Twelve images share a posterior and two stand far from all: log 14/12 of each, and log 14 of each."""
    model, x = far_apart(tiny_vae()), torch.eye(20).view(20, 1, 5, 4).double()
    result = information(model, batches(torch.cat([x[:1].expand(12, -1, -1, -1), x[1:3]])))
    assert result.mutual_information == pytest.approx((12 * math.log(14 / 12) + 2 * math.log(14)) / 14, abs=1e-9)
    assert result.saturated == pytest.approx(2 / 14)
