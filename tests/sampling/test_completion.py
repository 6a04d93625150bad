"""Completion by models whose pixels are independent given z, against sums over z and over all images."""

import itertools
import math

import numpy as np
import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.sampling import complete

COPIES = 4000


def sharpened(model):
    """The model away from its start, where everything is nearly uniform."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    return model.double().eval()


def codes_of(model):
    """z's that stand for all, and the logarithm of each one's share of p(z)."""
    if isinstance(model, vlae.VQVAE):
        z = torch.arange(model.codebook.vectors.shape[0])[:, None, None]
        return z, model.prior().log_prob(z)
    if isinstance(model, vlae.LadderVAE):  # no grid fits both levels: draws, many enough to tell three digits
        return model.prior().sample((400_000,), generator=torch.Generator().manual_seed(9)), -math.log(400_000)
    # Gauss-Hermite quadrature for the standard normal
    points, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(48))
    return points[:, None], (weights / math.sqrt(2 * math.pi)).log()


MODELS = {
    "mlp": lambda: vlae.VAE((1, 2, 2), latent_dim=1, widths=[8]),
    "ladder": lambda: vlae.LadderVAE((1, 2, 2), latent_dims=(1, 1), widths=[8, 8]),
    "vqvae": lambda: vlae.VQVAE((1, 4, 4), widths=[4, 4], codes=6, code_dim=3),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_completions_have_the_distribution_that_a_sum_over_codes_gives(name):
    torch.manual_seed(0)
    model = sharpened(MODELS[name]())
    _, height, width = model.image_shape
    mask = torch.ones(1, 1, height, width, dtype=torch.bool)
    mask[..., -1, -2:] = False  # two pixels are unknown
    known = (torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(3)) > 0.5).double()
    z, log_prior = codes_of(model)
    ways = [torch.tensor(pair).double() for pair in itertools.product((0, 1), repeat=2)]
    log_joint = []
    for pair in ways:
        x = known.clone()
        x[..., -1, -2:] = pair
        log_joint.append((log_prior + model.decode(z).log_prob(x)).logsumexp(0))
    log_evidence = torch.stack(log_joint).logsumexp(0)
    expected = (torch.stack(log_joint) - log_evidence).exp()

    done = complete(model, known.expand(COPIES, -1, -1, -1), mask, candidates=64, seed=5)
    assert torch.equal(done.images[:, mask[0]], known.expand(COPIES, -1, -1, -1)[:, mask[0]])
    found = torch.stack([(done.images[:, 0, -1, -2:] == pair).all(1).double().mean() for pair in ways])
    assert (found - expected).abs().max() < 4 * 0.5 / math.sqrt(COPIES)
    assert (expected - 0.25).abs().max() > 0.08, "else a coin would do"
    assert abs((done.log_evidence.logsumexp(0) - math.log(COPIES) - log_evidence).item()) < 0.02


@torch.no_grad()
def test_given_z_it_is_exact_and_its_weight_is_the_given_pixels():
    torch.manual_seed(0)
    model = sharpened(vlae.VAE((3, 2, 3), latent_dim=2, widths=[8], likelihood="categorical"))
    p = model.decode(torch.zeros(5, 2).double())
    mask = torch.rand(5, 3, 2, 3) > 0.5  # of single colours too
    known = p.sample(generator=torch.Generator().manual_seed(1))
    images, log_known = p.complete(known.masked_fill(~mask, float("nan")), mask, torch.Generator().manual_seed(2))
    assert torch.equal(images[mask], known[mask])
    assert torch.equal(images[~mask], p.sample(generator=torch.Generator().manual_seed(2))[~mask])
    each = [p.pixels.log_prob(known)[b][mask[b]].sum() for b in range(5)]
    assert torch.allclose(log_known, torch.stack(each), rtol=1e-12)
    assert torch.equal(p.complete(known, torch.ones(1, dtype=torch.bool))[1], p.log_prob(known))


def test_what_it_refuses():
    x, mask = torch.zeros(2, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    with pytest.raises(VlaeError, match="DenoisingAutoencoder"):
        complete(vlae.DenoisingAutoencoder((1, 8, 8), latent_dim=2), x, mask)
    p = vlae.VAE((1, 8, 8), latent_dim=2).decode(torch.zeros(2, 2))
    with pytest.raises(VlaeError, match="2 levels"):
        p.complete(x + 0.5, mask)
    with pytest.raises(VlaeError, match="bool"):
        p.complete(x, mask.float())
    with pytest.raises(VlaeError, match="broadcast"):
        p.complete(x, mask[..., :5])
    with pytest.raises(VlaeError, match="known must be images"):
        p.complete(x[:1], mask)
    colours = vlae.VAE(
        (3, 4, 4), latent_dim=2, likelihood="logistic_mixture", likelihood_options={"channel_means": True}
    )
    one = torch.ones(1, 3, 4, 4, dtype=torch.bool)
    one[:, 0] = False
    with pytest.raises(VlaeError, match="all of them or none"):
        complete(colours, torch.zeros(1, 3, 4, 4), one)
    assert torch.equal(complete(colours, torch.zeros(1, 3, 4, 4), one[:, 1:2]).images, torch.zeros(1, 3, 4, 4))
