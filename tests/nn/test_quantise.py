"""The codebook against the paper's formulas, its start and revival, and the straight-through estimator."""

import math

import pytest
import torch

from vlae import VlaeError
from vlae.nn.quantise import Codebook, CodePixelCNN, draw, perplexity_of, straight_through


def make(codes=4, dim=3, **options):
    return Codebook(codes, dim, **{"revival": 0.0, **options}).double()


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_nearest_is_the_nearest_by_brute_force():
    book, z = make(7), rows(5, 2, 6, 3)
    distances = (z.unsqueeze(-2) - book.vectors).square().sum(-1)
    assert torch.equal(book.nearest(z), distances.argmin(-1))
    assert torch.equal(book(book.nearest(z)), book.vectors[distances.argmin(-1)])


@pytest.mark.parametrize("offset", [0, 10, 1000])
def test_nearest_does_not_care_where_the_origin_is(offset):
    torch.manual_seed(0)
    z = offset + 0.1 * torch.randn(500, 8)  # single precision, as in training
    book = Codebook(16, 8)
    book.vectors.copy_(offset + 0.1 * torch.randn(16, 8))
    distances = torch.cdist(z.double(), book.vectors.double(), compute_mode="donot_use_mm_for_euclid_dist")
    # Of two that are as near as float32 can tell, either will do.
    chosen = distances.gather(1, book.nearest(z)[:, None])[:, 0]
    assert (chosen - distances.min(1).values).max() < 1e-3


def test_nearest_is_not_in_16_bits():
    book = Codebook(2, 1)
    book.vectors.copy_(torch.tensor([[1.0], [1.001]]))
    with torch.autocast("cpu", torch.bfloat16):
        assert book.nearest(torch.tensor([[0.9], [1.0], [1.002]])).tolist() == [0, 0, 1]


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    chosen, features = rows(4, 3).requires_grad_(), rows(4, 3).requires_grad_()
    result = straight_through(chosen, features)
    assert torch.equal(result, chosen)
    result.backward(gradient := rows(4, 3))
    assert torch.equal(features.grad, gradient)
    assert chosen.grad is None


def test_moving_averages_are_the_papers():
    """N = gamma N + (1 - gamma) n, m = gamma m + (1 - gamma) sum z, e = m / N (appendix A.1)."""
    book = make(decay=0.8)
    book.start(rows(20, 3))
    counts, sums = book.usage.clone(), book.usage[:, None] * book.vectors
    for _ in range(6):
        z = rows(2, 5, 3) + 1
        codes = book.nearest(z)
        for k in range(4):
            mine = z[codes == k]
            counts[k] = 0.8 * counts[k] + 0.2 * len(mine)
            sums[k] = 0.8 * sums[k] + 0.2 * mine.sum(0)
        book.update(z, codes)
        torch.testing.assert_close(book.usage, counts)
        torch.testing.assert_close(book.vectors, sums / counts[:, None])


def test_unused_codes_stay_where_they_are_for_ever():
    book = Codebook(3, 2, decay=0.5, revival=0.0)
    book.start(torch.randn(9, 2))
    book.vectors[2] = 1e3
    for _ in range(400):  # N_k underflows to 0
        z = torch.randn(8, 2)
        book.update(z, book.nearest(z))
    assert book.usage[2] == 0
    assert torch.equal(book.vectors[2], torch.tensor([1e3, 1e3]))
    assert book.vectors.isfinite().all()


def test_no_memory_at_all_is_k_means():
    book, z = make(decay=0.0), rows(30, 3)
    book.start(z)
    codes = book.nearest(z)
    book.update(z, codes)
    expected = torch.stack([z[codes == k].mean(0) for k in range(4)])
    torch.testing.assert_close(book.vectors, expected)


def test_start_finds_clusters_that_an_even_draw_would_miss():
    centres = 100 * torch.eye(4, dtype=torch.float64)
    sizes = torch.tensor([1000, 5, 5, 5])
    z = centres.repeat_interleave(sizes, 0) + 0.01 * rows(1015, 4)
    book = make(4, 4)
    assert not book.started
    book.start(z.view(-1, 5, 4))
    assert book.started
    assert sorted(book.vectors.argmax(1).tolist()) == [0, 1, 2, 3]
    assert torch.equal(book.usage, torch.full((4,), 1015 / 4, dtype=torch.float64))


@pytest.mark.parametrize("z", [torch.zeros(6, 3), torch.ones(1, 3)])
def test_start_on_fewer_distinct_vectors_than_codes(z):
    book = Codebook(4, 3)
    book.start(z)
    assert torch.equal(book.vectors, z[:1].expand(4, 3))


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_dead_codes_are_revived_where_the_book_is_bad(learning):
    z = torch.cat([0.01 * rows(60, 3), 50 + 0.01 * rows(4, 3)])
    book = make(3, learning=learning, revival=0.1, decay=0.5)
    with torch.no_grad():
        book.vectors.copy_(torch.tensor([[0.0] * 3, [-9.0] * 3, [-9.5] * 3]))
    book.usage.copy_(torch.tensor([60.0, 5.0, 5.0]))
    steps = 0
    while (book.vectors < -1).any():
        book.update(z, book.nearest(z))
        steps += 1
        assert steps < 10
    assert steps > 1  # not before they have been idle for a while
    assert (book.vectors[1:] > 40).any()  # the far cluster: it has all of the error
    assert all((z == vector).all(1).any() for vector in book.vectors[1:])  # on vectors of the batch themselves
    assert (book.usage >= 0.1 * book.usage.mean()).all()
    before = book.vectors.clone()
    book.update(z, book.nearest(z))
    torch.testing.assert_close(book.vectors[1:], before[1:], atol=1, rtol=0)  # no new draw at once


def test_dead_is_measured_by_the_average_use():
    for scale, revived in ((1000.0, True), (0.01, True), (1000.0, False)):
        book, z = make(revival=0.2, decay=0.999), rows(20, 3)
        book.vectors[3] = 100
        book.usage.copy_(scale * torch.tensor([1.0, 1.0, 1.0, 0.1 if revived else 0.5]))
        book.update(z, book.nearest(z))
        assert (book.vectors[3] != 100).all() == revived


def test_revival_follows_the_seed_and_zero_never_revives():
    def run(seed, revival):
        torch.manual_seed(5)
        book, z = make(6, revival=revival, decay=0.1), rows(200, 3)
        book.vectors[3:] = 100
        book.usage.fill_(30)
        torch.manual_seed(seed)
        for _ in range(5):
            book.update(z, book.nearest(z))
        return book.vectors

    assert torch.equal(run(1, 0.05), run(1, 0.05))
    assert not torch.equal(run(1, 0.05), run(2, 0.05))
    assert (run(1, 0.0)[3:] == 100).all()


def test_more_dead_codes_than_vectors():
    book = Codebook(8, 2, revival=0.5, decay=0.0)
    book.start(torch.randn(8, 2))
    z = torch.randn(3, 2)
    book.update(z, book.nearest(z))
    assert book.vectors.isfinite().all() and (book.usage > 0).all()


def test_vectors_that_are_not_finite_are_left_out():
    book, z = make(), rows(9, 3)
    book.start(z)
    before = book.vectors.clone(), book.usage.clone()
    z[0, 0] = torch.nan
    book.update(z, book.nearest(z))
    assert torch.equal(book.vectors, before[0]) and torch.equal(book.usage, before[1])


def test_gradient_codebooks_are_parameters_and_not_averaged():
    book, z = make(learning="gradient"), rows(9, 3)
    assert isinstance(book.vectors, torch.nn.Parameter)
    before = book.vectors.clone()
    book.update(z, book.nearest(z))
    assert torch.equal(book.vectors, before)
    assert not list(make().parameters())
    assert set(make().state_dict()) == set(book.state_dict()) == {"vectors", "usage"}


def test_draw_is_in_proportion_and_distinct():
    weights = torch.tensor([0.0, 1.0, 3.0])
    counts = torch.bincount(torch.stack([draw(weights, 1)[0] for _ in range(4000)]), minlength=3)
    assert counts[0] == 0
    assert abs(counts[2].item() - 3000) < 5 * math.sqrt(4000 * 3 / 16)
    assert sorted(draw(weights, 3).tolist()) == [0, 1, 2]


def test_perplexity():
    assert perplexity_of(torch.tensor([[0, 1], [2, 3]]), 8).item() == pytest.approx(4)
    assert perplexity_of(torch.zeros(5, 2, 2, dtype=torch.int64), 8).item() == pytest.approx(1)
    shares = torch.tensor([0.75, 0.25])
    expected = math.exp(-(shares * shares.log()).sum())
    assert perplexity_of(torch.tensor([1, 1, 1, 5]), 8).item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 50, 512])
def test_pixelcnn_reads_every_code_as_itself(count, dtype):
    network = CodePixelCNN(count, "two", 4, layers=1, kernel_size=3).to(dtype)
    codes = torch.arange(count)
    seen = []
    network.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network((codes.to(dtype) / (count - 1)).view(1, 1, 1, -1), None)
    assert torch.equal(seen[0][0, :, 0].t(), network.embedding.weight[codes])


@pytest.mark.parametrize(
    "options",
    [
        {"codes": 1},
        {"codes": 2.5},
        {"dim": 0},
        {"learning": "EMA"},
        {"decay": 1.0},
        {"decay": -0.1},
        {"revival": 1.0},
        {"revival": -1},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(VlaeError) as caught:
        Codebook(**{"codes": 4, "dim": 2, **options})
    assert len(str(caught.value).splitlines()) == 1
