import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlae.codec import pictures as module
from vlae.codec.pictures import Entry, Picture, assemble, collect, count_tiles, read, tiles, validate, write
from vlae.errors import VlaeError

GOOD = ["a/b.png", "image", "RGB", "grey", 5, 7, 1]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    """Writes an image (or array of pixels) below the temporary directory, returns its path."""

    def save(name, image, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(path, **options)
        return path

    return save


def there_and_back(paths, shape, levels, out):
    """Through tiles and a header in JSON into files; returns the restored paths."""
    pictures = read(paths, levels)
    cut = tiles(pictures, shape, levels)
    assert cut.dtype == np.uint8
    assert cut.shape[1:] == shape
    assert cut.max() < levels
    entries = validate(json.loads(json.dumps([picture.entry for picture in pictures])), max_pixels=10**8)
    assert entries == [picture.entry for picture in pictures]
    return write(assemble(entries, cut, levels), out)


def tiles_by_hand(pixels, shape):
    """[N, C, h, w] cut by the definition, one sub-pixel at a time."""
    channels, high, wide = shape
    height, width = pixels.shape[2:]
    cut = [
        [
            [
                [image[c % image.shape[0], min(top + i, height - 1), min(left + j, width - 1)] for j in range(wide)]
                for i in range(high)
            ]
            for c in range(channels)
        ]
        for image in pixels
        for top in range(0, height, high)
        for left in range(0, width, wide)
    ]
    return np.array(cut, np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (4, 5), (8, 10), (7, 11), (9, 1), (13, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_any_size_come_back_exactly(save, tmp_path, rng, size, channels):
    grey = rng.integers(256, size=size, dtype=np.uint8)
    colour = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    files = {"grey.png": grey, "same.bmp": np.stack([grey] * 3, 2), **({"colour.png": colour} if channels == 3 else {})}
    paths = [save(name, array) for name, array in files.items()]
    restored = there_and_back(paths, (channels, 4, 5), 256, tmp_path / "out")
    assert [path.name for path in restored] == [Path(name).with_suffix(".png").name for name in files]
    for path, array in zip(restored, files.values(), strict=True):
        with Image.open(path) as image:
            assert image.mode == ("L" if array.ndim == 2 else "RGB")
            assert np.array_equal(np.array(image), array)


@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4),
    st.sampled_from([(1, 1), (1, 3), (3, 3)]), st.sampled_from([2, 17, 256]), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_tiles_are_the_definition_and_assemble_inverts_them(n, height, width, high, wide, channels, levels, seed):
    drawn = np.random.default_rng(seed).integers(levels, size=(n, channels[0], height, width), dtype=np.uint8)
    picture = Picture("a.npz", "array", drawn, "levels")
    shape = (channels[1], high, wide)
    cut = tiles([picture, picture], shape, levels)
    expected = tiles_by_hand(drawn, shape)
    assert np.array_equal(cut, np.concatenate([expected, expected]))
    assert count_tiles(picture.entry, shape) == len(expected)
    for back in assemble([picture.entry] * 2, cut, levels):
        assert back.entry == picture.entry
        assert np.array_equal(back.pixels, drawn)


def test_pictures_of_different_sizes_share_one_array(rng):
    sizes = [(1, 2, 3), (5, 4, 4), (2, 9, 1)]
    made = [
        Picture(f"{i}.npz", "array", rng.integers(256, size=(n, 1, h, w), dtype=np.uint8))
        for i, (n, h, w) in enumerate(sizes)
    ]
    cut = tiles(made, (1, 4, 4), 256)
    assert len(cut) == 1 + 5 + 2 * 3
    for picture, back in zip(made, assemble([p.entry for p in made], cut, 256), strict=True):
        assert np.array_equal(back.pixels, picture.pixels)
    with pytest.raises(VlaeError, match="11 tiles for pictures of 12"):
        assemble([p.entry for p in made], cut[1:], 256)


# Kinds of images


def test_one_bit_and_palette_images_are_exact(save, tmp_path, rng):
    bits = rng.integers(2, size=(9, 10), dtype=np.uint8) * 255
    colours = rng.integers(256, size=(4, 3), dtype=np.uint8)
    indices = rng.integers(4, size=(6, 7), dtype=np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette(colours.ravel().tolist())
    assert palette.mode == "P"
    one = Image.fromarray(bits).convert("1")
    paths = [save("bits.png", one), save("bits2.pbm", one), save("p.png", palette), save("q.gif", palette)]
    assert [(p.entry.mode, p.values) for p in read(paths, 256)] == [("L", "grey")] * 2 + [("RGB", "grey")] * 2
    restored = there_and_back(paths, (3, 4, 4), 256, tmp_path / "out")
    for path, expected in zip(restored, [bits, bits, colours[indices], colours[indices]], strict=True):
        assert np.array_equal(np.array(Image.open(path)), expected)
    (black_and_white,) = there_and_back(paths[:1], (1, 4, 4), 2, tmp_path / "two")
    assert np.array_equal(np.array(Image.open(black_and_white)), bits)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_where_it_is_opaque_and_refused_elsewhere(save, rng, mode):
    array = rng.integers(256, size=(4, 5, len(mode)), dtype=np.uint8)
    array[..., -1] = 255
    path = save("a.png", array)
    assert Image.open(path).mode == mode
    (picture,) = read([path])
    assert np.array_equal(picture.pixels[0].transpose(1, 2, 0), array[..., :-1])
    array[2, 3, -1] = 254
    with pytest.raises(VlaeError, match=r"b\.png: has transparent pixels; save it without"):
        read([save("b.png", array)])


def test_transparent_colours_are_alpha_too(save):
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    for name, image in {"p.png": palette, "p.gif": palette, "l.png": grey}.items():
        used = 1 if image is palette else 7
        with pytest.raises(VlaeError, match="transparent"):
            read([save(name, image, transparency=used)])
    (picture,) = read([save("unused.png", grey, transparency=9)])
    assert picture.pixels.tolist() == [[[[7, 8]]]]


def png16(path, colour_type, channels):
    """Pillow can't write 16-bit colour, so by hand."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(2 * (b"\0" + bytes(range(2 * 3 * channels))))
    header = struct.pack(">IIBBBBB", 3, 2, 16, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_more_than_8_bits_are_refused(tmp_path, save):
    paths = [png16(tmp_path / f"{kind}.png", kind, channels) for kind, channels in {0: 1, 2: 3, 4: 2, 6: 4}.items()]
    for name, text in {
        "p6.ppm": b"P6 1 1 65535\n123456",
        "p3.ppm": b"P3 1 1 1000\n1 2 3",
        "p5.pgm": b"P5 1 1 999\n12",
    }.items():
        (tmp_path / name).write_bytes(text)
        paths.append(tmp_path / name)
    paths += [save(f"{mode}.tif", Image.new(mode, (2, 2))) for mode in ("I;16", "I", "F")]
    for path in paths:
        with pytest.raises(VlaeError, match=f"{path.name}: pixels of more than 8 bits; save it with 8"):
            read([path])


def test_other_colour_spaces_formats_and_several_frames_are_refused(save, tmp_path):
    with pytest.raises(VlaeError, match="kind CMYK"):
        read([save("c.jpg", Image.new("CMYK", (2, 2)))])
    frames = [Image.new("L", (2, 2), value) for value in (0, 100, 200)]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        with pytest.raises(VlaeError, match="holds 3 images; save each as its own file"):
            read([save(name, frames[0], save_all=True, append_images=frames[1:])])
    with pytest.raises(VlaeError, match="its content is TGA"):
        read([save("t.png", Image.new("L", (2, 2)), format="TGA")])


def test_jpeg_and_webp_keep_their_decoded_pixels_and_are_turned(save, tmp_path, rng):
    array = rng.integers(256, size=(8, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    paths = [save("a.jpg", array, exif=exif), save("b.webp", array, lossless=True), save("c.jpeg", array[..., 0])]
    decoded = [np.array(Image.open(path)) for path in paths]
    decoded[0] = np.rot90(decoded[0], -1)
    assert np.array_equal(decoded[1], array)
    for path, expected in zip(there_and_back(paths, (3, 5, 5), 256, tmp_path / "out"), decoded, strict=True):
        assert np.array_equal(np.array(Image.open(path)), expected)


def test_broken_images_are_one_line(save, tmp_path, rng, monkeypatch):
    whole = save("a.png", rng.integers(256, size=(50, 50), dtype=np.uint8)).read_bytes()
    for name, data in {"cut.png": whole[:1000], "empty.png": b"", "text.jpg": b"not an image"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VlaeError, match=f"{name}: not a readable image") as caught:
            read([tmp_path / name])
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(VlaeError, match=r"a\.png: not a readable image \(DecompressionBomb"):
        read([tmp_path / "a.png"])


# Arrays


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 1, 4, 5), (6, 3, 4, 5), (2, 9, 3), (1, 3, 1, 1)])
@pytest.mark.parametrize("form", ["npy", "npz", "named"])
def test_arrays_come_back_exactly(tmp_path, rng, shape, form):
    images = rng.integers(256, size=shape, dtype=np.uint8)
    path = tmp_path / f"a.{form[:3]}" if form != "named" else tmp_path / "a.npz"
    if form == "npy":
        np.save(path, images)
    elif form == "npz":
        np.savez(path, images)
    else:
        np.savez_compressed(path, images=images, labels=np.arange(6))
    (restored,) = there_and_back([path], (3, 4, 5), 256, tmp_path / "out")
    assert restored == tmp_path / "out" / "a.npz"
    with np.load(restored) as variables:
        assert variables.files == ["images"]
        assert variables["images"].dtype == np.uint8
        assert np.array_equal(variables["images"], images if images.ndim == 4 else images[:, None])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 3), np.float32), r"values of float32, expected uint8; .*images \* 255"),
        (np.zeros((2, 3, 3), np.int64), r"values of int64, expected uint8; .*astype\('uint8'\)"),
        (np.zeros((2, 3), np.uint8), r"shape \[2, 3\], expected \[N, h, w\]"),
        (np.zeros((2, 9, 9, 3), np.uint8), r"transpose\(0, 3, 1, 2\)"),
        (np.zeros((0, 9, 9), np.uint8), r"shape \[0, 9, 9\]"),
        (np.zeros((1, 1, 70000), np.uint8), "more than 65535 pixels"),
        (np.array([None, "x"]), "not a readable array file .*allow_pickle"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(VlaeError, match=message):
        read([tmp_path / "a.npy"])


def test_broken_array_files_are_one_line(tmp_path, monkeypatch):
    images = np.zeros((2, 30, 30), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=images)
    np.savez(tmp_path / "two.npz", x=images, y=images)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    (tmp_path / "text.npy").write_bytes(b"cos\nsystem\n")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (1 << 40, 99, 99), "fortran_order": False, "descr": "|u1"})
    (tmp_path / "huge.npy").write_bytes(header.getvalue())
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    for name in ("cut.npz", "text.npy", "huge.npy", "huge.npz"):
        with pytest.raises(VlaeError, match=f"{name}: (not a readable array file|.* asks for)") as caught:
            read([tmp_path / name])
        assert "\n" not in str(caught.value)
    with pytest.raises(VlaeError, match="holds x, y; expected one array"):
        read([tmp_path / "two.npz"])
    monkeypatch.setattr(module, "_LARGEST_ARRAY", 1000)
    with pytest.raises(VlaeError, match="more than 1000 bytes"):
        read([tmp_path / "a.npz"])


# Levels and channels


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_grey_values_of_the_levels_come_back(save, tmp_path, rng, levels):
    drawn = rng.integers(levels, size=(6, 7))
    drawn[0, 0] = levels - 1
    array = np.array([round(k * 255 / (levels - 1)) for k in drawn.ravel()], np.uint8).reshape(6, 7)
    path = save("a.png", array)
    cut = tiles(read([path], levels), (1, 6, 7), levels)
    assert np.array_equal(cut[0, 0], drawn)
    (restored,) = there_and_back([path], (3, 4, 4), levels, tmp_path / "out")
    assert np.array_equal(np.array(Image.open(restored)), array)


@pytest.mark.parametrize("levels", [2, 17, 200])
def test_arrays_may_hold_levels_or_grey_values(tmp_path, rng, levels):
    drawn = rng.integers(levels, size=(3, 4, 4), dtype=np.uint8)
    drawn[0, 0, 0] = levels - 1
    grey = np.round(np.arange(levels) * 255 / (levels - 1)).astype(np.uint8)[drawn]
    np.save(tmp_path / "grey.npy", grey)
    np.save(tmp_path / "levels.npy", drawn)
    np.save(tmp_path / "zero.npy", 0 * drawn)
    made = read([tmp_path / name for name in ("grey.npy", "levels.npy", "zero.npy")], levels)
    assert [picture.values for picture in made] == ["grey", "levels", "levels"]
    cut = tiles(made, (1, 4, 4), levels)
    assert np.array_equal(cut[:, 0], np.concatenate([drawn, drawn, 0 * drawn]))
    back = assemble([picture.entry for picture in made], cut, levels)
    for picture, array in zip(back, (grey, drawn, 0 * drawn), strict=True):
        assert np.array_equal(picture.pixels[:, 0], array)


def test_values_between_the_levels_are_refused(save):
    path = save("a.png", np.array([[0, 255, 7]], np.uint8))
    with pytest.raises(VlaeError, match=r"a\.png: has the pixel value 7, .* 2 levels \(0, 255\); binarise it"):
        tiles(read([path], 2), (1, 4, 4), 2)
    with pytest.raises(VlaeError, match=r"value 7, .* 17 levels \(0, 16, 32, \.\.\., 255\); round"):
        tiles(read([path], 17), (1, 4, 4), 17)
    with pytest.raises(VlaeError, match="value 2"):
        tiles([Picture("a.npz", "array", np.full((1, 1, 2, 2), 2, np.uint8), "levels")], (1, 4, 4), 2)
    with pytest.raises(VlaeError, match="levels=257"):
        tiles(read([path]), (1, 4, 4), 257)


def test_colour_needs_a_colour_model(save, rng):
    pictures = read([save("a.png", rng.integers(256, size=(4, 5, 3), dtype=np.uint8))])
    with pytest.raises(VlaeError, match=r"a\.png: in colour, but the model codes grey images; convert"):
        tiles(pictures, (1, 4, 4), 256)
    with pytest.raises(VlaeError, match="2 channels"):
        tiles(pictures, (2, 4, 4), 256)


# Names


def test_directories_are_expanded_in_order(save, tmp_path):
    black = np.zeros((2, 2), np.uint8)
    for name in ("d/b/x.JPG", "d/a.png", "d/.hidden.png", "d/.git/x.png", "d/c.bmp", "e.webp"):
        save(name, black)
    np.save(tmp_path / "d" / "b" / "n.npy", black[None])
    (tmp_path / "d" / "notes.txt").write_text("no image")
    sources = collect([tmp_path / "e.webp", str(tmp_path / "d")])
    assert [source.name for source in sources] == ["e.webp", "a.png", "b/n.npy", "b/x.JPG", "c.bmp"]
    assert [source.kind for source in sources] == ["image", "image", "array", "image", "image"]
    assert [p.name for p in read([tmp_path / "d"])] == ["a.png", "b/n.npy", "b/x.JPG", "c.bmp"]
    restored = there_and_back([tmp_path / "d"], (1, 2, 2), 256, tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for path in restored]
    assert names == ["a.png", "b/n.npz", "b/x.png", "c.png"]


def test_paths_that_are_refused(save, tmp_path):
    black = np.zeros((2, 2), np.uint8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("no image")
    for path, message in {"none.png": "no such file", "empty": "no images in it", "a.txt": "not an image file"}.items():
        with pytest.raises(VlaeError, match=f"{path}: {message}"):
            collect([tmp_path / path])
    with pytest.raises(VlaeError, match="no images given"):
        collect([])
    for pair in [("a.jpg", "a.png"), ("x/b.png", "y/b.png"), ("x/c.png", "x/c.png"), ("n.npy", "n.npz")]:
        paths = [tmp_path / name for name in pair]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
        with pytest.raises(VlaeError, match=f"{pair[0]} and .*{pair[1]} would clash when restored"):
            collect(paths)
    save("tree/d.png/e.png", black)
    save("other/d.jpg", black)
    with pytest.raises(VlaeError, match="would clash"):
        collect([tmp_path / "tree", tmp_path / "other"])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["a\\b.png", "c:d.png", "a\nb.png", b"\xff.png"])
def test_names_that_are_unsafe_elsewhere_are_refused_early(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    try:
        path.write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(VlaeError, match="rename it") as caught:
        collect([tmp_path])
    str(caught.value).encode()  # can be printed


@pytest.mark.parametrize(
    "name",
    ["/a.png", "../a.png", "a/../../b.png", "a/./b.png", "a//b.png", "", ".", "..", "a/", "C:/a.png", "C:a.png",
     "\\\\host\\a.png", "a\\..\\b.png", "a\0.png", "a\x1b[2J.png", "a\n.png", "a.exe", "a", ".png", "a/.npz", "a.npz",
     "\udcff.png", "a" * 5000 + ".png", "~/\r.png"],
)  # fmt: skip
def test_hostile_names_are_refused(tmp_path, name):
    with pytest.raises(VlaeError, match="damaged or not written by vlae") as caught:
        validate([[name, *GOOD[1:]]], 100)
    str(caught.value).encode()
    if name != "a.npz":
        with pytest.raises(VlaeError, match="damaged or not written by vlae"):
            write([Picture(name, "image", np.zeros((1, 1, 2, 2), np.uint8))], tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_harmless_names_are_kept():
    for name in ("ü/日本 語.png", "12:30.png", "..a/b...jpg", "a.tar.webp", "-rf.png", "é\u202f1.png"):
        (entry,) = validate([[name, *GOOD[1:]]], 100)
        assert entry.name == name


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 3), (0, None), (1, "movie"), (1, ["image"]), (2, "CMYK"), (3, "floats"), (3, "levels"), (4, 0), (4, -1),
     (4, 65536), (4, 5.0), (4, True), (4, "5"), (5, 0), (5, 10**30), (6, 0), (6, 2), (6, None)],
)  # fmt: skip
def test_hostile_properties_are_refused(place, value):
    entry = [*GOOD]
    entry[place] = value
    with pytest.raises(VlaeError, match="damaged or not written by vlae"):
        validate([entry], 10**40)


def test_hostile_lists_are_refused():
    assert validate([GOOD], 35) == [Entry(*GOOD)]
    for entries in (None, {}, [], "x", [GOOD[:-1]], [[*GOOD, 1]], [dict(enumerate(GOOD))], [None], ["abcdefg"]):
        with pytest.raises(VlaeError, match="damaged or not written by vlae"):
            validate(entries, 100)
    with pytest.raises(VlaeError, match="35 pixels, expected 34"):
        validate([GOOD], 34)
    with pytest.raises(VlaeError, match="70 pixels, expected 69"):
        validate([GOOD, ["c.png", *GOOD[1:]]], 69)
    for other in ("a/b.png", "a/b.jpg", "a/b.png/c.png", "a.png/../b.png"):
        with pytest.raises(VlaeError, match="damaged or not written by vlae"):
            validate([GOOD, [other, *GOOD[1:]]], 100)


# Writing


def black(*names):
    return [Picture(name, "image", np.zeros((1, 1, 2, 2), np.uint8)) for name in names]


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / "b.png").write_text("precious")
    with pytest.raises(VlaeError, match=r"b\.png exists; choose another directory"):
        write(black("a.png", "sub/c.png", "b.jpg"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]
    assert (tmp_path / "b.png").read_text() == "precious"
    write(black("a.png", "b.jpg"), tmp_path, overwrite=True)
    assert np.array(Image.open(tmp_path / "b.png")).tolist() == [[0, 0], [0, 0]]


def test_a_failing_write_leaves_no_file(tmp_path, monkeypatch):
    save = module._save

    def fails_at_last(picture, path):
        save(picture, path)
        if picture.name == "c.png":
            raise OSError("disk full")

    monkeypatch.setattr(module, "_save", fails_at_last)
    (tmp_path / "a.png").write_text("old")
    with pytest.raises(VlaeError, match=r"can't be written to .*disk full"):
        write(black("a.png", "b.png", "c.png"), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "old"


def test_directories_in_the_way_are_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(VlaeError, match=r"a\.png: a directory"):
            write(black("a.png"), tmp_path, overwrite)
        with pytest.raises(VlaeError, match="file: not a directory"):
            write(black("file/a.png"), tmp_path, overwrite)
        with pytest.raises(VlaeError, match="file: not a directory"):
            write(black("a.png"), tmp_path / "file", overwrite)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_symbolic_links_are_not_followed_out(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.png").write_text("precious")
    (out / "link").symlink_to(elsewhere)
    (out / "dangling").symlink_to(tmp_path / "none")
    (out / "loop").symlink_to(out / "loop")
    (out / "a.png").symlink_to(elsewhere / "a.png")
    (out / "b.png").symlink_to(elsewhere / "none.png")
    (out / "d.png").symlink_to(elsewhere)
    for name in ("link/x.png", "link/sub/x.png", "dangling/x.png", "loop/x.png"):
        with pytest.raises(VlaeError, match=r"leads out of|not a directory"):
            write(black(name), out, overwrite=True)
    for name in ("a.png", "b.png", "d.png"):
        with pytest.raises(VlaeError, match="exists"):
            write(black(name), out)
    write(black("a.png", "b.png", "d.png"), out, overwrite=True)
    assert not any((out / name).is_symlink() for name in ("a.png", "b.png", "d.png"))
    assert [path.name for path in elsewhere.iterdir()] == ["a.png"]
    assert (elsewhere / "a.png").read_text() == "precious"
    (tmp_path / "alias").symlink_to(out)  # the directory itself may be a link: the user chose it
    assert write(black("c.png"), tmp_path / "alias") == [tmp_path / "alias" / "c.png"]


def test_relative_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write(black("a.png", "b/c.png"), ".") == [Path("a.png"), Path("b/c.png")]
    assert write(black("a.png", "b/c.png"), "x/y") == [Path("x/y/a.png"), Path("x/y/b/c.png")]


def test_kodak(tmp_path):
    kodak = Path(os.environ.get("VLAE_DATA", "")) / "kodak"
    if "VLAE_DATA" not in os.environ or not kodak.is_dir():
        pytest.skip("needs the Kodak images: set VLAE_DATA to a folder with kodak/")
    paths = sorted(kodak.glob("*.png"))[:4]
    for path, restored in zip(paths, there_and_back(paths, (3, 28, 36), 256, tmp_path / "out"), strict=True):
        with Image.open(path) as original, Image.open(restored) as again:
            assert np.array_equal(np.array(original), np.array(again))


@pytest.mark.parametrize("number", [*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
def test_names_that_turn_text_around_are_refused(number):
    with pytest.raises(VlaeError, match="damaged"):
        validate([[f"photo{chr(number)}gnp.exe.png", "image", "L", "grey", 1, 1, 1]], 10)


@pytest.mark.parametrize("name", ["soft\u00adhyphen.png", "می\u200cخواهم.png", "👩\u200d🔬.png"])
def test_names_with_joiners_are_kept(name):
    (entry,) = validate([[name, "image", "L", "grey", 1, 1, 1]], 10)
    assert entry.name == name
