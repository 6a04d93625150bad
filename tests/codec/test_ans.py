import builtins
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlae import VlaeError
from vlae.codec.ans import TOTAL, ConstrictionCoder, NumpyCoder, check_tables, make_coder


class Reference:
    """One lane, one symbol at a time, in Python's integers: the definition."""

    def __init__(self):
        self.state, self.words = 0, []

    def push(self, symbol, freqs):
        start, freq = sum(freqs[:symbol]), freqs[symbol]
        if self.state >= freq << 40:
            self.words.append(self.state % 2**32)
            self.state >>= 32
        self.state = (self.state // freq << 24) + start + self.state % freq

    def pop(self, freqs):
        quantile, symbol = self.state % TOTAL, 0
        while quantile >= sum(freqs[: symbol + 1]):
            symbol += 1
        self.state = (self.state >> 24) * freqs[symbol] + quantile - sum(freqs[:symbol])
        if self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return symbol

    def get(self):
        words = [*self.words, self.state % 2**32, self.state >> 32]
        while words and words[-1] == 0:
            words.pop()
        return np.array(words, "<u4").tobytes()


@pytest.fixture(params=[NumpyCoder, ConstrictionCoder], ids=["numpy", "constriction"])
def kind(request):
    if request.param is ConstrictionCoder:
        pytest.importorskip("constriction")
    return request.param


def available():
    return [NumpyCoder, ConstrictionCoder] if find_spec("constriction") else [NumpyCoder]


def contents(coder):
    return [coder.get(lane) for lane in range(coder.lanes)]


def random_tables(rng, lanes, n, size, style):
    """Tables [lanes, n, size]: "ones" are all 1 but one entry, "gaps" has zeros, "sure" also full entries."""
    if style == "ones":
        freqs = np.ones((lanes, n, size), np.int64)
    else:
        weight = rng.exponential(size=(lanes, n, size)) ** (12 if style == "peaked" else 1)
        freqs = 1 + np.floor(weight / weight.sum(-1, keepdims=True) * (TOTAL - size)).astype(np.int64)
    if style in ("gaps", "sure"):
        freqs[rng.random(freqs.shape) < 0.5] = 0
    if style == "sure":
        freqs[rng.random((lanes, n)) < 0.5] = 0
    # What is missing goes to one symbol, wherever that is.
    where = rng.integers(0, size, (lanes, n, 1))
    rest = TOTAL - freqs.sum(-1, keepdims=True)
    np.put_along_axis(freqs, where, np.take_along_axis(freqs, where, -1) + rest, -1)
    check_tables(freqs)
    return freqs


STYLES = ["smooth", "peaked", "ones", "gaps", "sure"]


def random_symbols(rng, freqs, uniform):
    """Symbols [lanes, n]: drawn from the tables, or uniformly from what is possible, so that rare ones come often."""
    if uniform:
        return np.where(freqs > 0, rng.random(freqs.shape), -1).argmax(-1)
    return (freqs.cumsum(-1) <= rng.integers(0, TOTAL, (*freqs.shape[:2], 1))).sum(-1)


def information(freqs, symbols):
    """-log2 of the probability of all symbols, [lanes]."""
    return -np.log2(np.take_along_axis(freqs, symbols[..., None], -1)[..., 0] / TOTAL).sum(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([1, 2, 3, 17, 300]), st.sampled_from(STYLES))
def test_bytes_are_those_of_the_definition_and_of_constriction(seed, lanes, size, style):
    rng = np.random.default_rng(seed)
    coders = [kind(lanes) for kind in available()]
    references = [Reference() for _ in range(lanes)]
    pushed = []
    for _ in range(4):
        n = int(rng.integers(0, 12))
        freqs = random_tables(rng, lanes, n, size, style)
        symbols = random_symbols(rng, freqs, uniform=rng.random() < 0.5)
        active = rng.random(lanes) < 0.7
        for coder in coders:
            coder.push(symbols, freqs, active)
        for lane in active.nonzero()[0]:
            for i in reversed(range(n)):
                references[lane].push(symbols[lane, i], freqs[lane, i].tolist())
        pushed.append((symbols, freqs, active))
        for coder in coders:
            assert contents(coder) == [reference.get() for reference in references]
    for symbols, freqs, active in reversed(pushed):
        for coder in coders:
            np.testing.assert_array_equal(coder.pop(freqs, active), symbols * active[:, None])
        for lane in active.nonzero()[0]:
            assert [references[lane].pop(row.tolist()) for row in freqs[lane]] == symbols[lane].tolist()
        for coder in coders:
            assert contents(coder) == [reference.get() for reference in references]
    assert all(coder.is_empty().all() and not coder.bits().any() for coder in coders)


@pytest.mark.parametrize("size", [2, 256])
def test_both_coders_write_the_same_long_contents(size):
    pytest.importorskip("constriction")
    rng = np.random.default_rng(3)
    freqs = np.concatenate([random_tables(rng, 5, 400, size, style) for style in STYLES], 1)
    symbols = random_symbols(rng, freqs, uniform=True)
    coders = [NumpyCoder(5), ConstrictionCoder(5)]
    for coder in coders:
        coder.push(symbols, freqs)
    assert contents(coders[0]) == contents(coders[1])
    assert coders[0].bits().tolist() == coders[1].bits().tolist()


@pytest.mark.parametrize("style", STYLES)
def test_stack_of_mixed_tables_and_ragged_activity(kind, style):
    rng = np.random.default_rng(0)
    coder, pushed = kind(5), []
    for size, n in [(2, 400), (256, 30), (3, 0), (1, 4), (2, 1), (17, 90)]:
        freqs = random_tables(rng, 5, n, size, style)
        symbols = random_symbols(rng, freqs, uniform=True)
        active = rng.random(5) < 0.6
        before = contents(coder)
        coder.push(symbols, freqs, active)
        assert all(coder.get(lane) == before[lane] for lane in (~active).nonzero()[0])
        pushed.append((symbols, freqs, active))
    for symbols, freqs, active in reversed(pushed):
        np.testing.assert_array_equal(coder.pop(freqs, active), symbols * active[:, None])
    assert coder.is_empty().all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [2, 3, 5, 16, 64, 255, 256, 300, 4096])
@pytest.mark.parametrize("style", ["smooth", "peaked", "ones"])
def test_bytes_are_those_of_constriction_used_directly(style, size, dtype):
    constriction = pytest.importorskip("constriction")
    rng = np.random.default_rng(size)
    freqs = random_tables(rng, 1, 300, size, style)
    symbols = random_symbols(rng, freqs, uniform=True)
    symbols[0, :100] = [0, size - 1] * 50
    direct, one_by_one = constriction.stream.stack.AnsCoder(), constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical
    direct.encode_reverse(symbols[0].astype(np.int32), model(perfect=False), (freqs[0] - 1).astype(dtype))
    for symbol, row in zip(symbols[0][::-1], freqs[0][::-1], strict=True):
        one_by_one.encode_reverse(int(symbol), model((row - 1).astype(dtype), perfect=False))
    coder = NumpyCoder(1)
    coder.push(symbols, freqs)
    assert coder.get(0) == direct.get_compressed().astype("<u4").tobytes()
    assert coder.get(0) == one_by_one.get_compressed().astype("<u4").tobytes()
    assert coder.bits() == direct.num_valid_bits()
    np.testing.assert_array_equal(direct.decode(model(perfect=False), (freqs[0] - 1).astype(dtype)), symbols[0])


def test_bytes_never_change(kind):
    freqs = np.array([[[1, TOTAL - 1], [TOTAL // 2, TOTAL // 2], [TOTAL - 5, 5]]]).repeat(8, 1)
    coder = kind(1)
    coder.push(np.array([[0, 1] * 12]), freqs)
    assert coder.get(0).hex() == "0500003569660095d4a219d3a5190da41a0d02190000000d02000000"


@pytest.mark.parametrize("style", ["smooth", "peaked", "gaps", "sure"])
@pytest.mark.parametrize("size", [2, 256])
def test_length_is_the_information(kind, style, size):
    rng = np.random.default_rng(1)
    freqs = random_tables(rng, 3, 2000, size, style)
    symbols = random_symbols(rng, freqs, uniform=False)
    coder = kind(3)
    coder.push(symbols, freqs)
    expected = information(freqs, symbols)
    assert (np.abs(coder.bits() - expected) <= 64 + 1e-4 * expected).all()
    stored = np.array([8 * len(content) for content in contents(coder)])
    assert ((coder.bits() < stored) & (stored <= coder.bits() + 32)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.sampled_from(STYLES))
def test_pop_then_push_restores_any_content(raw, seed, style):
    rng = np.random.default_rng(seed)
    start = [bytes(content[: len(content) // 4 * 4]).rstrip(b"\0") for content in raw]
    start = [content + bytes(-len(content) % 4) for content in start]
    freqs = random_tables(rng, len(raw), 30, int(rng.integers(2, 40)), style)
    for kind in available():
        coder = kind.of(start)
        assert contents(coder) == start
        assert coder.is_empty().tolist() == [not content for content in start]
        coder.push(coder.pop(freqs), freqs)
        assert contents(coder) == start


def test_empty_lanes_can_be_popped(kind):
    coder = kind(2)
    freqs = np.array([[[0, TOTAL - 3, 3]] * 4] * 2)
    assert (coder.pop(freqs) == 1).all()
    assert coder.is_empty().all() and contents(coder) == [b"", b""]


def test_a_sure_symbol_takes_nothing(kind):
    coder = kind.of([b"\1\2\3\4" * 3, b""])
    before = contents(coder)
    freqs = np.array([[[0, 0, TOTAL, 0]] * 9] * 2)
    assert (coder.pop(freqs) == 2).all()
    coder.push(np.full((2, 9), 2), freqs)
    assert contents(coder) == before


def test_what_cannot_be_coded_is_refused_and_changes_nothing(kind):
    coder = kind.of([b"\1\2\3\4" * 3, b"\5\6\7\1", b""])
    before = contents(coder)
    freqs = np.array([[[TOTAL // 2, TOTAL // 2, 0]] * 5] * 3)
    symbols = np.zeros((3, 5), np.int64)
    for wrong, message in [(2, "frequency 0"), (3, "0..2"), (-1, "0..2")]:
        bad = symbols.copy()
        bad[2, 0] = wrong
        with pytest.raises(VlaeError, match=message):
            coder.push(bad, freqs)
    for bad_freqs in (freqs - 1, freqs / 1.0, freqs[:2], freqs[0], freqs[..., :1], freqs[..., :0], freqs * [3, -1, 0]):
        with pytest.raises(VlaeError, match=r"frequencies|freqs"):
            coder.push(symbols, bad_freqs)
        with pytest.raises(VlaeError, match=r"frequencies|freqs"):
            coder.pop(bad_freqs)
    with pytest.raises(VlaeError, match="symbols"):
        coder.push(symbols[:, :4], freqs)
    for active in ([True], np.array([0, 1, 2])):
        with pytest.raises(VlaeError, match="active"):
            coder.pop(freqs, active)
    assert contents(coder) == before


def test_tables_of_inactive_lanes_are_never_looked_at(kind):
    coder = kind(2)
    freqs = np.array([[[TOTAL // 4, 3 * TOTAL // 4]] * 3, [[-7, 0]] * 3])
    active = np.array([True, False])
    coder.push(np.array([[1, 0, 1], [9, 9, 9]]), freqs, active)
    np.testing.assert_array_equal(coder.pop(freqs, active), [[1, 0, 1], [0, 0, 0]])
    coder.push(np.array([[1, 0, 1], [9, 9, 9]]), freqs, ~active & active)
    assert coder.is_empty().all()


def test_arrays_in_other_memory_orders_are_coded_alike(kind):
    # constriction itself silently codes other entries of arrays that are not contiguous.
    rng = np.random.default_rng(2)
    freqs = random_tables(rng, 3, 20, 5, "smooth")
    symbols = random_symbols(rng, freqs, uniform=True)
    plain, strided = kind(3), kind(3)
    plain.push(symbols, freqs)
    strided.push(np.asfortranarray(symbols), np.asfortranarray(freqs))
    assert contents(plain) == contents(strided)
    np.testing.assert_array_equal(strided.pop(np.repeat(freqs, 2, axis=1)[:, ::2]), symbols)


@pytest.mark.parametrize("bad", [b"\1", b"\1\2\3\4\5", b"\1\2\3\4\0\0\0\0", bytes(4)])
def test_contents_that_no_coder_wrote_are_refused(kind, bad):
    with pytest.raises(VlaeError, match="lane 1"):
        kind.of([b"\1\0\0\0", bad])


def test_sums_and_signs_are_checked():
    check_tables(np.array([[0, TOTAL], [3, TOTAL - 3]]))
    check_tables(np.array([1, TOTAL - 1], np.int32))
    wrapping = [2**63 - 1, 2**63 - 1, 2 + TOTAL]  # sums to 2**24 modulo 2**64
    for bad in ([TOTAL + 1, -1], [0, 0], [TOTAL, 1], [float(TOTAL)], wrapping):
        with pytest.raises(VlaeError, match="frequencies"):
            check_tables(np.array(bad))


def test_coders_are_made_by_name():
    assert type(make_coder("auto", 3)) is NumpyCoder and make_coder("auto", 3).lanes == 3
    assert make_coder("numpy", [b"\1\0\0\0", b""]).get(0) == b"\1\0\0\0"
    with pytest.raises(VlaeError, match="unknown coder 'huffman'"):
        make_coder("huffman", 1)
    with pytest.raises(VlaeError, match="lanes"):
        make_coder("auto", 0)
    pytest.importorskip("constriction")
    assert type(make_coder("constriction", 2)) is ConstrictionCoder


def test_a_missing_constriction_is_said_plainly(monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "constriction":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(VlaeError, match=r"pip install 'vlae\[codec\]'"):
        make_coder("constriction", 1)
    assert make_coder("auto", 1).is_empty().all()
