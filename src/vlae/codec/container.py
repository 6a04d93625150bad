"""The .vlae file: header, index, blocks.

    magic, version, header length | header | block lengths | CRC-32 of all that | blocks

The header is JSON, compressed with a dictionary of what headers have in common, and says which model it takes, what the
images are and how they were coded. Each block can be decoded on its own; its checksum is inside it, seeded with the
header's and the block's number.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from vlae.codec.pictures import Entry, count_tiles, validate
from vlae.errors import VlaeError

MAGIC = b"\x89VLAE\r\n\x1a"  # as PNG's: what is not binary-safe breaks it visibly
VERSION = 2
# What most headers say, which the compression takes as read: 80 bytes instead of 180, and a file of a few small images
# is not much longer. It belongs to the format: another one needs another version.
DICTIONARY = (
    b'[["image","bilevel","array","levels","mode":"lossy","step":0.5,"shape":[3,32,32],"levels":17,"blocks":39,'
    b'"entries":[["images/page.png","image","RGB","grey",512,768,1],["images.npz","array","RGB","L","grey",32,32,1000]],'
    b'"content":"{"model":"photos-codec","fingerprint":"","shape":[1,28,28],"levels":256,"mode":"lossless","step":null,'
    b'"blocks":1,"entries":[["images.npz","array","L","grey",28,28,1000]],"content":""}'
)
START = struct.Struct("<8sBI")
LARGEST_HEADER = 2**26
MODES = ("lossless", "lossy")


def allowance(size: int) -> int:
    """How many sub-pixels a file of so many bytes may hold: none that we write comes near, and memory stays bounded."""
    return 2**26 + 2**16 * size


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        model: the name that the model had, for people.
        fingerprint: of the model's configuration and weights.
        shape: (C, H, W) of the images that are coded, which are tiles of the pictures.
        levels: how many values a sub-pixel has.
        mode: "lossless" or "lossy".
        step: width of the bins of z in a lossy file, else None.
        blocks: how many blocks there are; the images are spread evenly over them.
        entries: the pictures.
        content: a digest of the images, so that no block of another file passes for one of this.
    """

    model: str
    fingerprint: str
    shape: tuple[int, int, int]
    levels: int
    mode: str
    step: float | None
    blocks: int
    entries: tuple[Entry, ...]
    content: str

    @property
    def count(self) -> int:
        """How many images are coded."""
        return sum(count_tiles(entry, self.shape) for entry in self.entries)

    @property
    def sizes(self) -> list[int]:
        """The number of images of each block."""
        return split_evenly(self.count, self.blocks)

    def text(self) -> bytes:
        """As JSON, always written the same way."""
        values = {**self.__dict__, "shape": list(self.shape), "entries": [list(entry) for entry in self.entries]}
        return json.dumps(values, separators=(",", ":")).encode()

    def to_bytes(self) -> bytes:
        """As compressed JSON."""
        pack = zlib.compressobj(9, wbits=-zlib.MAX_WBITS, zdict=DICTIONARY)
        return pack.compress(self.text()) + pack.flush()

    @classmethod
    def from_bytes(cls, data: bytes, allowed: int, version: int = VERSION) -> Header:
        """The header again, every value checked; `allowed` is how many sub-pixels it may promise."""
        unpack = zlib.decompressobj() if version == 1 else zlib.decompressobj(-zlib.MAX_WBITS, DICTIONARY)
        try:
            # Names compress well, but not a thousandfold, and parsed JSON is far larger than its text.
            text = unpack.decompress(data, min(LARGEST_HEADER, 2**16 + 128 * len(data)))
            if not unpack.eof or unpack.unused_data:
                raise _damaged("its header is cut off")
            values = json.loads(text)
        except (zlib.error, ValueError, RecursionError) as error:
            if isinstance(error, VlaeError):
                raise
            raise _damaged("its header can't be read") from None
        if not isinstance(values, dict) or values.keys() != cls.__annotations__.keys():
            raise _damaged("its header has other fields")
        return cls._checked(values, allowed)

    @classmethod
    def _checked(cls, values: dict[str, Any], allowed: int) -> Header:
        shape, levels, step, blocks = (values[key] for key in ("shape", "levels", "step", "blocks"))
        good = (
            all(isinstance(values[key], str) and len(values[key]) < 1000 for key in ("model", "fingerprint", "content"))
            and (
                values["model"] + values["fingerprint"] + values["content"]
            ).isprintable()  # they go to people's terminals
            and isinstance(shape, list)
            and len(shape) == 3
            and all(_is_size(n, 2**16) for n in shape)
            and shape[0] in (1, 3)
            and _is_size(levels, 256)
            and levels >= 2
            and values["mode"] in MODES
            and (isinstance(step, float) and 1e-30 <= step <= 1e30 if values["mode"] == "lossy" else step is None)
            and _is_size(blocks, 2**31)
        )
        if not good:
            raise _damaged("its header holds impossible values")
        entries = tuple(validate(values["entries"], allowed))
        header = cls(**{**values, "shape": tuple(shape), "entries": entries})
        if header.count * math.prod(header.shape) > allowed:
            raise VlaeError(
                f"the file promises {header.count:,} images of {'x'.join(map(str, header.shape))}, "
                "far more than a file of its size can hold: it is damaged or hostile"
            )
        if not 1 <= header.blocks <= header.count:
            raise _damaged("its header holds an impossible number of blocks")
        return header


@dataclass(frozen=True)
class Container:
    """A file taken apart: its header, the blocks' contents, and the seeds of the blocks' checksums."""

    header: Header
    blocks: tuple[bytes, ...] = field(repr=False)

    @property
    def seeds(self) -> list[int]:
        """One per block: a block of another file, or of another place in this one, fails its checksum."""
        return seeds_of(self.header)

    def to_bytes(self) -> bytes:
        """The file."""
        header = self.header.to_bytes()
        head = START.pack(MAGIC, VERSION, len(header)) + header + b"".join(_varint(len(b)) for b in self.blocks)
        return head + struct.pack("<I", zlib.crc32(head)) + b"".join(self.blocks)

    @classmethod
    def from_bytes(cls, data: bytes) -> Container:
        """Takes a file apart.

        Raises:
            VlaeError: not a .vlae file, one of a later version, cut off, or damaged in what is not the blocks.
        """
        if len(data) < START.size or data[: len(MAGIC)] != MAGIC:
            raise VlaeError("this is not a .vlae file: expected one that vlae compress wrote")
        _, version, length = START.unpack_from(data)
        if not 1 <= version <= VERSION:
            raise VlaeError(f"the file has format version {version} and this vlae reads 1 to {VERSION}: update vlae")
        place = START.size + length
        if place > len(data):
            raise _damaged("it is cut off in its header")
        header = Header.from_bytes(data[START.size : place], allowance(len(data)), version)
        if header.blocks > len(data):
            raise _damaged("it has fewer bytes than blocks")
        lengths = []
        for _ in range(header.blocks):
            number, place = _read_varint(data, place)
            lengths.append(number)
        if data[place : place + 4] != struct.pack("<I", zlib.crc32(data[:place])):
            raise _damaged("its header or index fails its checksum")
        edges = list(accumulate(lengths, initial=place + 4))
        if edges[-1] != len(data):
            raise _damaged(f"{edges[-1]:,} bytes were expected and there are {len(data):,}")
        return cls(header, tuple(data[a:b] for a, b in pairwise(edges)))


def seeds_of(header: Header) -> list[int]:
    """The seeds of the checksums of a file's blocks."""
    start = zlib.crc32(header.text())  # not compressed: that may differ between versions of zlib
    return [zlib.crc32(number.to_bytes(4, "little"), start) for number in range(header.blocks)]


def split_evenly(count: int, parts: int) -> list[int]:
    """`count` things in `parts` parts whose sizes differ by at most one, the larger first."""
    size, larger = divmod(count, parts)
    return [size + 1] * larger + [size] * (parts - larger)


def _is_size(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 35, 7):
        if place >= len(data):
            raise _damaged("it is cut off in its index")
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise _damaged("its index can't be read")


def _damaged(what: str) -> VlaeError:
    return VlaeError(f"the file is damaged or was not written by vlae: {what}")


def ranges(sizes: Sequence[int]) -> list[range]:
    """The images of each block."""
    return [range(a, b) for a, b in pairwise(accumulate(sizes, initial=0))]
