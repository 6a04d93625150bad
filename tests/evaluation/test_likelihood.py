import dataclasses
import math

import pytest
import torch

from vlae import VlaeError
from vlae.evaluation import (
    KeptLikelihoods,
    evaluate,
    evaluate_nll,
    importance_nll,
    keyed_generators,
    likelihood,
    likelihoods,
)
from vlae.evaluation.passes import chosen_images, fixed_order


def batches(x, size=16):
    def one_pass():
        for start in range(0, len(x), size):
            yield x[start : start + size], range(start, min(start + size, len(x)))

    return one_pass


@pytest.fixture
def loose(tiny_vae):
    """A model whose bound is far from the likelihood, and not equally far for all images."""
    model = tiny_vae()
    with torch.no_grad():
        model.encoder.layers[-1].weight.mul_(2)
    return model


@pytest.fixture
def x(binary):
    """400 images."""
    return binary(400)


@pytest.fixture
def measured(loose, x):
    """What importance sampling says of them, with so many samples that the ELBO's own chance is small."""
    return likelihoods(loose, batches(x, 100), [1, 4, 400])


# -- which images -----------------------------------------------------------------------------------------------------


def test_the_order_is_fixed_and_a_permutation():
    for total in (1, 2, 100, 10_000):
        order = fixed_order(total)
        assert sorted(order) == list(range(total)) and fixed_order(total) == order
    first = fixed_order(10_000)[:1000]
    assert abs(sum(first) / 1000 - 5000) < 4 * 10_000 / math.sqrt(12 * 1000)  # no part of the set is preferred


@pytest.mark.parametrize("images", [1, 7, 40, 100])
def test_some_images_are_the_first_of_the_order_measured_as_among_all(loose, binary, images):
    x = binary(40)
    every = likelihoods(loose, batches(x), [2, 9], seed=5)
    some = likelihoods(loose, batches(x, 7), [2, 9], images, seed=5, chunk=3)
    assert some.positions.tolist() == sorted(fixed_order(40)[:images])
    for name in ("elbo", "nll", "ess"):
        torch.testing.assert_close(
            getattr(some, name), getattr(every, name)[..., some.positions], atol=1e-9, rtol=1e-9, msg=name
        )
    rows = evaluate_nll(loose, batches(x), [2, 9], images, seed=5)
    assert rows[-1]["nll"] == pytest.approx(every.nll[1][some.positions].mean().item(), abs=1e-9)


def test_what_is_said_of_an_image_is_its_weights(loose, binary):
    x = binary(5)
    found = likelihoods(loose, batches(x), 30, seed=2)
    with torch.no_grad():
        weights = torch.cat(list(loose.log_weights(x, 30, keyed_generators(range(5), 2, stream=1))))
    torch.testing.assert_close(found.elbo, weights.mean(0), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.nll[0], math.log(30) - weights.logsumexp(0), atol=1e-9, rtol=0)
    nll, ess = importance_nll(loose, batches(x)(), 30, seed=2)
    assert torch.equal(nll, found.nll[0]) and torch.equal(ess, found.ess[0])


def test_pieces_of_chosen_images_keep_their_context():
    x, told = torch.arange(11.0).view(11, 1, 1, 1), torch.arange(11) + 100
    passed = ((x[i : i + 4], range(i, min(i + 4, 11)), told[i : i + 4]) for i in range(0, 11, 4))
    pieces = list(chosen_images(passed, {0, 1, 2, 3, 6, 10}, 3))
    assert [list(positions) for _, positions, _ in pieces] == [[0, 1, 2], [3, 6, 10]]
    for piece, positions, context in pieces:
        assert piece.flatten().tolist() == list(positions) == (context - 100).tolist()


# -- the whole set from some of it ------------------------------------------------------------------------------------


def subset(found, positions):
    """The likelihoods of some images."""
    return likelihood.Likelihoods(
        found.samples,
        found.positions[positions],
        found.rows[positions],
        found.elbo[positions],
        found.nll[:, positions],
        found.ess[:, positions],
    )


def test_of_all_images_the_difference_is_the_nll(measured):
    value, _ = measured.of_all(-measured.elbo)
    assert value == pytest.approx(measured.nll[-1].mean().item(), abs=1e-9)


@pytest.mark.parametrize("analytic", [True, False])
def test_the_error_of_the_difference_is_its_spread(loose, x, measured, analytic):
    # Over choices of 50 images of 400, and over the one z that each bound is measured with. With the rate in closed
    # form that z adds less than the variance of log w, with its estimate as much.
    truth, generator = measured.nll[-1].mean().item(), torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(300):
        choice = subset(measured, torch.randperm(400, generator=generator)[:50])
        with torch.no_grad():
            bounds = -loose.elbo(x, analytic=analytic, generator=generator).elbo
        value, error = choice.of_all(bounds)
        values.append(value)
        errors.append(error)
    spread = torch.tensor(values).std().item()
    assert abs(sum(values) / 300 - truth) < 4 * spread / math.sqrt(300)
    assert sum(errors) / 300 == pytest.approx(spread, rel=0.15)


def test_the_error_of_the_difference_to_fewer_samples_is_its_spread(loose, x, measured):
    """Over choices of 50 images of 400, and over the noise of the 16 samples that all are measured with."""
    most = likelihoods(loose, batches(x), [16, measured.samples[-1]], seed=9)
    truth, generator = most.nll[-1].mean().item(), torch.Generator().manual_seed(0)
    values, errors, plain = [], [], []
    for turn in range(100):
        chosen = torch.randperm(400, generator=generator)[:50]
        every = likelihoods(loose, batches(x, 100), 16, seed=100 + turn)
        value, error = subset(most, chosen).of_all_by(every)
        values.append(value)
        errors.append(error)
        plain.append(subset(most, chosen).of_all(-every.elbo)[1])
    spread = torch.tensor(values).std().item()
    assert abs(sum(values) / 100 - truth) < 4 * spread / math.sqrt(100)
    assert sum(errors) / 100 == pytest.approx(spread, rel=0.2)
    assert sum(errors) < 0.7 * sum(plain)


def test_of_all_images_the_difference_to_fewer_samples_is_the_nll(loose, x):
    both = likelihoods(loose, batches(x), [3, 20], seed=1)
    value, _ = both.of_all_by(subset_of_samples(both, 0))
    assert value == pytest.approx(both.nll[-1].mean().item(), abs=1e-9)
    assert both.of_all_by(subset_of_samples(both, 1)) is None
    assert subset(both, torch.tensor([4])).of_all_by(subset_of_samples(both, 0)) is None


def subset_of_samples(found, row):
    """The likelihoods at one K."""
    return dataclasses.replace(
        found, samples=[found.samples[row]], nll=found.nll[row : row + 1], ess=found.ess[row : row + 1]
    )


def test_nothing_is_told_from_one_image_or_one_sample(loose, binary):
    x = binary(20)
    for samples, images in ((1, 10), (7, 1)):
        assert evaluate(loose, batches(x), samples, images).nll_of_all is None
    assert evaluate(loose, batches(x), 2, 2).nll_of_all is not None


def test_positions_need_not_count_from_zero(loose, binary):
    x = binary(30)
    shifted = [(x[i : i + 7], [1000 + 2 * k for k in range(i, min(i + 7, 30))]) for i in range(0, 30, 7)]
    found = likelihoods(loose, lambda: shifted, 3, images=10)
    assert found.rows.tolist() == sorted(fixed_order(30)[:10])
    assert found.positions.tolist() == [1000 + 2 * row for row in found.rows.tolist()]
    bounds = torch.arange(30.0).double()
    assert found.of_all(bounds)[0] == pytest.approx(14.5 + (found.elbo + found.nll[-1]).mean().item())


def test_an_evaluation_of_some_images_tells_of_all(loose, x):
    some = evaluate(loose, batches(x, 100), nll_samples=[1, 40], nll_images=60)
    every = evaluate(loose, batches(x, 100), nll_samples=[1, 40])
    assert abs(some.nll_of_all - every.nll) < 4 * some.nll_of_all_error
    assert every.nll_of_all is None and every.nll_of_all_error is None


def test_images_that_differ_more_than_their_gaps_are_told_of_more_closely():
    # Hard images and easy ones, alike in the gap: the choice of images hardly matters then.
    nll = torch.linspace(40, 140, 50, dtype=torch.float64)
    gap = 1 + 0.01 * torch.arange(50) % 3
    places = torch.arange(50)
    some = likelihood.Likelihoods([9], places, places, -(nll + gap), nll[None], nll[None])
    _, error = some.of_all((nll + gap).repeat(200))
    assert error < 0.1 < nll.std().item() / math.sqrt(50)


# -- kept in a file ---------------------------------------------------------------------------------------------------


def keep(tmp_path, model, data="some data"):
    return KeptLikelihoods(tmp_path / "folder" / "nll.csv", model, data)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(likelihood, "AT_ONCE", 1)


def counted(model, monkeypatch, stop_after=10**9):
    """Notes the images that are measured; stops as Ctrl-C does after so many."""
    images, weights = [], model.log_weights

    def log_weights(x, *rest):
        if len(images) >= stop_after:
            raise KeyboardInterrupt
        images.extend(x)
        return weights(x, *rest)

    monkeypatch.setattr(model, "log_weights", log_weights)
    return images


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("stop_after", [1, 16, 20])
def test_an_interrupted_measurement_goes_on_where_it_was(loose, binary, tmp_path, monkeypatch, stop_after):
    x = binary(40)
    expected = likelihoods(loose, batches(x), [1, 8])
    with monkeypatch.context() as patch:
        counted(loose, patch, stop_after)
        with pytest.raises(KeyboardInterrupt):
            likelihoods(loose, batches(x), [1, 8], kept=keep(tmp_path, loose))
    done = len((tmp_path / "folder" / "nll.csv").read_text().splitlines()) - 2
    assert done == -(-stop_after // 16) * 16
    told = []
    with monkeypatch.context() as patch:
        images = counted(loose, patch)
        found = likelihoods(loose, batches(x), [1, 8], progress=lambda _, n: told.append(n), kept=keep(tmp_path, loose))
        assert len(images) == 40 - done and sum(told) == 40
    for name in ("positions", "elbo", "nll", "ess"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-12, rtol=1e-12)
    with monkeypatch.context() as patch:  # all is there: nothing is measured, and every bit is read back
        images = counted(loose, patch)
        again = likelihoods(loose, batches(x), [1, 8], kept=keep(tmp_path, loose))
        assert not images
    for name in ("elbo", "nll", "ess"):
        assert torch.equal(getattr(again, name), getattr(found, name)), name


@pytest.mark.usefixtures("small_blocks")
def test_a_larger_choice_goes_on_from_a_smaller_one(loose, binary, tmp_path, monkeypatch):
    x = binary(40)
    likelihoods(loose, batches(x), 5, images=15, kept=keep(tmp_path, loose))
    images = counted(loose, monkeypatch)
    found = likelihoods(loose, batches(x), 5, images=30, kept=keep(tmp_path, loose))
    assert len(images) == 15 and len(found.positions) == 30
    smaller = likelihoods(loose, batches(x), 5, images=4, kept=keep(tmp_path, loose))
    assert len(images) == 15 and smaller.positions.tolist() == sorted(fixed_order(40)[:4])


@pytest.mark.parametrize("torn", ["17", "17,-3.2,", "17,-3.2,20.25,1.0"])
def test_a_line_that_was_cut_off_is_dropped(loose, binary, tmp_path, torn):
    x, path = binary(20), tmp_path / "folder" / "nll.csv"
    expected = likelihoods(loose, batches(x), 5, images=10, kept=keep(tmp_path, loose))
    whole = path.read_text()
    path.write_text(whole + torn)  # no line break: the write was cut off there, perhaps within a number
    found = likelihoods(loose, batches(x), 5, images=10, kept=keep(tmp_path, loose))
    assert path.read_text() == whole and torch.equal(found.nll, expected.nll)


def test_a_file_of_something_else_is_refused_and_left_alone(loose, tiny_vae, binary, tmp_path):
    x, path = binary(12), tmp_path / "folder" / "nll.csv"
    loose.float().double()  # weights that float32 has: of another precision, they are the same
    likelihoods(loose, batches(x), 5, kept=keep(tmp_path, loose))
    before = path.read_bytes()
    for words, call in {
        "differ in model": lambda: likelihoods(tiny_vae(), batches(x), 5, kept=keep(tmp_path, tiny_vae())),
        "differ in precision": lambda: likelihoods(loose.float(), batches(x.float()), 5, kept=keep(tmp_path, loose)),
        "differ in images": lambda: likelihoods(loose.double(), batches(1 - x), 5, kept=keep(tmp_path, loose)),
        "differ in samples": lambda: likelihoods(loose, batches(x), [1, 5], kept=keep(tmp_path, loose)),
        "differ in seed": lambda: likelihoods(loose, batches(x), 5, seed=1, kept=keep(tmp_path, loose)),
    }.items():
        with pytest.raises(VlaeError, match=f"{words} .*choose another file") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
    likelihoods(loose, batches(x), 5, kept=keep(tmp_path, loose, "the same in other words"))
    assert path.read_bytes() == before
    for text in ("", "a,b\n1,2\n", "# vlae likelihoods 1: {\n", "# vlae likelihoods 1: 3\n", "\x00\xff"):
        path.write_text(text)
        with pytest.raises(VlaeError, match="is not a file of likelihoods"):
            likelihoods(loose, batches(x), 5, kept=keep(tmp_path, loose))
        assert path.read_text() == text
    path.write_bytes(before.splitlines(keepends=True)[0])
    with pytest.raises(VlaeError, match="has other columns"):
        likelihoods(loose, batches(x), 5, kept=keep(tmp_path, loose))


@pytest.mark.parametrize("line", ["1,2\n", "hello\n", "\n", "a,b,c,d\n", "nan,1,2,3\n", "1e3,1,2,3\n"])
def test_a_line_that_is_none_is_named(loose, binary, tmp_path, line):
    x, path = binary(12), tmp_path / "folder" / "nll.csv"
    likelihoods(loose, batches(x), 5, kept=keep(tmp_path, loose))
    path.write_text(path.read_text() + line)
    with pytest.raises(VlaeError, match="a line that is none of vlae's"):
        likelihoods(loose, batches(x), 5, kept=keep(tmp_path, loose))


def test_what_the_system_refuses_is_said(loose, binary, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "nll.csv").mkdir()
    with pytest.raises(OSError, match=r"Is a directory: '.*nll.csv'"):
        likelihoods(loose, batches(binary(12)), 5, kept=keep(tmp_path, loose))


def test_a_file_does_not_depend_on_the_batch_size(loose, binary, tmp_path):
    x = binary(40)
    for size in (40, 7):
        likelihoods(loose, batches(x, size), 5, images=20 if size == 40 else 40, kept=keep(tmp_path, loose))
    lines = (tmp_path / "folder" / "nll.csv").read_text().splitlines()[2:]
    assert sorted(int(line.split(",")[0]) for line in lines) == list(range(40))
