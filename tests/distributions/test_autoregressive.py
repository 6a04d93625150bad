import pytest
import torch

from vlae import VlaeError

CONFIGURATIONS = [
    {"stacks": "two", "conditioning": "bias"},
    {"stacks": "two", "conditioning": "input"},
    {"stacks": "two", "conditioning": "bias", "kernel_size": 5, "decoder_layers": 0},
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


@pytest.mark.parametrize("stacks", ["two", "plain"])
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
        ((3, 4, 5), levels(5)),
        ((3, 4, 5), {"stacks": "plain", **levels(3)}),
        ((1, 1, 6), {}),
        ((1, 6, 1), {}),
        ((2, 4, 4), {"likelihood": "gaussian", "likelihood_options": {"sigma": 0.1}}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wavefront_and_raster_give_the_same_bits(tiny_vlae, shape, options, dtype):
    p = tiny_vlae(shape, **options).to(dtype).decode(z_of(3).to(dtype))
    u = torch.rand(3, *shape, dtype=dtype)
    assert torch.equal(p.sample(uniforms=u), p.sample(uniforms=u, method="raster"))


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


@pytest.mark.parametrize(("method", "steps", "largest"), [("raster", 5 * 7, 1), ("wavefront", 7 + 4 * 3, 3)])
def test_raster_is_one_pixel_at_a_time_and_the_wavefront_is_not(tiny_vlae, method, steps, largest):
    sizes = []

    def visit(sites, conditional):
        sizes.append(len(sites.rows))
        return conditional.mode

    tiny_vlae((1, 5, 7)).decode(z_of(1)).scan(visit, method)
    assert (len(sizes), max(sizes), sum(sizes)) == (steps, largest, 35)
