"""Lossy coding: bins exact, rate as promised, texture reproducible."""

import itertools
import math

import numpy as np
import pytest
import torch

from vlae import VlaeError
from vlae.codec import compress, decompress, lossy
from vlae.codec.container import Container
from vlae.codec.lossy import SAMPLES_OF_MEAN, Lossy, step_for
from vlae.models import VAE

SHAPE = (1, 8, 7)
COLOUR = {
    "image_shape": (3, 4, 5),
    "likelihood": "logistic_mixture",
    "likelihood_options": {"levels": 9, "components": 2},
}


def loud(model, scale=2.0):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def levels_of(model, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, model.likelihood.levels, (count, *model.image_shape)).astype(np.uint8)


def split(levels, sizes):
    return np.split(levels, np.cumsum(sizes)[:-1])


def means(model, x):
    """The posterior's means, one row for each image or each place of its maps: [..., dimensions or maps]."""
    mean = model.encode(x).mean
    return mean.movedim(1, -1).flatten(0, -2)


def spread(model, scale=1.0):
    """The posterior's means spread out, as they are after training: images differ in z."""
    x = torch.from_numpy(levels_of(model, 64) / (model.likelihood.levels - 1.0))
    last = [p for name, p in model.encoder.named_parameters() if name.endswith("weight")][-1]
    bias = [p for name, p in model.encoder.named_parameters() if name.endswith("bias")][-1]
    with torch.no_grad():
        dimensions = model.latent_shape[0]
        last[:dimensions] *= (scale / means(model, x).std(0)).view(-1, *[1] * (last.ndim - 1))
        bias[:dimensions] -= bias[:dimensions]
        bias[:dimensions] -= means(model, x).mean(0)
    return model


@pytest.fixture(params=["binary", "colour", "factorised", "factorised colour", "maps"])
def model(request, tiny_vlae, tiny_vae):
    make = tiny_vae if "factorised" in request.param else tiny_vlae
    options = COLOUR if "colour" in request.param else {"image_shape": SHAPE}
    if request.param == "maps":
        options = {**options, "latent_maps": 1, "encoder_widths": [4, 4], "prior_options": {"channels": 3}}
    if make is tiny_vlae:
        options = {**options, "flow_order": "same"}
    return spread(loud(make(**options)))


@pytest.fixture
def binary(tiny_vlae):
    return spread(loud(tiny_vlae(SHAPE, flow_order="same")))


@pytest.mark.parametrize("step", [0.05, 0.3, 1.0, 7.0])
def test_bins_come_back_exactly(model, step):
    machine = Lossy(model, step)
    blocks = split(levels_of(model, 9), [5, 1, 3])
    contents = machine.encode(blocks, [7, 8, 9])
    decoded = machine.decode(contents, [5, 1, 3], [7, 8, 9])
    for got, block in zip(decoded, blocks, strict=True):
        assert np.array_equal(got, machine.quantise(block))
        with torch.no_grad():
            mean = model.encode(torch.from_numpy(block / (model.likelihood.levels - 1.0))).mean.flatten(1).numpy()
        assert np.abs(machine.bins.values(got) - mean).max() <= step / 2 * (1 + 1e-9)
    for contents_, sizes, seeds in (
        (contents, [5, 1, 3], [8, 7, 9]),
        (contents, [4, 1, 3], [7, 8, 9]),
        ([contents[0][:-4]], [5], [7]),
    ):
        with pytest.raises(VlaeError, match="damaged"):
            machine.decode(contents_, sizes, seeds)


def test_coders_write_the_same_bytes(binary):
    pytest.importorskip("constriction")
    blocks = split(levels_of(binary, 5), [2, 3])
    numpy, constriction = (Lossy(binary, 0.5, coder).encode(blocks, [1, 2]) for coder in ("numpy", "constriction"))
    assert numpy == constriction


@pytest.mark.parametrize("step", [0.1, 1.0])
def test_bits_are_what_the_payload_takes(model, step):
    levels = levels_of(model, 40)
    machine = Lossy(model, step)
    expected = machine.bits(levels)
    assert expected.shape == (40,)
    (content,) = machine.encode([levels], [0])
    # The checksum, 40 symbols that say "no shift", whole bytes.
    assert -1 <= 8 * len(content) - (expected.sum() + 32) <= 12


def test_bits_are_those_of_the_prior(tiny_vae):
    """Under a standard normal, with bins of width w: -log2 of the normal's mass, about log2(1 / w phi(z))."""
    model = spread(loud(tiny_vae(SHAPE)))
    levels = levels_of(model, 50)
    machine = Lossy(model, 0.125)
    z = torch.from_numpy(machine.bins.values(machine.quantise(levels)))
    expected = -model.prior().log_prob(z).numpy() / np.log(2) + 3 * 3
    assert machine.bits(levels) == pytest.approx(expected, rel=0.01, abs=0.05)


def test_rate_falls_as_the_step_grows(model):
    levels = levels_of(model, 60)
    rates = [Lossy(model, step).bits(levels).mean() for step in (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)]
    assert all(finer > coarser for finer, coarser in itertools.pairwise(rates))
    # A bit per dimension and halving, while bins are narrow.
    assert rates[0] - rates[1] == pytest.approx(math.prod(model.latent_shape), abs=0.3)


def test_step_for_meets_the_target(binary):
    levels = levels_of(binary, 200)
    for target in (9.0, 14.0, 20.0):
        rate = Lossy(binary, step_for(binary, levels, target)).bits(levels).mean()
        assert rate == pytest.approx(target, rel=0.02)
        assert rate <= target
    for target in (-1.0, 0.0, 1e4, float("nan")):
        with pytest.raises(VlaeError, match="can't be had"):
            step_for(binary, levels, target)


def test_step_for_works_for_latents_far_out(binary):
    """Where the finest step would be out of range, coarser ones are not."""
    with torch.no_grad():
        [p for name, p in binary.encoder.named_parameters() if name.endswith("bias")][-1][:3] += 50
    levels = levels_of(binary, 50)
    target = Lossy(binary, 1.0).bits(levels).mean()
    assert Lossy(binary, step_for(binary, levels, target)).bits(levels).mean() == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_steps_are_refused(binary, step):
    with pytest.raises(VlaeError, match="step"):
        Lossy(binary, step)


@pytest.mark.parametrize("texture", ["sample", "greedy", "mean"])
def test_textures(model, texture, monkeypatch):
    monkeypatch.setattr(lossy, "SAMPLES_OF_MEAN", 4)
    levels = levels_of(model, 6)
    data = compress(model, levels, lossy_step=0.5, images_per_block=3)
    images = decompress(model, data, texture=texture, seed=3)
    assert images.shape == (6, *model.image_shape)
    assert images.dtype == torch.float64
    assert bool(((images >= 0) & (images <= 1)).all())
    values = images * (model.likelihood.levels - 1)
    if texture != "mean":
        assert torch.equal(values.round(), values), "levels"
    # The same whatever is decoded beside an image, and by another coder.
    assert torch.equal(decompress(model, data, texture=texture, seed=3), images)
    for part in (slice(2, 5), slice(5, None), slice(0, 1)):
        again = decompress(model, data, images=part, texture=texture, seed=3)
        if texture == "mean":  # of probabilities, which depend on the batch in their last bits
            assert again.numpy() == pytest.approx(images[part].numpy(), abs=1e-12)
        else:
            assert torch.equal(again, images[part])
    other = decompress(model, data, texture=texture, seed=4)
    deterministic = texture == "greedy" or (
        texture == "mean" and hasattr(model, "beta")
    )  # a VAE has a closed-form mean
    assert torch.equal(other, images) == deterministic


def test_textures_are_those_of_the_latents(binary, monkeypatch):
    levels = levels_of(binary, 3)
    data = compress(binary, levels, lossy_step=0.5)
    machine = Lossy(binary, 0.5)
    z = torch.from_numpy(machine.bins.values(machine.quantise(levels)))
    p = binary.decode(z)
    assert torch.equal(decompress(binary, data, texture="greedy"), p.mode)
    monkeypatch.setattr(lossy, "SAMPLES_OF_MEAN", 100)
    with torch.no_grad():
        frequencies = sum(p.sample(generator=torch.Generator().manual_seed(s)) for s in range(100)) / 100
    assert (decompress(binary, data, texture="mean") - frequencies).abs().max() < 0.36  # 5 sigma of a difference
    assert SAMPLES_OF_MEAN > 1


def test_images_of_equal_latents_differ_in_their_texture(binary):
    levels = np.repeat(levels_of(binary, 1), 4, 0)
    images = decompress(binary, compress(binary, levels, lossy_step=0.5))
    assert len({image.numpy().tobytes() for image in images}) > 1


def test_unknown_textures_are_refused(binary):
    data = compress(binary, levels_of(binary, 1), lossy_step=0.5)
    with pytest.raises(VlaeError, match="sample, greedy, mean"):
        decompress(binary, data, texture="median")


def test_the_header_says_the_step(binary):
    levels = levels_of(binary, 100)
    header = Container.from_bytes(compress(binary, levels, lossy_step=0.3)).header
    assert (header.mode, header.step) == ("lossy", 0.3)
    data = compress(binary, levels, lossy_bits=15)
    header = Container.from_bytes(data).header
    assert Lossy(binary, header.step).bits(levels).mean() == pytest.approx(15, rel=0.02)


@pytest.mark.parametrize("step", [1e-4, 1e-20])
def test_latents_too_fine_for_the_range_are_refused(binary, step):
    with pytest.raises(VlaeError, match=r"range, .*: take a larger --lossy_step"):
        compress(binary, levels_of(binary, 3), lossy_step=step)


def test_latents_that_are_no_numbers_are_not_blamed_on_the_step(binary):
    with torch.no_grad():
        [p for name, p in binary.encoder.named_parameters() if name.endswith("bias")][-1][:3] = float("nan")
    with pytest.raises(VlaeError, match="out of the codec's range") as error:
        compress(binary, levels_of(binary, 3), lossy_step=0.5)
    assert "larger" not in str(error.value)


def test_no_more_lanes_than_fit_into_memory(monkeypatch):
    """Maps of mixtures have large tables: blocks, and the images whose rate is searched for, go in parts."""
    torch.manual_seed(0)
    options = {"architecture": "conv", "widths": [4], "latent_maps": 2}
    model = VAE((1, 8, 8), prior="mixture", prior_options={"components": 3}, **options).eval()
    coder, seen = Lossy(model, 0.5), []
    levels = levels_of(model, 21)
    blocks, seeds = split(levels, [3, 2, 2, 3, 2, 2, 3, 2, 2]), list(range(9))
    bits, whole = coder.bits(levels), coder.encode(blocks, seeds)
    tables, pop = coder.model.prior_tables, coder.model.pop_prior
    monkeypatch.setattr(coder.model, "lanes_at_once", lambda: 4)
    monkeypatch.setattr(coder.model, "prior_tables", lambda z, bins: (seen.append(len(z)), tables(z, bins))[1])
    monkeypatch.setattr(
        coder.model, "pop_prior", lambda c, b, shifts, a: (seen.append(len(a)), pop(c, b, shifts, a))[1]
    )
    np.testing.assert_array_equal(coder.bits(levels), bits)
    assert coder.encode(blocks, seeds) == whole
    found = coder.decode(whole, [len(block) for block in blocks], seeds)
    for block, z in zip(blocks, found, strict=True):
        np.testing.assert_array_equal(z, coder.quantise(block))
    assert max(seen) == 4
