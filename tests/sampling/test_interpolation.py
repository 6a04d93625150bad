import math

import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.sampling import interpolate
from vlae.sampling.decoding import one_row
from vlae.sampling.interpolation import slerp


@pytest.mark.parametrize("path", ["linear", "spherical"])
@pytest.mark.parametrize(
    "options", [{}, {"flow_steps": 2}, {"flow_steps": 2, "flow_order": "same"}, {"prior": "mixture"}]
)
def test_ends_are_exact_and_gradients_stay_out(tiny_vae, path, options):
    model = tiny_vae(**options)
    first, second = torch.randn(2, 3, dtype=torch.float64)
    z = interpolate(model, first, second, 5, path)
    assert z.shape == (5, 3) and not z.requires_grad
    assert torch.equal(z[0], first) and torch.equal(z[-1], second)


def test_a_linear_path_is_straight_and_even(tiny_vae):
    first, second = torch.randn(2, 3, dtype=torch.float64)
    z = interpolate(tiny_vae(flow_steps=2), first, second, 5, "linear")
    for k in range(5):
        torch.testing.assert_close(z[k], first + (second - first) * k / 4)


def test_a_spherical_path_turns_evenly_and_keeps_the_norm(tiny_vae):
    first = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    second = torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64)
    z = interpolate(tiny_vae(), first, second, 4)
    angles = torch.arange(4, dtype=torch.float64) * math.pi / 6
    expected = 3 * torch.stack([angles.cos(), angles.sin(), torch.zeros(4, dtype=torch.float64)], 1)
    torch.testing.assert_close(z, expected)


@pytest.mark.parametrize("options", [{}, {"flow_steps": 2}, {"prior": "autoregressive_mixture"}, {"prior": "delta"}])
def test_the_norm_of_the_noise_changes_evenly(tiny_vae, options):
    model = tiny_vae(**options)
    first, second = model.prior().sample((2,), torch.Generator().manual_seed(3))
    eps = model.prior().noise_of(interpolate(model, first, second, 6))
    norms = eps.norm(dim=1)
    torch.testing.assert_close(norms.diff(), (norms[-1] - norms[0]).expand(5) / 5)
    unit = eps / norms[:, None]
    angles = (unit[1:] * unit[:-1]).sum(1).acos()
    torch.testing.assert_close(angles, angles[:1].expand(5), atol=1e-6, rtol=1e-6)


def test_where_there_is_no_way_to_turn_the_path_is_straight():
    weights = torch.linspace(0, 1, 3, dtype=torch.float64)[:, None]
    a = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    for b in (-a, a, 2 * a, 0 * a):
        torch.testing.assert_close(slerp(a, b, weights), torch.cat([a, (a + b) / 2, b]))
    near = a + torch.tensor([[1e-9, -1e-9]], dtype=torch.float64)
    torch.testing.assert_close(slerp(a, near, weights)[1:2], (a + near) / 2)


def test_maps_and_ladders(binary):
    maps = vlae.VAE((1, 8, 8), latent_maps=2, architecture="conv", widths=[4], flow_steps=2).double().eval()
    first, second = maps.prior().sample((2,))
    z = interpolate(maps, first, second, 3)
    assert z.shape == (3, *maps.latent_shape) and torch.equal(z[2], second)
    ladder = vlae.LadderVAE((1, 5, 4), latent_dims=(4, 2), widths=[6], hidden=8).double().eval()
    ends = ladder.prior().sample((2,))
    for path in ("linear", "spherical"):
        z = interpolate(ladder, tuple(level[0] for level in ends), tuple(level[1] for level in ends), 3, path)
        assert [tuple(level.shape) for level in z] == [(3, 4), (3, 2)]
        assert torch.equal(one_row(z)[[0, 2]], one_row(ends))


def test_what_has_no_path_is_refused(tiny_vae):
    z = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(VlaeError, match="2 steps or more"):
        interpolate(tiny_vae(), z, z, 1)
    with pytest.raises(VlaeError, match="'linear' or 'spherical'"):
        interpolate(tiny_vae(), z, z, 3, "curved")
    with pytest.raises(VlaeError, match="has no z"):
        interpolate(vlae.PixelCNN((1, 5, 4)), z[:0], z[:0], 3)
    with pytest.raises(VlaeError, match="discrete codes"):
        interpolate(vlae.VQVAE((1, 8, 8), widths=[4]), torch.zeros(4, 4).long(), torch.zeros(4, 4).long(), 3)
