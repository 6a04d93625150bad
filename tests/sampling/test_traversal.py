import numpy as np
import pytest
import torch
from scipy.stats import norm

import vlae
from vlae import VlaeError
from vlae.sampling import dimension_rates, informative_dimensions, prior_quantiles, traverse, traverse_noise

P = [0.01, 0.1, 0.5, 0.8, 0.99]


@pytest.fixture
def ladder():
    return vlae.LadderVAE((1, 5, 4), latent_dims=(4, 2), widths=[6], hidden=8).double().eval()


def test_rates_are_those_of_the_bound(tiny_vae, tiny_vlae, ladder, binary):
    x = binary(6)
    noise = lambda: [torch.Generator().manual_seed(3 + k) for k in range(6)]  # noqa: E731
    for model in (tiny_vae(), tiny_vlae(flow_steps=2), ladder):
        bound = model.elbo(x, generator=noise())
        torch.testing.assert_close(
            dimension_rates(model, x, seed=3), bound.rate_per_dimension.mean(0).detach(), atol=1e-12, rtol=1e-12
        )


def test_the_most_informative_dimensions_come_first(linear_gaussian, flat_images):
    model = linear_gaussian()
    model.make_exact()  # its two dimensions tell apart images by 0.8 and by 0.3
    x = flat_images(20)
    assert informative_dimensions(model, x, 2) == [0, 1]
    assert informative_dimensions(model, x, 1) == [0]
    assert informative_dimensions(model, x, 9) == [0, 1]
    rates = dimension_rates(model, x)
    assert rates[0] > rates[1] > 0


def test_quantiles_of_a_standard_normal_are_exact(tiny_vae):
    for options in ({}, {"prior": "delta"}):  # of the AR(1) prior each dimension by itself is standard normal
        quantiles = prior_quantiles(tiny_vae(**options), [0, 2], P)
        np.testing.assert_allclose(quantiles.numpy(), np.tile(norm.ppf(P), (2, 1)), rtol=1e-12)


def test_quantiles_of_any_gaussian_are_those_of_its_marginals():
    model = vlae.DenoisingAutoencoder((1, 5, 4), latent_dim=3, architecture="mlp", widths=[6]).double().eval()
    model.prior_module.center.copy_(torch.tensor([1.0, -2.0, 0.5]))
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.2, 0.4, 2.0]]).double()
    model.prior_module.covariance.copy_(factor @ factor.t())
    draws = 20_000
    found = prior_quantiles(model, [1, 2], P, draws=draws).numpy()
    for row, dimension in zip(found, [1, 2], strict=True):
        law = norm(model.prior().mean[dimension].item(), factor[dimension].norm().item())
        deviations = np.sqrt(np.array(P) * (1 - np.array(P)) / draws) / law.pdf(law.ppf(P))
        assert (np.abs(row - law.ppf(P)) < 5 * deviations).all()
    assert np.array_equal(found, prior_quantiles(model, [1, 2], P, draws=draws).numpy())


def test_one_dimension_takes_the_values_and_the_others_stay(ladder):
    z, values = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([5.0, 6.0])
    moved = traverse(z, 13, values)  # maps in the order of memory: 13 = 1 * 12 + 0 * 4 + 1
    assert moved[:, 1, 0, 1].tolist() == [5.0, 6.0]
    moved[:, 1, 0, 1] = z[1, 0, 1]
    assert torch.equal(moved, z.expand(2, -1, -1, -1))
    lower, upper = traverse((torch.zeros(4), torch.zeros(2)), 5, values)
    assert not lower.any() and upper.tolist() == [[0, 5], [0, 6]]


@pytest.mark.parametrize(
    "options", [{}, {"flow_steps": 2}, {"flow_steps": 2, "flow_order": "same"}, {"prior": "autoregressive_mixture"}]
)
def test_one_dimension_of_the_noise_takes_the_values_and_the_others_stay(tiny_vae, options):
    model, values = tiny_vae(**options), torch.tensor([-2.0, 0.0, 2.0]).double()
    z = model.prior().sample((1,))[0]
    expected = model.prior().noise_of(z).detach().repeat(3, 1)
    expected[:, 1] = values
    moved = traverse_noise(model, z, 1, values)
    assert not moved.requires_grad
    torch.testing.assert_close(model.prior().noise_of(moved), expected)
    if not options:
        assert torch.equal(moved, traverse(z, 1, values))


def test_the_top_of_a_ladder_is_seen_through_its_noise_alone(ladder):
    one = tuple(level[0] for level in ladder.prior().sample((1,)))
    values = torch.tensor([-2.0, 2.0]).double()
    below, _ = traverse(one, 5, values)
    assert torch.equal(below[0], below[1])
    below, top = traverse_noise(ladder, one, 5, values)
    assert (below[0] != below[1]).all() and top[:, 1].tolist() == [-2, 2]


def test_maps_move_in_the_noise_too():
    model = vlae.VAE((1, 8, 8), latent_maps=2, architecture="conv", widths=[4], flow_steps=2).double().eval()
    z = model.prior().sample((1,))[0]
    eps = model.prior().noise_of(traverse_noise(model, z, 17, torch.tensor([1.5]).double()))
    assert eps.flatten()[17].item() == pytest.approx(1.5)


def test_what_can_not_be_traversed_is_refused(tiny_vae, binary):
    model, x = tiny_vae(), binary(2)
    for wrong in ([0.5, 1.0], [], [float("nan")]):
        with pytest.raises(VlaeError, match="between 0 and 1"):
            prior_quantiles(model, [0], wrong)
    with pytest.raises(VlaeError, match="dimensions 0 to 2; got 3"):
        prior_quantiles(model, [3], P)
    with pytest.raises(VlaeError, match="dimensions 0 to 2; got -1"):
        traverse(torch.zeros(3), -1, torch.zeros(2))
    with pytest.raises(VlaeError, match="count must be at least 1"):
        informative_dimensions(model, x, 0)
    with pytest.raises(VlaeError, match="has no z"):
        dimension_rates(vlae.PixelCNN((1, 5, 4)).double(), x)
    with pytest.raises(VlaeError, match="no rate to choose dimensions by"):
        dimension_rates(vlae.DenoisingAutoencoder((1, 5, 4), architecture="mlp").double(), x)
    with pytest.raises(VlaeError, match="discrete codes"):
        prior_quantiles(vlae.VQVAE((1, 8, 8), widths=[4]), [0], P)


def test_a_prior_that_looks_at_images_is_used_in_eval_mode():
    model = vlae.VAE((1, 8, 8), latent_dim=2, architecture="conv", widths=[4], prior="vamp").train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    traverse_noise(model, torch.zeros(2), 0, torch.tensor([-1.0, 1.0]))
    assert before and all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert model.training
