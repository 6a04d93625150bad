import json
import logging

import pytest
import torch

from vlae import VlaeError
from vlae.data import ImageDataset, load
from vlae.evaluation import classifier as module
from vlae.evaluation.classifier import Classifier, count_classes, shifted, trained_classifier


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that holds the classifier of the digits."""
    path = tmp_path_factory.mktemp("cache")
    trained_classifier("digits", cache=path)
    return path


@pytest.fixture(scope="module")
def images():
    return load("digits", "test").tensor()


@pytest.fixture
def untrainable(monkeypatch):
    """Training fails: what works must come from the cache."""
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained, though it was in the cache"))


@pytest.fixture
def brief(monkeypatch):
    """Training is a few steps: for what does not depend on how good the classifier is."""
    monkeypatch.setattr(module, "EPOCHS", (1, 1))


def test_it_learns_and_is_kept(cache, images, untrainable):
    judge = trained_classifier("digits", cache=cache)
    labels = load("digits", "test").labels
    share = (judge.predict(images) == labels).double().mean().item()
    assert share == judge.test_accuracy > 0.95
    assert not judge.training
    assert {path.suffix for path in cache.iterdir()} == {".safetensors", ".json"}


def test_its_answers_agree(cache, images):
    judge = trained_classifier("digits", cache=cache)
    log_probabilities = judge.log_probabilities(images)
    assert log_probabilities.shape == (300, 10)
    assert not log_probabilities.requires_grad
    torch.testing.assert_close(log_probabilities.exp().sum(1), torch.ones(300))
    assert judge.predict(images).dtype == torch.int64
    picked = log_probabilities.gather(1, judge.predict(images)[:, None])[:, 0]
    torch.testing.assert_close(picked.exp(), judge.confidence(images))
    assert torch.equal(picked, log_probabilities.amax(1))
    features = judge.features(images)
    torch.testing.assert_close(judge.head(features).log_softmax(1), log_probabilities)


def test_answers_depend_neither_on_the_batch_nor_on_the_input_precision(cache, images, monkeypatch):
    judge = trained_classifier("digits", cache=cache)
    whole = judge.log_probabilities(images)
    monkeypatch.setattr(module, "CHUNK", 7)
    torch.testing.assert_close(judge.log_probabilities(images.double()), whole)


def test_same_seed_same_classifier_whatever_the_global_generator(cache, tmp_path, images):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = trained_classifier("digits", cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(
        again.log_probabilities(images), trained_classifier("digits", cache=cache).log_probabilities(images)
    )


def test_seed_and_binarisation_have_their_own_files(tmp_path, brief, images):
    first, second = (trained_classifier("digits", cache=tmp_path, seed=seed) for seed in (0, 1))
    trained_classifier("digits", "dynamic", cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not torch.equal(first.log_probabilities(images), second.log_probabilities(images))


def truncate(weights):
    weights.write_bytes(weights.read_bytes()[:-100])


def flip(weights):
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


def no_description(weights):
    weights.with_suffix(".json").unlink()


def other_description(weights):
    weights.with_suffix(".json").write_text(json.dumps({"sha256": 3}))


def no_json(weights):
    weights.with_suffix(".json").write_bytes(b"\xff{")


@pytest.mark.parametrize("damage", [truncate, flip, no_description, other_description, no_json])
def test_damaged_cache_is_trained_again(tmp_path, brief, images, caplog, damage):
    first = trained_classifier("digits", cache=tmp_path).log_probabilities(images)
    (weights,) = tmp_path.glob("*.safetensors")
    damage(weights)
    caplog.clear()
    again = trained_classifier("digits", cache=tmp_path)
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "damaged" in warning.getMessage()
    assert torch.equal(again.log_probabilities(images), first)
    caplog.clear()
    trained_classifier("digits", cache=tmp_path)
    assert not caplog.messages


def test_cache_that_cannot_be_written_is_no_fault(tmp_path, brief, images, caplog):
    (tmp_path / "file").write_text("not a directory")
    judge = trained_classifier("digits", cache=tmp_path / "file" / "below")
    assert "can't be kept" in caplog.text
    assert judge.predict(images).shape == (300,)


def test_sets_that_cannot_be_learnt_are_refused():
    def labelled(labels):
        return ImageDataset(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels=labels, name="toy")

    with pytest.raises(VlaeError, match="toy has no labels"):
        count_classes(labelled(None), labelled(None))
    with pytest.raises(VlaeError, match="2 of its test classes"):
        count_classes(labelled(torch.tensor([0, 1, 1, 0])), labelled(torch.tensor([0, 1, 2, 3])))
    assert count_classes(labelled(torch.tensor([0, 5, 1, 0])), labelled(torch.tensor([0, 1, 0, 1]))) == 6


def test_unlabelled_set_is_refused_in_one_line(tmp_path, monkeypatch):
    plain = ImageDataset(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), name="plain")
    monkeypatch.setattr(module, "load", lambda *_, **__: plain)
    with pytest.raises(VlaeError, match="no labels") as caught:
        trained_classifier("plain", cache=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (2, 33, 28)])
def test_any_image_shape(shape):
    judge = Classifier(shape, classes=4).eval()
    assert judge.log_probabilities(torch.rand(2, *shape)).shape == (2, 4)
    with pytest.raises(VlaeError, match="expects images of shape"):
        judge.predict(torch.rand(2, shape[0] + 1, *shape[1:]))


def test_shifts_move_whole_images_by_every_amount():
    x = torch.zeros(400, 2, 7, 9)
    x[:, 0, 3, 4] = 1
    x[:, 1, 3, 5] = 1
    moved = shifted(x, 2)
    assert moved.shape == x.shape
    first, second = moved[:, 0].nonzero(), moved[:, 1].nonzero()  # rows (image, row, column)
    assert torch.equal(first + torch.tensor([0, 0, 1]), second)
    assert {tuple(p) for p in (first[:, 1:] - torch.tensor([3, 4])).tolist()} == {
        (i, j) for i in range(-2, 3) for j in range(-2, 3)
    }
    assert torch.equal(shifted(x, 0), x)
