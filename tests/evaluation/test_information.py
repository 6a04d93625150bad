import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from vlae.evaluation import BITS, LatentStatistics


@pytest.mark.parametrize("shape", [(4,), (2, 3, 2)])
@pytest.mark.parametrize("sizes", [[50], [1] * 50, [7, 30, 13], [49, 1]])
def test_statistics_are_numpys_whatever_the_batches(shape, sizes):
    rng = np.random.default_rng(0)
    rates = rng.normal(size=(50, *shape))
    means = 100 + rng.normal(size=(50, *shape)) * np.linspace(0.05, 0.15, math.prod(shape)).reshape(shape)
    statistics = LatentStatistics()
    for part, mean in zip(np.split(rates, np.cumsum(sizes)[:-1]), np.split(means, np.cumsum(sizes)[:-1]), strict=True):
        statistics.add(torch.from_numpy(part), torch.from_numpy(mean))
    np.testing.assert_allclose(statistics.bits_per_dimension, rates.mean(0) / np.log(2), rtol=1e-12)
    variances = means.var(0, ddof=1)
    np.testing.assert_allclose(statistics.squares / (statistics.count - 1), variances, rtol=1e-9)
    assert statistics.active_units == (variances > 0.01).sum()
    assert 0 < statistics.active_units < math.prod(shape)


def test_float32_batches_are_accumulated_in_double():
    statistics = LatentStatistics()
    for _ in range(100):
        statistics.add(torch.full((100, 1), 0.1), 1e4 + torch.tensor([[-0.25], [0.25]]).repeat(50, 1))
    assert statistics.bits_per_dimension.item() == pytest.approx(float(np.float32(0.1)) * BITS, rel=1e-12)
    assert (statistics.squares / statistics.count).item() == pytest.approx(0.0625, rel=1e-6)


def test_constant_units_are_not_active():
    statistics = LatentStatistics()
    statistics.add(torch.zeros(10, 2), torch.stack([torch.full((10,), 5.0), torch.arange(10.0)], dim=1))
    assert statistics.active_units == 1


def test_one_image_has_no_variance():
    statistics = LatentStatistics()
    statistics.add(torch.ones(1, 2), torch.ones(1, 2))
    assert statistics.active_units is None
    statistics.add(torch.ones(1, 2), torch.ones(1, 2))
    assert statistics.active_units == 0


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 40, 13]])
def test_codes_are_counted_whatever_the_batches(sizes):
    codes = torch.from_numpy(np.random.default_rng(0).choice([1, 2, 9], p=[0.1, 0.2, 0.7], size=(60, 2, 3)))
    rates = torch.rand(60, 2, 3, dtype=torch.float64)
    statistics = LatentStatistics()
    for rate, part in zip(rates.split(sizes), codes.split(sizes), strict=True):
        statistics.add(rate, part)
    _, counts = np.unique(codes.numpy(), return_counts=True)
    assert (statistics.codes_in_use, statistics.active_units) == (3, None)
    assert statistics.perplexity == pytest.approx(math.exp(entropy(counts)), rel=1e-12)
    np.testing.assert_allclose(statistics.bits_per_dimension, rates.mean(0) / np.log(2), rtol=1e-12)


def test_means_that_are_no_codes_have_no_perplexity():
    statistics = LatentStatistics()
    statistics.add(torch.zeros(3, 2), torch.zeros(3, 2))
    assert (statistics.codes_in_use, statistics.perplexity, statistics.active_units) == (None, None, 0)


def test_bits():
    assert pytest.approx(3.0) == math.log(8) * BITS
