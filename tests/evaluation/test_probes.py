"""Probes on codes whose usefulness is known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlae import VlaeError
from vlae.data import ImageDataset, load
from vlae.evaluation import probes
from vlae.evaluation.codes import code_means


def clusters(count, seed, spread=0.1):
    """Codes around three corners, and which corner."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    return centres[labels] + spread * torch.randn(count, 2, generator=generator, dtype=torch.float64), labels


def test_separate_clusters_are_told_apart_and_noise_is_not():
    train, test = clusters(60, 0), clusters(30, 1)
    assert probes.linear_probe(*train, *test) == 1.0
    assert probes.knn_accuracy(*train, *test) == 1.0
    noise = torch.randn(300, 2, dtype=torch.float64), torch.arange(300) % 3
    assert probes.linear_probe(*noise, *clusters(300, 1)) < 0.7


def test_accuracy_is_the_share_of_right_answers_on_the_test_codes():
    train, (codes, labels) = clusters(60, 0), clusters(30, 1)
    wrong = labels.clone()
    wrong[:6] = (labels[:6] + 1) % 3
    assert probes.linear_probe(*train, codes, wrong) == pytest.approx(24 / 30)
    assert probes.knn_accuracy(*train, codes, wrong) == pytest.approx(24 / 30)


def test_the_linear_probe_standardises_and_the_neighbours_do_not():
    train, (codes, labels) = clusters(90, 0, 0.5), clusters(60, 1, 0.5)
    linear = probes.linear_probe(*train, codes, labels)
    assert probes.linear_probe(1e-6 * train[0] + 7, train[1], 1e-6 * codes + 7, labels) == linear == 1.0
    # A dimension that barely moves counts for nothing among the neighbours; standardised, these would drown the rest.
    dead = [1e-3 * torch.randn(n, 50, dtype=torch.float64) for n in (90, 60)]
    both = torch.cat([train[0], dead[0]], 1), train[1], torch.cat([codes, dead[1]], 1), labels
    assert probes.knn_accuracy(*both) == probes.knn_accuracy(*train, codes, labels)
    # x or y far away, not near: no line tells the inside of a ring from the ring, neighbours do.
    angle = torch.linspace(0, 6.28, 100, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    rings = torch.cat([ring, 3 * ring]), torch.arange(2).repeat_interleave(100)
    assert probes.knn_accuracy(*rings, *rings) == 1.0
    assert probes.linear_probe(*rings, *rings) < 0.7


def test_neighbours_vote():
    codes = torch.tensor([[0.0], [1.0], [2.0], [10.0]], dtype=torch.float64)
    labels, test = torch.tensor([1, 0, 0, 1]), torch.tensor([[-1.0]], dtype=torch.float64)
    assert probes.knn_accuracy(codes, labels, test, torch.tensor([1]), neighbours=1) == 1.0
    assert probes.knn_accuracy(codes, labels, test, torch.tensor([0]), neighbours=3) == 1.0


def test_r2_is_its_definition():
    generator = np.random.default_rng(0)
    codes, test = generator.normal(size=(50, 3)), generator.normal(size=(40, 3))
    weights = generator.normal(size=(3, 2))
    factors, truth = codes @ weights + 2, test @ weights + 2 + generator.normal(size=(40, 2))
    design = np.c_[codes, np.ones(50)]
    predicted = np.c_[test, np.ones(40)] @ np.linalg.lstsq(design, factors, rcond=None)[0]
    expected = 1 - ((truth - predicted) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)
    found = probes.factor_r2(*map(torch.from_numpy, (codes, factors, test, truth)))
    np.testing.assert_allclose(found, expected)
    constant = probes.factor_r2(*map(torch.from_numpy, (codes, factors, test, np.ones((40, 2)))))
    assert np.isnan(constant).all()
    tenths = probes.factor_r2(*map(torch.from_numpy, (codes, factors, test, np.full((40, 2), 0.1))))
    assert np.isnan(tenths).all(), "whose mean is not 0.1 to the last bit"


def test_codes_are_the_posterior_means_whatever_their_form(tiny_vae):
    data = load("digits", "test").subset(7)
    model = tiny_vae((1, 8, 8), likelihood="categorical", likelihood_options={"levels": 17})
    x = data.tensor().double()
    expected = model.encode(x).mean
    for batch_size in (2, 100):
        torch.testing.assert_close(code_means(model, data, batch_size=batch_size), expected, rtol=1e-12, atol=1e-12)
    maps, vector = torch.randn(7, 2, 3, 3), torch.randn(7, 4)
    model.encode = lambda x: SimpleNamespace(mean=(maps, vector))
    codes = code_means(model, data)
    assert codes.dtype == torch.float64
    torch.testing.assert_close(codes.float(), torch.cat([maps.flatten(1), vector], 1))


def test_a_conditional_models_codes_know_their_context():
    import vlae

    data = load("digits", "test").subset(6)
    options = {"latent_dim": 3, "architecture": "mlp", "widths": [6], "likelihood": "gaussian"}
    model = vlae.ConditionalVAE((1, 8, 8), classes=10, **options).eval()
    expected = model.encode(data.tensor(), context=data.labels).mean.double()
    torch.testing.assert_close(code_means(model, data, batch_size=4), expected.detach(), rtol=1e-5, atol=1e-6)


def test_probes_of_pixels_are_good_and_the_same_every_time():
    train, test = load("digits"), load("digits", "test")
    result = probes.probe(None, train.subset(500), test.subset(200))
    assert (result.train_images, result.test_images) == (500, 200)
    assert 0.85 < result.linear <= 1 and 0.85 < result.knn <= 1 and result.r2 is None
    assert probes.probe(None, train.subset(500), test.subset(200)) == result


def test_what_the_set_lacks_is_left_out():
    images = torch.randint(256, (12, 1, 4, 4), dtype=torch.uint8)
    plain = ImageDataset(images)
    assert probes.probe(None, plain, plain) == probes.ProbeResult(12, 12)
    here, elsewhere = (ImageDataset(images, labels=torch.arange(12) % 3 + first) for first in (0, 1))
    assert probes.probe(None, here, elsewhere) == probes.ProbeResult(12, 12)  # class 3 was never trained on
    factors = ImageDataset(images, factors=images.float().mean((1, 2, 3))[:, None])
    result = probes.probe(None, factors, factors)
    assert result.r2 == pytest.approx([1.0]) and result.linear is None
    assert dataclasses.asdict(result)["knn"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codes": torch.zeros(3, 2, 2)}, r"codes \[N, D\]"),
        ({"labels": torch.zeros(4)}, "one label each"),
        ({"codes": torch.full((3, 2), torch.nan)}, "NaN"),
        ({"labels": torch.zeros(3)}, "two classes"),
        ({"test_codes": torch.zeros(3, 5)}, "5 in the test"),
    ],
)
def test_bad_codes_are_refused(changes, said):
    good = {"codes": torch.rand(3, 2), "labels": torch.arange(3)}
    arguments = {**good, "test_codes": torch.rand(3, 2), "test_labels": torch.arange(3), **changes}
    with pytest.raises(VlaeError, match=said):
        probes.linear_probe(**arguments)
