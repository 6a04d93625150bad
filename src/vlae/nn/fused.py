"""Small convolutional networks without gradients, compiled: `fused.cpp`, for where PyTorch's calls and copies cost more
than the arithmetic.

A `Network` is a list of steps between `Maps`. It takes float32 inputs on the CPU, one after the other in each thread,
so that all maps of one stay in the cache of a core. The C++ compiler of the machine makes the code, for its very
processor, in a second and once per process. Where there is no compiler, or where the code is not known to be fast (it
is on x86 with AVX2 or AVX-512), there is no `library`.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.machine import cpp_compiler

logger = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")
NATIVE = "-march=native"
ACTIVATIONS = {"none": 0, "elu": 1, "gate": 2}  # as in fused.cpp


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code; None where there is none that is fast."""
    try:
        # GCC on Windows may crash in code with wide vectors: it does not align what it puts on the stack (PR 54412).
        if sys.platform == "win32" or platform.machine() not in ("x86_64", "AMD64"):
            raise OSError("this is no Unix machine with an x86 processor")
        if (compiler := cpp_compiler()) is None:
            raise OSError("no C++ compiler was found")
        code = build(compiler)
        if code.lanes() < 8:
            raise OSError(f"{compiler} makes no code with AVX2 or AVX-512 here")
        return code
    except OSError as error:
        logger.info(f"importance weights are computed without compiled code, slower: {str(error)[:300]}")
        return None


def build(compiler: str, native: str = NATIVE) -> ctypes.CDLL:
    """Compiles and loads fused.cpp, with options for the processor.

    Raises:
        OSError: the compiler, or the system, did not do it.
    """
    source = resources.files("vlae.nn") / "fused.cpp"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, resources.as_file(source) as path:
        made = Path(folder) / "fused.so"
        command = [compiler, *FLAGS, *native.split(), str(path), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
        except subprocess.TimeoutExpired as error:
            raise OSError(str(error)) from None
        if done.returncode:
            raise OSError(f"{compiler} did not compile {path.name}: {done.stderr.strip()}")
        return ctypes.CDLL(str(made))


def lanes() -> int:
    """How many channels the processor computes at once; maps have room for a multiple of them."""
    code = library()
    assert code is not None
    return int(code.lanes())


def whole_vectors(channels: int) -> int:
    """So many channels, rounded up to whole vectors."""
    return -(-channels // lanes()) * lanes()


class Maps:
    """Maps [rows, columns, channels] in a network's memory, with room around them for what convolutions read there."""

    def __init__(self, rows: int, columns: int, channels: int):
        self.rows, self.columns, self.channels = rows, columns, channels
        self.up = self.down = self.left = self.right = 0
        self.start = 0

    @property
    def pixel(self) -> int:
        """Floats from pixel to pixel."""
        return whole_vectors(self.channels)

    @property
    def row(self) -> int:
        """Floats from row to row."""
        return (self.left + self.columns + self.right) * self.pixel

    @property
    def size(self) -> int:
        """Floats in all."""
        return (self.up + self.rows + self.down) * self.row

    def place(self, phase: tuple[int, int] = (0, 0), stride: int = 1) -> tuple[int, int, int]:
        """`Place` in fused.cpp: of every stride-th pixel of every stride-th row, from the phase on."""
        first = self.start + (self.up + phase[0]) * self.row + (self.left + phase[1]) * self.pixel
        return first, self.row * stride, self.pixel * stride

    def inside(self, memory: np.ndarray) -> np.ndarray:
        """The maps themselves in the memory, [rows, columns, channels], to be written to."""
        every = memory[self.start : self.start + self.size].reshape(-1, self.row // self.pixel, self.pixel)
        return every[self.up : self.up + self.rows, self.left : self.left + self.columns, : self.channels]


@dataclass
class Term:
    """A convolution: weight [out, in, rows, columns], the pixel itself being `up` rows and `left` columns into it."""

    source: Maps
    weight: Tensor
    up: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        rows, columns = self.weight.shape[2:]
        source = self.source
        source.up, source.left = max(source.up, self.up), max(source.left, self.left)
        source.down, source.right = max(source.down, rows - 1 - self.up), max(source.right, columns - 1 - self.left)


@dataclass
class Step:
    """bias + added + the sum of the terms, to `raw` as it is, to `active` through the activation.

    Attributes:
        terms: convolutions.
        bias: [out].
        raw: maps of `out` channels, or None.
        active: of as many, of half as many for a gate, or None.
        activation: "none", "elu", or "gate": tanh(a) sigmoid(b) of two halves, which lie as in `gate_order`.
        added: maps of `out` channels, or None.
        stride: every stride-th pixel of the maps that are written, from the phase on: of a transposed convolution. The
            maps that are read are then smaller, and nothing is added.
        phase: the first row and column that are written.
    """

    terms: Sequence[Term]
    bias: Tensor
    raw: Maps | None = None
    active: Maps | None = None
    activation: str = "none"
    added: Maps | None = None
    stride: int = 1
    phase: tuple[int, int] = (0, 0)


def gate_order(channels: int) -> Tensor:
    """Where the outputs of a gate's convolutions belong: for each place the index of an output, or 2 * channels.

    Of both halves as many as are computed at once, in turn: `padded(weight)[gate_order(channels)]`. The index after the
    last stands for the zeros with which the halves are filled up to whole vectors.
    """
    half = torch.full((whole_vectors(channels),), 2 * channels, device="cpu")
    half[:channels] = torch.arange(channels, device="cpu")
    other = torch.where(half < 2 * channels, half + channels, half)
    return torch.stack([half.view(-1, lanes()), other.view(-1, lanes())], dim=1).flatten()


def padded(weight: Tensor) -> Tensor:
    """One more output, which is zero."""
    return torch.cat([weight, weight.new_zeros(1, *weight.shape[1:])])


@dataclass
class _Arrays:
    """What fused.cpp reads: int64 rows of its structures, and floats."""

    steps: list[tuple[int, ...]] = field(default_factory=list)
    terms: list[tuple[int, ...]] = field(default_factory=list)
    taps: list[int] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)

    def constant(self, values: Tensor) -> int:
        """Keeps floats and says where they are."""
        start = sum(len(each) for each in self.constants)
        self.constants.append(values.detach().float().flatten().numpy())
        return start

    def term(self, term: Term, groups: int, width: int) -> Tensor:
        """Enters a term; its weights [groups, taps * in * width], without taps that are zero throughout."""
        out, channels, rows, columns = term.weight.shape
        weight = term.weight.new_zeros(groups * width, channels, rows, columns)
        weight[:out] = term.weight
        used = weight.abs().sum((0, 1)).nonzero().tolist()
        _, row, pixel = term.source.place()
        self.terms.append((*term.source.place(), channels, len(self.taps), len(used)))
        self.taps += [(y - term.up) * row + (x - term.left) * pixel for y, x in used]
        taps = [weight[:, :, y, x].unflatten(0, (groups, width)).transpose(1, 2) for y, x in used]
        return torch.stack(taps, dim=1).flatten(1) if taps else weight.new_zeros(groups, 0)

    def step(self, step: Step) -> None:
        """Enters a step."""
        to = step.raw or step.active
        assert to is not None
        grid = [-(-(n - p) // step.stride) for n, p in zip((to.rows, to.columns), step.phase, strict=True)]
        out = whole_vectors(len(step.bias))
        vectors = 2 if out % (2 * lanes()) == 0 else 1
        assert vectors == 2 or step.activation != "gate"  # whose halves come in the same group
        width = vectors * lanes()
        first = len(self.terms)
        weights = [self.term(term, out // width, width) for term in step.terms]
        bias = step.bias.new_zeros(out)
        bias[: len(step.bias)] = step.bias
        places = [
            (-1, 0, 0) if m is None else m.place(step.phase, step.stride) for m in (step.added, step.raw, step.active)
        ]
        self.steps.append(
            (
                *grid,
                first,
                len(weights),
                out // width,
                vectors,
                self.constant(torch.cat(weights, dim=1) if weights else bias[:0]),
                self.constant(bias),
                *sum(places, ()),
                ACTIVATIONS[step.activation],
            )
        )


def check(values: Tensor, maps: Maps) -> None:
    """Refuses values that are not float32 numbers [C, H, W] of these maps: the compiled code would not notice."""
    expected = (maps.channels, maps.rows, maps.columns)
    if values.dtype != torch.float32 or values.device.type != "cpu" or values.shape != expected:
        got = f"{values.dtype} {list(values.shape)} on {values.device}"
        raise VlaeError(f"compiled networks take float32 maps {list(expected)} on the CPU; got {got}")


class _Program(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("steps", "terms", "taps", "constants")),
        ("count", ctypes.c_int64),
        ("input", ctypes.c_int64 * 6),
        ("output", ctypes.c_int64 * 6),
    ]


class Network:
    """Steps from the maps `input` to the maps `output`; `fixed` maps are the same for many inputs.

    Call it with inputs [B, C, H, W], float32, and the fixed maps' values [C, H, W]: it gives [B, H, W, C]. The weights
    are those of the time when it was made.
    """

    def __init__(self, input: Maps, steps: Sequence[Step], output: Maps, fixed: Sequence[Maps] = ()):
        every = {id(m): m for m in (input, output, *fixed)}
        for step in steps:
            used = [*(term.source for term in step.terms), step.raw, step.active, step.added]
            every |= {id(m): m for m in used if m is not None}
        self.size = 0  # of the memory
        for maps in every.values():
            maps.start, self.size = self.size, self.size + maps.size
        arrays = _Arrays()
        for step in steps:
            arrays.step(step)
        self.input, self.output, self.fixed = input, output, list(fixed)
        self._arrays = [np.array(part, dtype=np.int64) for part in (arrays.steps, arrays.terms, arrays.taps)]
        self._arrays.append(np.concatenate(arrays.constants))
        whole = [(*m.place(), m.rows, m.columns, m.channels) for m in (input, output)]
        self._program = _Program(
            *(part.ctypes.data for part in self._arrays), len(steps), *((ctypes.c_int64 * 6)(*w) for w in whole)
        )

    def __call__(self, inputs: Tensor, fixed: Sequence[Tensor] = ()) -> Tensor:
        """inputs [B, C, H, W] and fixed maps [C, H, W] -> [B, H, W, C] of the output."""
        check(inputs[0] if len(inputs) else inputs.new_empty(inputs.shape[1:]), self.input)
        for maps, values in zip(self.fixed, fixed, strict=True):
            check(values, maps)
        to = self.output
        inputs = inputs.permute(0, 2, 3, 1).contiguous()
        outputs = inputs.new_empty(len(inputs), to.rows, to.columns, to.channels)
        memory = np.zeros(self.size, dtype=np.float32)
        for maps, values in zip(self.fixed, fixed, strict=True):
            maps.inside(memory)[:] = values.permute(1, 2, 0).numpy()
        threads = torch.get_num_threads()
        size = max(1, -(-len(inputs) // threads))
        shares = list(zip(inputs.split(size), outputs.split(size), strict=True))
        if len(shares) == 1:
            self._run(*shares[0], memory)
        elif shares:
            with ThreadPoolExecutor(len(shares)) as pool:  # the call hands back Python's lock
                for done in [pool.submit(self._run, *share, memory.copy()) for share in shares]:
                    done.result()
        return outputs

    def _run(self, inputs: Tensor, outputs: Tensor, memory: np.ndarray) -> None:
        code = library()
        assert code is not None
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (inputs, outputs)]
        code.run(
            ctypes.byref(self._program), *pointers, ctypes.c_int64(len(inputs)), ctypes.c_void_p(memory.ctypes.data)
        )
