"""The file format: what was written comes back, and nothing that anyone could write does harm."""

import hashlib
import json
import struct
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlae import VlaeError
from vlae.codec import container as module
from vlae.codec import info
from vlae.codec.container import (
    DICTIONARY,
    MAGIC,
    START,
    VERSION,
    Container,
    Header,
    ranges,
    seeds_of,
    split_evenly,
)
from vlae.codec.pictures import Entry

ENTRY = ["a/b.npz", "array", "L", "grey", 8, 7, 5]
FIELDS = {
    "model": "tiny",
    "fingerprint": "0" * 32,
    "shape": [1, 8, 7],
    "levels": 2,
    "mode": "lossless",
    "step": None,
    "blocks": 2,
    "entries": [ENTRY],
    "content": "0" * 16,
}
BLOCKS = (b"\1\2\3\4" * 40, b"\5\6\7\1")


def varint(number):
    """By the definition: seven bits a byte, lowest first."""
    return bytes([number & 127 | (128 if number > 127 else 0)]) + (varint(number >> 7) if number > 127 else b"")


def pack(text, version=VERSION):
    """A header's text compressed as that version of the format has it."""
    if version == 1:
        return zlib.compress(text, 9)
    job = zlib.compressobj(9, wbits=-15, zdict=DICTIONARY)
    return job.compress(text) + job.flush()


def craft(fields=None, blocks=BLOCKS, text=None, packed=None, version=VERSION, magic=MAGIC, index=None, length=None):
    """A file by the documented format, written without the code under test: its checksums are right."""
    text = json.dumps(fields or FIELDS, separators=(",", ":")).encode() if text is None else text
    packed = pack(text, version) if packed is None else packed
    index = b"".join(varint(len(block)) for block in blocks) if index is None else index
    head = struct.pack("<8sBI", magic, version, len(packed) if length is None else length) + packed + index
    return head + struct.pack("<I", zlib.crc32(head)) + b"".join(blocks)


def with_entries(*entries, **fields):
    return craft({**FIELDS, "entries": list(entries), **fields})


def refused(data, match=None):
    with pytest.raises(VlaeError, match=match) as caught:
        info(data)
    return str(caught.value)


def test_the_format_is_as_documented():
    container = Container.from_bytes(craft())
    assert container.blocks == BLOCKS
    assert container.header == Header(**{**FIELDS, "shape": (1, 8, 7), "entries": (Entry(*ENTRY),)})
    assert container.to_bytes() == craft()
    assert START.size == 13
    assert (MAGIC, VERSION) == (b"\x89VLAE\r\n\x1a", 2)
    assert hashlib.sha256(DICTIONARY).hexdigest().startswith("cb1fdadba5f8c9b8"), (
        "part of the format: needs a new version"
    )


def test_files_of_the_first_version_are_read():
    """They say the same in more bytes: their header was compressed without a dictionary."""
    old, new = craft(version=1), craft()
    assert Container.from_bytes(old) == Container.from_bytes(new)
    assert Container.from_bytes(old).seeds == Container.from_bytes(new).seeds
    assert Container.from_bytes(old).to_bytes() == new
    assert len(new) < len(old) - 80
    for wrong in (
        craft(version=1, packed=pack(json.dumps(FIELDS).encode(), 2)),
        craft(packed=pack(json.dumps(FIELDS).encode(), 1)),
    ):
        refused(wrong)


TURNING = "".join(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))  # refused in test_pictures
names = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\:" + TURNING), min_size=1, max_size=20
)


@settings(max_examples=100, deadline=None)
@given(
    names,
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 500),
    st.sampled_from([None, 0.1, 1 / 3, 1e-9, 2.5e7]),
    st.sampled_from([(1, 8, 7), (3, 5, 5)]),
    st.lists(st.binary(max_size=300), min_size=1, max_size=9),
)
def test_round_trip(name, height, width, number, step, shape, blocks):
    mode = "L" if shape[0] == 1 else "RGB"
    entries = (
        Entry(f"{name}.npz", "array", mode, "grey", height, width, number),
        Entry("z/b.png", "image", mode, "grey", 3, 200, 1),
    )
    header = Header(
        "ünïcode ✓", "f" * 32, shape, 17, "lossy" if step else "lossless", step, min(len(blocks), 2), entries, "0" * 16
    )
    blocks = tuple(blocks[: header.blocks])
    data = Container(header, blocks).to_bytes()
    again = Container.from_bytes(data)
    assert again == Container(header, blocks)
    assert again.to_bytes() == data
    assert again.seeds == seeds_of(header)
    assert sum(header.sizes) == header.count


def test_large_blocks():
    blocks = (bytes(3_000_000) + b"\1", b"\1" * 20_000)
    assert Container.from_bytes(craft(blocks=blocks)).blocks == blocks
    assert Container(Container.from_bytes(craft()).header, blocks).to_bytes() == craft(blocks=blocks)


def test_counts_are_those_of_the_tiles():
    header = Container.from_bytes(with_entries(["a.png", "image", "L", "grey", 9, 15, 1], ENTRY)).header
    assert header.count == 2 * 3 + 5
    assert header.sizes == [6, 5]
    assert [list(block) for block in ranges(header.sizes)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_split_evenly(count, parts):
    parts = min(count, parts)
    sizes = split_evenly(count, parts)
    assert (sum(sizes), len(sizes)) == (count, parts)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_seeds_tell_blocks_and_headers_apart():
    seeds = set()
    for change in ({}, {"model": "other"}, {"fingerprint": "1" * 32}, {"entries": [[*ENTRY[:-1], 6]]}, {"levels": 3}):
        seeds |= set(Container.from_bytes(craft({**FIELDS, **change})).seeds)
    assert len(seeds) == 10


def test_info_needs_no_model():
    found = info(craft())
    assert json.loads(json.dumps(found))["pictures"][0]["name"] == "a/b.npz"
    assert found["images"] == 5
    assert found["bytes"] == len(craft())
    assert found["payload_bytes"] == 164
    assert found["bits_per_image"] == 8 * len(craft()) / 5


# -- damage -----------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_cut_of_the_head_is_refused():
    data = craft()
    head = len(data) - sum(map(len, BLOCKS))
    for i in range(head):
        for bit in range(8):
            refused(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])
    for i in range(len(data)):
        refused(data[:i])
    for more in (b"\0", b"\1\2\3\4", data):
        refused(data + more)


@pytest.mark.parametrize(
    "foreign",
    [b"", b"\x89", b"\x89PNG\r\n\x1a\n" + bytes(100), b"hello, world\n" * 9, bytes(5000), b"PK\3\4" + bytes(40)],
)
def test_foreign_files(foreign):
    assert "not a .vlae file" in refused(foreign)


def test_files_that_were_sent_as_text():
    assert "not a .vlae file" in refused(craft().replace(b"\r\n", b"\n"))


@pytest.mark.parametrize("version", [0, 3, 255])
def test_other_versions(version):
    assert "update vlae" in refused(craft(version=version))


FIELD_ATTACKS = [
    *(
        {"shape": shape}
        for shape in ([1, 8], [1, 8, 7, 1], [2, 8, 7], [1, 0, 7], [1, -8, 7], [1, 8.0, 7], [True, 8, 7])
    ),
    *({"shape": shape} for shape in ("1x8x7", None, {}, [1, 8, 10**6], [1, 10**30, 7], [1, [8], 7])),
    *({"levels": levels} for levels in (0, 1, 257, 2.0, "2", None, True, -5, 10**100)),
    *({"mode": mode} for mode in ("", "lossier", None, 1, [], {}, ["lossless"])),
    *({"mode": "lossy", "step": step} for step in (None, 0.0, -1.0, 1, "1", [1.0], True)),
    *({"step": step} for step in (1.0, 0, False, "")),
    *({"blocks": blocks} for blocks in (0, -1, 6, 2.0, None, "2", 10**12, True)),
    *({"model": text} for text in (None, 1, ["x"], "x" * 1000, "\ud800", "\x1b[2J", "a\nb", "\0")),
    *({"fingerprint": text} for text in (None, 7, "0" * 5000)),
    *({"entries": entries} for entries in (None, [], {}, "x", [[]], [1], [None], ["abcdefg"], [ENTRY[:-1]])),
]


@pytest.mark.parametrize("attack", FIELD_ATTACKS, ids=lambda attack: repr(attack)[:50])
def test_impossible_fields(attack):
    refused(craft({**FIELDS, **attack}))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "1e-999"])
def test_numbers_that_are_none(value):
    for key in ("step", "levels", "blocks"):
        text = json.dumps({**FIELDS, "mode": "lossy", "step": 1.0, key: "HERE"}).replace('"HERE"', value).encode()
        refused(craft(text=text))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model":' * 5000, b"{}", b"\xef\xbb\xbf{}"],
)
def test_headers_that_are_no_json_object(text):
    refused(craft(text=text))


def test_headers_with_other_fields():
    refused(craft({**FIELDS, "more": 1}))
    for key in FIELDS:
        refused(craft({k: v for k, v in FIELDS.items() if k != key}))


def test_headers_that_are_not_compressed_well():
    packed = pack(json.dumps(FIELDS).encode())
    for bad in (b"", b"\0", packed[:-1], packed + b"x", packed[:-4] + b"1234", b"x\x9c" + bytes(50), packed * 2):
        refused(craft(packed=bad))
    for length in (0, 10**6, 2**32 - 1, len(packed) - 1):
        refused(craft(packed=packed, length=length))


@pytest.mark.parametrize(
    "index", [b"", b"\xff" * 3, b"\xff" * 12, b"\x84\x80\x80\x80\x80\x80\x00\x04", varint(2**34) + b"\4", b"\0\0"]
)
def test_broken_indices(index):
    refused(craft(index=index))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd.png",
        "../../x.png",
        "a/../../x.png",
        "C:\\x.png",
        "a\\..\\b.png",
        "",
        ".",
        "x.png\0",
        "x\n.png",
        "\ud800.png",
        "x.exe",
        "x",
        ".png",
        "a//b.png",
        "\x1b[31m.png",
        "x" * 5000 + ".png",
        "c:x.png",
        "./x.png",
    ],
)
def test_hostile_names(name):
    refused(with_entries([name, "image", "L", "grey", 8, 7, 5]))
    refused(with_entries([name, "image", "L", "grey", 8, 7, 1], ENTRY))


def test_names_that_clash():
    refused(with_entries(["a.png", "image", "L", "grey", 8, 7, 1], ["a.jpg", "image", "L", "grey", 8, 7, 1]))
    refused(with_entries(["a.png", "image", "L", "grey", 8, 7, 1], ["a.png/b.png", "image", "L", "grey", 8, 7, 1]))


@pytest.mark.parametrize(
    "place", [(i, bad) for i in range(7) for bad in (None, [], -1, 0, 1.5, True, "?", 10**4290, {"a": 1})], ids=str
)
def test_hostile_entries(place):
    position, bad = place
    refused(with_entries([*ENTRY[:position], bad, *ENTRY[position + 1 :]]))


# -- hostile sizes ----------------------------------------------------------------------------------------------------


def costs(function):
    """Seconds and bytes at the peak."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        function()
        return time.monotonic() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


TERABYTES = {
    "many images": [["a.npz", "array", "L", "grey", 8, 7, 10**12]],
    "more digits than Python prints": [["a.npz", "array", "L", "grey", 65535, 65535, 10**4298]],
    "large images": [["a.npz", "array", "RGB", "grey", 65535, 65535, 300]],
    "one large image": [["a.png", "image", "L", "grey", 65535, 65535, 1]],
    "many small images in large tiles": [["a.npz", "array", "L", "grey", 1, 1, 2**24]],
    "many pictures": [[f"{i}.png", "image", "L", "grey", 60000, 60000, 1] for i in range(1000)],
}


@pytest.mark.parametrize("name", TERABYTES)
def test_headers_that_ask_for_terabytes(name):
    shape = [3, 1024, 1024] if "tiles" in name else [1, 8, 7]
    data = with_entries(*TERABYTES[name], shape=shape)
    seconds, memory = costs(lambda: refused(data))
    assert seconds < 5
    assert memory < 2**25


def test_many_blocks_without_bytes():
    entry = ["a.npz", "array", "L", "grey", 8, 7, 10**6]
    seconds, memory = costs(lambda: refused(with_entries(entry, blocks=10**6)))
    assert seconds < 5
    assert memory < 2**25


def test_compressed_bombs():
    zeros = pack(bytes(2 * module.LARGEST_HEADER))  # an eighth of a megabyte
    seconds, memory = costs(lambda: refused(craft(packed=zeros)))
    assert memory < 4 * module.LARGEST_HEADER
    assert seconds < 20


def test_compressed_bombs_of_objects():
    packed = pack(b"[" + b"[]," * 333_333 + b"[]]")  # a kilobyte
    _, memory = costs(lambda: refused(craft(packed=packed)))
    assert memory < 2**22


def test_a_file_of_its_own_limits_is_read():
    """The limits are far from what is written: a file of a million black images is fine."""
    fields = {**FIELDS, "entries": [["a.npz", "array", "L", "grey", 8, 7, 10**6]], "blocks": 1}
    data = craft(fields, blocks=BLOCKS[:1])
    assert info(data)["images"] == 10**6
