import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.models.latents import some
from vlae.sampling import decode, posterior_means
from vlae.sampling.decoding import BATCH, from_noise_rows, noise_rows, of_row, one_row, require_autoregressive


def test_equal_codes_give_equal_images_whatever_stands_beside_them(tiny_vae):
    model = tiny_vae()
    z = 30 * torch.randn(3, 3, dtype=torch.float64)  # far apart, so that a decoder without training shows it
    images = decode(model, torch.stack([z[0], z[1], z[0], z[2]]), seed=4)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[3:], decode(model, z[2:], seed=4))
    assert not torch.equal(images[0], decode(model, z[:1], seed=5)[0])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_drawn_images_are_the_models_own_draws_of_that_noise(tiny_vlae, tiny_vae, temperature):
    for model in (tiny_vlae(), tiny_vae()):
        z = torch.randn(2, 3, dtype=torch.float64)
        for k in range(2):
            own = model.decode(z[k : k + 1], temperature).sample(generator=torch.Generator().manual_seed(7))
            assert torch.equal(decode(model, z, seed=7, pixel_temperature=temperature)[k : k + 1], own)


def test_drawn_pixels_have_the_probability_that_the_code_gives_them(tiny_vae):
    model, z = tiny_vae(image_shape=(1, 2, 2)), torch.randn(1, 3, dtype=torch.float64)
    mean = torch.cat([decode(model, z, seed=seed) for seed in range(250)]).mean(0)
    torch.testing.assert_close(mean, model.decode(z).mean[0].detach(), atol=4 * 0.5 / 250**0.5, rtol=0)


def test_without_drawing_it_is_the_reconstruction(tiny_vlae, tiny_vae, binary):
    x = binary(3)
    for model in (tiny_vlae(), tiny_vae()):
        z = posterior_means(model, x)
        assert torch.equal(z, model.encode(x).mean)
        assert torch.equal(decode(model, z, drawn=False), model.reconstruct(x))


def test_many_codes_are_decoded_in_parts(tiny_vae):
    model, z = tiny_vae(), torch.randn(BATCH + 3, 3, dtype=torch.float64)
    images = decode(model, z, drawn=False)
    assert len(images) == BATCH + 3
    torch.testing.assert_close(images[-2:], decode(model, z[-2:], drawn=False))


def test_a_ladder_a_codebook_and_no_code_at_all(binary):
    ladder = vlae.LadderVAE((1, 5, 4), latent_dims=(4, 2), widths=[6], hidden=8).double().eval()
    z = posterior_means(ladder, binary(3))
    assert [tuple(level.shape) for level in z] == [(3, 4), (3, 2)]
    assert decode(ladder, z, drawn=False).shape == (3, 1, 5, 4)
    quantised = vlae.VQVAE((1, 8, 8), codes=5, code_dim=2, widths=[4], prior_layers=1).double().eval()
    codes = posterior_means(quantised, binary(2, (1, 8, 8)))
    assert decode(quantised, codes).shape == (2, 1, 8, 8)
    alone = vlae.PixelCNN((1, 5, 4), decoder_layers=0, channels=4).double().eval()
    images = decode(alone, posterior_means(alone, binary(2)))
    assert torch.equal(images[0], images[1])


def test_a_context_is_one_for_all_or_one_each(binary):
    model = vlae.ConditionalVAE((1, 5, 4), latent_dim=3, classes=4, architecture="mlp", widths=[6]).double().eval()
    z = torch.randn(1, 3, dtype=torch.float64).expand(3, -1)
    each = decode(model, z, drawn=False, context=torch.tensor([1, 1, 2]))
    torch.testing.assert_close(each[0], each[1])
    assert not torch.allclose(each[0], each[2])
    torch.testing.assert_close(decode(model, z, drawn=False, context=torch.tensor(2))[0], each[2])
    with pytest.raises(VlaeError, match="conditional"):
        decode(model, z)


def test_rows_hold_all_levels_and_all_values():
    tuples = (torch.randn(3, 4), torch.randn(3, 2))
    assert one_row(tuples).shape == (3, 6)
    assert all(torch.equal(a, b) for a, b in zip(of_row(one_row(tuples), tuples), tuples, strict=True))
    maps = torch.randn(3, 2, 4, 5)
    assert torch.equal(of_row(one_row(maps)[:2], maps), maps[:2])


def test_noise_goes_there_and_back_for_vectors_maps_and_ladders(tiny_vae):
    ladder = vlae.LadderVAE((1, 5, 4), latent_dims=(4, 2), widths=[6], hidden=8).double().eval()
    maps = vlae.VAE((1, 8, 8), latent_maps=2, architecture="conv", widths=[4], flow_steps=2).double().eval()
    for model in (ladder, maps, tiny_vae(flow_steps=2)):
        z = model.prior().sample((3,))
        back = from_noise_rows(model, noise_rows(model, z))
        torch.testing.assert_close(one_row(back), one_row(z))
        assert one_row(some(back, 0, 2)).shape == (2, model.latent_size)


def test_bad_requests_are_refused(tiny_vae):
    with pytest.raises(VlaeError, match="temperature"):
        decode(tiny_vae(), torch.zeros(1, 3).double(), pixel_temperature=0)
    with pytest.raises(VlaeError, match="no codes"):
        decode(tiny_vae(), torch.zeros(0, 3).double())
    with pytest.raises(VlaeError, match="expected latents"):
        decode(tiny_vae(), torch.zeros(1, 4).double())


def test_what_says_how_pixels_are_drawn_is_refused_where_none_are(tiny_vlae, tiny_vae):
    require_autoregressive(tiny_vlae(), "--greedy")
    with pytest.raises(VlaeError, match=r"factorised decoder, .* leave out --greedy"):
        require_autoregressive(tiny_vae(), "--greedy")
