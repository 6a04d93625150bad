"""Importance weights image by image, without gradients, against the general way of computing them."""

import math

import pytest
import torch

import vlae
from vlae.machine import cpp_compiler
from vlae.models import base
from vlae.nn.fused import Network
from vlae.nn.fused_decoder import FusedDecoder

MODELS = [
    {"stacks": "two", "decoder_layers": 2},
    {"stacks": "two", "decoder_layers": 0},
    {"stacks": "two", "decoder_layers": 2, "conditioning": "input"},
    {"stacks": "two", "decoder_layers": 2, "weight_norm": True},
    {"stacks": "slanted", "decoder_layers": 2},
    {"stacks": "plain", "decoder_layers": 2},
    {"stacks": "row_lstm"},
    {"stacks": "attention", "channels": 4},
    {"latent_maps": 2, "flow_steps": 1},
    {"posterior": "iaf"},
    {"classes": 3},
    {"attributes": 2, "latent_maps": 2},
    {"prior": "vamp", "prior_options": {"components": 4}},
    {"prior": "autoregressive_mixture"},
    {"likelihood": "categorical", "likelihood_options": {"levels": 2}},
    {"likelihood": "logistic_mixture", "likelihood_options": {"levels": 2, "components": 2}},
    {"likelihood": "gaussian", "likelihood_options": {"sigma": 0.3}},
]


def context_of(options, count):
    """What a conditional model is told of so many images, all different; else None."""
    if "classes" in options:
        return torch.arange(count) % 3
    return torch.randn(count, 2, dtype=torch.float64) if "attributes" in options else None


def weights(model, x, context, chunk=None, samples=9):
    return torch.cat(list(model.log_weights(x, samples, torch.Generator().manual_seed(0), chunk, context)))


@pytest.fixture
def by_image(monkeypatch):
    """Whether images are taken one by one, whatever the number of samples."""

    def choose(one_by_one):
        monkeypatch.setattr(base, "MANY", 1 if one_by_one else 10**9)

    return choose


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 4), (2, 4, 5)])
def test_image_by_image_gives_the_same_weights_whatever_the_chunk(tiny_vlae, binary, by_image, options, shape):
    model, x, context = tiny_vlae(shape, **options), binary(3, shape), context_of(options, 3)
    by_image(False)
    expected = weights(model, x, context)
    assert expected.std(0).min() > 1e-3  # z matters
    by_image(True)
    for chunk in (1, 4, 9, None):
        torch.testing.assert_close(weights(model, x, context, chunk), expected, atol=1e-10, rtol=0)
    bound = model.log_likelihood(x, 9, torch.Generator().manual_seed(0), context=context)
    torch.testing.assert_close(bound, expected.logsumexp(0) - math.log(9), atol=1e-10, rtol=0)


def test_the_weights_are_the_definition(tiny_vlae, binary, by_image):
    """One sample after another, by what the model says of each."""
    by_image(True)
    model, x = tiny_vlae(decoder_layers=2, flow_steps=1), binary(2)
    with torch.no_grad():
        q, prior = model.encode(x), model.prior()
        z = q.sample((5,), torch.Generator().manual_seed(0))
        exact = [model.decode(z[k]).log_prob(x) + prior.log_prob(z[k]) - q.log_prob(z[k]) for k in range(5)]
    torch.testing.assert_close(weights(model, x, None, samples=5), torch.stack(exact), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["tiny_vae", "tiny_vlae"])
def test_with_gradients_nothing_is_left_out(request, binary, by_image, kind):
    by_image(True)
    model, x = request.getfixturevalue(kind)(), binary(2)
    chunks = list(model.importance_weights(x, 6, torch.Generator().manual_seed(0), chunk=4))
    assert [len(part) for part in chunks] == [2, 2, 2]
    torch.cat(chunks).logsumexp(0).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.decoder.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())
    torch.testing.assert_close(weights(model, x, None, samples=6), torch.cat(chunks).detach(), atol=1e-10, rtol=0)


@pytest.fixture
def runs(monkeypatch):
    """How many codes the compiled network was run on, each time that it was."""
    counts, run = [], Network._run
    monkeypatch.setattr(Network, "_run", lambda self, *inputs: counts.append(len(inputs[0])) or run(self, *inputs))
    return counts


COMPILED = [
    options
    for options in MODELS
    if options.get("stacks", "two") in ("two", "slanted")
    and options.get("decoder_layers") != 0
    and options.get("conditioning") != "input"
]


@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("options", COMPILED, ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 4), (2, 4, 5)])
@torch.no_grad()
def test_compiled_it_is_the_same_up_to_rounding(tiny_vlae, binary, options, shape, runs, monkeypatch):
    """Of images in turn, as many codes at a time as fit."""
    model, x, context = tiny_vlae(shape, **options), binary(3, shape), context_of(options, 3)
    z = torch.randn(9, *model.latent_shape, dtype=torch.float64)
    told = [{} if context is None else {"context": context[[i]].expand(9, *context.shape[1:])} for i in range(3)]
    exact = [model.log_prob_of_one(x[[i]], z, **told[i]) for i in range(3)]
    assert min(each.std() for each in exact) > 3e-4  # z matters
    single = {"context": (lambda c: c.float() if c.is_floating_point() else c)}
    for parameters in (1, 2**24):
        monkeypatch.setattr(vlae.models.vae, "PARAMETERS", parameters)
        score = model.float().scorer(4)
        for i in range(3):
            mine = score(x[[i]].float(), z.float(), **{key: single[key](value) for key, value in told[i].items()})
            torch.testing.assert_close(mine.double(), exact[i], atol=3e-5, rtol=0)
        assert sum(runs) == 27 and (parameters > 1 or max(runs) == 1)
        runs.clear()


@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_a_likelihood_in_float32_is_compiled(tiny_vlae, binary, runs, monkeypatch):
    """And hardly depends on how many codes are decoded at a time, and in how many threads."""
    model, x = tiny_vlae(decoder_layers=2).float(), binary(2).float()
    found = []
    for parameters, threads in ((1, 1), (200, 1), (2**22, 1), (2**22, 3)):
        monkeypatch.setattr(vlae.models.vae, "PARAMETERS", parameters)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(model.log_likelihood(x, 40, torch.Generator().manual_seed(0)))
        assert sum(runs) == 2 * 40
        runs.clear()
        torch.testing.assert_close(found[-1], found[0], atol=1e-5, rtol=0)
    monkeypatch.setattr(FusedDecoder, "serves", lambda *_: False)
    eager = model.log_likelihood(x, 40, torch.Generator().manual_seed(0))
    assert not runs
    torch.testing.assert_close(eager, found[0], atol=1e-4, rtol=0)


def test_no_codes_have_no_probabilities(tiny_vlae, binary):
    model, none = tiny_vlae(), torch.zeros(0, 3, dtype=torch.float64)
    for each in (model, tiny_vlae().float()):
        x = binary(1).to(next(each.parameters()).dtype)
        with torch.no_grad():
            assert each.scorer(4)(x, none.to(x.dtype)).shape == (0,)


def test_few_samples_go_the_general_way(tiny_vlae, binary, monkeypatch):
    model, x = tiny_vlae(), binary(2)
    seen = []
    monkeypatch.setattr(model, "log_prob_of_one", lambda x, z, context: seen.append(len(z)) or x.new_zeros(len(z)))
    weights(model, x, None, samples=base.MANY - 1)
    assert not seen
    weights(model, x, None, samples=base.MANY, chunk=20)
    assert seen == [20, base.MANY - 20] * 2


def test_one_image_has_a_probability_under_each_z(tiny_vlae, tiny_vae, binary):
    """`log_prob` of one image for all z, of both kinds of decoders, with and without gradients."""
    for model in (tiny_vlae(), tiny_vae()):
        z, x = torch.randn(6, 3, dtype=torch.float64), binary(1)
        expected = model.decode(z).log_prob(x.expand(6, -1, -1, -1))
        torch.testing.assert_close(model.decode(z).log_prob(x), expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(model.log_prob_of_one(x, z), expected, atol=1e-10, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(model.log_prob_of_one(x, z), expected.detach(), atol=1e-10, rtol=0)


def test_no_images_have_no_weights(tiny_vlae, binary):
    assert tiny_vlae().log_likelihood(binary(0), base.MANY).shape == (0,)


@pytest.mark.parametrize("options", [{}, {"latent_maps": 2}, {"encoder_widths": [4, 3, 5], "image_shape": (1, 9, 12)}])
@torch.no_grad()
def test_the_maps_are_the_decoders(options, tiny_vlae, monkeypatch):
    model = tiny_vlae(**options)
    z = torch.randn(11, *model.latent_shape, dtype=torch.float64)
    for piece in (1, 3, 64):
        monkeypatch.setattr(vlae.models.decoders, "PIECE", piece)
        torch.testing.assert_close(model.decoder.evaluate(z), model.decoder(z), atol=1e-12, rtol=0)
