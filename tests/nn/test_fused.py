"""Compiled networks against PyTorch's convolutions, in float64, for every width of vectors that can be tried here."""

import logging
import math
import os
import platform

import pytest
import torch
from torch.nn import functional as F

from vlae.errors import VlaeError
from vlae.machine import cpp_compiler
from vlae.models.decoders import ResNetDecoder
from vlae.nn import fused, inference
from vlae.nn.fused import Maps, Network, Step, Term
from vlae.nn.fused_decoder import FusedDecoder
from vlae.nn.pixelcnn import make_trunk

# What this machine has, and on x86 vectors of 8 and of 4 floats.
OPTIONS = [fused.NATIVE]
if platform.machine() in ("x86_64", "AMD64"):
    OPTIONS += ["-msse2", *(["-mavx2 -mfma"] if "AVX" in torch.backends.cpu.get_cpu_capability() else [])]
_built = {}


@pytest.fixture(params=OPTIONS)
def code(request, monkeypatch):
    """The code for one kind of processor."""
    if cpp_compiler() is None:
        pytest.skip("no C++ compiler")
    options = request.param
    if options not in _built:
        _built[options] = fused.build(cpp_compiler(), options)
    monkeypatch.setattr(fused, "library", lambda: _built[options])
    return _built[options]


def values(*shape):
    return torch.randn(shape, dtype=torch.float64)


def run(network, *inputs):
    """In float32, and the result as [B, C, H, W] in float64."""
    first, *fixed = (x.float() for x in inputs)
    return network(first, fixed).movedim(3, 1).double()


def assert_near(mine, exact, atol=5e-6):
    torch.testing.assert_close(mine, exact, atol=atol, rtol=1e-6)


def test_vectors_are_of_the_width_asked_for(code, request):
    widths = {"-mavx2 -mfma": [8], "-msse2": [4]}
    assert code.lanes() in widths.get(request.node.callspec.id, [4, 8, 16])


@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (16, 16), (8, 40), (33, 32)])
@pytest.mark.parametrize("size", [(1, 1), (5, 4), (2, 31), (28, 28)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_sum_of_convolutions(code, channels, size, threads, monkeypatch):
    """Two maps with kernels that reach further on one side, a bias, and a map that is added."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    (into, out), batch = channels, 4
    x, other, bias = values(batch, into, *size), values(out, *size), values(out)
    one, two = values(out, into, 3, 2), values(out, into, 1, 3)
    read, added, to = (Maps(*size, n) for n in (into, out, out))
    network = Network(
        read, [Step([Term(read, one, 2, 0), Term(read, two, 0, 1)], bias, raw=to, added=added)], to, [added]
    )
    network_again = run(network, x, other)
    exact = F.conv2d(F.pad(x, (0, 1, 2, 0)), one) + F.conv2d(x, two, padding=(0, 1)) + other + bias[:, None, None]
    assert_near(run(network, x, other), exact, 1e-4)
    assert torch.equal(run(network, x, other), network_again)  # nothing of one run is left for the next
    assert run(network, x[:0], other).shape == (0, out, *size)


X = [0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6, 0.3, -0.3, 1, -1, 5, -5, 17, -17, 60, -60, 90, -90, 1e4, -1e4, 3e38, -3e38]


def activate(activation, x):
    """The activation of numbers [C, N], or of their pairs [2 C, N]."""
    out = len(x) // 2 if activation == "gate" else len(x)
    read, to = Maps(1, x.shape[1], len(x)), Maps(1, x.shape[1], out)
    order = fused.gate_order(out) if activation == "gate" else torch.arange(len(x))
    weight = fused.padded(torch.eye(len(x)))[order][:, :, None, None]
    step = Step([Term(read, weight)], torch.zeros(len(order)), active=to, activation=activation)
    return run(Network(read, [step], to), x[None, :, None])[0, :, 0]


def test_elu(code):
    x = torch.cat([torch.tensor(X, dtype=torch.float32), torch.linspace(-20, 20, 10001)]).double()[None]
    assert_near(activate("elu", x), F.elu(x), 3e-7)


def test_gate(code):
    ends = torch.tensor([x for x in X if abs(x) < 1e5], dtype=torch.float32)
    x = torch.cat([ends, torch.linspace(-20, 20, 301)]).double()
    a, b = torch.cartesian_prod(x, x).T
    assert_near(activate("gate", torch.stack([a, b])), (a.tanh() * b.sigmoid())[None], 4e-7)


def test_what_is_no_number_stays_none(code):
    nan, one = torch.tensor([math.nan]).double(), torch.ones(1).double()
    assert activate("elu", torch.stack([nan])).isnan().all()
    for pair in ([nan, one], [one, nan], [nan, nan]):
        assert activate("gate", torch.stack(pair)).isnan().all()


TRUNKS = [
    {"layers": 1},
    {"layers": 2},
    {"layers": 4, "hidden": 7},
    {"layers": 2, "kernel_size": 5},
    {"layers": 3, "channels": 20},
    {"layers": 2, "image_channels": 3, "parameters": 4},
    {"layers": 3, "stacks": "slanted"},
    {"layers": 2, "kernel_size": 5, "image_channels": 2, "stacks": "slanted"},
]


def networks(size, widths=(4, 6), maps=False, **options):
    """A decoder's layers and a trunk, random, in float64."""
    given = {"stacks": "two", "image_channels": 1, "parameters": 1, "channels": 4, "image_height": size[0], **options}
    trunk = make_trunk(context_channels=3, **given).double().eval()
    features = ResNetDecoder(5, (3, *size), widths, 16, maps).double().eval()
    for p in (*trunk.parameters(), *features.parameters()):
        torch.nn.init.normal_(p, std=0.4)
    return features, trunk, (torch.rand(2, given["image_channels"], *size) > 0.5).double()


@pytest.mark.parametrize("options", TRUNKS, ids=str)
@pytest.mark.parametrize("size", [(6, 5), (9, 12), (1, 7), (5, 1)])
@torch.no_grad()
def test_it_is_the_decoder_on_copies_of_the_image(code, options, size):
    """Of two images in turn, whose maps must not be mixed up."""
    features, trunk, images = networks(size, **options)
    z = values(7, 5)
    exact = [trunk(x.expand(7, -1, -1, -1), features(z)).movedim(2, -1) for x in (images[:1], images[1:])]
    assert (exact[0][0] - exact[0][1]).abs().max() > 1e-2  # the code matters
    assert min(size) == 1 or (exact[0] - exact[1]).abs().max() > 1e-2  # so does the image
    head = features.head(z).float()
    decoder = FusedDecoder(features.float().blocks, trunk.float())
    one, other = images[:1].float(), images[1:].float()
    of_one, of_other = decoder.on(one), decoder.on(other)
    one.zero_()  # what was computed of it is kept
    for of_image, expected in ((of_one, exact[0]), (of_other, exact[1]), (of_other, exact[1]), (of_one, exact[0])):
        assert_near(of_image(head).double(), expected, 2e-4)
    assert_near(of_one(head[:1]).double(), exact[0][:1], 2e-4)
    with pytest.raises(VlaeError, match="one image at a time; got 2"):
        decoder.on(images.float())


@pytest.mark.parametrize("widths", [(4,), (3, 5, 4), (16, 32, 32)])
@torch.no_grad()
def test_maps_of_any_widths(code, widths):
    features, trunk, images = networks((13, 10), widths, layers=1)
    z = values(3, 5)
    exact = trunk(images[:1].expand(3, -1, -1, -1), features(z)).movedim(2, -1)
    head = features.head(z).float()
    fast = FusedDecoder(features.float().blocks, trunk.float()).on(images[:1].float())(head)
    assert_near(fast.double(), exact, 1e-4 * float(exact.abs().max()))


@torch.no_grad()
def test_what_it_serves(code, monkeypatch):
    x = torch.zeros(1)
    gated = make_trunk("two", image_channels=1, parameters=1, layers=2, channels=4, context_channels=3)
    assert FusedDecoder.serves(gated, x)
    assert not FusedDecoder.serves(gated, x.double())
    with torch.enable_grad():
        assert not FusedDecoder.serves(gated, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not inference.applies(x)
        assert not FusedDecoder.serves(gated, x)
    for stacks, options in (
        ("plain", {"layers": 2}),
        ("two", {"layers": 0}),
        ("two", {"layers": 1, "conditioning": "input"}),
    ):
        other = make_trunk(stacks, image_channels=1, parameters=1, channels=4, context_channels=3, **options)
        assert not FusedDecoder.serves(other, x)
    monkeypatch.setattr(fused, "library", lambda: None)
    assert not FusedDecoder.serves(gated, x)


@torch.no_grad()
def test_what_is_not_float32_maps_of_its_size_is_refused(code):
    """The compiled code would read past the end of it."""
    features, trunk, images = networks((6, 5), layers=1)
    of_image = FusedDecoder(features.float().blocks, trunk.float()).on(images[:1].float())
    head = features.head(values(3, 5).float())
    exact = of_image(head)
    for other in (head.double(), head.bfloat16(), head[:, :-1], head[..., :-1], head[0]):
        with pytest.raises(VlaeError, match="compiled networks take float32 maps"):
            of_image(other)
    assert torch.equal(of_image(head), exact)
    read, added = Maps(2, 2, 1), Maps(2, 2, 1)
    network = Network(read, [Step([], torch.zeros(1), raw=read, added=added)], read, [added])
    with pytest.raises(VlaeError, match="compiled networks take float32 maps"):
        network(torch.ones(1, 1, 2, 2), [torch.ones(1, 1, 1)])


@torch.no_grad()
def test_tensors_that_are_made_elsewhere_by_default(code):
    features, trunk, images = networks((6, 5), layers=2)
    decoder, head = (features.float(), trunk.float()), features.head(values(3, 5).float())
    exact = FusedDecoder(decoder[0].blocks, decoder[1]).on(images[:1].float())(head)
    with torch.device("meta"):
        found = FusedDecoder(decoder[0].blocks, decoder[1]).on(images[:1].float())(head)
    assert torch.equal(found, exact)


@pytest.fixture
def anew(monkeypatch):
    """The library, forgotten before and after, on a machine that it is for."""
    monkeypatch.setattr(fused.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(fused.sys, "platform", "linux")
    fused.library.cache_clear()
    yield fused.library
    fused.library.cache_clear()


def said(caplog):
    """What is logged, which is one line."""
    (record,) = caplog.records
    start = "importance weights are computed without compiled code, slower: "
    assert record.message.startswith(start)
    return record.message.removeprefix(start)


def test_without_a_compiler_there_is_none_and_it_is_said_once(monkeypatch, caplog, anew):
    monkeypatch.setattr(fused, "cpp_compiler", lambda: None)
    with caplog.at_level(logging.INFO, "vlae"):
        assert anew() is None
        assert anew() is None
    assert said(caplog) == "no C++ compiler was found"


@pytest.mark.parametrize(("name", "value"), [("platform", "win32"), ("machine", "aarch64")])
def test_where_it_is_not_known_to_be_fast_there_is_none(name, value, monkeypatch, caplog, anew):
    if name == "machine":
        monkeypatch.setattr(fused.platform, "machine", lambda: value)
    else:
        monkeypatch.setattr(fused.sys, "platform", value)
    with caplog.at_level(logging.INFO, "vlae"):
        assert anew() is None
    assert said(caplog) == "this is no Unix machine with an x86 processor"


@pytest.mark.skipif("-msse2" not in OPTIONS or cpp_compiler() is None, reason="needs a compiler for x86")
def test_narrow_vectors_are_not_worth_it(monkeypatch, caplog, anew):
    build = fused.build
    monkeypatch.setattr(fused, "build", lambda compiler: build(compiler, "-msse2"))
    with caplog.at_level(logging.INFO, "vlae"):
        assert anew() is None
    assert said(caplog).endswith("makes no code with AVX2 or AVX-512 here")


@pytest.mark.skipif(os.name != "posix", reason="a compiler made of a shell script")
@pytest.mark.parametrize("kind", ["fails", "missing", "makes nonsense", "makes nothing"])
def test_a_compiler_that_does_not_do_it(kind, tmp_path, monkeypatch, caplog, anew):
    script = {
        "fails": "printf 'no such option: \\377' >&2; exit 1",
        "makes nonsense": 'for last; do :; done; echo x > "$last"',
        "makes nothing": "exit 0",
    }
    compiler = tmp_path / "compiler"
    if kind in script:
        compiler.write_text(f"#!/bin/sh\n{script[kind]}\n")
        compiler.chmod(0o755)
    monkeypatch.setattr(fused, "cpp_compiler", lambda: str(compiler))
    with caplog.at_level(logging.INFO, "vlae"):
        assert anew() is None
    assert {"fails": "no such option", "missing": "No such file"}.get(kind, "fused.so") in said(caplog)
