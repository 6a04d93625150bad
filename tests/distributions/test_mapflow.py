import pytest
import torch
from torch.autograd.functional import jacobian

from vlae import VlaeError
from vlae.distributions import MapFlowPrior


def flow(shape, spread=0.15, **options):
    module = MapFlowPrior(shape, **{"steps": 2, "layers": 1, "channels": 4, **options}).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 4, 5), {}),
        ((1, 6, 3), {"layers": 2, "steps": 3}),
        ((2, 5, 5), {"kernel_size": 5, "layers": 2}),
        ((2, 4, 3), {"stacks": "plain", "layers": 3}),
        ((2, 4, 6), {"stacks": "slanted", "layers": 2, "reverse_every": 2, "steps": 4}),
        ((4, 1, 1), {"layers": 0}),
        ((2, 3, 4), {"affine": False, "steps": 3}),
        ((2, 4, 4), {"order": "same", "steps": 3}),
    ],
)
def test_sampling_inverts_the_density_exactly(shape, options):
    prior = flow(shape, **options)
    noise = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    z = prior.sample((3,), torch.Generator().manual_seed(5))
    assert (z - noise).abs().max() > 0.1
    torch.testing.assert_close(prior.noise_of(z), noise, atol=1e-9, rtol=0)
    torch.testing.assert_close(prior.sample((3,), torch.Generator().manual_seed(5), 0.0), prior.sample((3,), None, 0.0))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("order", ["reversed", "same"])
def test_shares_of_the_log_determinant_belong_to_their_values(affine, order):
    shape = (2, 2, 3)
    prior, z = flow(shape, affine=affine, order=order, steps=1), torch.randn(2, 2, 3).double()
    share = prior.log_prob_per_dimension(z) + 0.5 * prior.noise_of(z) ** 2 + 0.9189385332046727
    matrix = jacobian(prior.noise_of, z).view(12, 12)
    torch.testing.assert_close(share.flatten(), matrix.diagonal().log(), atol=1e-10, rtol=0)  # triangular: a step
    assert (share.abs() < 1e-12).all() != affine


def order_of(prior, shape):
    """How many of the matrix's elements above and below the diagonal are not zero."""
    z = torch.randn(*shape).double()
    seen = (jacobian(prior.noise_of, z).view(z.numel(), z.numel()) != 0).view(*shape, *shape)
    matrix = seen.permute(1, 2, 0, 4, 5, 3).reshape(z.numel(), z.numel())  # by pixel, then channel: the order of a scan
    return int(matrix.triu(1).sum()), int(matrix.tril(-1).sum())


def test_order_says_what_the_noise_depends_on():
    shape = (2, 3, 3)
    after, before = order_of(flow(shape, order="same"), shape)
    assert after == 0 and before > 0
    assert order_of(flow(shape, steps=2, reverse_every=2), shape)[0] == 0
    after, before = order_of(flow(shape, steps=2), shape)
    assert after > 0 and before > 0


def test_steps_are_flipped_between_each_or_every_other():
    assert MapFlowPrior((1, 2, 2), steps=5, channels=2).flipped == [False, True, False, True, False]
    pairs = MapFlowPrior((1, 2, 2), steps=6, channels=2, reverse_every=2)
    assert pairs.flipped == [False, False, True, True, False, False]
    assert not any(MapFlowPrior((1, 2, 2), steps=3, channels=2, order="same").flipped)


def test_a_flipped_step_is_the_same_step_of_the_image_turned_around():
    prior, z = flow((2, 3, 4), steps=1), torch.randn(2, 3, 4).double()
    (step,) = prior.steps
    prior.steps = [step._replace(flipped=True)]
    turned = prior.noise_of(z.flip(0, 1, 2)).flip(0, 1, 2)
    shares = prior.log_prob_per_dimension(z.flip(0, 1, 2)).flip(0, 1, 2)
    prior.steps = [step]
    torch.testing.assert_close(turned, prior.noise_of(z))
    torch.testing.assert_close(shares, prior.log_prob_per_dimension(z))


def test_scan_of_one_order_draws_the_samples_of_the_same_noise():
    prior = flow((2, 4, 3), order="same", steps=3, layers=2)
    noise = torch.randn(2, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = prior.scan(lambda sites, conditional: conditional.mean + conditional.stddev * noise[sites.index], 2)
    torch.testing.assert_close(z, prior.sample((2,), torch.Generator().manual_seed(2)), atol=1e-9, rtol=0)


def test_a_reversed_map_flow_says_why_it_can_not_be_scanned():
    for call in (lambda p: p.scan(lambda sites, conditional: conditional.mean, 1), lambda p: p.conditionals(None)):
        with pytest.raises(VlaeError, match=r"no closed form.*order='same'"):
            call(flow((1, 2, 2)))


def test_training_after_sampling_keeps_gradients():
    """The schedule is kept between calls, and sampling runs in inference mode."""
    module = MapFlowPrior((1, 7, 6), steps=2, channels=2)
    module().log_prob(module().sample((2,))).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_papers_sizes_can_be_had_and_start_near_the_standard_normal():
    module = MapFlowPrior((16, 8, 8), steps=6, channels=128, reverse_every=2)
    z, eps = module().sample((1,)), module().noise_of(torch.randn(1, 16, 8, 8))
    assert z.shape == (1, 16, 8, 8) and 0.8 < z.std() < 1.25 and 0.8 < eps.std() < 1.25


def test_samples_do_not_grow_from_pixel_to_pixel():
    """With these weights and a network that reads z as it is, 64 values would reach 1e11."""
    module = MapFlowPrior((1, 8, 8), steps=2, layers=1, channels=8, affine=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(5)
    assert module().sample((20,), torch.Generator().manual_seed(0)).abs().max() < 100
