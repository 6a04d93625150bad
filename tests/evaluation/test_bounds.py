import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from vlae import VlaeError
from vlae.evaluation import LogMeanExp, evaluate, evaluate_nll, importance_nll, keyed_generators, likelihood
from vlae.evaluation.likelihood import at_each, sample_counts
from vlae.evaluation.passes import first_images, fixed_order, standard_error


def batches(x, size):
    """A fresh pass each time, with the images' positions."""

    def one_pass():
        for start in range(0, len(x), size):
            yield x[start : start + size], range(start, min(start + size, len(x)))

    return one_pass


@pytest.mark.parametrize("chunks", [[24], [1] * 24, [5, 12, 7]])
def test_log_mean_exp_is_scipys_even_for_huge_weights(chunks):
    weights = 30 * torch.randn(24, 3, dtype=torch.float64) - 2000
    estimate = LogMeanExp()
    for part in weights.split(chunks):
        estimate.add(part)
    np.testing.assert_allclose(estimate.value, logsumexp(weights.numpy(), axis=0) - np.log(24), rtol=1e-12)
    normal = np.exp(weights.numpy() - weights.numpy().max(0))
    np.testing.assert_allclose(estimate.effective_samples, normal.sum(0) ** 2 / (normal**2).sum(0), rtol=1e-9)


def test_effective_samples_are_all_for_equal_weights_and_one_for_a_single_large_one():
    estimate = LogMeanExp()
    estimate.add(torch.tensor([[-5.0, 0.0]] * 7 + [[-5.0, 100.0]]))
    torch.testing.assert_close(estimate.effective_samples, torch.tensor([8.0, 1.0]).double())
    assert estimate.value.tolist() == pytest.approx([-5.0, 100 - math.log(8)])


@pytest.mark.parametrize("kind", ["vae", "vlae"])
@pytest.mark.parametrize("flow_steps", [0, 2])
def test_evaluation_does_not_depend_on_the_batch_size(kind, flow_steps, tiny_vae, tiny_vlae, binary):
    options = {"architecture": "conv", "widths": [4]} if kind == "vae" else {}
    model, x = (tiny_vae if kind == "vae" else tiny_vlae)(flow_steps=flow_steps, **options), binary(37)
    results = [
        evaluate(model.train(), batches(x, size), nll_samples=[1, 5], nll_images=20, chunk=chunk).to_dict()
        for size, chunk in [(37, 512), (1, 512), (16, 7), (10, 1)]
    ]
    assert model.training
    by_samples = [result.pop("nll_by_samples") for result in results]
    for rows in by_samples[1:]:
        for row, first in zip(rows, by_samples[0], strict=True):
            assert row == pytest.approx(first, abs=1e-9, rel=0)
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        for name, value in result.items():
            first = results[0][name]
            assert value == (None if first is None else pytest.approx(first, abs=1e-9, rel=0)), name


def test_evaluation_is_what_the_model_says(tiny_vlae, binary):
    model, x = tiny_vlae((1, 5, 4), flow_steps=2), binary(12)
    result = evaluate(model, batches(x, 5), nll_samples=6, nll_images=7, seed=3)
    with torch.no_grad():
        bound = model.elbo(x, generator=keyed_generators(range(12), 3))
        chosen = fixed_order(12)[:7]
        weights = next(model.log_weights(x[chosen], 6, keyed_generators(chosen, 3, stream=1))).numpy()
    total = (bound.distortion + bound.rate).numpy()
    nll = -(logsumexp(weights, axis=0) - np.log(6))
    expected = {
        "images": 12,
        "distortion": bound.distortion.mean().item(),
        "rate": bound.rate.mean().item(),
        "rate_bits": bound.rate.mean().item() / math.log(2),
        "negative_elbo": -bound.elbo.mean().item(),
        "negative_elbo_error": total.std(ddof=1) / math.sqrt(12),
        "bits_per_dim": total.mean() / math.log(2) / 20,
        "nll": nll.mean(),
        "nll_error": nll.std(ddof=1) / math.sqrt(7),
        "nll_bits_per_dim": nll.mean() / math.log(2) / 20,
        "nll_samples": 6,
        "nll_images": 7,
        "latent_dim": 3,
    }
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, abs=1e-9), name
    assert sum(result.bits_per_latent) == pytest.approx(result.rate_bits, abs=1e-9)
    codes = model.prior().noise_of(model.encode(x).mean).detach().numpy()
    assert result.active_units == (codes.var(0, ddof=1) > 0.01).sum()
    with torch.no_grad():
        gap = -model.decode(bound.z.roll(1, 0)).log_prob(x) - bound.distortion
    assert result.shuffled_gap == pytest.approx(gap.mean().item(), abs=1e-9)
    assert 1 <= result.ess <= 6


def test_sign_and_order_of_nll_and_bound(tiny_vae, binary):
    # Discrete data: every probability is below 1, so all nats are positive; the NLL is under the bound.
    model, x = tiny_vae(), binary(50)
    with torch.no_grad():
        model.encoder.layers[-1].weight.mul_(5)  # far from the prior: the bound is loose
    result = evaluate(model, batches(x, 50), nll_samples=200)
    assert 0 < result.nll < result.negative_elbo - 0.1
    assert result.nll_images == 50
    assert evaluate(model, batches(x, 50)).nll is None


@pytest.mark.parametrize("flow_steps", [0, 2])
def test_evidence_of_all_images_sums_to_one(tiny_vae, all_images, flow_steps):
    # The sum of exp(-nll) estimates the mass of p(x) without bias: a wrong sign of any term would show.
    model, x = tiny_vae((1, 2, 2), flow_steps=flow_steps), all_images((1, 2, 2))
    with torch.no_grad():  # a posterior wider than the true one, so that the weights have no heavy tail
        model.encoder.layers[-1].bias[3:] += 1
    nll, ess = importance_nll(model, batches(x, 16)(), samples=20_000, chunk=20_000)
    assert (-nll).exp().sum().item() == pytest.approx(1, abs=0.02)
    assert ess.min() > 1000


def test_shuffled_gap_is_zero_where_z_is_ignored_and_positive_where_it_is_used(tiny_vae):
    model, x = tiny_vae(latent_dim=20, widths=[20], architecture="mlp"), torch.eye(20).view(20, 1, 5, 4).double()
    first = model.decoder.layers[0]
    with torch.no_grad():
        weight = first.weight.clone()
        first.weight.zero_()
        assert evaluate(model, batches(x, 6)).shuffled_gap == 0
        first.weight.copy_(weight)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.elbo(x).distortion.mean().backward()
        optimizer.step()
    result = evaluate(model, batches(x, 6))
    assert result.shuffled_gap > 1
    assert result.active_units > 0


def test_a_collapsed_posterior_has_rate_zero_and_no_active_units(tiny_vae, binary):
    model = tiny_vae()
    with torch.no_grad():
        model.encoder.layers[-1].weight.zero_()
        model.encoder.layers[-1].bias.zero_()
    result = evaluate(model, batches(binary(10), 4))
    assert (result.rate, result.active_units) == (0, 0)


def test_a_density_has_no_bits_per_dimension(tiny_vae):
    result = evaluate(tiny_vae(likelihood="gaussian"), batches(torch.rand(6, 1, 5, 4).double(), 3), nll_samples=2)
    assert result.bits_per_dim is None and result.nll_bits_per_dim is None


def test_the_seed_is_the_noise(tiny_vlae, binary):
    model, x = tiny_vlae(), binary(4)
    state = torch.get_rng_state()
    first, again, other = (evaluate(model, batches(x, 4), seed=seed).to_dict() for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [0, 1, 10**6, 2**32, 2**63 - 1, -1])
def test_noise_is_keyed_by_image_seed_and_stream(seed):
    def noise(indices, seed, stream=0):
        return [tuple(torch.rand(2, generator=g).tolist()) for g in keyed_generators(indices, seed, stream)]

    both = noise(range(50), seed) + noise(range(50), seed, stream=1) + noise(range(50), seed + 1)
    assert len(set(both)) == 150
    assert noise([7], seed) == both[7:8]


def test_progress_counts_the_images(tiny_vae, binary):
    done = {"bound": 0, "nll": 0}

    def progress(stage, images):
        done[stage] += images

    evaluate(tiny_vae(), batches(binary(41), 20), nll_samples=1, nll_images=33, progress=progress)
    assert done == {"bound": 41, "nll": 33}


def test_more_nll_images_than_there_are_is_all_of_them(tiny_vae, binary):
    assert evaluate(tiny_vae(), batches(binary(5), 2), nll_samples=1, nll_images=100).nll_images == 5


@pytest.mark.parametrize("chunks", [[24], [1] * 24, [5, 12, 7], [10, 14]])
def test_each_number_of_samples_takes_the_first_weights(chunks):
    weights, counts = 30 * torch.randn(24, 3, dtype=torch.float64) - 2000, [1, 2, 6, 10, 11, 24]
    values, sizes = at_each(weights.split(chunks), counts)
    for count, value, size in zip(counts, values, sizes, strict=True):
        first = weights[:count].numpy()
        np.testing.assert_allclose(value, logsumexp(first, axis=0) - np.log(count), rtol=1e-12)
        normal = np.exp(first - first.max(0))
        np.testing.assert_allclose(size, normal.sum(0) ** 2 / (normal**2).sum(0), rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_several_numbers_of_samples_in_one_pass(tiny_vlae, binary, chunk):
    model, x = tiny_vlae(flow_steps=2), binary(20)
    with torch.no_grad():
        weights = torch.cat(list(model.log_weights(x, 40, keyed_generators(range(20), 3, stream=1)))).numpy()
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    nll, ess = importance_nll(model, batches(x, 9)(), [40, 3, 10, 3], seed=3, chunk=chunk)
    assert len(calls) == 2  # once for every 16 images
    assert nll.shape == ess.shape == (3, 20)
    for count, values in zip([3, 10, 40], nll, strict=True):
        np.testing.assert_allclose(values, -(logsumexp(weights[:count], axis=0) - np.log(count)), atol=1e-9)
    alone = importance_nll(model, batches(x, 9)(), 40, seed=3, chunk=chunk)
    torch.testing.assert_close(alone, (nll[-1], ess[-1]), atol=1e-9, rtol=0)
    rows = evaluate_nll(model, batches(x, 9), (10, 40, 3), seed=3, chunk=chunk)
    assert [row["samples"] for row in rows] == [3, 10, 40]
    for row, values, sizes in zip(rows, nll, ess, strict=True):
        assert row["nll"] == pytest.approx(values.mean().item(), abs=1e-12)
        assert row["error"] == pytest.approx(values.numpy().std(ddof=1) / math.sqrt(20), abs=1e-12)
        assert row["ess"] == pytest.approx(sizes.mean().item(), abs=1e-12)
        assert row["bits_per_dim"] == pytest.approx(row["nll"] / math.log(2) / 20, abs=1e-12)
    result = evaluate(model, batches(x, 9), [10, 3, 40], seed=3, chunk=chunk)
    assert result.nll_by_samples == rows
    assert (result.nll, result.nll_error, result.ess) == (rows[-1]["nll"], rows[-1]["error"], rows[-1]["ess"])
    assert (result.nll_samples, result.nll_images) == (40, 20)
    assert result.nll_bits_per_dim == rows[-1]["bits_per_dim"]


def test_the_bound_tightens_with_the_number_of_samples(tiny_vae, binary):
    model, x = tiny_vae(), binary(100)
    with torch.no_grad():
        model.encoder.layers[-1].weight.mul_(5)
    one, ten, many = (row["nll"] for row in evaluate_nll(model, batches(x, 50), [1, 10, 100]))
    assert one > ten + 0.1 > many + 0.15


def test_memory_decides_how_many_images_are_drawn_at_a_time_and_the_result_does_not(tiny_vae, binary, monkeypatch):
    model, x = tiny_vae(latent_maps=2, architecture="conv", widths=[4]), binary(20)  # z [2, 3, 2]
    expected = importance_nll(model, batches(x, 20)(), [2, 30])
    drawn = []
    decided = model.log_weights
    monkeypatch.setattr(model, "log_weights", lambda x, *rest: drawn.append(len(x)) or decided(x, *rest))
    for limit, few in ((12 * 30 * 5, 5), (12 * 30 - 1, 1), (10**9, 16)):
        monkeypatch.setattr(likelihood, "NOISE", limit)
        drawn.clear()
        found = importance_nll(model, batches(x, 20)(), [2, 30])
        assert max(drawn) == few and sum(drawn) == 20
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_no_samples_are_no_nll(tiny_vae, binary):
    for none in (0, [0], (0,)):
        result = evaluate(tiny_vae(), batches(binary(3), 3), none)
        assert (result.nll, result.nll_samples, result.nll_images, result.nll_by_samples) == (None, 0, 0, [])


@pytest.mark.parametrize("samples", [-1, [10, 0], [-3, 5], [2.5], []])
def test_numbers_of_samples_below_one_are_refused_in_a_line(tiny_vae, binary, samples):
    for call in (evaluate, evaluate_nll):
        with pytest.raises(VlaeError, match=r"integers of 1 or more; got [^\n]*$"):
            call(tiny_vae(), batches(binary(3), 3), samples)


@pytest.mark.parametrize(("images", "sizes"), [(None, [4, 4, 3]), (6, [4, 2]), (8, [4, 4]), (100, [4, 4, 3])])
def test_first_images_are_cut_from_a_pass(images, sizes):
    x, context = torch.arange(11.0).view(11, 1, 1, 1), torch.arange(11) + 100
    passed = ((x[i : i + 4], range(i, min(i + 4, 11)), context[i : i + 4]) for i in range(0, 11, 4))
    pieces = list(first_images(passed, images))
    assert [len(piece) for piece, _, _ in pieces] == sizes
    for piece, positions, told in pieces:
        assert piece.flatten().tolist() == list(positions) == (told - 100).tolist()
    assert [i for _, positions, _ in pieces for i in positions] == list(range(min(images or 11, 11)))


@pytest.mark.parametrize("options", [{"nll_samples": -1}, {"nll_samples": 1, "nll_images": 0}, {"nll_images": -3}])
def test_bad_counts_are_refused(tiny_vae, binary, options):
    with pytest.raises(VlaeError):
        evaluate(tiny_vae(), batches(binary(3), 3), **options)


def test_no_images_are_refused(tiny_vae, binary):
    with pytest.raises(VlaeError, match="empty"):
        evaluate(tiny_vae(), batches(binary(0), 3))


def test_standard_error_of_one_value():
    assert math.isnan(standard_error(torch.ones(1)))


def test_numbers_of_samples_may_be_numpys_and_are_no_booleans():
    assert sample_counts([np.int64(3), 1, 3]) == [1, 3]
    for wrong in (True, [True, 2], [2.0], []):
        with pytest.raises(VlaeError, match="integers of 1 or more"):
            sample_counts(wrong)
