import pytest
import torch

from vlae.data import Batch, Batches, ImageDataset, load
from vlae.errors import VlaeError


def digits(split="train", binarize="dynamic"):
    return load("digits", split, binarize=binarize)


def same(a, b):
    return all(x is y or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def all_same(first, second):
    return all(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_image_once_per_epoch(shuffle):
    data = digits(binarize=None)
    batches = Batches(data, 100, shuffle=shuffle)
    for _ in range(2):
        epoch = list(batches)
        assert len(epoch) == len(batches) == 12
        assert [len(batch.images) for batch in epoch] == [100] * 11 + [97]
        indices = torch.cat([batch.indices for batch in epoch])
        assert torch.equal(indices.sort().values, torch.arange(len(data)))
        assert torch.equal(indices, torch.arange(len(data))) != shuffle
        assert torch.equal(torch.cat([batch.images for batch in epoch]), data.tensor()[indices])
        assert torch.equal(torch.cat([batch.labels for batch in epoch]), data.labels[indices])


def test_types_and_shapes():
    batch = next(iter(Batches(digits(), 5)))
    assert (batch.images.dtype, batch.images.shape) == (torch.float32, (5, 1, 8, 8))
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert next(iter(Batches(ImageDataset.from_any(torch.rand(3, 2, 2)), 2))).labels is None


def test_factors_follow_their_images():
    factors = torch.arange(30).reshape(10, 3)
    data = ImageDataset.from_any(torch.rand(10, 2, 2), factors=factors)
    batches = list(Batches(data, 4, shuffle=True, seed=1))
    assert [batch.factors.shape for batch in batches] == [(4, 3), (4, 3), (2, 3)]
    for batch in batches:
        assert torch.equal(batch.factors, factors[batch.indices])
        assert torch.equal(batch.images, data.tensor()[batch.indices])
    assert next(iter(Batches(digits(), 5))).factors is None
    assert Batch(torch.rand(1, 1, 2, 2), None, torch.arange(1)).factors is None


def test_a_last_smaller_batch_can_be_dropped():
    batches = Batches(digits(), 100, drop_last=True)
    assert [len(batch.images) for batch in batches] == [100] * len(batches) == [100] * 11


def test_order_and_draws_are_new_in_each_epoch_and_seed():
    batches = Batches(digits(), 100, shuffle=True, seed=1)
    first, second = list(batches), list(batches)
    other = list(Batches(digits(), 100, shuffle=True, seed=2))
    for epoch in (second, other):
        assert not torch.equal(first[0].indices, epoch[0].indices)
    unshuffled = Batches(digits(), 100)
    first, second = list(unshuffled), list(unshuffled)
    assert torch.equal(first[0].indices, second[0].indices)
    assert not torch.equal(first[0].images, second[0].images)
    assert not torch.equal(first[0].images, first[1].images)


def test_nothing_else_is_random():
    first = list(Batches(digits(), 100, shuffle=True, seed=3))
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert all_same(first, list(Batches(digits(), 100, shuffle=True, seed=3)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_draws_have_the_grey_level_as_their_frequency():
    data = ImageDataset(torch.full((10, 1, 20, 20), 64, dtype=torch.uint8), binarize="dynamic")
    batches = Batches(data, 4)
    x = torch.cat([batch.images for _ in range(20) for batch in batches])
    assert abs(x.mean() - 64 / 255) < 5 * (64 / 255 * 191 / 255 / x.numel()) ** 0.5


@pytest.mark.parametrize("served", [0, 1, 5, 11, 12])
def test_a_resumed_epoch_has_the_remaining_batches(served):
    def new():
        return Batches(digits(), 100, shuffle=True, seed=7)

    interrupted = new()
    list(interrupted)
    iterator = iter(interrupted)
    for _ in range(served):
        next(iterator)
    state = dict(interrupted.state_dict())
    rest = list(iterator) if served < 12 else list(interrupted)
    resumed = new()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert all_same(rest, list(resumed))
    assert all_same(list(interrupted), list(resumed))  # and the epochs after it


def test_the_epoch_turns_with_its_last_batch():
    batches = Batches(digits(), 400)
    iterator = iter(batches)
    states = [(next(iterator), batches.state_dict())[1] for _ in range(3)]
    assert states == [{"epoch": 0, "served": 1}, {"epoch": 0, "served": 2}, {"epoch": 1, "served": 0}]


def test_an_abandoned_epoch_starts_again():
    batches = Batches(digits(), 100, shuffle=True)
    first = next(iter(batches))
    assert same(first, next(iter(batches)))
    assert all_same([first], list(batches)[:1])


def test_set_epoch():
    batches = Batches(digits(), 100, shuffle=True)
    epochs = [list(batches) for _ in range(3)]
    batches.set_epoch(1)
    assert all_same(epochs[1], list(batches))
    assert all_same(epochs[2], list(batches))
    batches.load_state_dict({"epoch": 1, "served": 4})
    batches.set_epoch(1)  # a trainer that names the epoch it resumes must not lose its place
    assert all_same(epochs[1][4:], list(batches))
    batches.load_state_dict({"epoch": 1, "served": 4})
    batches.set_epoch(2)
    assert all_same(epochs[2], list(batches))


def test_held_out_images_depend_on_nothing():
    def images(batch_size, seed, epoch, **options):
        batches = Batches(digits("test"), batch_size, seed=seed, **options)
        batches.set_epoch(epoch)
        batches = list(batches)
        order = torch.cat([batch.indices for batch in batches]).argsort()
        return torch.cat([batch.images for batch in batches])[order]

    expected = digits("test", "static").tensor()
    for arguments in [(1, 0, 0), (64, 1, 0), (300, 2, 9)]:
        assert torch.equal(images(*arguments), expected)
    assert torch.equal(images(7, 0, 3, shuffle=True), expected)


def test_what_cannot_be_batched():
    with pytest.raises(VlaeError, match="batch_size=0"):
        Batches(digits(), 0)
    with pytest.raises(VlaeError, match="drop_last=False"):
        Batches(digits(), 2000, drop_last=True)
    with pytest.raises(VlaeError, match="other data or batch size"):
        Batches(digits(), 400).load_state_dict({"epoch": 0, "served": 3})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu():
    def epoch():
        return list(Batches(digits(), 100, shuffle=True, device="cuda"))

    first = epoch()
    assert {value.device.type for batch in first for value in batch if value is not None} == {"cuda"}
    assert set(first[0].images.unique().tolist()) == {0.0, 1.0}
    assert all_same(first, epoch())
