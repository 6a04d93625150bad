"""Damage of every kind to whole files: an error that says so, or exactly the images that were written. Never else.

Any other exception, a warning (an error here), a wrong image or a hang is a failure. Models are as small as can be,
since damage inside a block is only found by decoding it.
"""

import random
import signal
import struct
import time
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vlae
from vlae import VlaeError
from vlae.codec import compress, decompress, info
from vlae.codec.container import DICTIONARY, Container

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def factorised(**options):
    return vlae.VAE((1, 4, 4), latent_dim=2, architecture="mlp", widths=[4], **options)


def autoregressive(**options):
    return vlae.VLAE(
        (1, 4, 4),
        latent_dim=2,
        decoder_layers=0,
        flow_order="same",
        flow_steps=1,
        flow_hidden=(4,),
        encoder_widths=(2,),
        encoder_hidden=4,
        channels=2,
        context_channels=1,
        **options,
    )


LEVELS = {"likelihood": "categorical", "likelihood_options": {"levels": 4}}
CASES = {
    "lossless": (factorised, LEVELS, {}),
    "lossy": (factorised, LEVELS, {"lossy_step": 0.25}),
    "autoregressive": (autoregressive, {}, {}),
}
COUNT, IMAGES_PER_BLOCK = 16, 8


class File:
    """A small file, its model and what it must decode to, or raise."""

    def __init__(self, name, seed=0):
        make, options, self.options = CASES[name]
        self.autoregressive = make is autoregressive  # ten times slower to decode
        torch.manual_seed(1)
        self.model = make(**options).double().eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(2)
        self.images = self.model.sample(COUNT, generator=torch.Generator().manual_seed(seed)).double()
        self.data = compress(self.model, self.images, images_per_block=IMAGES_PER_BLOCK, **self.options)
        self.expected = decompress(self.model, self.data, texture="greedy")
        if not self.options:
            assert torch.equal(self.expected, self.images)

    def survives(self, data):
        """Whether the damage was refused (the only other thing that may happen is that nothing has changed)."""
        if data == self.data:
            assert torch.equal(decompress(self.model, data, texture="greedy"), self.expected)
            return True
        try:
            got = decompress(self.model, data, texture="greedy")
        except VlaeError as error:
            return "frequency" not in str(error)  # the message is for people
        return torch.equal(got, self.expected)


@pytest.fixture(scope="module")
def files():
    torch.set_num_threads(1)
    return {name: (File(name), File(name, seed=5)) for name in CASES}


@pytest.fixture(params=list(CASES))
def file(request, files):
    return files[request.param][0]


@pytest.fixture(autouse=True)
def in_time():
    """No test hangs: what takes minutes is a failure."""

    def late(*_):
        raise TimeoutError("this takes too long: a hang")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def head_of(data):
    return len(data) - sum(map(len, Container.from_bytes(data).blocks))


def test_every_byte_flipped(file):
    """Three ways: the lowest bit, the highest, all of them."""
    # Damage in the head is found without decoding; in a block only by it.
    head = head_of(file.data)
    for i in range(len(file.data)):
        for mask in (1, 128, 255) if i < head else (1 << i % 8,):
            assert file.survives(file.data[:i] + bytes([file.data[i] ^ mask]) + file.data[i + 1 :]), (i, mask)


def test_every_truncation_and_some_more(file):
    for i in range(len(file.data)):
        assert file.survives(file.data[:i])
        with pytest.raises(VlaeError):
            decompress(file.model, file.data[:i])
    for more in (b"\0", b"\1", b"\0\0\0\0", b"\1\0\0\0", file.data):
        with pytest.raises(VlaeError):
            decompress(file.model, file.data + more)
    for i in range(1, len(file.data)):  # and from the front
        with pytest.raises(VlaeError):
            decompress(file.model, file.data[i:])


def mend(data, place):
    """The head's checksum made right again: damage before it, as a hostile writer would do it."""
    return data[: place - 4] + struct.pack("<I", zlib.crc32(data[: place - 4])) + data[place:]


@pytest.mark.parametrize("mended", [False, True])
def test_random_damage_in_the_head(file, mended):
    rng = random.Random(0)
    head = head_of(file.data)
    for _ in range(1500):
        data = bytearray(file.data)
        for _ in range(rng.choice([1, 1, 2, 3, 8, 30])):
            data[rng.randrange(head)] = rng.randrange(256)
        data = bytes(data)
        assert file.survives(mend(data, head) if mended else data)


def test_random_damage_in_the_text_of_the_header(file):
    """Compressed again, with its checksum: what passes must still never give other images."""
    rng = random.Random(1)
    head = head_of(file.data)
    length = struct.unpack_from("<I", file.data, 9)[0]
    text, index = Container.from_bytes(file.data).header.text(), file.data[13 + length : head - 4]
    for _ in range(200 if file.autoregressive else 1000):
        damaged = bytearray(text)
        for _ in range(rng.choice([1, 1, 2, 4])):
            place = rng.randrange(len(damaged))
            change = rng.choice(["replace", "delete", "insert"])
            character = rng.choice(b'0123456789"[]{},.-eEtnx\x00\xff')
            damaged[place : place + (change != "insert")] = bytes([character]) if change != "delete" else b""
        pack = zlib.compressobj(wbits=-15, zdict=DICTIONARY)
        packed = pack.compress(bytes(damaged)) + pack.flush()
        start = file.data[:9] + struct.pack("<I", len(packed)) + packed + index
        data = start + struct.pack("<I", zlib.crc32(start)) + file.data[head:]
        try:
            found = info(data)
        except VlaeError:
            continue
        if found["images"] > 200_000:  # few digits ask for much; all of it is decoded before the checksum fails
            continue
        assert file.survives(data)


def test_random_damage_in_the_blocks(file):
    rng = random.Random(2)
    head = head_of(file.data)
    for _ in range(120 if file.autoregressive else 250):
        data = bytearray(file.data)
        kind = rng.randrange(4)
        if kind == 0:
            for _ in range(rng.choice([1, 2, 5, 40])):
                data[rng.randrange(head, len(data))] = rng.randrange(256)
        elif kind == 1:  # a run
            start = rng.randrange(head, len(data))
            run = data[start : start + rng.randrange(1, 20)]
            data[start : start + len(run)] = bytes([rng.choice([0, 255])]) * len(run)
        elif kind == 2:  # two words exchanged
            a, b = (head + 4 * rng.randrange((len(data) - head) // 4) for _ in range(2))
            data[a : a + 4], data[b : b + 4] = data[b : b + 4], data[a : a + 4]
        else:
            data[head:] = rng.randbytes(len(data) - head)
        assert file.survives(bytes(data))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tail=st.binary(max_size=60), kept=st.integers(0, 13))
def test_anything_after_the_start(files, tail, kept):
    file = files["lossless"][0]
    assert file.survives(file.data[:kept] + tail)


# -- blocks that are whole, in the wrong place ------------------------------------------------------------------------


def rebuilt(container, contents, **changes):
    header = type(container.header)(**{**container.header.__dict__, **changes})
    return Container(header, tuple(contents)).to_bytes()


def test_blocks_swapped_doubled_and_dropped(file):
    container = Container.from_bytes(file.data)
    first, second = container.blocks
    for blocks in ((second, first), (first, first), (second, second)):
        with pytest.raises(VlaeError):
            decompress(file.model, rebuilt(container, blocks))
    for blocks, number in (((first,), 1), ((second,), 1), ((first, second, first), 3)):
        with pytest.raises(VlaeError):
            decompress(file.model, rebuilt(container, blocks, blocks=number))


def test_blocks_of_another_file_with_another_header(files):
    """Of the same model, but of one image more."""
    for name in CASES:
        ours, theirs = files[name]
        container = Container.from_bytes(ours.data)
        more = torch.cat([theirs.images, theirs.images[:1]])
        data = compress(theirs.model, more, images_per_block=IMAGES_PER_BLOCK, **theirs.options)
        other = Container.from_bytes(data)
        for blocks in ((other.blocks[0], container.blocks[1]), (container.blocks[0], other.blocks[1]), other.blocks):
            with pytest.raises(VlaeError):
                decompress(ours.model, rebuilt(container, blocks))


def test_blocks_of_another_file_with_an_equal_header(files):
    """Of the same model and as many images: only the images differ. A mixture of two files is no file."""
    for name in CASES:
        ours, theirs = files[name]
        container, other = Container.from_bytes(ours.data), Container.from_bytes(theirs.data)
        for blocks in ((other.blocks[0], container.blocks[1]), (container.blocks[0], other.blocks[1])):
            assert ours.survives(rebuilt(container, blocks)), name


def test_files_spliced_anywhere(files):
    """The start of one and the end of another, at every place."""
    for name in CASES:
        ours, theirs = files[name]
        for i in range(1, len(ours.data), 9 if ours.autoregressive else 3):
            for data in (ours.data[:i] + theirs.data[i:], ours.data[:i] + theirs.data[-len(ours.data) + i :]):
                try:
                    got = decompress(ours.model, data, texture="greedy")
                except VlaeError:
                    continue
                assert torch.equal(got, ours.expected) or torch.equal(got, theirs.expected), (name, i)


# -- made to be slow --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lossless", "autoregressive"])
def test_a_header_that_promises_more_images_than_there_are(files, name):
    """A stack that has run dry yields images for ever: the posterior soon finds one that it never gave."""
    file = files[name][0]
    container = Container.from_bytes(file.data)
    entry = container.header.entries[0]
    started = time.monotonic()
    with pytest.raises(VlaeError):
        decompress(file.model, rebuilt(container, container.blocks, entries=(entry._replace(number=100_000),)))
    assert time.monotonic() - started < 20


def test_memory_stays_within_the_promise(files):
    """What a file may promise is bounded by its size: an array of that many levels, in one byte each."""
    file = files["lossless"][0]
    container = Container.from_bytes(file.data)
    entry = container.header.entries[0]._replace(number=10**9)
    with pytest.raises(VlaeError, match="damaged"):
        decompress(file.model, rebuilt(container, container.blocks, entries=(entry,)))
