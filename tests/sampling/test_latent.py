import numpy as np
import pytest
import torch

from vlae import VAE, VlaeError
from vlae.sampling import complete, decompressions, prior_samples, save_array


def test_requested_counts_are_the_used_ones(tiny_vlae):
    model = tiny_vlae()
    for count in (1, 7, 8, 9):
        assert len(prior_samples(model, count, batch_size=4)) == count
    assert torch.equal(prior_samples(model, 5, seed=1), prior_samples(model, 5, seed=1))
    assert not torch.equal(prior_samples(model, 5, seed=1), prior_samples(model, 5, seed=2))


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"count": 1, "temperature": -1.0}, {"count": 1, "pixel_temperature": 0.0}]
)
def test_bad_requests(tiny_vlae, options):
    with pytest.raises(VlaeError):
        prior_samples(tiny_vlae(), **options)


def test_decompressions_follow_q_and_p():
    """With p(x|z) = Bernoulli(sigmoid(w z)) and q known, the mean of many decompressions is the integral over q."""
    model = VAE((1, 1, 1), latent_dim=1, architecture="mlp", widths=[2]).double().eval()
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    q = model.encode(x)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None] * q.stddev + q.mean
    weights = q.log_prob(grid[:, None]).flatten().exp()
    exact = (model.decode(grid).mean.flatten() * weights).sum() / weights.sum()
    drawn = decompressions(model, x.expand(20_000, 1, 1, 1), seed=3)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(exact.item(), abs=4 * 0.5 / 20_000**0.5)


def test_array_holds_the_pixels(tmp_path):
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    path = save_array(images, tmp_path / "new" / "x.npz")
    assert np.load(path)["images"].flatten().tolist() == [0, 255]


def test_what_lies_outside_of_0_and_1_is_cut(tmp_path):
    path = save_array(torch.tensor([-0.4, 1.2]).view(2, 1, 1, 1), tmp_path / "x.npz")
    assert np.load(path)["images"].flatten().tolist() == [0, 255]


def test_completion_with_broken_weights_is_refused_in_one_line(tiny_vlae):
    model = tiny_vlae()
    next(model.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(VlaeError, match="weights are broken"):
        complete(model, torch.zeros(2, 1, 5, 4).double(), torch.ones(4, dtype=torch.bool), candidates=3)


def test_completions_by_a_density_are_images(tiny_vlae):
    model = tiny_vlae((1, 6, 6), likelihood="gaussian")
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[:, :, :3] = True
    drawn = model.decode(torch.zeros(8, *model.latent_shape).double()).sample(
        generator=torch.Generator().manual_seed(0)
    )
    assert drawn.min() < 0  # it is a density on all numbers
    images = complete(model, torch.zeros(4, 1, 6, 6).double(), mask, candidates=4, rounds=1).images
    assert images.min() >= 0 and images.max() <= 1 and images.max() > 0
