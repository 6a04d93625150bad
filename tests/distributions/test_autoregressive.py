import itertools

import pytest
import torch

from vlae import VlaeError
from vlae.nn.wavefront import Schedule

CONFIGURATIONS = [
    {"stacks": "two", "conditioning": "bias"},
    {"stacks": "two", "conditioning": "input"},
    {"stacks": "two", "conditioning": "bias", "kernel_size": 5, "decoder_layers": 0},
    {"stacks": "slanted", "decoder_layers": 0},
    {"stacks": "slanted", "decoder_layers": 2, "conditioning": "input"},
    {"stacks": "slanted", "kernel_size": 5, "weight_norm": True},
    {"stacks": "plain", "conditioning": "bias"},
    {"stacks": "plain", "conditioning": "input"},
    {"stacks": "plain", "conditioning": "bias", "tied": True, "decoder_layers": 3, "pointwise_blocks": 1},
    {"stacks": "two", "weight_norm": True},
]


def z_of(count):
    return torch.randn(count, 3, dtype=torch.float64)


def levels(count):
    return {"likelihood": "categorical", "likelihood_options": {"levels": count}}


@pytest.mark.parametrize("options", CONFIGURATIONS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_binary_images_sum_to_one(tiny_vlae, all_images, options, temperature):
    model, images = tiny_vlae((1, 3, 3), **options), all_images((1, 3, 3))
    with torch.no_grad():
        for z in 3 * z_of(2):
            mass = model.decode(z.expand(512, -1), temperature).log_prob(images).exp().sum()
            torch.testing.assert_close(mass.item(), 1.0, atol=1e-10, rtol=0)


@pytest.mark.parametrize("stacks", ["two", "slanted", "plain"])
@pytest.mark.parametrize(("shape", "count"), [((3, 1, 2), 2), ((3, 2, 1), 2), ((2, 1, 2), 3), ((1, 2, 2), 4)])
def test_images_of_channels_and_levels_sum_to_one(tiny_vlae, all_images, stacks, shape, count):
    model, images = tiny_vlae(shape, stacks=stacks, **levels(count)), all_images(shape, count)
    with torch.no_grad():
        mass = model.decode(z_of(1).expand(len(images), -1)).log_prob(images).exp().sum()
    torch.testing.assert_close(mass.item(), 1.0, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 6, 7), {}),
        ((1, 7, 5), {"stacks": "plain", "decoder_layers": 3}),
        ((1, 5, 6), {"kernel_size": 5}),
        ((1, 6, 7), {"stacks": "slanted", "decoder_layers": 2}),
        ((3, 4, 5), {"stacks": "slanted", "kernel_size": 5, **levels(3)}),
        ((3, 4, 5), levels(5)),
        ((3, 4, 5), {"likelihood": "logistic_mixture", "likelihood_options": {"levels": 6, "components": 2}}),
        ((3, 4, 5), {"stacks": "plain", **levels(3)}),
        ((1, 1, 6), {}),
        ((1, 6, 1), {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wavefront_and_raster_give_the_same_bits(tiny_vlae, shape, options, dtype):
    p = tiny_vlae(shape, **options).to(dtype).decode(z_of(3).to(dtype))
    u = torch.rand(3, *shape, dtype=dtype)
    assert torch.equal(p.sample(uniforms=u), p.sample(uniforms=u, method="raster"))


@pytest.mark.parametrize("stacks", ["two", "slanted", "plain"])
def test_wavefront_and_raster_give_the_same_densities_up_to_rounding(tiny_vlae, stacks):
    # Of a continuous value, every bit of the parameters shows.
    options = {"likelihood": "gaussian", "likelihood_options": {"sigma": 0.1}}
    p, u = tiny_vlae((2, 4, 5), stacks=stacks, **options).decode(z_of(3)), torch.rand(3, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(p.sample(uniforms=u), p.sample(uniforms=u, method="raster"), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("channels", "options"), [(1, {}), (3, {}), (3, levels(4))])
def test_sample_is_that_of_the_obvious_loop(tiny_vlae, channels, options):
    model = tiny_vlae((channels, 3, 4), **options)
    z, u = z_of(2), torch.rand(2, channels, 3, 4, dtype=torch.float64)
    x = torch.zeros_like(u)
    with torch.no_grad():
        for i in range(3):
            for j in range(4):
                for c in range(channels):
                    logits = model.decoder.pixels(x, model.decoder(z))[:, c, :, i, j]
                    if not options:
                        x[:, c, i, j] = (u[:, c, i, j] < logits[:, 0].sigmoid()).double()
                        continue
                    cdf = logits.softmax(1).cumsum(1)
                    x[:, c, i, j] = (cdf[:, :-1] <= u[:, c, i, j, None]).sum(1).double() / 3
    assert torch.equal(model.decode(z).sample(uniforms=u), x)


def test_scan_hands_out_the_conditionals_whose_product_is_the_likelihood(tiny_vlae, binary):
    model, x, total = tiny_vlae((2, 4, 3)), binary(3, (2, 4, 3)), torch.zeros(3).double()
    p = model.decode(z_of(3))

    def look_up(sites, conditional):
        total.add_(conditional.log_prob(x[sites.index]).sum(1))
        return x[sites.index]

    assert torch.equal(p.scan(look_up), x)
    torch.testing.assert_close(total, p.log_prob(x).detach(), atol=1e-12, rtol=0)


def test_samples_follow_the_distribution(tiny_vlae, all_images):
    model, images, n = tiny_vlae((1, 2, 2)), all_images((1, 2, 2)), 20_000
    z = 2 * z_of(1)
    p = model.decode(z.expand(16, -1)).log_prob(images).exp().detach()
    x = model.decode(z.expand(n, -1)).sample(generator=torch.Generator().manual_seed(0))
    frequency = (x[:, None] == images).flatten(2).all(2).double().mean(0)
    assert ((frequency - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()


def test_mode_is_greedy(tiny_vlae):
    model, z = tiny_vlae((1, 3, 4)), z_of(2)
    x = torch.zeros(2, 1, 3, 4).double()
    with torch.no_grad():
        for i in range(3):
            for j in range(4):
                x[:, 0, i, j] = (model.decoder.pixels(x, model.decoder(z))[:, 0, 0, i, j] > 0).double()
    assert torch.equal(model.decode(z).mode, x)
    cold = model.decode(z, 1e-6).sample()  # sampling at temperature 0 is greedy too
    assert torch.equal(cold, x)


def test_temperature_divides_the_logits(tiny_vlae, binary):
    model, z, x = tiny_vlae(), z_of(2), binary(2)
    logits = model.decoder.pixels(x, model.decoder(z))[:, :, 0] / 0.5
    exact = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(model.decode(z, temperature=0.5).log_prob(x), exact)


def test_sampling_honours_the_generators(tiny_vlae):
    p = tiny_vlae().decode(z_of(2))
    state = torch.get_rng_state()
    a, b = (p.sample(generator=torch.Generator().manual_seed(4)) for _ in range(2))
    each = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(a, p.sample(generator=torch.Generator().manual_seed(5)))
    assert torch.equal(p.sample(generator=each)[:1], a[:1])


def test_there_is_no_mean(tiny_vlae):
    p = tiny_vlae().decode(z_of(1))
    with pytest.raises(VlaeError, match=r"use \.mode"):
        _ = p.mean


def test_shapes(tiny_vlae, binary):
    p = tiny_vlae((2, 4, 3)).decode(z_of(5))
    assert (p.batch_shape, p.event_shape) == ((5,), (2, 4, 3))
    assert p.log_prob(binary(5, (2, 4, 3))).shape == (5,)
    assert torch.isfinite(p.log_prob(p.sample())).all()


def test_bad_requests_are_refused(tiny_vlae):
    p = tiny_vlae((2, 4, 3)).decode(z_of(5))
    with pytest.raises(VlaeError, match="uniforms must be one per sub-pixel"):
        p.sample(uniforms=torch.rand(2, 4, 3))
    with pytest.raises(VlaeError, match="one image per z"):
        p.sample((2,))
    with pytest.raises(VlaeError, match="method"):
        p.sample(method="spiral")


@pytest.mark.parametrize(
    ("stacks", "method", "steps", "largest"),
    [
        ("two", "raster", 5 * 7, 1),
        ("slanted", "raster", 5 * 7, 1),
        ("two", "wavefront", 7 + 4 * 3, 3),
        ("slanted", "wavefront", 7 + 4 * 2, 4),
        ("plain", "wavefront", 7 + 4 * 2, 4),
    ],
)
def test_raster_is_one_pixel_at_a_time_and_the_wavefront_is_not(tiny_vlae, stacks, method, steps, largest):
    sizes = []

    def visit(sites, conditional):
        sizes.append(len(sites.rows))
        return conditional.mode

    tiny_vlae((1, 5, 7), stacks=stacks).decode(z_of(1)).scan(visit, method)
    assert (len(sizes), max(sizes), sum(sizes)) == (steps, largest, 35)


@pytest.mark.parametrize("method", ["wavefront", "raster"])
def test_a_scan_leaves_gradients_and_the_mode_of_the_model_alone(tiny_vlae, method):
    Schedule.of.cache_clear()
    model, z = tiny_vlae((2, 4, 3)), z_of(2).requires_grad_()
    p, u, weights = model.decode(z), torch.rand(2, 2, 4, 3).double(), torch.randn(2, 2, 4, 3).double().requires_grad_()
    x = p.sample(uniforms=u, method=method)
    completed, log_weight = p.complete(x, torch.ones(4, 3, dtype=torch.bool))
    for result in (x, p.mode, completed, log_weight):
        assert not result.is_inference()
        assert not result.requires_grad
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not model.training
    # What was sampled is an ordinary input of training, and so are the schedule's sites.
    (weights * x).sum().backward()
    assert torch.equal(weights.grad, x)
    model.decode(z).log_prob(x).sum().backward()
    assert (z.grad != 0).all()
    sum(values.square().sum() for values in p.schedule(method).arrange(weights)).backward()
    # The mode of the model changes nothing: there is nothing in the decoder that trains differently.
    assert torch.equal(model.train().decode(z).sample(uniforms=u, method=method), x)
    assert model.training
    with torch.no_grad():
        assert torch.equal(model.decode(z).sample(uniforms=u, method=method), x)
    with torch.inference_mode():
        assert torch.equal(model.decode(z).sample(uniforms=u, method=method), x)


# Completion. The given pixels of a mask are what is known; a mask is closed if nothing unknown comes before them.

MASKS = torch.tensor(list(itertools.product([False, True], repeat=6))).view(64, 1, 2, 3)
SMALL = [
    {"stacks": "two", "decoder_layers": 0},
    {"stacks": "two", "decoder_layers": 2},
    {"stacks": "slanted", "decoder_layers": 0},
    {"stacks": "slanted", "decoder_layers": 1},
    {"stacks": "plain", "decoder_layers": 0},
    {"stacks": "plain", "decoder_layers": 1},
]


def lively_p(tiny_vlae, shape, count, **options):
    """A distribution far from uniform, given `count` times the same z."""
    torch.manual_seed(4)
    model = tiny_vlae(shape, **options)
    for weight in model.decoder.pixels.parameters():
        weight.data.mul_(2.5)
    return model.decode(2 * z_of(1).expand(count, -1))


def closed(mask, field):
    """Whether all that the given pixels of a mask [H, W] see is given too; then so is all that comes before them."""
    seen = {(i + a, j + b) for i, j in mask.nonzero().tolist() for a, b in field.offsets}
    return all(mask[i, j] for i, j in seen if i >= 0 and 0 <= j < mask.shape[1])


def conditionals_of(p, x):
    """log p of each pixel of x given those before it, and the probability that it is 1, both like x."""
    log_p, ones = torch.empty_like(x), torch.empty_like(x)

    def visit(sites, conditional):
        log_p[sites.index], ones[sites.index] = conditional.log_prob(x[sites.index]), conditional.mean
        return x[sites.index]

    p.scan(visit)
    return log_p, ones


@pytest.mark.parametrize("options", SMALL)
def test_completions_of_every_mask_against_enumeration(tiny_vlae, all_images, options):
    images = all_images((1, 2, 3))
    p = lively_p(tiny_vlae, (1, 2, 3), 64 * 64, **options)
    y, mask = images.repeat(64, 1, 1, 1), MASKS.repeat_interleave(64, dim=0)  # all images for each mask
    log_p, ones = conditionals_of(p, y)
    joint = p.log_prob(y).detach()
    torch.testing.assert_close(log_p.flatten(1).sum(1), joint, atol=1e-12, rtol=0)
    # Noise on one side or the other of the conditionals' thresholds leads to each image y in turn, so these are the
    # completion's probabilities. What is under unknown pixels must not matter.
    uniforms = torch.where(y == 1, ones - 1e-9, ones + 1e-9)
    known = torch.where(mask, y, torch.nan)
    completed, log_weight = p.complete(known, mask, uniforms=uniforms)
    assert torch.equal(completed, y)
    unknown = torch.where(mask, 0.0, log_p).flatten(1).sum(1)
    torch.testing.assert_close(log_weight + unknown, joint, atol=1e-12, rtol=0)
    # Of a closed mask the log-weight is log p(known | z), whatever the completion, and of others it is not.
    same = (y.view(64, 64, 1, 6) == y.view(64, 1, 64, 6)) | ~MASKS.view(64, 1, 1, 6)
    exact = joint.view(64, 1, 64).masked_fill(~same.all(-1), -torch.inf).logsumexp(-1)
    errors = (log_weight.view(64, 64) - exact).abs().amax(1)
    is_closed = torch.tensor([closed(m[0], p.network.receptive_field) for m in MASKS])
    assert 7 <= is_closed.sum() < 40  # 7 where everything depends on all that comes before it
    assert (errors[is_closed] < 1e-12).all()
    assert (errors[~is_closed] > 1e-4).all()
    conditional = joint.view(64, 64) - exact  # log p(unknown | known, z)
    torch.testing.assert_close(unknown.view(64, 64)[is_closed], conditional[is_closed], atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(3, 1, 2), (2, 2, 2)])
def test_masks_may_differ_between_channels_and_images(tiny_vlae, all_images, shape):
    images = all_images(shape, 2)
    count = len(images)
    p = lively_p(tiny_vlae, shape, count, decoder_layers=0, **levels(2))
    log_p, _ = conditionals_of_levels(p, images)
    mask = torch.rand(count, *shape) < 0.5
    completed, log_weight = p.complete(images, mask, generator=torch.Generator().manual_seed(0))
    assert torch.equal(completed[mask], images[mask])
    assert not torch.equal(completed, images)
    log_p, _ = conditionals_of_levels(p, completed)
    torch.testing.assert_close(log_weight, torch.where(mask, log_p, 0.0).flatten(1).sum(1), atol=1e-12, rtol=0)


def conditionals_of_levels(p, x):
    """As `conditionals_of`, for a categorical likelihood, from the whole network."""
    with torch.no_grad():
        log_masses = p.network(x, p.context).movedim(2, -1).log_softmax(-1)
    level = (x * (log_masses.shape[-1] - 1)).round().long()
    return log_masses.gather(-1, level[..., None]).squeeze(-1), log_masses[..., -1].exp()


def test_pixels_after_unknown_ones_are_accounted_for_by_the_weights(tiny_vlae, all_images):
    n, images = 40_000, all_images((1, 2, 3))
    p = lively_p(tiny_vlae, (1, 2, 3), n, decoder_layers=1)
    joint = p.log_prob(images[torch.arange(n) % 64])[:64].detach().exp()
    mask = torch.tensor([[[False, True, False], [True, False, True]]])
    known = images[37].expand(n, -1, -1, -1)
    completed, log_weight = p.complete(known, mask, generator=torch.Generator().manual_seed(0))
    assert (completed[:, mask] == images[37][mask]).all()
    exact = joint * (images[:, mask] == images[37][mask]).all(1)
    mass, exact = exact.sum(), exact / exact.sum()
    # The mean weight is p(known | z).
    weights = log_weight.exp()
    assert abs(weights.mean() - mass) < 4 * weights.std() / n**0.5
    assert weights.std() > 0.05 * mass
    # The weighted completions have the exact conditional; unweighted, they don't (the negative control).
    hits = (completed[:, None] == images).flatten(2).all(2).double()
    share = weights / weights.sum()
    deviation = (share[:, None] * (hits - exact)).square().sum(0).sqrt()
    assert ((share @ hits - exact).abs() <= 4 * deviation).all()
    assert (hits.mean(0) - exact).abs().max() > 10 * deviation.max()
    # So does resampling.
    drawn = torch.multinomial(share, n, replacement=True, generator=torch.Generator().manual_seed(1))
    assert (hits[drawn].mean(0) - exact).abs().max() < 0.01


@pytest.mark.parametrize("stacks", ["two", "slanted", "plain"])
def test_completion_keeps_what_is_given_and_draws_the_rest_as_sampling_does(tiny_vlae, binary, stacks):
    p, x = tiny_vlae((2, 5, 4), stacks=stacks).decode(z_of(3)), binary(3, (2, 5, 4))
    u = torch.rand(3, 2, 5, 4, dtype=torch.float64)
    everything, nothing = torch.ones(5, 4, dtype=torch.bool), torch.zeros(1, 5, 1, dtype=torch.bool)
    completed, log_weight = p.complete(x, everything)
    assert torch.equal(completed, x)
    torch.testing.assert_close(log_weight, p.log_prob(x).detach(), atol=1e-12, rtol=0)
    completed, log_weight = p.complete(torch.full_like(x, torch.nan), nothing, uniforms=u)
    assert torch.equal(completed, p.sample(uniforms=u))
    assert torch.equal(log_weight, torch.zeros(3).double())
    # The given pixels of a sample lead to the same sample again, by the same noise.
    mask = torch.rand(3, 2, 5, 4) < 0.5
    assert torch.equal(p.complete(torch.where(mask, completed, 7.0), mask, uniforms=u)[0], completed)
    a, b = (p.complete(x, mask, generator=torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(a[mask], x[mask])


def test_completion_with_a_temperature(tiny_vlae, binary):
    p = tiny_vlae().decode(z_of(3), temperature=0.5)
    x, mask = binary(3), torch.ones(5, 4, dtype=torch.bool)
    torch.testing.assert_close(p.complete(x, mask)[1], p.log_prob(x).detach(), atol=1e-12, rtol=0)


def test_what_is_given_is_not_changed_and_may_come_from_a_computation(tiny_vlae, binary):
    p, x, mask = tiny_vlae().decode(z_of(3)), binary(3).requires_grad_(), torch.rand(5, 4) < 0.5
    before, kept = x.detach().clone(), mask.clone()
    completed, log_weight = p.complete(x, mask)
    assert torch.equal(x, before)
    assert torch.equal(mask, kept)
    assert not completed.requires_grad
    assert not log_weight.requires_grad


def test_bad_completions_are_refused(tiny_vlae, binary):
    p, x = tiny_vlae((2, 4, 3)).decode(z_of(5)), binary(5, (2, 4, 3))
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[1, 2] = True
    for other in (mask.double(), mask.byte(), mask.long()):
        with pytest.raises(VlaeError, match="mask must be bool"):
            p.complete(x, other)
    for shape in [(3, 4), (5, 4, 3), (5, 3, 4, 3), (1, 5, 2, 4, 3), (4, 2, 4, 3)]:
        with pytest.raises(VlaeError, match="mask must broadcast"):
            p.complete(x, torch.zeros(shape, dtype=torch.bool))
    for other in (x[:1], x[0], x[:, :1], x.mT, x[None]):
        with pytest.raises(VlaeError, match="known must be images of shape"):
            p.complete(other, mask)
    with pytest.raises(VlaeError, match="uniforms must be one per sub-pixel"):
        p.complete(x, mask, uniforms=torch.rand(4, 3))
    with pytest.raises(VlaeError, match="one generator per image"):
        p.complete(x, mask, generator=[torch.Generator()])
    for value, words in [(0.5, "2 levels"), (torch.nan, "NaN"), (2.0, r"in \[0, 1\]"), (-1.0, r"in \[0, 1\]")]:
        bad = x.clone()
        bad[3, 1, 1, 2] = value
        with pytest.raises(VlaeError, match=words):
            p.complete(bad, mask)
        completed, log_weight = p.complete(bad, ~mask)  # under an unknown pixel, nobody looks
        assert torch.isfinite(log_weight).all()
        assert torch.isin(completed, torch.tensor([0.0, 1.0]).double()).all()
