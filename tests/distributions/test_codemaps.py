"""The prior over code maps: a distribution (its mass is 1), causal, and sampled as it says."""

import itertools

import pytest
import torch

from vlae import VlaeError
from vlae.distributions.codemaps import CodeMapPrior
from vlae.distributions.scan import greedy
from vlae.nn.quantise import CodePixelCNN

STACKS = ["two", "slanted", "plain", "row_lstm", "attention"]


def make(stacks="two", codes=3, shape=(2, 2), layers=1, channels=4):
    network = CodePixelCNN(codes, stacks, channels, layers=layers, kernel_size=3, image_height=shape[0]).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)  # far from even, so that a wrong order shows
    return CodeMapPrior(network, codes, shape, torch.zeros((), dtype=torch.float64))


def every_map(codes, shape):
    count = shape[0] * shape[1]
    return torch.tensor(list(itertools.product(range(codes), repeat=count))).view(-1, *shape)


@pytest.mark.parametrize("stacks", STACKS)
def test_mass_of_all_code_maps_is_1(stacks):
    prior, maps = make(stacks), every_map(3, (2, 2))
    assert len(maps) == 81
    masses = prior.log_prob(maps).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-12)
    assert masses.std() > 0.1 * masses.mean()


def test_shares_of_each_code_sum_to_the_whole_in_any_batch_shape():
    prior, maps = make(), torch.randint(0, 3, (4, 5, 2, 2))
    shares = prior.log_prob_per_dimension(maps)
    assert shares.shape == maps.shape
    torch.testing.assert_close(shares.sum((-1, -2)), prior.log_prob(maps))
    torch.testing.assert_close(prior.log_prob(maps)[2, 3], prior.log_prob(maps[2, 3]))


@pytest.mark.parametrize("stacks", STACKS)
def test_a_code_depends_on_its_window_and_on_nothing_else(stacks):
    prior = make(stacks, codes=4, shape=(5, 5), channels=8)
    field = prior.network.receptive_field
    codes = torch.randint(0, 4, (5, 5))
    logits = prior.network(codes[None, None] / 3, None)[0, 0]
    for row, column in itertools.product(range(5), repeat=2):
        other = codes.clone()
        other[row, column] = (other[row, column] + 2) % 4
        moved = (prior.network(other[None, None] / 3, None)[0, 0] != logits).any(0)
        seeing = {(row - i, column - j) for i, j in field.offsets}
        inside = {(i, j) for i, j in seeing if 0 <= i < 5 and 0 <= j < 5}
        assert {tuple(place) for place in moved.nonzero().tolist()} == inside


def test_codes_are_names_not_numbers():
    """Renaming the codes, with their embeddings and logits, changes nothing."""
    prior, maps = make(codes=5), torch.randint(0, 5, (6, 2, 2))
    before = prior.log_prob(maps)
    order = torch.randperm(5)
    with torch.no_grad():
        network = prior.network
        network.embedding.weight[order] = network.embedding.weight.clone()
        output = network.trunk.head.output
        output.weight[order], output.bias[order] = output.weight.clone(), output.bias.clone()
    torch.testing.assert_close(prior.log_prob(order[maps]), before)


def test_samples_are_the_distributions():
    prior, maps = make(), every_map(3, (2, 2))
    drawn = prior.sample((20_000,), generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (20_000, 2, 2)
    assert drawn.dtype == torch.int64
    masses = prior.log_prob(maps).exp()
    counts = torch.bincount((drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81).double()
    chi_squared = ((counts - 20_000 * masses) ** 2 / (20_000 * masses)).sum()
    assert chi_squared < 80 + 5 * 160**0.5


def test_samples_follow_generator_temperature_and_shape():
    prior = make(codes=6, shape=(3, 4))
    first, again = (prior.sample((2, 3), generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (2, 3, 3, 4)
    greedy = prior.sample((1,), temperature=0)
    assert torch.equal(prior.sample((5,), temperature=1e-6), greedy.expand(5, -1, -1))
    logits = prior.network(greedy[:, None] / 5, None)[0, 0]
    assert torch.equal(logits.argmax(0), greedy[0])
    with pytest.raises(VlaeError, match="temperature"):
        prior.sample((1,), temperature=-1)


@pytest.mark.parametrize("stacks", STACKS)
def test_wavefront_equals_raster(stacks):
    images = make(stacks, codes=6, shape=(4, 5)).of_images(3)
    uniforms = torch.rand(3, 1, 4, 5, dtype=torch.float64)
    assert torch.equal(images.sample(uniforms=uniforms), images.sample(uniforms=uniforms, method="raster"))


def test_a_scan_says_what_can_be_scanned():
    prior = make()
    with pytest.raises(VlaeError, match="of_images") as caught:
        prior.scan(greedy, 2)
    assert len(str(caught.value).splitlines()) == 1
    assert prior.of_images(2).scan(greedy).shape == (2, 1, 2, 2)
