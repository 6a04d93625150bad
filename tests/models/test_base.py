"""The bound and the importance-weighted likelihood against a model whose evidence is known in closed form."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import vlae
from vlae import VlaeError
from vlae.distributions import DiagonalGaussian, Factorised, Likelihood, StandardNormalPrior
from vlae.distributions.likelihoods import PixelGaussian
from vlae.models.base import LatentVariableModel

SIGMA = 0.4


class IdentityGaussian(Likelihood):
    """A normal density around the decoder's output itself."""

    def forward(self, parameters, temperature=1.0):
        return PixelGaussian(parameters.squeeze(-1), torch.tensor(SIGMA * temperature, dtype=parameters.dtype))


class LinearGaussian(LatentVariableModel):
    """x = W z + b + noise; W has orthogonal columns, so the exact posterior is diagonal. `error` makes it wrong."""

    def __init__(self, error: float = 0.0):
        super().__init__()
        self.image_shape, self.latent_shape, self.likelihood = (1, 2, 3), (2,), IdentityGaussian()
        basis = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q
        self.weight = nn.Parameter(basis * torch.tensor([0.8, 0.3], dtype=torch.float64))
        self.bias = nn.Parameter(torch.rand(6, dtype=torch.float64))
        self.prior_module = StandardNormalPrior(2).double()
        self.error = error

    def encode(self, x):
        precision = 1 + (self.weight**2).sum(0) / SIGMA**2
        mean = ((x.flatten(1) - self.bias) @ self.weight) / SIGMA**2 / precision
        log_stddev = -0.5 * precision.log().expand_as(mean)
        return DiagonalGaussian(mean + self.error, log_stddev + self.error)

    def decode(self, z, temperature=1.0):
        return Factorised(self.likelihood, (z @ self.weight.T + self.bias).view(-1, 1, 1, 2, 3), temperature)

    def prior(self):
        return self.prior_module()

    def evidence(self, x):
        """log p(x), nats, [B]."""
        covariance = self.weight @ self.weight.T + SIGMA**2 * torch.eye(6, dtype=torch.float64)
        return MultivariateNormal(self.bias, covariance).log_prob(x.flatten(1)).detach()


@pytest.fixture
def images():
    return torch.rand(4, 1, 2, 3, dtype=torch.float64)


def test_with_the_exact_posterior_every_weight_is_the_evidence(images):
    model = LinearGaussian()
    weights = torch.cat(list(model.log_weights(images, 50)))
    torch.testing.assert_close(weights, model.evidence(images).expand(50, 4), atol=1e-10, rtol=0)
    assert not weights.requires_grad


def test_with_the_exact_posterior_the_bound_is_tight(images):
    model = LinearGaussian()
    sampled = model.elbo(images, analytic=False)
    torch.testing.assert_close(sampled.elbo, model.evidence(images), atol=1e-10, rtol=0)
    # The analytic rate with a sampled distortion is unbiased for it.
    many = model.elbo(images.repeat(20_000, 1, 1, 1)).elbo.view(20_000, 4)
    assert ((many.mean(0) - model.evidence(images)).abs() < 4 * many.std(0) / math.sqrt(20_000)).all()
    for samples in (1, 7):
        bound = model.log_likelihood(images, samples)
        torch.testing.assert_close(bound, model.evidence(images), atol=1e-10, rtol=0)


def test_the_analytic_rate_is_that_of_pytorch(images):
    model = LinearGaussian(error=0.3)
    q = model.encode(images)
    exact = torch.distributions.kl_divergence(Normal(q.mean, q.stddev), Normal(0.0, 1.0))
    bound = model.elbo(images)
    torch.testing.assert_close(bound.rate_per_dimension, exact)
    torch.testing.assert_close(bound.rate, exact.sum(1))


def test_with_a_wrong_posterior_the_bounds_are_ordered(images):
    model = LinearGaussian(error=0.4)
    many = images.repeat(500, 1, 1, 1)
    bounds = [model.elbo(many, analytic=False).elbo.mean().item()]
    bounds += [model.log_likelihood(many, samples).mean().item() for samples in (1, 2, 8, 64)]
    evidence = model.evidence(images).mean().item()
    assert abs(bounds[0] - bounds[1]) < 0.1  # one sample is the ELBO
    assert bounds[1] < bounds[2] - 0.02 < bounds[3] - 0.04 < bounds[4] < evidence + 0.02
    assert abs(bounds[4] - evidence) < 0.05 < evidence - bounds[0]


@pytest.mark.parametrize(("samples", "chunk"), [(7, 512), (7, 1), (7, 4), (7, 9), (13, 12), (1, 3), (5, 20)])
def test_the_samples_asked_for_are_those_used_whatever_the_chunk(images, samples, chunk):
    model = LinearGaussian(error=0.4)
    chunks = list(model.log_weights(images, samples, torch.Generator().manual_seed(0), chunk))
    weights = torch.cat(chunks)
    assert weights.shape == (samples, 4)
    assert all(len(part) * 4 <= max(chunk, 4) for part in chunks)
    z = model.encode(images).sample((samples,), torch.Generator().manual_seed(0))
    for k in range(samples):  # the definition, by PyTorch's own distributions
        q = model.encode(images)
        mean = (z[k] @ model.weight.T + model.bias).view_as(images)
        exact = (
            Independent(Normal(mean, SIGMA), 3).log_prob(images)
            + Independent(Normal(torch.zeros(2).double(), 1), 1).log_prob(z[k])
            - Independent(Normal(q.mean, q.stddev), 1).log_prob(z[k])
        )
        torch.testing.assert_close(weights[k], exact.detach())
    bound = model.log_likelihood(images, samples, torch.Generator().manual_seed(0), chunk)
    torch.testing.assert_close(bound, weights.logsumexp(0) - math.log(samples), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["vae", "vlae"])
def test_chunks_do_not_change_the_result_of_a_network(kind, tiny_vae, tiny_vlae, binary):
    model, x = (tiny_vae if kind == "vae" else tiny_vlae)(flow_steps=1), binary(3)
    bounds = [model.log_likelihood(x, 11, torch.Generator().manual_seed(0), chunk) for chunk in (1, 6, 16, 512)]
    for bound in bounds[1:]:
        torch.testing.assert_close(bound, bounds[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["vae", "vlae"])
@pytest.mark.parametrize("flow_steps", [0, 2])
@pytest.mark.parametrize("analytic", [True, False])
def test_the_bound_is_the_one_line_formula(kind, flow_steps, analytic, tiny_vae, tiny_vlae, binary):
    model, x = (tiny_vae if kind == "vae" else tiny_vlae)(flow_steps=flow_steps), binary(3)
    bound = model.elbo(x, analytic=analytic)
    q = model.encode(x)
    torch.testing.assert_close(bound.distortion, -model.decode(bound.z).log_prob(x))
    torch.testing.assert_close(bound.elbo, -(bound.distortion + bound.rate))
    torch.testing.assert_close(bound.rate_per_dimension.sum(1), bound.rate)
    assert bound.elbo.shape == (3,)
    if analytic and not flow_steps:
        exact = torch.distributions.kl_divergence(q, model.prior())
    else:
        exact = q.log_prob(bound.z) - model.prior().log_prob(bound.z)
    torch.testing.assert_close(bound.rate, exact)


def test_noise_of_an_image_does_not_depend_on_the_batch(tiny_vlae, binary):
    model, x = tiny_vlae(), binary(5)

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    whole = model.elbo(x, generator=generators(0, 1, 2, 3, 4)).elbo
    parts = torch.cat(
        [model.elbo(x[:2], generator=generators(0, 1)).elbo, model.elbo(x[2:], generator=generators(2, 3, 4)).elbo]
    )
    torch.testing.assert_close(whole, parts, atol=1e-10, rtol=0)
    weights = next(model.log_weights(x, 3, generators(0, 1, 2, 3, 4)))
    torch.testing.assert_close(weights[:, 3:4], next(model.log_weights(x[3:4], 3, generators(3))), atol=1e-10, rtol=0)


def batch_norm(model):
    return {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("use", ["sample", "reconstruct", "log_likelihood"])
def test_using_a_model_in_train_mode_neither_uses_nor_changes_batch_statistics(use, binary):
    model, x = vlae.VAE((1, 5, 4), latent_dim=3, widths=[4]).double().eval(), binary(6)
    model.encoder.layers[1].running_mean.fill_(0.3)

    def call():
        g = torch.Generator().manual_seed(0)
        return {
            "sample": lambda: model.sample(4, generator=g),
            "reconstruct": lambda: model.reconstruct(x),
            "log_likelihood": lambda: model.log_likelihood(x, 4, g, chunk=6),
        }[use]()

    expected = call()
    model.train()
    model.encoder.layers[1].eval()  # a part that is frozen stays so
    before = batch_norm(model)
    assert torch.equal(call(), expected)
    assert model.training and model.decoder.training and not model.encoder.layers[1].training
    after = batch_norm(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model.train().elbo(x)  # the control: a training pass does change them
    assert any(not torch.equal(before[name], value) for name, value in model.named_buffers())


@pytest.mark.parametrize("kind", ["vae", "vlae"])
def test_mode_is_restored_after_an_error(kind, tiny_vae, tiny_vlae):
    model = (tiny_vae if kind == "vae" else tiny_vlae)().train()
    with pytest.raises(RuntimeError), model.evaluating():
        raise RuntimeError
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ["vae", "vlae"])
@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 4, 4)])
def test_samples_and_reconstructions(kind, shape, tiny_vae, tiny_vlae, binary):
    model = (tiny_vae if kind == "vae" else tiny_vlae)(shape)
    x = binary(3, shape)
    first, second = (model.sample(5, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.sample(5, generator=torch.Generator().manual_seed(8)))
    assert first.shape == (5, *shape)
    assert set(first.unique().tolist()) <= {0.0, 1.0}
    reconstruction = model.reconstruct(x)
    assert torch.equal(reconstruction, model.reconstruct(x))
    decoded = model.decode(model.encode(x).mean)
    assert torch.equal(reconstruction, decoded.mean if kind == "vae" else decoded.mode)
    assert reconstruction.shape == x.shape and 0 <= reconstruction.min() <= reconstruction.max() <= 1
    assert not reconstruction.requires_grad and not first.requires_grad


def test_gaussian_samples_are_images():
    model = vlae.VAE((1, 4, 4), latent_dim=2, likelihood="gaussian", likelihood_options={"sigma": 3.0}, widths=[4])
    x = model.sample(8)
    assert x.min() == 0 and x.max() == 1


def test_temperatures_reach_the_prior_and_the_pixels(tiny_vae):
    model = tiny_vae()
    g = [torch.Generator().manual_seed(0) for _ in range(2)]
    cold = model.sample(3, temperature=0.0, pixel_temperature=1e-9, generator=g[0])
    assert torch.equal(cold, model.decode(torch.zeros(3, 3).double()).mode)
    z = model.prior().sample((3,), g[1], temperature=0.5)
    uniforms = torch.rand(3, 1, 5, 4, dtype=torch.float64, generator=g[1])
    warm = model.sample(3, temperature=0.5, pixel_temperature=0.7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warm, model.decode(z, 0.7).sample(uniforms=uniforms))


BAD_IMAGES = {
    "no batch": lambda x: x[0],
    "size": lambda x: x.transpose(2, 3),
    "channels": lambda x: x.expand(-1, 3, -1, -1),
    "same count": lambda x: x.reshape(3, 1, 2, 10),
    "integers": lambda x: x.long(),
    "other precision": lambda x: x.float(),
    "not a tensor": lambda x: x.tolist(),
    "NaN": lambda x: x * float("nan"),
    "infinite": lambda x: x + float("inf"),
    "negative": lambda x: x - 1,
    "bytes in floats": lambda x: x * 255,
    "levels": lambda x: x + 0.5 * (1 - x),
}


@pytest.mark.parametrize("change", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_images_are_refused_with_one_line(change, tiny_vae, tiny_vlae, binary):
    x = binary(3)
    x[:, :, 0, 0], x[:, :, 0, 1] = 0, 1
    bad = change(x)
    for model in (tiny_vae(), tiny_vlae()):
        uses = [model.elbo, model.reconstruct, lambda x, model=model: model.log_likelihood(x, 2)]
        if isinstance(model, vlae.VAE):
            uses += [model, model.compute_loss]
        for use in uses:
            with pytest.raises(VlaeError) as caught:
                use(bad)
            assert len(str(caught.value).splitlines()) == 1


def test_a_shape_that_only_holds_as_many_numbers_is_not_reshaped(tiny_vae, binary):
    with pytest.raises(VlaeError, match=r"expected images of shape \[B, 1, 5, 4\]; got \[2, 1, 4, 5\]"):
        tiny_vae().compute_loss(binary(2, (1, 4, 5)))


def test_bad_counts_are_refused(tiny_vae, binary):
    model = tiny_vae()
    for request in (
        lambda: model.log_likelihood(binary(2), samples=0),
        lambda: model.sample(0),
        lambda: model.sample(-1),
        lambda: model.sample(1, temperature=-1.0),
        lambda: model.sample(1, temperature=float("nan")),
        lambda: model.sample(1, pixel_temperature=0.0),
        lambda: model.sample(1, pixel_temperature=float("nan")),
    ):
        with pytest.raises(VlaeError):
            request()


def test_an_empty_batch_has_empty_bounds(tiny_vlae, binary):
    model, x = tiny_vlae(), binary(0)
    assert model.elbo(x).elbo.shape == model.log_likelihood(x, 3).shape == (0,)


def test_autocast_is_not_refused(tiny_vlae, binary):
    model, x = tiny_vlae().float(), binary(2).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = model.elbo(x, generator=torch.Generator().manual_seed(0)).elbo
    assert low.dtype == torch.float32
    full = model.elbo(x, generator=torch.Generator().manual_seed(0)).elbo
    torch.testing.assert_close(low, full, rtol=0.05, atol=0)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 4, 1)])
def test_latents_of_another_shape_are_refused(shape, tiny_vlae):
    model = tiny_vlae(latent_dim=4)
    with pytest.raises(VlaeError, match=r"latents of shape \[B, 4\]"):
        model.decode(torch.zeros(shape, dtype=torch.float64))


def test_gradients_are_as_they_were_between_two_chunks_of_weights(tiny_vae, binary):
    weights = tiny_vae().log_weights(binary(2), samples=5, chunk=4)
    assert not next(weights).requires_grad
    assert torch.is_grad_enabled()
