"""Bits-back coding: exact, of the size of the bound, and independent of how encoder and decoder compute."""

import itertools
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from vlae import VlaeError
from vlae.codec import bitsback, rounding
from vlae.codec.ans import TOTAL, NumpyCoder, make_coder
from vlae.codec.bitsback import BitsBack, ModelCoder, checksum, cost, geometric
from vlae.codec.rounding import Bins
from vlae.models import VQVAE, DenoisingAutoencoder, LadderVAE, PixelCNN

CODERS = ["numpy", "constriction"] if find_spec("constriction") else ["numpy"]
SHAPE = (1, 8, 7)


def loud(model, scale=2.5):
    """Weights scaled up, so that no probability is near uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def levels_of(model, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, model.likelihood.levels, (count, *model.image_shape)).astype(np.uint8)


def drawn(model, count, seed=0):
    """Levels of images that the model draws: what it codes in few bits."""
    x = model.sample(count, generator=torch.Generator().manual_seed(seed))
    return (x * (model.likelihood.levels - 1)).round().numpy().astype(np.uint8)


def split(levels, sizes):
    return np.split(levels, np.cumsum(sizes)[:-1])


def seeds(blocks):
    return [1000 + i for i in range(len(blocks))]


def encode(model, blocks, **options):
    return BitsBack(model, **options).encode(blocks, seeds(blocks))


def decode(model, contents, blocks, **options):
    return BitsBack(model, **options).decode(contents, [len(block) for block in blocks], seeds(blocks))


def assert_equal(decoded, blocks):
    assert len(decoded) == len(blocks)
    for got, block in zip(decoded, blocks, strict=True):
        assert got.dtype == np.uint8
        assert np.array_equal(got, block)


@pytest.fixture
def model(tiny_vlae):
    return loud(tiny_vlae(SHAPE, flow_order="same"))


# -- there and back ---------------------------------------------------------------------------------------------------

MIXTURE = {"likelihood": "logistic_mixture", "likelihood_options": {"levels": 9, "components": 2}}
COLOUR = {"image_shape": (3, 4, 5)}
MAPS = {"architecture": "conv", "widths": [3], "latent_maps": 2}
CONFIGURATIONS = {
    "two stacks, two flow steps": {},
    "two stacks, deep": {"decoder_layers": 3},
    "slanted": {"stacks": "slanted", "decoder_layers": 2},
    "plain": {"stacks": "plain", "decoder_layers": 2, "pointwise_blocks": 1},
    "no decoder layer": {"decoder_layers": 0},
    "standard normal": {"flow_steps": 0},
    "one flow step": {"flow_steps": 1, "flow_order": "reversed"},
    "mean-only flow": {"flow_affine": False},
    "conditioned at the input": {"conditioning": "input"},
    "weight norm": {"weight_norm": True},
    "one latent dimension": {"latent_dim": 1},
    "categorical": {"likelihood": "categorical", "likelihood_options": {"levels": 17}},
    "mixture": MIXTURE,
    "colour": COLOUR,
    "colour categorical": {**COLOUR, "likelihood": "categorical", "likelihood_options": {"levels": 5}},
    "colour mixture, slanted": {**COLOUR, **MIXTURE, "stacks": "slanted"},
    "prior of mixtures": {"prior": "autoregressive_mixture", "prior_options": {"hidden": [8]}},
    "row LSTM": {"stacks": "row_lstm"},
    "row LSTM that forgets": {"stacks": "row_lstm", "trunk_options": {"memory": 2}},
    "attention": {"stacks": "attention", "channels": 8, "trunk_options": {"heads": 2}},
    "256 levels": {**COLOUR, "likelihood": "logistic_mixture", "likelihood_options": {"levels": 256}},
    "maps, map flow": {"latent_maps": 2, "prior_options": {"channels": 5}},
    "maps, two plain steps": {"latent_maps": 3, "prior_options": {"stacks": "plain", "layers": 3, "channels": 4}},
    "maps, standard normal": {"latent_maps": 2, "flow_steps": 0},
}
FACTORISED = {
    "factorised": {},
    "factorised, flow": {"flow_steps": 2, "flow_order": "same"},
    "factorised categorical": {"likelihood": "categorical", "likelihood_options": {"levels": 17}},
    "factorised colour mixture": {**COLOUR, **MIXTURE},
    "mixture of normals": {"prior": "mixture", "prior_options": {"components": 3}},
    "autoregressive mixture": {"prior": "autoregressive_mixture", "prior_options": {"hidden": [8]}},
    "VampPrior": {"prior": "vamp", "prior_options": {"components": 4}},
    "AR(1)": {"prior": "delta"},
    "convolutions and batch norm": {"architecture": "conv", "widths": [3]},
    "maps, mixture of normals": {**MAPS, "prior": "mixture", "prior_options": {"components": 3}},
    "maps, VampPrior": {**MAPS, "prior": "vamp", "prior_options": {"components": 4}},
}


@pytest.mark.parametrize("name", [*CONFIGURATIONS, *FACTORISED])
def test_round_trip(tiny_vlae, tiny_vae, name):
    if name in FACTORISED:
        model = loud(tiny_vae(**{"image_shape": SHAPE, **FACTORISED[name]}))
    else:
        model = loud(tiny_vlae(**{"image_shape": SHAPE, "flow_order": "same", **CONFIGURATIONS[name]}))
    # Noise, the model's own images, and constant ones; ragged blocks, one of a single image.
    constant = np.zeros((1, *model.image_shape), np.uint8)
    levels = np.concatenate([levels_of(model, 4), drawn(model, 5), constant, constant + (model.likelihood.levels - 1)])
    blocks = split(levels, [6, 1, 4])
    assert_equal(decode(model, encode(model, blocks), blocks), blocks)


def test_model_without_a_latent_is_coded_at_its_exact_likelihood():
    model = loud(PixelCNN(SHAPE, decoder_layers=1, channels=5)).double().eval()
    levels = drawn(model, 20)
    contents = encode(model, [levels])
    assert_equal(decode(model, contents, [levels]), [levels])
    expected = -model.log_prob(torch.from_numpy(levels / 1.0)).sum().item() / math.log(2)
    assert 8 * len(contents[0]) == pytest.approx(expected + 32, abs=16)  # the checksum; whole bytes


def certain(model):
    """The last layer's weights scaled up until most pixels take no bits at all."""
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(1e4)
    return model


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("make", [loud, certain])
def test_model_without_a_latent_on_many_lanes(make, coder):
    """Of images that the model is sure of, constant ones and noise; blocks of one image, too."""
    model = make(PixelCNN(SHAPE, decoder_layers=1, channels=5).double().eval())
    sure, constant = drawn(model, 12), np.zeros((6, *SHAPE), np.uint8)
    levels = np.concatenate([sure, np.repeat(sure[:1], 6, 0), constant, 1 - constant, levels_of(model, 6)])
    for sizes in ([1] * 36, [36], [12, 1, 5, 6, 6, 6]):
        blocks = split(levels, sizes)
        assert_equal(decode(model, encode(model, blocks, coder=coder), blocks, coder=coder), blocks)


def test_images_that_take_no_bits():
    """One image a hundred times over, by a model that is all but certain of it."""
    model = certain(PixelCNN((1, 3, 3), decoder_layers=0, channels=3).double().eval())
    with torch.no_grad():
        image = model.decode(torch.zeros(1, 0, dtype=torch.float64)).mode.round().numpy().astype(np.uint8)
    blocks = [np.repeat(image, count, 0) for count in (100, 1)]
    contents = encode(model, blocks)
    assert 8 * len(contents[0]) < 32 + 100
    assert_equal(decode(model, contents, blocks), blocks)


@pytest.mark.parametrize("coder", CODERS)
def test_a_block_that_promises_more_images_than_it_holds_is_refused_early(monkeypatch, coder):
    model = PixelCNN(SHAPE, decoder_layers=1, channels=5).double().eval()
    blocks = [levels_of(model, 4), levels_of(model, 4, seed=1)]
    contents = encode(model, blocks)
    popped, pop = [], BitsBack._pop_image
    monkeypatch.setattr(BitsBack, "_pop_image", lambda self, *given: (popped.append(1), pop(self, *given))[1])
    for sizes in ([100_000, 100_000], [4, 100_000], [5, 4], [4, 5]):
        popped.clear()
        with pytest.raises(VlaeError, match="damaged"):
            BitsBack(model, coder).decode(contents, sizes, seeds(blocks))
        assert len(popped) <= 12


def test_one_pixel_images(tiny_vae):
    model = loud(tiny_vae((1, 1, 1), latent_dim=1))
    blocks = split(levels_of(model, 40), [39, 1])
    assert_equal(decode(model, encode(model, blocks), blocks), blocks)


def test_extreme_weights_still_round_trip(tiny_vlae):
    """Probabilities of 0 and 1 to the last bit, log-masses of minus thousands."""
    model = loud(tiny_vlae(SHAPE, flow_order="same", likelihood="categorical", likelihood_options={"levels": 4}), 20)
    with torch.no_grad():  # latents in range, posteriors of any width
        last = [p for name, p in model.encoder.named_parameters() if name.endswith("weight")][-1]
        last[:3] /= last[:3].abs().max() * 1e6
    blocks = [levels_of(model, 5)]
    assert_equal(decode(model, encode(model, blocks), blocks), blocks)


def test_a_long_block_chains_images(model):
    """Beyond the images that start it, a block's images cost their bound, not the two parts' rate."""
    levels = drawn(model, 40)
    contents = encode(model, [levels])
    assert_equal(decode(model, contents, [levels]), [levels])


def test_latents_out_of_range_are_refused(tiny_vae):
    model = tiny_vae(SHAPE)
    with torch.no_grad():
        [p for name, p in model.encoder.named_parameters() if name.endswith("bias")][-1][:3] += 200
    with pytest.raises(VlaeError, match="out of the codec's range"):
        encode(model, [levels_of(model, 30)])


def test_a_broken_model_is_refused_when_encoding(model):
    with torch.no_grad():
        next(model.decoder.pixels.parameters())[0] = float("nan")
    with pytest.raises(VlaeError, match="not finite"):
        encode(model, [levels_of(model, 2)])


def test_the_model_is_left_as_it_was(tiny_vlae):
    model = tiny_vlae(SHAPE, flow_order="same").float().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    blocks = [levels_of(model, 3)]
    assert_equal(decode(model, encode(model, blocks), blocks), blocks)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_models_that_cannot_be_coded(tiny_vlae, tiny_vae):
    with pytest.raises(VlaeError, match="flow_order='same'"):
        BitsBack(tiny_vlae(SHAPE, flow_order="reversed"))
    with pytest.raises(VlaeError, match="density"):
        BitsBack(tiny_vae(SHAPE, likelihood="gaussian"))
    with pytest.raises(VlaeError, match="unknown coder"):
        encode(tiny_vae(SHAPE), [np.zeros((1, *SHAPE), np.uint8)], coder="huffman")


# -- size -------------------------------------------------------------------------------------------------------------


def seeded_coder(lanes=1, words=200):
    """A coder that holds random bits."""
    rng = np.random.default_rng(0)
    content = rng.integers(1, 2**32, words, dtype=np.uint32).astype("<u4").tobytes()
    return make_coder("numpy", [content] * lanes)


@pytest.mark.parametrize(
    "name",
    ["two stacks, two flow steps", "prior of mixtures", "categorical", "colour mixture, slanted", "maps, map flow"],
)
def test_the_cost_of_the_tables_is_what_the_stack_grows(tiny_vlae, name):
    model = tiny_vlae(**{"image_shape": SHAPE, "flow_order": "same", **CONFIGURATIONS[name]})
    loud(model.decoder)
    loud(model.encoder, 0.3)  # z within the prior's reach: beyond it, the tables' least frequencies are cheaper
    machine, levels, active = ModelCoder(model), drawn(model, 1), np.array([True])
    coder = seeded_coder()
    before = coder.bits()
    mean, scale = machine.posterior(levels)
    z, _ = machine.pop_posterior(coder, mean, scale, active)
    returned = before - coder.bits()
    latent = machine.latents(Bins(bitsback.WIDTH), z)
    symbols, tables, _ = machine.pixel_tables(levels, latent)
    of_pixels, middle = cost(symbols, tables), coder.bits()
    coder.push(symbols, tables)
    assert coder.bits() - middle == pytest.approx(of_pixels, abs=1)  # the stack's length is known to a bit
    digits, tables, _ = machine.prior_tables(z, Bins(bitsback.WIDTH))
    of_latent, middle = cost(digits, tables), coder.bits()
    coder.push(digits, tables)
    assert coder.bits() - middle == pytest.approx(of_latent, abs=1)

    # And each of the three is the model's own number, for this very z.
    x = machine.images(levels)
    with torch.no_grad():
        double = machine.model
        q, bits = double.encode(x), math.log(2)
        assert of_pixels == pytest.approx(-double.decode(latent).log_prob(x).item() / bits, rel=2e-3, abs=0.1)
        width = latent[0].numel() * math.log2(bitsback.WIDTH)
        assert of_latent == pytest.approx(-double.prior().log_prob(latent).item() / bits - width, rel=0.02, abs=0.3)
        p = Normal(q.mean, q.stddev)
        mass = p.cdf(latent + bitsback.WIDTH / 2) - p.cdf(latent - bitsback.WIDTH / 2)
        assert returned == pytest.approx(-mass.log().sum().item() / bits, rel=0.02, abs=1.3)


def bound(model, levels, draws=24):
    """The mean of -ELBO over images and draws of z, in bits."""
    x = torch.from_numpy(levels / (model.likelihood.levels - 1.0))
    with torch.no_grad():
        noise = [torch.Generator().manual_seed(seed) for seed in range(draws)]
        return -np.mean([model.elbo(x, generator=g).elbo.mean().item() for g in noise]) / math.log(2)


def train_a_little(model, levels, steps=40):
    x = torch.from_numpy(levels / (model.likelihood.levels - 1.0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (-model.elbo(x).elbo).mean().backward()
        optimizer.step()
    return model.eval()


def structured(count, levels=2, seed=0):
    """Images with something to learn: blobs at random places."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:8, :7]
    i, j = rng.uniform(0, 8, (2, count, 1, 1))
    blob = np.exp(-((rows - i) ** 2 + (columns - j) ** 2) / 4) + 0.1 * rng.random((count, 8, 7))
    return np.minimum(np.rint(blob * (levels - 1)), levels - 1).astype(np.uint8)[:, None]


@pytest.mark.parametrize(
    "options",
    [
        {"decoder_layers": 0},
        {"decoder_layers": 0, "flow_steps": 0, "likelihood": "categorical", "likelihood_options": {"levels": 17}},
        {"decoder_layers": 0, "latent_maps": 1, "encoder_widths": [4, 4], "prior_options": {"channels": 4}},
    ],
    ids=["binary, flow", "17 levels, standard normal", "binary, map flow"],
)
def test_length_is_the_bound(tiny_vlae, options):
    model = tiny_vlae(SHAPE, **{"flow_order": "same", **options})
    levels = structured(160, model.likelihood.levels)
    train_a_little(model.train(), levels)
    # What 128 further images add to a block: free of what it takes to start one.
    short, long = (8 * len(encode(model, [levels[:count]])[0]) for count in (32, 160))
    expected = bound(model, levels[32:])
    assert (long - short) / 128 == pytest.approx(expected, rel=0.015)
    # And starting it takes a few words, not a z per image.
    assert short < 32 * bound(model, levels[:32]) * 1.01 + 400


def test_blocks_cost_little_more_than_one(tiny_vlae):
    model = loud(tiny_vlae(SHAPE, flow_order="same", decoder_layers=0))
    levels = drawn(model, 64)
    one, four = (sum(map(len, encode(model, split(levels, [64 // n] * n)))) for n in (1, 4))
    assert one < four < one + 3 * 80


def test_common_symbols_take_almost_nothing():
    for table in (bitsback.SHIFT_TABLE, bitsback.START_TABLE, bitsback.COARSE_TABLE):
        assert table.sum() == TOTAL
        assert table.min() >= 1
    assert -math.log2(bitsback.SHIFT_TABLE[0] / TOTAL) < 0.006
    assert geometric(3, 0.5).tolist() == sorted(geometric(3, 0.5).tolist(), reverse=True)


# -- robustness -------------------------------------------------------------------------------------------------------


def variants(model):
    """Ways to compute the same thing, as (name, context manager that yields a model)."""
    threads = torch.get_num_threads()

    def several_threads():
        torch.set_num_threads(3)
        return model

    def plain():
        torch.set_num_threads(threads)
        return model

    def channels_last():
        return model.to(memory_format=torch.channels_last)

    return {"plain": plain, "threads": several_threads, "channels last": channels_last}


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "options", [{"decoder_layers": 1}, {**COLOUR, **MIXTURE, "stacks": "plain"}], ids=["binary", "colour"]
)
def test_any_way_to_compute_decodes_any_other(tiny_vlae, monkeypatch, restored_threads, options):
    model = loud(tiny_vlae(**{"image_shape": SHAPE, "flow_order": "same", **options}))
    blocks = split(drawn(model, 10), [4, 3, 2, 1])
    size = math.prod(model.image_shape) * model.likelihood.levels
    ways = list(itertools.product(["plain", "threads", "channels last"], [1, 3, 100]))
    written = {}
    for way, lanes in ways[::2]:
        monkeypatch.setattr(bitsback, "LARGEST", lanes * size)
        written[way, lanes] = encode(variants(model)[way](), blocks)
    for (way, lanes), contents in zip(ways[1::2] + ways[:1], written.values(), strict=True):
        monkeypatch.setattr(bitsback, "LARGEST", lanes * size)
        assert_equal(decode(variants(model)[way](), contents, blocks), blocks)
    # A block alone, and among others in another order.
    contents = next(iter(written.values()))
    machine = BitsBack(model)
    for order in ([2], [3, 0], [1, 3, 2, 0]):
        got = machine.decode([contents[i] for i in order], [len(blocks[i]) for i in order], [1000 + i for i in order])
        assert_equal(got, [blocks[i] for i in order])


def test_lanes_at_once_bounds_the_tables(model, monkeypatch):
    machine = ModelCoder(model)
    assert machine.lanes_at_once() * math.prod(SHAPE) * 2 <= bitsback.LARGEST
    monkeypatch.setattr(bitsback, "LARGEST", 1)
    assert machine.lanes_at_once() == 1


@pytest.mark.skipif(len(CODERS) < 2, reason="constriction is not installed")
@pytest.mark.parametrize("options", [{}, {**COLOUR, **MIXTURE, "decoder_layers": 0}], ids=["binary", "colour"])
def test_coders_write_the_same_bytes(tiny_vlae, options):
    model = loud(tiny_vlae(**{"image_shape": SHAPE, "flow_order": "same", **options}))
    blocks = split(drawn(model, 6), [3, 1, 2])
    numpy, constriction = (encode(model, blocks, coder=coder) for coder in CODERS)
    assert numpy == constriction
    assert_equal(decode(model, numpy, blocks, coder="constriction"), blocks)


def noisy(rounded, size, seed=7):
    """`rounding.rounded` of parameters that another machine computed with an error of up to `size`."""
    rng = np.random.default_rng(seed)

    def perturbed(values, step, shifts):
        return rounded(values + rng.uniform(-size, size, values.shape), step, shifts)

    return perturbed


FOUR = {"likelihood": "categorical", "likelihood_options": {"levels": 4}}


@pytest.fixture
def four(tiny_vlae):
    """A model of four levels, of which hardly any is impossible: as many parameters near boundaries as can be."""
    return loud(tiny_vlae(SHAPE, flow_order="same", **FOUR), 1.5)


@pytest.mark.parametrize("guard", [1e-9, 1e-6, 3e-5])
def test_a_decoder_with_errors_below_the_guard_decodes_exactly(four, monkeypatch, guard):
    """Large guards show it best: at 3e-5 every second image needs a shift."""
    blocks = [drawn(four, 12)]
    monkeypatch.setattr(rounding, "GUARD", guard)
    contents = encode(four, blocks)
    for seed in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(rounding, "rounded", noisy(rounding.rounded, 0.99 * guard, seed))
            assert_equal(decode(four, contents, blocks), blocks)


def test_without_the_guard_the_same_decoder_fails(four, monkeypatch):
    """The negative control: same images, same errors, no guard."""
    blocks = [drawn(four, 12)]
    monkeypatch.setattr(rounding, "GUARD", 0)
    contents = encode(four, blocks)
    assert_equal(decode(four, contents, blocks), blocks)  # the very same numbers still decode
    for seed in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(rounding, "rounded", noisy(rounding.rounded, 0.99 * 3e-5, seed))
            with pytest.raises(VlaeError):
                decode(four, contents, blocks)


class SinglePrecision(BitsBack):
    """A decoder whose networks run in float32: another kernel, at its worst."""

    def __init__(self, model):
        super().__init__(model)
        machine = self.model
        machine.model.float()
        machine.prior = machine.model.prior()
        images, latents = machine.images, machine.latents
        machine.images = lambda levels: images(levels).float()
        machine.latents = lambda bins, z: latents(bins, z).float()


def test_another_precision_decodes_with_a_guard_for_it_and_raw_floats_do_not(tiny_vlae, monkeypatch):
    options = {"likelihood": "categorical", "likelihood_options": {"levels": 5}}
    model = loud(tiny_vlae(SHAPE, flow_order="same", **options), 1.5)
    blocks = split(drawn(model, 64), [4] * 16)
    sizes = [4] * 16
    with monkeypatch.context() as patch:
        patch.setattr(rounding, "GUARD", 2e-5)
        assert_equal(SinglePrecision(model).decode(encode(model, blocks), sizes, seeds(blocks)), blocks)
    monkeypatch.setattr(rounding, "GUARD", 0)
    step = 2.0**-16  # nearly no rounding; the table is made in a faster way than in decimal arithmetic
    table = np.rint(rounding.WEIGHT * np.exp(-step * np.arange(-rounding.LOG_LEAST / step + 2))).astype(np.int64)
    monkeypatch.setattr(rounding, "_exponentials", lambda: table)
    for module in (rounding, bitsback):
        monkeypatch.setattr(module, "LOG_STEP", step)
    contents = encode(model, blocks)
    assert_equal(decode(model, contents, blocks), blocks)  # in double precision it still works, here
    with pytest.raises(VlaeError):
        SinglePrecision(model).decode(contents, sizes, seeds(blocks))


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_block_of_another_place_or_size_is_refused(model):
    blocks = split(drawn(model, 6), [3, 3])
    contents = encode(model, blocks)
    machine = BitsBack(model)
    for sizes, of in (([3, 3], [1001, 1000]), ([2, 3], [1000, 1001]), ([3, 4], [1000, 1001]), ([1, 1], [1000, 1001])):
        with pytest.raises(VlaeError):
            machine.decode(contents, sizes, of)
    for content in (b"", contents[0] + b"\1\0\0\0", contents[0][4:], contents[0][:-4]):
        with pytest.raises(VlaeError):
            machine.decode([content], [3], [1000])


def test_checksum_sees_every_level_and_the_seed():
    block = np.zeros((2, *SHAPE), np.uint8)
    seen = {checksum(block, 0), checksum(block, 0x12345678), checksum(block[:1], 0)}
    for i in range(block.size):
        changed = block.copy()
        changed.flat[i] = 1
        seen.add(checksum(changed, 0))
    assert len(seen) == block.size + 3
    assert checksum(block[:, :, :, ::-1], 0) == checksum(block, 0), "strides don't matter"


def test_symbols_are_pushed_in_the_order_of_the_decoder(model):
    order = ModelCoder(model).order
    assert sorted(order.tolist()) == list(range(math.prod(SHAPE)))
    visited = []
    p = model.decode(torch.zeros(1, 3, dtype=torch.float64))

    def visit(sites, conditional):
        visited.extend((sites.rows * SHAPE[2] + sites.columns).tolist())
        return conditional.mode

    p.scan(visit)
    assert visited == order.tolist()


@pytest.mark.parametrize("options", [{"prior_options": {"channels": 3}}, {"flow_steps": 0}, {"prior": "mixture"}])
def test_latents_are_pushed_in_the_order_of_the_prior(tiny_vlae, options):
    model = tiny_vlae(SHAPE, latent_maps=2, flow_order="same", **options)
    shape, visited = model.latent_shape, []
    assert shape == (2, 4, 4)
    numbers = torch.arange(32).view(1, *shape)

    def visit(sites, conditional):
        visited.extend(numbers[sites.index].flatten().tolist())
        return torch.zeros(conditional.batch_shape, dtype=torch.float64)

    model.prior().scan(visit, 1)
    assert visited == ModelCoder(model).latent_order.tolist()
    assert sorted(visited) == list(range(32))
    assert (visited == sorted(visited)) == ("prior_options" not in options), (
        "only the wavefront of the flow has an order of its own"
    )


def test_empty_stacks_are_never_popped_for_bits(model, monkeypatch):
    """No z is popped from a stack that may run dry: its "random" bits would not be random."""
    least = []
    pop = ModelCoder.pop_posterior

    def watched(self, coder, mean, scale, active):
        result = pop(self, coder, mean, scale, active)
        least.append(coder.bits()[active].min())
        return result

    monkeypatch.setattr(ModelCoder, "pop_posterior", watched)
    encode(model, [drawn(model, 30)])
    assert least
    assert min(least) > 48  # more than the checksum at the bottom


def test_numpy_coder_is_the_default(model):
    assert isinstance(make_coder(BitsBack(model).kind, 1), NumpyCoder)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LadderVAE(SHAPE, latent_dims=[3, 2], widths=[4]), "one latent code"),
        (VQVAE(SHAPE, codes=4, widths=[4]), "Gaussian posterior"),
        (DenoisingAutoencoder(SHAPE), "Gaussian posterior"),
    ],
)
def test_models_of_other_kinds_are_refused(model, message):
    with pytest.raises(VlaeError, match=message):
        BitsBack(model)
