"""Asymmetric numeral systems: a stack of bits on which symbols are pushed and from which they are popped.

A symbol of probability p takes -log2(p) bits, and popping from *any* content yields symbols drawn from the model, from
which a push restores that content: what bits-back coding needs. Models are integer tables, `freqs` out of `TOTAL`, so
that no coder depends on floating point. Two coders write identical bytes, those of constriction's `AnsCoder` (32-bit
words, a 64-bit state, 24-bit precision): `NumpyCoder` needs numpy only, `ConstrictionCoder` the Rust library.

Source: Duda, "Asymmetric numeral systems", arXiv:1311.2540, 2013; Bamler, "Understanding entropy coding with
asymmetric numeral systems (ANS)", arXiv:2201.01741, 2022.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vlae.errors import VlaeError, require_positive

PRECISION = 24
TOTAL = 1 << PRECISION  # what the frequencies of a table sum to

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Words = NDArray[np.uint32]
Bool = NDArray[np.bool_]

# numpy 1.26 turns uint64 with a Python integer into float64, so the constants are typed.
_PRECISION = np.uint64(PRECISION)
_QUANTILE = np.uint64(TOTAL - 1)
_WORD = np.uint64(32)
_FLUSH = np.uint64(64 - PRECISION)
_LEAST = np.uint64(1 << 32)  # a state under this is refilled from the words, while there are any


def check_tables(freqs: Int64) -> None:
    """Refuses frequency tables [..., N] with a negative entry or a row that doesn't sum to `TOTAL`."""
    if not np.issubdtype(freqs.dtype, np.integer):
        raise VlaeError(f"frequencies must be integers; got {freqs.dtype}")
    freqs = freqs.astype(np.int64, copy=False)
    sums = np.einsum("...n->...", freqs)  # four times faster than sum(-1) on rows of two
    # Seen as unsigned, negative numbers are above TOTAL too.
    if (sums != TOTAL).any() or (freqs.view(np.uint64) > TOTAL).any():
        raise VlaeError(f"every row of frequencies must be non-negative and sum to 2**{PRECISION}")


class Coder(ABC):
    """Independent stacks, one a lane, last in, first out.

    Shapes: `symbols` int64 [lanes, n], `freqs` int64 [lanes, n, N] (each row sums to `TOTAL`; a symbol of frequency 0
    can't be coded, one of frequency `TOTAL` takes no bits), `active` bool [lanes]. Lanes that are not active are left
    alone, and their symbols and tables are never looked at. An error leaves every lane as it was.

    >>> freqs = np.full((2, 3, 4), TOTAL // 4)
    >>> coder = NumpyCoder(lanes=2)
    >>> coder.push(np.array([[3, 1, 2], [0, 1, 3]]), freqs)
    >>> coder.pop(freqs)
    array([[3, 1, 2],
           [0, 1, 3]])
    """

    def __init__(self, lanes: int) -> None:
        require_positive("lanes", lanes)
        self.lanes = lanes

    @classmethod
    def of(cls, contents: Sequence[bytes]) -> Self:
        """A coder with one lane for each content, as `get` gave it.

        Raises:
            VlaeError: a content is not made of 32-bit words or ends in a zero word, which no coder writes.
        """
        for lane, content in enumerate(contents):
            if len(content) % 4 or (content and content[-4:] == bytes(4)):
                raise VlaeError(f"lane {lane}: expected 32-bit words, the last of them not zero; it is damaged")
        coder = cls(len(contents))
        for lane, content in enumerate(contents):
            coder._set(lane, np.frombuffer(content, "<u4").astype(np.uint32))
        return coder

    def push(self, symbols: Int64, freqs: Int64, active: Bool | None = None) -> None:
        """Pushes symbol n-1 first and symbol 0 last: `pop` of the same n returns them in order.

        Raises:
            VlaeError: wrong shapes or tables, or a symbol that is out of range or has frequency 0.
        """
        rows, freqs = self._select(freqs, active)
        symbols = np.asarray(symbols, np.int64)
        if symbols.shape != (self.lanes, freqs.shape[1]):
            raise VlaeError(f"expected symbols [{self.lanes}, {freqs.shape[1]}] as in freqs; got {list(symbols.shape)}")
        symbols = symbols[rows]
        if ((symbols < 0) | (symbols >= freqs.shape[2])).any():
            raise VlaeError(f"symbols must be in 0..{freqs.shape[2] - 1}")
        if (np.take_along_axis(freqs, symbols[..., None], -1) == 0).any():
            raise VlaeError("a symbol of frequency 0 can't be coded")
        self._push(rows, symbols, freqs)

    def pop(self, freqs: Int64, active: Bool | None = None) -> Int64:
        """Pops n symbols of each active lane, int64 [lanes, n]; zeros elsewhere.

        An empty lane never fails: it yields its first possible symbols and stays empty.

        Raises:
            VlaeError: wrong shapes or tables.
        """
        rows, freqs = self._select(freqs, active)
        symbols = np.zeros((self.lanes, freqs.shape[1]), np.int64)
        symbols[rows] = self._pop(rows, freqs)
        return symbols

    def _select(self, freqs: Int64, active: Bool | None) -> tuple[Int64, Int64]:
        """The numbers of the active lanes, [rows], and their tables, checked, [rows, n, N]."""
        freqs = np.asarray(freqs)
        if freqs.ndim != 3 or len(freqs) != self.lanes:
            raise VlaeError(f"expected freqs [{self.lanes}, n, N]; got {list(freqs.shape)}")
        rows = np.arange(self.lanes)
        if active is not None:
            active = np.asarray(active)
            if active.shape != (self.lanes,) or active.dtype != np.bool_:
                raise VlaeError(f"expected active, bool [{self.lanes}]; got {active.dtype} {list(active.shape)}")
            rows, freqs = rows[active], freqs[active]
        check_tables(freqs)
        return rows, freqs

    def get(self, lane: int) -> bytes:
        """The lane's content: little-endian 32-bit words, the top of the stack last."""
        return self._get(lane).astype("<u4").tobytes()

    def is_empty(self) -> Bool:
        """Which lanes are as they were at the start, bool [lanes]."""
        return np.array([not self._get(lane).size for lane in range(self.lanes)])

    def bits(self) -> NDArray[np.float64]:
        """The information on each lane in bits, [lanes]: all of them but the topmost 1, which only marks the end."""
        contents = (self._get(lane) for lane in range(self.lanes))
        return np.array([32.0 * (len(c) - 1) + int(c[-1]).bit_length() - 1 if c.size else 0.0 for c in contents])

    @abstractmethod
    def _get(self, lane: int) -> Words: ...

    @abstractmethod
    def _set(self, lane: int, words: Words) -> None: ...

    @abstractmethod
    def _push(self, rows: Int64, symbols: Int64, freqs: Int64) -> None: ...

    @abstractmethod
    def _pop(self, rows: Int64, freqs: Int64) -> Int64: ...


class NumpyCoder(Coder):
    """The coder in numpy: a Python loop over the n symbols, each step vectorised over the lanes.

    A lane is a state s and, once s has outgrown 64 bits, words below it. With f a symbol's frequency and c the sum of
    those before it, pushing is s <- (s // f) 2^24 + c + s % f, and popping undoes it: the symbol is the one whose
    interval [c, c + f) holds q = s % 2^24, and s <- (s // 2^24) f + q - c. A push that would overflow first moves the
    state's low 32 bits to the words; a pop that leaves a state under 2^32 takes a word back.
    """

    def __init__(self, lanes: int) -> None:
        super().__init__(lanes)
        self._state = np.zeros(lanes, np.uint64)
        self._words = np.zeros((lanes, 16), np.uint32)
        self._length = np.zeros(lanes, np.int64)

    def _get(self, lane: int) -> Words:
        state = int(self._state[lane])
        top = [word for word in (state & 0xFFFFFFFF, state >> 32) if state >> 32 or word]
        return np.append(self._words[lane, : self._length[lane]], np.array(top, np.uint32))

    def _set(self, lane: int, words: Words) -> None:
        bulk, top = words[:-2], words[-2:]
        self._reserve(len(bulk))
        self._words[lane, : len(bulk)] = bulk
        self._length[lane] = len(bulk)
        self._state[lane] = sum(int(word) << 32 * i for i, word in enumerate(top))

    def _reserve(self, capacity: int) -> None:
        """Room for `capacity` words on every lane, by doubling."""
        held = self._words.shape[1]
        if capacity > held:
            self._words = np.pad(self._words, ((0, 0), (0, max(held, capacity - held))))

    def _push(self, rows: Int64, symbols: Int64, freqs: Int64) -> None:
        lanes, n, size = freqs.shape
        table, edges = _cumulate(freqs)
        # The last symbol goes first: from here on, row i is the i-th step.
        place = symbols.T[::-1] + size * np.arange(lanes)
        freq = np.take_along_axis(table[::-1], place, 1)
        start = np.take_along_axis(edges[::-1], place, 1) & _QUANTILE
        # Frequency 2^24 shifts to 0 and its limit is the largest integer: never exceeded, as it must be.
        limit = (freq << _FLUSH) - np.uint64(1)
        gap = np.uint64(TOTAL) - freq

        state = self._state[rows]
        before = np.empty((n, lanes), np.uint64)
        flush = np.empty((n, lanes), np.bool_)
        quotient = np.empty_like(state)
        for i in range(n):
            before[i] = state
            np.greater(state, limit[i], out=flush[i])
            np.right_shift(state, _WORD, out=state, where=flush[i])
            np.floor_divide(state, freq[i], out=quotient)
            quotient *= gap[i]  # s + (s // f) (2^24 - f) + c is the new state without a remainder
            state += quotient
            state += start[i]

        # The words come out in time's order on each lane and go to its end.
        lane, step = flush.T.nonzero()
        position = self._length[rows] + flush.cumsum(0) - 1
        length = self._length[rows] + flush.sum(0)
        self._reserve(int(length.max(initial=0)))
        self._words[rows[lane], position[step, lane]] = before[step, lane] & np.uint64(0xFFFFFFFF)
        self._length[rows] = length
        self._state[rows] = state

    def _pop(self, rows: Int64, freqs: Int64) -> Int64:
        lanes, n, size = freqs.shape
        table, edges = _cumulate(freqs)
        offset = (np.arange(n * lanes, dtype=np.uint64) << _PRECISION).reshape(n, lanes)
        state, length = self._state[rows], self._length[rows]
        places = np.empty((n, lanes), np.int64)
        for i in range(n):
            target = state & _QUANTILE
            target += offset[i]
            # The last edge not above the target, so a symbol of frequency 0 is never found.
            place = places[i] = edges[i].searchsorted(target, "right") - 1
            state >>= _PRECISION
            state *= table[i].take(place)
            target -= edges[i].take(place)
            state += target
            low = (state < _LEAST).nonzero()[0]
            if low.size:
                low = low[length[low] > 0]
                length[low] -= 1
                state[low] = (state[low] << _WORD) | self._words[rows[low], length[low]]
        self._state[rows], self._length[rows] = state, length
        return (places - size * np.arange(lanes)).T


def _cumulate(freqs: Int64) -> tuple[UInt64, UInt64]:
    """Tables [lanes, n, N] to frequencies and the sums of all before them, both [n, lanes * N].

    The sum runs on over rows and steps, each adding 2^24. So it is sorted across the lanes, and *one* binary search
    finds the symbols of all of them; modulo 2^24 it is where a symbol's interval starts.
    """
    lanes, n, size = freqs.shape
    table = freqs.swapaxes(0, 1).astype(np.uint64, order="C").reshape(n, lanes * size)
    edges = np.cumsum(table, axis=None).reshape(table.shape)
    edges -= table
    return table, edges


class ConstrictionCoder(Coder):
    """One `constriction.stream.stack.AnsCoder` a lane.

    constriction builds its integer tables from probabilities p by f = 1 + p (2^24 - N) / sum(p), over cumulative sums.
    For p = f - 1 the sum is 2^24 - N, the scale is exactly 1 and every sum is an integer that a float holds exactly:
    our tables are reproduced bit for bit. As it gives every symbol a frequency, those of frequency 0 are left out, and
    rows with one symbol left, which it refuses, are not coded at all. Tables are checked before they reach it, since
    what it can't use may end in Rust's PanicException, which is no `Exception`, or leave a coder half changed.

    Raises:
        VlaeError: constriction is not installed.
    """

    def __init__(self, lanes: int) -> None:
        super().__init__(lanes)
        try:
            import constriction
        except ImportError as error:
            raise VlaeError(
                "this coder needs constriction: pip install 'vlae[codec]', or take the coder \"numpy\", of equal bytes"
            ) from error
        # By attribute: these are not importable modules.
        self._new: Any = constriction.stream.stack.AnsCoder
        self._model = constriction.stream.model.Categorical(perfect=False)
        self._coders = [self._new() for _ in range(lanes)]

    def _get(self, lane: int) -> Words:
        return self._coders[lane].get_compressed()

    def _set(self, lane: int, words: Words) -> None:
        self._coders[lane] = self._new(words)

    def _push(self, rows: Int64, symbols: Int64, freqs: Int64) -> None:
        for lane, values, tables in zip(rows, symbols, freqs, strict=True):
            for part, columns, probabilities in reversed(list(_runs(tables))):
                if columns.shape[1] > 1:
                    places = (columns < values[part, None]).sum(1, dtype=np.int32)
                    self._coders[lane].encode_reverse(places, self._model, probabilities)

    def _pop(self, rows: Int64, freqs: Int64) -> Int64:
        symbols = np.empty(freqs.shape[:2], np.int64)
        for lane, values, tables in zip(rows, symbols, freqs, strict=True):
            for part, columns, probabilities in _runs(tables):
                places = np.zeros(len(columns), np.int64)
                if columns.shape[1] > 1:
                    places[:] = self._coders[lane].decode(self._model, probabilities)
                values[part] = np.take_along_axis(columns, places[:, None], 1)[:, 0]
        return symbols


def _runs(tables: Int64) -> Iterator[tuple[slice, Int64, NDArray[np.float64]]]:
    """Splits tables [n, N] into runs of rows with equally many possible symbols, M.

    Yields the run's rows, its possible symbols [rows, M] and the probabilities that make constriction give them their
    frequencies, [rows, M]. These are contiguous: of other arrays, constriction 0.5.0 silently codes the wrong entries.
    """
    counts = np.count_nonzero(tables, axis=1)
    for first, last in pairwise([*np.diff(counts, prepend=0).nonzero()[0], len(tables)]):
        part = tables[first:last]
        columns = part.nonzero()[1].reshape(len(part), -1).astype(np.int64, copy=False)
        yield slice(first, last), columns, (np.take_along_axis(part, columns, 1) - 1).astype(np.float64)


def make_coder(kind: Literal["auto", "numpy", "constriction"], contents: Sequence[bytes] | int) -> Coder:
    """A coder of the given kind: empty, with so many lanes, or with these contents.

    Raises:
        VlaeError: an unknown kind, contents that no coder wrote, or constriction is not installed.
    """
    # numpy is always there, and far ahead where the decoder needs it: few symbols at a time on many lanes. One push and
    # one pop on one core, numpy against constriction: n = 5 binary symbols on 64 lanes 0.12 against 2.0 ms, on one lane
    # 0.11 against 0.06; n = 784 on 64 lanes 12 against 8 ms, on one lane 7 against 0.15.
    coders: dict[str, type[Coder]] = {"auto": NumpyCoder, "numpy": NumpyCoder, "constriction": ConstrictionCoder}
    if kind not in coders:
        raise VlaeError(f"unknown coder {kind!r}; expected one of {', '.join(coders)}")
    return coders[kind](contents) if isinstance(contents, int) else coders[kind].of(contents)
