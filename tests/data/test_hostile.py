"""Files made to do harm: small ones that ask for much memory or would run a program, and numbers that are none."""

import io
import resource
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vlae import VlaeError
from vlae.data import formats, load, sources
from vlae.data.folder import read_image

ROOM = 1 << 30  # bytes that a loader may take beyond what the process has


@pytest.fixture(autouse=True)
def bounded():
    """Little memory to spare: a giant allocation fails with another error than `VlaeError`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(read, path, *arguments):
    with pytest.raises(VlaeError) as caught:
        read(path, *arguments)
    assert "\n" not in str(caught.value) and "MemoryError" not in str(caught.value)
    return str(caught.value)


def npy(shape, data=b"", descr="|u1"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": descr})
    return stream.getvalue() + data


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_an_array_whose_header_asks_for_terabytes(tmp_path):
    path = zipped(tmp_path / "a.npz", {"imgs.npy": npy((1 << 40, 64, 64), b"abc")})
    assert "asks for" in refused(formats.read_npz, path, "imgs")


def test_an_array_that_inflates_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_LARGEST_ARRAY", 1 << 20)
    path = zipped(tmp_path / "a.npz", {"imgs.npy": npy((1 << 22,), bytes(1 << 22))})
    assert path.stat().st_size < 10_000
    assert "1048576 at most" in refused(formats.read_npz, path, "imgs")


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=np.array([{"a": 1}], dtype=object))
    assert "npz file" in refused(formats.read_npz, tmp_path / "a.npz", "imgs")


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.asfortranarray(np.eye(3)), "é": np.zeros((0, 2))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    for ours, theirs in zip(formats.read_npz(tmp_path / "a.npz", *arrays), arrays.values(), strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def bomb(width, height):
    """A PNG of a few bytes whose header says width x height."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_a_small_image_of_very_many_pixels(tmp_path, size):
    (tmp_path / "a.png").write_bytes(bomb(*size))
    refused(read_image, tmp_path / "a.png", "L")
    zipped(tmp_path / "a.zip", {"x/y/1.png": bomb(*size)})
    refused(formats.read_png_zip, tmp_path / "a.zip", 28)


def test_an_image_with_a_piece_that_claims_gigabytes(tmp_path):
    data = bytearray(bomb(4, 4))
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = struct.pack(">I", 2**32 - 1)
    (tmp_path / "a.png").write_bytes(data)
    try:
        assert read_image(tmp_path / "a.png", "L").shape == (1, 4, 4)
    except VlaeError as error:
        message = str(error)
        assert "MemoryError" not in message


def test_a_picture_file_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_LIMIT", 100)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)).save(tmp_path / "a.png")
    assert "100 at most" in refused(read_image, tmp_path / "a.png", "L")


def test_a_zip_file_whose_image_inflates_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_LARGEST_PNG", 1 << 16)
    zipped(tmp_path / "a.zip", {"x/y/1.png": bytes(1 << 20)})
    assert "65536 bytes" in refused(formats.read_png_zip, tmp_path / "a.zip", 28)


def test_an_image_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Pillow finds PostScript by its content, whatever the name, and has Ghostscript run it."""
    from PIL import EpsImagePlugin

    def run(*_, **__):
        raise AssertionError("the program was run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "EPS")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert "its content is EPS" in refused(read_image, tmp_path / "a.png", "L")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_matrices_with_numbers_that_are_none(tmp_path, monkeypatch, value):
    monkeypatch.setattr(sources, "_CHECK", False)
    folder = tmp_path / "caltech101_silhouettes"
    folder.mkdir()
    data = np.ones((4, 784))
    data[1, 5] = value
    savemat(folder / "caltech101_silhouettes_28_split1.mat", {"train_data": data, "train_labels": np.ones((4, 1))})
    with pytest.raises(VlaeError, match="holds NaN, infinite values or no numbers"):
        load("caltech101_silhouettes", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("caltech101_silhouettes", "caltech101_silhouettes/caltech101_silhouettes_28_split1.mat"),
        ("omniglot", "omniglot/chardata.mat"),
    ],
)
def test_no_damaged_matlab_file_reaches_its_parser(tmp_path, monkeypatch, name, file):
    """SciPy's can crash the process: each such file is held to its checksum before."""
    monkeypatch.setattr(formats, "read_mat", lambda *_: pytest.fail("it was parsed"))
    (tmp_path / file).parent.mkdir()
    savemat(tmp_path / file, {"data": np.eye(3)})
    options = {"variant": "chardata"} if name == "omniglot" else {}
    with pytest.raises(VlaeError, match="md5"):
        load(name, root=tmp_path, **options)


@pytest.mark.parametrize("kind", ["npz", "png"])
def test_any_damage_to_arrays_and_images(tmp_path, mutations, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, imgs=np.arange(64, dtype=np.uint8).reshape(4, 4, 4))
    else:
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    for damaged in mutations(path.read_bytes(), 150):
        path.write_bytes(damaged)
        try:
            found = formats.read_npz(path, "imgs")[0] if kind == "npz" else read_image(path, "L").numpy()
        except VlaeError as error:
            message = str(error)
        else:
            message = ""
            assert found.nbytes <= 1 << 28
        assert "\n" not in message and "MemoryError" not in message


def amat(path):
    path.write_text("\n".join(" ".join(str(k % 2) for k in range(784)) for _ in range(2)) + "\n")


def png_zip(path, method):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(buffer, "PNG")
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("images_background/Greek/character01/1.png", "images_background/Greek/character02/2.png"):
            archive.writestr(name, buffer.getvalue())


@pytest.mark.parametrize("kind", ["amat", "deflated zip", "stored zip"])
def test_any_damage_to_the_files_of_binarized_mnist_and_omniglot(tmp_path, mutations, kind):
    path, found = tmp_path / "file", 0
    if kind == "amat":
        amat(path)
    else:
        png_zip(path, zipfile.ZIP_STORED if kind == "stored zip" else zipfile.ZIP_DEFLATED)
    for damaged in mutations(path.read_bytes(), 150):
        path.write_bytes(damaged)
        try:
            pixels = formats.read_amat(path) if kind == "amat" else formats.read_png_zip(path, 28)[0]
        except VlaeError as error:
            message = str(error)
            assert str(path) in message and "\n" not in message and "MemoryError" not in message
            continue
        found += 1
        assert pixels.dtype == np.uint8
        if kind == "amat":
            assert pixels.shape[1:] == (784,) and pixels.max() <= 1
        else:
            assert pixels.shape[1:] == (28, 28) and len(pixels) <= 2
    assert found < 150


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("options", [{"size": 8, "mode": "L"}, {"crop": 4}])
def test_any_damage_to_an_image_of_a_folder(tmp_path, mutations, suffix, options):
    """A damaged picture is read as a picture, or the folder is refused in one line that names the file."""
    folder, kinds = tmp_path / "pictures", {"read": 0, "refused": 0}
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    for k in range(4):
        Image.fromarray(pixels).save(folder / f"{k}.{suffix}")
    first = folder / f"0.{suffix}"
    for damaged in mutations(first.read_bytes(), 60):
        first.write_bytes(damaged)
        try:
            images = load("folder", path=folder, **options)
        except VlaeError as error:
            message = str(error)
            assert str(first) in message and "\n" not in message and "MemoryError" not in message
            kinds["refused"] += 1
        else:
            side = options.get("size") or options["crop"]
            tensor = images.tensor()
            assert tensor.shape[1:] == (1 if "mode" in options else 3, side, side) and bool((tensor <= 1).all())
            kinds["read"] += 1
    assert kinds["refused"]
