"""Pictures on the way in and out: exact pixels, and uploads of every bad kind."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import vlae
from vlae.errors import VlaeError
from vlae.explorer import pictures


def grey(levels=2, shape=(1, 4, 6)):
    options = {} if levels == 2 else {"likelihood": "categorical", "likelihood_options": {"levels": levels}}
    return vlae.VAE(shape, latent_dim=2, architecture="mlp", widths=[4], **options)


def png(array, **options):
    with io.BytesIO() as file:
        Image.fromarray(np.asarray(array)).save(file, options.pop("format", "PNG"), **options)
        return file.getvalue()


@pytest.mark.parametrize("levels", [2, 3, 17, 64, 256])
def test_pixels_come_back_as_they_went(levels):
    model = grey(levels)
    x = torch.randint(0, levels, (5, 1, 4, 6)).float() / (levels - 1)
    back = torch.cat([pictures.from_page(text, model) for text in pictures.to_page(x)])
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    model.check(back)


def test_the_page_gets_bytes_in_the_order_of_memory():
    x = torch.arange(6).view(1, 1, 2, 3) / 255
    assert base64.b64decode(pictures.to_page(x)[0]) == bytes(range(6))


@pytest.mark.parametrize("text", ["no base64!", "AAAA", ""])
def test_what_is_no_image_of_the_model_is_refused(text):
    with pytest.raises(VlaeError, match=r"base64|bytes"):
        pictures.from_page(text, grey())


def test_blocks_shrink_to_their_mean():
    small = torch.rand(1, 1, 4, 6)
    model = grey(256)
    large = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    shrunk = pictures.fit(large, model)
    assert shrunk.shape == small.shape
    # A triangle filter looks beyond the block, so only a constant image is kept exactly.
    constant = pictures.fit(torch.full((1, 1, 12, 18), 64 / 255), model)
    torch.testing.assert_close(constant, torch.full((1, 1, 4, 6), 64 / 255))
    assert (shrunk - small).abs().mean() < 0.15


def test_colours_become_grey_and_grey_colours():
    red = torch.zeros(1, 3, 4, 6)
    red[:, 0] = 1
    torch.testing.assert_close(pictures.fit(red, grey(256)), torch.full((1, 1, 4, 6), round(0.299 * 255) / 255))
    colour = vlae.VAE((3, 4, 6), latent_dim=2, architecture="mlp", widths=[4], likelihood="gaussian")
    assert torch.equal(pictures.fit(torch.full((1, 1, 4, 6), 0.5), colour), torch.full((1, 3, 4, 6), 0.5))


def half(bright, width=6, height=4):
    """A picture whose inner pixels are 255 - bright, its border bright."""
    array = np.full((height, width), bright, np.uint8)
    array[1:-1, 1:-1] = 255 - bright
    return array


@pytest.mark.parametrize(("invert", "inverted"), [("auto", True), ("no", False), ("yes", True)])
def test_a_white_background_is_inverted_if_wanted(invert, inverted):
    image, note = pictures.read_upload(png(half(255)), grey(), invert)
    expected = half(255) / 255
    assert np.array_equal(image[0, 0].numpy(), 1 - expected if inverted else expected)
    assert ("inverted" in note) == inverted


def test_a_black_background_is_left_alone():
    image, note = pictures.read_upload(png(half(0)), grey())
    assert np.array_equal(image[0, 0].numpy(), half(0) / 255)
    assert note == "PNG of 6x4; black and white"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM"])
def test_every_format_is_read(format):
    image, note = pictures.read_upload(png(np.full((8, 12), 200, np.uint8), format=format), grey(256), "no")
    assert image.shape == (1, 1, 4, 6)
    assert float((image - 200 / 255).abs().max()) < 0.02
    assert note.startswith(format)
    assert "resized to 6x4" in note


def test_the_middle_is_taken_in_the_models_proportions():
    wide = np.zeros((4, 18), np.uint8)
    wide[:, 6:12] = 255
    image, note = pictures.read_upload(png(wide), grey(), "no")
    assert bool((image == 1).all())
    assert note.startswith("PNG of 18x4; its middle 6x4")


def test_transparent_is_white_and_exif_turns():
    clear = np.zeros((4, 6, 4), np.uint8)
    assert bool((pictures.read_upload(png(clear), grey(), "no")[0] == 1).all())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright = np.zeros((4, 6), np.uint8)
    upright[0] = 255
    lying = np.rot90(upright).copy()
    image, _ = pictures.read_upload(png(lying, exif=exif), grey(), "no")
    assert np.array_equal(image[0, 0].numpy(), upright / 255)


def bomb(width, height):
    """A PNG of that many white pixels, in next to no bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (height * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def sixteen_bits():
    with io.BytesIO() as file:
        Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(file, "PNG")
        return file.getvalue()


BAD = {
    "text": (b"this is no picture at all", "not a readable picture: expected a picture"),
    "zeros": (bytes(1000), "not a readable picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a readable picture"),
    "half": (png(half(0, 60, 40))[:60], "not a readable picture"),
    "truncated jpeg": (png(np.full((64, 64), 9, np.uint8), format="JPEG")[:300], "not a readable picture"),
    "tiff": (png(half(0), format="TIFF"), "not a readable picture"),
    "bomb": (bomb(6000, 5000), "6000x5000 pixels; at most 25 million"),
    "huge": (bomb(60_000, 50_000)[:5000], "more pixels than 25 million"),
    "16 bits": (sixteen_bits(), "more than 8 bits"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_refused_in_one_line(kind):
    data, reason = BAD[kind]
    with pytest.raises(VlaeError, match=reason) as error:
        pictures.read_upload(data, grey())
    assert "\n" not in str(error.value)


def test_any_bytes_give_a_picture_or_one_line():
    whole = bytearray(png(half(0, 30, 20)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in torch.randint(len(whole), (3,), generator=generator).tolist():
            damaged[place] = int(torch.randint(256, (), generator=generator))
        try:
            image, _ = pictures.read_upload(bytes(damaged), grey())
        except VlaeError:
            continue
        assert image.shape == (1, 1, 4, 6)


def test_an_unknown_way_to_invert_is_refused():
    with pytest.raises(VlaeError, match="auto, no, yes"):
        pictures.read_upload(png(half(0)), grey(), "perhaps")
