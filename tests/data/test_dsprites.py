"""The reader on small files of the same format: every image has a pattern of its own."""

import math
import pickle

import numpy as np
import pytest
import torch

from vlae.data import dsprites, files, load, sources
from vlae.errors import VlaeError

GRID = (3, 2, 8, 4, 2)


def images_of(count):
    """Image i shows the bits of i."""
    x = np.zeros((count, 64, 64), np.uint8)
    x[:, 5, :16] = np.arange(count)[:, None] >> np.arange(16) & 1
    return x


def classes_of(sizes):
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), 1).astype(np.int64)


def write(root, file, **arrays):
    path = root / "dsprites" / file.name
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def write_grid(root, file=files.DSPRITES_FACTORIAL, sizes=GRID, colour=False):
    classes = classes_of(sizes)
    images = images_of(len(classes))
    if colour:  # as in the official file, of which one array is pickled
        latents = np.concatenate([np.zeros_like(classes[:, :1]), classes], axis=1)
        write(root, file, imgs=images, latents_classes=latents, latents_values=latents, metadata=np.array({"a": 1}))
    else:
        write(root, file, imgs=images, latents_classes=classes, latents_values=classes / 7)
    return torch.from_numpy(images)[:, None], torch.from_numpy(classes)


def number(factors, sizes=GRID):
    return torch.from_numpy(np.ravel_multi_index(factors.T.numpy(), sizes))


@pytest.mark.parametrize(
    ("variant", "file", "colour"),
    [("factorial", files.DSPRITES_FACTORIAL, False), ("full", files.DSPRITES_FULL, True)],
)
def test_a_grid(root, variant, file, colour):
    images, classes = write_grid(root, file, colour=colour)
    whole = load("dsprites", "test", root, variant=variant, whole=True)
    assert torch.equal(whole.images, images)
    assert torch.equal(whole.factors, classes)
    assert torch.equal(whole.labels, classes[:, 0])
    assert (whole.levels, whole.image_shape, whole.factors.dtype) == (2, (1, 64, 64), torch.int64)
    assert whole.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert whole.factor_sizes == GRID
    assert whole.protocol == (
        f"dsprites, test (variant {variant}, all of the grid 3x2x8x4x2): 384 images, binary as they came"
    )
    parts = [load("dsprites", split, root, variant=variant) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [308, 38, 38]
    for part in parts:
        assert torch.equal(part.images, images[number(part.factors)])
        assert torch.equal(part.labels, part.factors[:, 0])
    everything = torch.cat([number(part.factors) for part in parts])
    assert everything.sort().values.tolist() == list(range(384))
    assert f"variant {variant}, a fixed part of the grid" in parts[0].protocol


def test_training_and_validation_together(root):
    images, _ = write_grid(root)
    both = load("dsprites", "train+validation", root)
    assert len(both) == 308 + 38
    assert torch.equal(both.images, images[number(both.factors)])
    assert both.factor_sizes == GRID
    with pytest.raises(VlaeError, match="whole=True gives all images in every split; give one"):
        load("dsprites", "train+validation", root, whole=True)


def test_the_random_images_keep_their_numbers_in_the_full_grid(root, rng):
    classes = rng.integers((3, 6, 40, 32, 32), size=(50, 5))
    images = images_of(50)
    path = write(root, files.DSPRITES_RANDOM, imgs=images, latents_classes=classes)
    data = load("dsprites", "train", root, variant="random", whole=True)
    assert torch.equal(data.factors, torch.from_numpy(classes))
    assert torch.equal(data.images[:, 0], torch.from_numpy(images))
    assert data.factor_sizes == (3, 6, 40, 32, 32)
    assert "variant random, all of 50 images drawn from the grid 3x6x40x32x32" in data.protocol
    for column, value in ((0, 3), (2, 40), (4, 32), (1, -1)):
        wrong = classes.copy()
        wrong[7, column] = value
        write(root, files.DSPRITES_RANDOM, imgs=images, latents_classes=wrong)
        with pytest.raises(VlaeError, match=f"{path.name}: latents_classes out of range"):
            load("dsprites", "train", root, variant="random")


def test_the_factorial_variant_is_made_from_the_official_file(root, monkeypatch):
    images, classes = write_grid(root, files.DSPRITES_FULL, colour=True)
    kept = sources.cache_dir() / "dsprites" / files.DSPRITES_FACTORIAL.name
    rows = (classes[:, 2] % 4 == 0) & (classes[:, 3] % 2 == 0) & (classes[:, 4] % 2 == 0)
    data = load("dsprites", "train", root, whole=True)
    assert torch.equal(data.images, images[rows])
    assert torch.equal(data.factors, classes[rows] // torch.tensor([1, 1, 4, 2, 2]))
    assert data.factor_sizes == (3, 2, 2, 2, 1)
    assert "variant factorial, all of the grid 3x2x2x2x1" in data.protocol
    assert not kept.exists()  # only the complete grid is kept
    monkeypatch.setattr(dsprites, "SIZES", GRID)
    load("dsprites", "train", root)
    assert kept.is_file()
    (root / "dsprites" / files.DSPRITES_FULL.name).unlink()
    assert torch.equal(load("dsprites", "train", root, whole=True).images, data.images)


def test_the_prepared_file_goes_before_the_official_one(root):
    write_grid(root, files.DSPRITES_FULL, (3, 2, 4, 2, 2), colour=True)
    write_grid(root)
    assert len(load("dsprites", "train", root, whole=True)) == 384


def test_wrong_arrays(root):
    classes, images = classes_of((3, 2, 2, 2, 2)), images_of(48)
    twice = classes.copy()
    twice[1] = twice[0]
    for arrays, message in [
        ({"imgs": images}, "holds no 'latents_classes'"),
        ({"latents_classes": classes}, "holds no 'imgs'"),
        ({"imgs": images[:, :32], "latents_classes": classes}, r"imgs is uint8 \(48, 32, 64\), expected"),
        ({"imgs": images[0], "latents_classes": classes}, r"imgs is uint8 \(64, 64\), expected"),
        ({"imgs": images[:0], "latents_classes": classes[:0]}, r"imgs is uint8 \(0, 64, 64\), expected"),
        ({"imgs": images * 255, "latents_classes": classes}, "of 0 and 1"),
        ({"imgs": images / 1.0, "latents_classes": classes}, "imgs is float64"),
        (
            {"imgs": images, "latents_classes": classes[:40]},
            r"latents_classes is int64 \(40, 5\), expected .*\(48, 5\)",
        ),
        ({"imgs": images, "latents_classes": classes[:, :4]}, r"latents_classes is int64 \(48, 4\)"),
        ({"imgs": images, "latents_classes": classes[:, 0]}, r"latents_classes is int64 \(48,\)"),
        ({"imgs": images, "latents_classes": classes[:, [1, 0, 1, 2, 3, 4]]}, r"latents_classes is int64 \(48, 6\)"),
        ({"imgs": images, "latents_classes": classes / 1.0}, "latents_classes is float64"),
        ({"imgs": images, "latents_classes": np.full((48, 6), "a")}, "latents_classes is <U1"),
        ({"imgs": images, "latents_classes": classes[::-1]}, "no full grid"),
        ({"imgs": images, "latents_classes": twice}, "no full grid"),
        ({"imgs": images[:40], "latents_classes": classes[:40]}, "no full grid"),
        ({"imgs": images, "latents_classes": classes - 1}, "no full grid"),
    ]:
        path = write(root, files.DSPRITES_FACTORIAL, **arrays)
        with pytest.raises(VlaeError, match=message) as error:
            load("dsprites", "train", root)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


class Planted:
    """Unpickling it would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_arrays_are_not_opened(root, tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Planted(trace))).close()
    assert trace.exists()  # it does what it says
    trace.unlink()
    classes, images = classes_of((3, 2, 2, 2, 2)), images_of(48)
    planted = np.array([Planted(trace)], dtype=object)
    write(root, files.DSPRITES_FACTORIAL, imgs=images, latents_classes=classes, metadata=planted)
    assert len(load("dsprites", "train", root, whole=True)) == 48
    for arrays in ({"imgs": planted, "latents_classes": classes}, {"imgs": images, "latents_classes": planted}):
        write(root, files.DSPRITES_FACTORIAL, **arrays)
        with pytest.raises(VlaeError, match="not a readable npz file"):
            load("dsprites", "train", root)
    assert not trace.exists()


def test_broken_files(root, rng):
    write_grid(root)
    path = root / "dsprites" / files.DSPRITES_FACTORIAL.name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    for content in (b"", b"an error page", whole[: len(whole) // 2], whole[:-40], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(VlaeError, match="fetch the file again") as error:
            load("dsprites", "train", root)
        assert str(path) in str(error.value)


def test_the_official_file_is_held_to_its_checksum(root, monkeypatch):
    write_grid(root, files.DSPRITES_FULL, colour=True)
    monkeypatch.setattr(sources, "_CHECK", True)
    for variant in ("full", "factorial"):
        with pytest.raises(VlaeError, match=r"co1sh3.*md5 .*, expected 7da33b31.*fetch it again"):
            load("dsprites", "train", root, variant=variant)


def test_unknown_variants_and_options(root):
    with pytest.raises(VlaeError, match='variant=\'grid\': expected "factorial", "full" or "random"'):
        load("dsprites", root=root, variant="grid")
    write_grid(root)
    with pytest.raises(VlaeError, match="whole='yes'"):
        load("dsprites", root=root, whole="yes")
    with pytest.raises(VlaeError, match="already binary"):
        load("dsprites", root=root, binarize="static")
