import contextlib
import gzip
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from vlae.data import formats
from vlae.data.folder import read_image
from vlae.errors import VlaeError

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(read, path, *arguments):
    with pytest.raises(VlaeError) as error:
        read(path, *arguments)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_idx_with_and_without_gzip(tmp_path, write_idx, rng):
    x = rng.integers(256, size=(3, 4, 5), dtype=np.uint8)
    write_idx(tmp_path / "a.gz", x)
    (tmp_path / "a").write_bytes(gzip.decompress((tmp_path / "a.gz").read_bytes()))
    for name in ("a.gz", "a"):
        assert np.array_equal(formats.read_idx(tmp_path / name, 3), x)
    assert "1 dimensions" in refused(formats.read_idx, tmp_path / "a", 1)


def test_broken_idx(tmp_path, write_idx, rng):
    path = tmp_path / "a.gz"
    write_idx(path, rng.integers(256, size=(10, 28, 28), dtype=np.uint8))
    whole = path.read_bytes()
    for data in (whole[:-9], whole[:20], whole[:50] + bytes(9) + whole[59:], b"\x1f\x8b", b"", b"\0\0\x08"):
        path.write_bytes(data)
        refused(formats.read_idx, path, 3)


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_an_idx_header_that_asks_for_terabytes(tmp_path, pack):
    path = tmp_path / "a"
    path.write_bytes(pack(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**20, 2**20) + b"abc"))
    assert "header asks for" in refused(formats.read_idx, path, 3)


def test_an_idx_that_inflates_beyond_its_header(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 10) + bytes(50_000_000)))
    assert "10 bytes" in refused(formats.read_idx, path, 1)


@fuzz
@given(st.binary(max_size=64), st.sampled_from([b"", b"\0\0\x08\x01", b"\0\0\x08\x03"]), st.booleans())
def test_any_bytes_as_idx(tmp_path, data, head, zipped):
    path = tmp_path / "fuzz"
    path.write_bytes(gzip.compress(head + data) if zipped else head + data)
    for ndim in (1, 3):
        try:
            array = formats.read_idx(path, ndim)
        except VlaeError:
            continue
        assert (array.dtype, array.ndim) == (np.uint8, ndim)
        assert array.nbytes <= len(data)


@fuzz
@given(st.binary(min_size=3, max_size=3), st.integers(0, 40))
def test_any_change_of_a_gzip_file(tmp_path, data, at):
    path = tmp_path / "fuzz"
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    whole = gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + x.tobytes())
    path.write_bytes(whole[:at] + data + whole[at + 3 :])
    with contextlib.suppress(VlaeError):
        assert np.array_equal(formats.read_idx(path, 3), x)  # bytes that don't matter, such as the time


def cifar(labels, images):
    return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))


def test_cifar(tmp_path, rng):
    x = rng.integers(256, size=(3, 3, 32, 32), dtype=np.uint8)
    (tmp_path / "a.bin").write_bytes(cifar([7, 0, 9], x))
    images, labels = formats.read_cifar(tmp_path / "a.bin")
    assert np.array_equal(images, x)
    assert labels.tolist() == [7, 0, 9]
    for data in (b"", cifar([1], x[:1])[:-1], cifar([10], x[:1])):
        (tmp_path / "a.bin").write_bytes(data)
        refused(formats.read_cifar, tmp_path / "a.bin")


@fuzz
@given(st.integers(0, 4), st.integers(-2, 2), st.binary(min_size=1, max_size=8))
def test_any_bytes_as_cifar(tmp_path, rows, off, pattern):
    path = tmp_path / "fuzz.bin"
    path.write_bytes((pattern * 3073 * 5)[: max(0, 3073 * rows + off)])
    try:
        images, labels = formats.read_cifar(path)
    except VlaeError:
        return
    assert images.shape == (rows, 3, 32, 32)
    assert 0 <= labels.min() <= labels.max() <= 9


def test_amat(tmp_path, rng):
    x = rng.integers(2, size=(3, 784))
    text = "".join(" ".join(map(str, row)) + "\n" for row in x)
    path = tmp_path / "a.amat"
    path.write_text(text)
    assert np.array_equal(formats.read_amat(path), x)
    for broken in (text[:-1], "", text.replace("1", "2"), text.replace("\n", " "), text.replace(" ", ",")):
        path.write_text(broken)
        refused(formats.read_amat, path)


def test_npz_never_unpickles(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, good=np.arange(3), bad=np.array([{}], dtype=object))
    assert formats.read_npz(path, "good")[0].tolist() == [0, 1, 2]
    assert "npz" in refused(formats.read_npz, path, "bad")
    assert "no 'other'" in refused(formats.read_npz, path, "other")
    whole = path.read_bytes()
    for data in (b"", whole[:40], whole[:-60], b"PK\x03\x04" + bytes(30)):
        path.write_bytes(data)
        refused(formats.read_npz, path, "good")


def test_mat(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"x": np.eye(3)}, do_compression=True)
    assert np.array_equal(formats.read_mat(path, "x")[0], np.eye(3))
    assert "no 'y'" in refused(formats.read_mat, path, "y")
    whole = path.read_bytes()
    for data in (b"", whole[:130], whole[:-10], bytes(300)):
        path.write_bytes(data)
        refused(formats.read_mat, path, "x")


def test_png_zip(tmp_path, write_png_zip):
    path = tmp_path / "a.zip"
    ink = Image.new("1", (105, 105), 1)
    ink.paste(0, (0, 0, 105, 60))  # the upper 16 of 28 rows
    write_png_zip(path, {"b.png": Image.new("1", (105, 105), 1), "a.png": ink})
    images, names = formats.read_png_zip(path, 28)
    assert names == ["a.png", "b.png"]
    assert images[0, :16].min() == 255
    assert images[0, 16:].max() == 0
    assert images[1].max() == 0
    whole = path.read_bytes()
    for data in (b"", whole[:-30], whole[:60] + bytes(20) + whole[80:]):
        path.write_bytes(data)
        refused(formats.read_png_zip, path, 28)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "")
    assert "no PNG" in refused(formats.read_png_zip, path, 28)


def test_broken_images(tmp_path, write_png, rng):
    path = tmp_path / "a.png"
    write_png(path, rng.integers(256, size=(30, 30, 3), dtype=np.uint8))
    whole = path.read_bytes()
    for data in (b"", b"no image", whole[:100], whole[:-500]):
        path.write_bytes(data)
        refused(read_image, path, "RGB")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)
    assert "8 bits" in refused(read_image, path, "L")


def test_images_too_large_to_be_meant(tmp_path, monkeypatch, write_png):
    path = tmp_path / "a.png"
    write_png(path, np.zeros((30, 30), np.uint8))
    for limit in (800, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "Decompression" in refused(read_image, path, "L")
