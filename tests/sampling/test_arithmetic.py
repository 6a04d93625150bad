import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.sampling import arithmetic, posterior_means


def test_it_is_the_algebra_of_the_mean_codes(linear_gaussian, flat_images):
    """Of a linear encoder A x + c the result is A (mean base + mean plus - mean minus) + c."""
    model, base, plus, minus = linear_gaussian(), flat_images(2), flat_images(3), flat_images(1)
    mixed = base.mean(0) + plus.mean(0) - minus.mean(0)
    torch.testing.assert_close(arithmetic(model, base, plus, minus), model.encoder(mixed.view(1, 6)).detach())


def test_what_is_added_and_taken_away_leaves_the_base(tiny_vlae, binary):
    model, base, other = tiny_vlae(), binary(1), binary(4)
    torch.testing.assert_close(arithmetic(model, base, other, other), posterior_means(model, base))


def test_each_level_of_a_ladder_by_itself(binary):
    model = vlae.LadderVAE((1, 5, 4), latent_dims=(4, 2), widths=[6], hidden=8).double().eval()
    base, plus, minus = binary(1), binary(1), binary(1)
    codes = [posterior_means(model, x) for x in (base, plus, minus)]
    for level, z in enumerate(arithmetic(model, base, plus, minus)):
        assert torch.equal(z, codes[0][level] + codes[1][level] - codes[2][level])


def test_contexts_go_with_their_images(binary):
    model = vlae.ConditionalVAE((1, 5, 4), latent_dim=3, classes=4, architecture="mlp", widths=[6]).double().eval()
    x, labels = binary(3), torch.tensor([0, 1, 3])
    z = posterior_means(model, x, labels)
    torch.testing.assert_close(arithmetic(model, x[:1], x[1:2], x[2:], labels), z[:1] + z[1:2] - z[2:])


def test_empty_sets_and_discrete_codes_are_refused(tiny_vae, binary):
    x = binary(1)
    with pytest.raises(VlaeError, match="no images in minus"):
        arithmetic(tiny_vae(), x, x, x[:0])
    with pytest.raises(VlaeError, match="discrete codes"):
        arithmetic(vlae.VQVAE((1, 8, 8), widths=[4]), x, x, x)
