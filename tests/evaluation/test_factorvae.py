"""The FactorVAE score: by hand, and against its definition in plain Python on the same draws."""

import statistics

import numpy as np
import pytest
import torch

from vlae import VlaeError
from vlae.data.factors import grid
from vlae.evaluation import factorvae
from vlae.evaluation.factorvae import draws, factor_vae_score, majority_accuracy, votes

FULL = grid([4, 3, 5])


def mixed(dimensions=4, noise=0.5):
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(FULL.shape[1], dimensions, generator=generator, dtype=torch.float64)
    return FULL.double() @ weights + noise * torch.randn(len(FULL), dimensions, generator=generator).double()


def test_the_factors_themselves_are_always_voted_for():
    assert factor_vae_score(FULL.double(), FULL) == 1.0
    assert factor_vae_score(torch.cat([FULL, FULL], 1).double(), FULL) == 1.0  # copies do no harm here


def test_a_constant_code_scores_nothing():
    assert factor_vae_score(torch.full((len(FULL), 3), 0.3), FULL) == 0.0
    rounded = torch.full((len(FULL), 3), 0.3) + 3e-8 * torch.randint(2, (len(FULL), 3))
    assert factor_vae_score(rounded, FULL) == 0.0


def test_one_dimension_can_name_one_factor_only():
    score = factor_vae_score(FULL[:, :1].double(), FULL)
    assert score == pytest.approx(1 / 3, abs=0.03)  # each factor is drawn as often


def test_noise_is_a_guess():
    """Dimensions that vary alike whatever is fixed: their votes fall on all factors alike."""
    full = grid([3, 3, 3, 40])
    noise = torch.sin(torch.arange(40.0))[full[:, 3:]] * torch.tensor([1.0, -1.0])
    assert factor_vae_score(noise, full[:, :3]) == pytest.approx(1 / 3, abs=0.03)


def test_two_factors_mixed_by_45_degrees_cannot_be_told_apart():
    v = grid([6, 6])
    standard = (v - v.double().mean(0)) / v.double().std(0)
    turned = standard @ torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    # A vote tells which dimension varies less by chance; it does not say which factor was fixed.
    assert factor_vae_score(turned, v) == pytest.approx(1 / 2, abs=0.1)


def test_the_definition_in_plain_python(monkeypatch):
    z = mixed()
    drawn = []
    monkeypatch.setattr(factorvae, "draws", lambda *arguments: drawn.append(draws(*arguments)) or drawn[-1])
    monkeypatch.setattr(factorvae, "ELEMENTS", 100)  # in several pieces
    score = factor_vae_score(z, FULL, seed=5, train_votes=120, test_votes=80, images=8)

    columns = z.T.tolist()
    spread = [statistics.pvariance(column) for column in columns]

    def ballots(of_factors):
        for factor, rows in enumerate(of_factors):
            for row in rows.tolist():
                shares = [statistics.variance([c[i] for i in row]) / s for c, s in zip(columns, spread, strict=True)]
                yield factor, shares.index(min(shares))

    train, test = (list(ballots(part)) for part in drawn)
    assert (len(train), len(test)) == (120, 80)
    elected = {j: max(range(3), key=lambda k, j=j: (sum(b == (k, j) for b in train), -k)) for j in range(len(columns))}
    assert score == statistics.mean(elected[j] == k for k, j in test)
    assert 0.3 < score < 1


def test_images_of_a_vote_share_the_value_of_the_factor_and_nothing_else():
    v = torch.cat([grid([4, 3]), torch.tensor([[4, 0]])]).numpy()  # value 4 of the first factor: one image, left out
    first, second = draws(v, 3000, 16, np.random.default_rng(0))
    assert len(first) + len(second) == 3000 and len(first) == pytest.approx(1500, abs=150)
    assert first.shape[1] == second.shape[1] == 16
    for rows, fixed in ((first, 0), (second, 1)):
        assert (v[rows, fixed] == v[rows[:, :1], fixed]).all()
    assert set(v[first, 0].ravel()) == {0, 1, 2, 3}
    # Drawn with replacement, all images of the value alike often; and values as often as images have them.
    assert np.bincount(first.ravel()) / first.size == pytest.approx(np.full(12, 1 / 12), abs=0.02)
    shares = np.bincount(v[second[:, 0], 1]) / len(second)
    assert shares == pytest.approx(np.array([5, 4, 4]) / 13, abs=0.05)


def test_votes_go_to_the_dimension_of_least_variance():
    codes = np.array([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2], [2.0, 5.0]])
    drawn = [np.array([[0, 1, 2], [0, 0, 1]]), np.array([[2, 3, 3]])]
    assert votes(codes, drawn).tolist() == [[0, 2], [1, 0]]


def test_the_majority_is_learnt_from_other_votes():
    assert majority_accuracy(np.array([[9, 1], [1, 9]]), np.array([[0, 4], [6, 0]])) == 0.0
    assert majority_accuracy(np.array([[9, 1], [1, 9]]), np.array([[6, 1], [2, 1]])) == 0.7


def test_scale_sign_and_order_do_not_matter_and_dead_dimensions_are_left_out():
    z = mixed()
    score = factor_vae_score(z, FULL)
    changed = (z * torch.tensor([2, -0.5, 4, -1], dtype=torch.float64))[:, [2, 0, 3, 1]] + 8
    assert factor_vae_score(changed, FULL) == score < 1
    # A dimension that holds the first factor, but hardly moves.
    whisper = torch.cat([z, 0.01 * FULL[:, :1]], 1)
    assert factor_vae_score(whisper, FULL) == score
    assert factor_vae_score(whisper, FULL, dead=0.0) > score
    assert factor_vae_score(1e-9 * whisper, FULL) == score


def test_the_seed_alone_decides():
    z = mixed()
    first = factor_vae_score(z, FULL, train_votes=200, test_votes=200)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    assert factor_vae_score(z, FULL, seed=0, train_votes=200, test_votes=200) == first
    assert factor_vae_score(z, FULL, seed=1, train_votes=200, test_votes=200) != first


def test_votes_need_images():
    with pytest.raises(VlaeError, match="two images or more"):
        factor_vae_score(mixed(), FULL, images=1)
    with pytest.raises(VlaeError, match="votes must be 1 or more"):
        factor_vae_score(mixed(), FULL, test_votes=0)


def test_one_far_image_does_not_make_the_other_dimensions_dead():
    v = grid([3, 4, 5]).repeat(20, 1)
    codes = v.double()
    codes[0, 0] = 30 * codes.std()  # 1,200 images: the dimension's deviation is then near that of the others
    far = codes.clone()
    far[0, 0] = 1e3
    assert factor_vae_score(far, v) > 0.95
