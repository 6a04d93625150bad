"""Every loader on small files in the original format."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from vlae.data import load, sources
from vlae.errors import VlaeError


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_sets(root, write_idx, rng, name):
    x, y = rng.integers(256, size=(60, 28, 28), dtype=np.uint8), np.arange(60, dtype=np.uint8) % 10
    for part, n in (("train", 60), ("t10k", 12)):
        write_idx(root / name / f"{part}-images-idx3-ubyte.gz", x[:n])
        write_idx(root / name / f"{part}-labels-idx1-ubyte.gz", y[:n])
    train, validation, test = (load(name, split, root) for split in ("train", "validation", "test"))
    assert np.array_equal(train.images[:, 0], x[:50])
    assert np.array_equal(validation.images[:, 0], x[50:])
    assert np.array_equal(test.images[:, 0], x[:12])
    assert np.array_equal(validation.labels, y[50:])
    assert train.levels == 256
    assert np.array_equal(load(name, "train+validation", root).images[:, 0], x)
    write_idx(root / name / "t10k-labels-idx1-ubyte.gz", y[:11])
    with pytest.raises(VlaeError, match="expected 12 labels of 0 to 9"):
        load(name, "test", root)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("size", [14, 7])
def test_smaller_images_are_means_over_squares(root, write_idx, rng, name, size):
    x = rng.integers(256, size=(12, 28, 28), dtype=np.uint8)
    write_idx(root / name / "t10k-images-idx3-ubyte.gz", x)
    write_idx(root / name / "t10k-labels-idx1-ubyte.gz", np.arange(12, dtype=np.uint8) % 10)
    test, k = load(name, "test", root, size=size), 28 // size
    means = [
        [[np.mean(image[k * i : k * i + k, k * j : k * j + k]) for j in range(size)] for i in range(size)]
        for image in x
    ]
    assert np.array_equal(test.images[:, 0], np.round(means))
    assert test.labels.tolist() == [i % 10 for i in range(12)] and test.effective_levels == 256
    assert f"means over {k}x{k} pixels" in test.protocol
    assert load(name, "test", root, size=28).image_shape == (1, 28, 28)
    for wrong in (13, 0, True, "14"):
        with pytest.raises(VlaeError, match="expected 28, 14 or 7"):
            load(name, "test", root, size=wrong)


def write_amats(folder, rng):
    folder.mkdir()
    arrays = {}
    for part, n in (("train", 5), ("valid", 2), ("test", 3)):
        arrays[part] = rng.integers(2, size=(n, 784), dtype=np.uint8)
        text = "".join(" ".join(map(str, row)) + "\n" for row in arrays[part])
        (folder / f"binarized_mnist_{part}.amat").write_text(text)
    return arrays


def test_binarized_mnist_from_text_is_kept_packed(root, rng):
    arrays = write_amats(root / "mnist_static", rng)
    test = load("binarized_mnist", "test", root)
    assert sorted(test.images.flatten(1).tolist()) == sorted(arrays["test"].tolist())
    assert test.levels == test.effective_levels == 2
    assert test.labels is None
    packed = sources.cache_dir() / "mnist_static" / "binarized_mnist_packed.npz"
    assert packed.is_file()
    assert len(list((root / "mnist_static").iterdir())) == 3  # the user's files stay as they are
    for part, split in (("train", "train"), ("valid", "validation")):
        images = load("binarized_mnist", split).images.flatten(1)
        assert sorted(images.tolist()) == sorted(arrays[part].tolist())
    with pytest.raises(VlaeError, match="already binary"):
        load("binarized_mnist", binarize="static")


def test_binarized_mnist_is_mixed_in_the_same_way_every_time(root):
    (root / "mnist_static").mkdir()
    rows = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 98, axis=1)  # sorted, as the original
    np.savez(root / "mnist_static" / "binarized_mnist_packed.npz", train=rows, valid=rows, test=rows)
    for split in ("train", "validation", "test"):
        numbers = [np.packbits(image)[0] for image in load("binarized_mnist", split, root).images.flatten(1).numpy()]
        assert sorted(numbers) == list(range(200))
        assert 70 < np.mean(numbers[:50]) < 130  # the first quarter is of all of them
        again = load("binarized_mnist", split, root).images.flatten(1).numpy()
        assert numbers == [np.packbits(image)[0] for image in again]


def test_downloaded_text_is_not_kept(root, rng):
    write_amats_at = sources.cache_dir() / "mnist_static"
    write_amats_at.parent.mkdir()
    write_amats(write_amats_at, rng)
    load("binarized_mnist", "test")
    assert [path.name for path in write_amats_at.iterdir()] == ["binarized_mnist_packed.npz"]


def test_packed_arrays_are_held_to_the_published_content(root, monkeypatch):
    (root / "mnist_static").mkdir()
    path = root / "mnist_static" / "binarized_mnist_packed.npz"
    np.savez(path, train=np.zeros((3, 97), np.uint8), test=np.zeros((3, 98), np.uint8))
    with pytest.raises(VlaeError, match=r"expected uint8 .N, 98."):
        load("binarized_mnist", "train", root)
    assert len(load("binarized_mnist", "test", root)) == 3
    monkeypatch.setattr(sources, "_CHECK", True)
    with pytest.raises(VlaeError, match="not the published one"):
        load("binarized_mnist", "test", root)


def corner(side, ink, background):
    """An L at the upper left: which way is up and left can be seen."""
    image = np.full((side, side), background, np.uint8)
    image[: side // 2, : side // 7] = ink
    image[: side // 7, : side // 4] = ink
    return image


def test_caltech_is_turned_upright_and_inverted(root):
    image = corner(28, 1, 0)
    rows = np.stack([(1 - image).flatten(order="F")] * 4)
    parts = {f"{key}_data": rows for key in ("train", "val", "test")}
    labels = {f"{key}_labels": np.array([[1], [2], [101], [5]], np.uint8) for key in ("train", "val", "test")}
    (root / "caltech101_silhouettes").mkdir()
    savemat(root / "caltech101_silhouettes" / "caltech101_silhouettes_28_split1.mat", parts | labels)
    for split in ("train", "validation", "test"):
        data = load("caltech101_silhouettes", split, root)
        assert np.array_equal(data.images[2, 0], image)
        assert data.labels.tolist() == [0, 1, 100, 4]
        assert data.levels == 2


def test_cifar10(root, rng):
    x = rng.integers(256, size=(60, 3072), dtype=np.uint8)
    y = (np.arange(60, dtype=np.uint8) % 10)[:, None]
    rows = np.concatenate([y, x], axis=1)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(5):
        rows[10 * i : 10 * i + 10].tofile(folder / f"data_batch_{i + 1}.bin")
    rows[50:].tofile(folder / "test_batch.bin")
    train, validation, test = (load("cifar10", split, root) for split in ("train", "validation", "test"))
    assert np.array_equal(train.images.flatten(1), x[:45])
    assert np.array_equal(validation.images.flatten(1), x[45:50])
    assert np.array_equal(test.images.flatten(1), x[50:])
    assert test.image_shape == (3, 32, 32)
    assert train.labels.tolist() == [i % 10 for i in range(45)]


def write_omniglot(root, write_png_zip):
    for part, alphabets in (("background", "BA"), ("evaluation", "DC")):
        images = {
            f"images_{part}/{alphabet}/character0{c}/000{c}_{i:02}.png": Image.fromarray(corner(105, 0, 255)).convert(
                "1"
            )
            for alphabet in alphabets
            for c in (1, 2)
            for i in range(5)
        }
        write_png_zip(root / "omniglot" / f"images_{part}.zip", images)


def test_omniglot_from_the_official_files(root, write_png_zip):
    write_omniglot(root, write_png_zip)
    train, validation, test = (load("omniglot", split, root) for split in ("train", "validation", "test"))
    assert [len(part) for part in (train, validation, test)] == [18, 2, 20]
    assert (train.images[0, 0, 0, 0], train.images[0, 0, -1, -1]) == (255, 0)
    assert train.images[0, 0, 10, 1] > 0  # the long arm of the L goes down
    assert set(train.labels.tolist()) == {0, 1}
    assert set(test.labels.tolist()) == {2, 3}  # other alphabets
    assert not sources.cache_dir().exists()  # only the complete set is kept


def test_omniglot_prepared(root, rng):
    x = rng.integers(256, size=(50, 28, 28), dtype=np.uint8)
    alphabet = np.arange(50, dtype=np.int16) // 10
    (root / "omniglot").mkdir()
    arrays = {f"images_{p}": x for p in ("background", "evaluation")}
    arrays |= {f"images_{p}_alphabet": alphabet for p in ("background", "evaluation")}
    np.savez(root / "omniglot" / "omniglot_28x28_box_resized.npz", **arrays)
    parts = [load("omniglot", split, root) for split in ("train", "validation")]
    both = torch.cat([part.images for part in parts]).flatten(1)
    assert sorted(both.tolist()) == sorted(x.reshape(50, -1).tolist())
    test = load("omniglot", "test", root)
    places = [x.reshape(50, -1).tolist().index(image) for image in test.images.flatten(1).tolist()]
    assert sorted(places) == list(range(50)) != places  # mixed, since the file is sorted by alphabet
    assert np.array_equal(test.labels, alphabet[places] + 30)


def test_the_omniglot_of_the_literature(root, rng):
    image = corner(28, 255, 0)
    data = np.stack([image.flatten(order="F") / 255] * 20, axis=1)
    target = np.eye(50)[:, rng.integers(50, size=20)]
    (root / "omniglot").mkdir()
    path = root / "omniglot" / "chardata.mat"
    savemat(path, {"data": data, "target": target, "testdata": data[:, :6], "testtarget": target[:, :6]})
    train, validation, test = (
        load("omniglot", split, root, variant="chardata") for split in ("train", "validation", "test")
    )
    assert [len(part) for part in (train, validation, test)] == [18, 2, 6]
    assert np.array_equal(test.images[3, 0], image)
    assert sorted(test.labels.tolist()) == sorted(target[:, :6].argmax(0).tolist())
    assert "chardata" in train.protocol
    with pytest.raises(VlaeError, match='expected "box28" or "chardata"'):
        load("omniglot", root=root, variant="28")


def test_the_two_omniglots_say_which_they_are(root, write_png_zip):
    write_omniglot(root, write_png_zip)
    assert "variant box28" in load("omniglot", root=root).protocol
    assert "not the literature's" in load("omniglot", root=root).protocol
    with pytest.raises(VlaeError, match=r"chardata.mat not found"):
        load("omniglot", root=root, variant="chardata")
