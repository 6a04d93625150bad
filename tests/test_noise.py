import pytest
import torch

from vlae import VlaeError
from vlae.distributions import DiagonalGaussian
from vlae.noise import rand, randn


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("draw", [rand, randn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(draw, dtype):
    like = torch.zeros((), dtype=dtype)
    assert draw((5,), 2, (3, 4), None, like).shape == (5, 2, 3, 4)
    assert draw((), None, (3,), generators(0)[0], like).shape == (3,)
    assert draw((5,), 2, (3, 4), generators(0, 1), like).shape == (5, 2, 3, 4)
    assert draw((), 2, (3,), generators(0, 1), like).dtype == dtype


@pytest.mark.parametrize("draw", [rand, randn])
def test_an_images_noise_does_not_depend_on_its_neighbours(draw):
    like = torch.zeros(())
    together = draw((7,), 3, (4,), generators(5, 6, 7), like)
    for index, seed in enumerate((5, 6, 7)):
        assert torch.equal(together[:, index : index + 1], draw((7,), 1, (4,), generators(seed), like))
    assert not torch.equal(together[:, 0], together[:, 1])


def test_one_generator_draws_on_and_the_global_one_is_left_alone():
    g, like = torch.Generator().manual_seed(3), torch.zeros(())
    state = torch.get_rng_state()
    first, second = (randn((), 2, (3,), g, like) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, torch.randn(2, 3, generator=torch.Generator().manual_seed(3)))


def test_wrong_number_of_generators_is_refused():
    with pytest.raises(VlaeError, match="got 1 for a batch of 2"):
        DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3)).rsample(generator=generators(0))
