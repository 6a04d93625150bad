"""The ladder VAE: its bound against quadrature and a linear-Gaussian ladder, and what all models do, with tuples."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import vlae
from vlae import LadderVAE, VlaeError
from vlae.distributions import Factorised, Likelihood
from vlae.distributions.ladder import LadderPosterior, LadderPrior
from vlae.distributions.likelihoods import PixelGaussian
from vlae.evaluation import evaluate, keyed_generators
from vlae.evaluation.report import evaluate_dataset
from vlae.models import LadderBound
from vlae.objectives import ELBO, Linear
from vlae.training import run
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

SIGMA, SCALE = 0.4, 0.7  # deviations of x given z_1, and of z_1 given z_2


@pytest.fixture
def tiny():
    """A factory of small ladders in float64 and eval mode, with weights large enough for the levels to depend."""

    def make(image_shape=(1, 5, 4), **options):
        model = LadderVAE(image_shape, **{"latent_dims": (3, 2, 1), "widths": [6], "hidden": 5, **options}).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(2 if "prior" in name else 1.3)
        return model.eval()

    return make


def widened(model):
    """With a posterior wider than the true one, so that no importance weight has a heavy tail."""
    with torch.no_grad():
        for head in model.encoder.heads:
            head.weight.mul_(0.1)
            head.bias[len(head.bias) // 2 :] += 1.5
        for step in model.prior_module.steps:  # and no prior scale is far wider than the messages
            step[-1].weight[len(step[-1].bias) // 2 :] *= 0.2
    return model


POSTERIORS = ["ladder", "bottom_up"]


class IdentityGaussian(Likelihood):
    """A normal density around the decoder's output itself."""

    def forward(self, parameters, temperature=1.0):
        return PixelGaussian(parameters.squeeze(-1), torch.tensor(SIGMA * temperature, dtype=parameters.dtype))


class LinearLadder(LadderVAE):
    """x = A z_1 + noise, z_1 = B z_2 + noise, columns orthogonal: the exact posterior has the ladder's form.

    `error` makes the messages wrong.
    """

    def __init__(self, error: float = 0.0):
        super().__init__((1, 2, 3), latent_dims=(3, 2))
        self.likelihood = IdentityGaussian()
        self.double()
        self.a = nn.Parameter(0.8 * torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64)).Q)
        self.b = nn.Parameter(
            torch.linalg.qr(torch.randn(3, 2, dtype=torch.float64)).Q * torch.tensor([1.5, 0.6], dtype=torch.float64)
        )
        self.error = error

    def prior(self):
        scale = torch.tensor(SCALE, dtype=torch.float64)
        return LadderPrior(lambda _, z: Normal(z @ self.b.T, scale), (3, 2), self.a)

    def encode(self, x):
        # p(x|z_1) as a density of z_1: its precision is diagonal, since A's columns are orthogonal.
        precision = (self.a**2).sum(0) / SIGMA**2
        mean = x.flatten(1) @ self.a / SIGMA**2 / precision
        first = Normal(mean + self.error, (precision**-0.5 * math.exp(self.error)).expand_as(mean))
        # And p(x|z_2) through it: all columns of A have one length.
        noise = SCALE**2 + 1 / precision[0]
        top = 1 + (self.b**2).sum(0) / noise
        mean = mean @ self.b / noise / top
        return LadderPosterior(self.prior(), [first, Normal(mean + self.error, (top**-0.5).expand_as(mean))])

    def decode(self, z, temperature=1.0):
        return Factorised(self.likelihood, (z[0] @ self.a.T).view(-1, 1, 1, 2, 3), temperature)

    def evidence(self, x):
        """log p(x), nats, [B]."""
        eye = torch.eye(6, dtype=torch.float64)
        inner = self.b @ self.b.T + SCALE**2 * eye[:3, :3]
        zero = torch.zeros(6, dtype=torch.float64)
        joint = MultivariateNormal(zero, self.a @ inner @ self.a.T + SIGMA**2 * eye)
        return joint.log_prob(x.flatten(1)).detach()


@pytest.fixture
def images():
    return torch.rand(4, 1, 2, 3, dtype=torch.float64)


# -- a ladder whose evidence is known ---------------------------------------------------------------------------------


def test_with_the_exact_posterior_every_weight_is_the_evidence(images):
    model = LinearLadder()
    weights = torch.cat(list(model.log_weights(images, 50)))
    torch.testing.assert_close(weights, model.evidence(images).expand(50, 4), atol=1e-10, rtol=0)
    torch.testing.assert_close(model.log_likelihood(images, 3), model.evidence(images), atol=1e-10, rtol=0)


def test_with_the_exact_posterior_the_bound_is_tight(images):
    model = LinearLadder()
    torch.testing.assert_close(model.elbo(images, analytic=False).elbo, model.evidence(images), atol=1e-10, rtol=0)
    many = model.elbo(images.repeat(20_000, 1, 1, 1)).elbo.detach().view(20_000, 4)
    assert ((many.mean(0) - model.evidence(images)).abs() < 4 * many.std(0) / math.sqrt(20_000)).all()


def test_with_a_wrong_posterior_the_bounds_rise_to_the_evidence(images):
    model = LinearLadder(error=0.4)
    many = images.repeat(500, 1, 1, 1)
    bounds = [model.elbo(many).elbo.mean().item()]
    bounds += [model.log_likelihood(many, samples).mean().item() for samples in (8, 128)]
    evidence = model.evidence(images).mean().item()
    assert bounds[0] < bounds[1] - 0.05 < bounds[2] - 0.1 < evidence
    assert evidence - bounds[2] < 0.05
    assert model.log_likelihood(images, 100_000, chunk=100_000).sub(model.evidence(images)).abs().max() < 0.02


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_likelihood_is_the_integral_over_both_levels(tiny, binary, posterior):
    model, x = widened(tiny(latent_dims=(1, 1), posterior=posterior)), binary(3)
    grid = torch.linspace(-9, 9, 601, dtype=torch.float64)
    with torch.no_grad():
        wide = torch.linspace(-40, 40, 4001, dtype=torch.float64)[:, None]  # z_1: its scale given z_2 is free
        above = model.prior_module.below(0, grid[:, None, None])
        log_first = torch.logsumexp(
            above.log_prob(wide).squeeze(-1) + Normal(0.0, 1.0).log_prob(grid)[:, None], 0
        ) + math.log(18 / 600)
        assert log_first.logsumexp(0).exp().item() * 80 / 4000 == pytest.approx(1, abs=1e-6)
        zeros = torch.zeros(len(wide), 1, dtype=torch.float64)
        pixels = torch.stack([model.decode((wide, zeros)).log_prob(image.expand(len(wide), -1, -1, -1)) for image in x])
        exact = (pixels + log_first).logsumexp(1) + math.log(80 / 4000)
    estimate = model.log_likelihood(x, 200_000, torch.Generator().manual_seed(0), chunk=200_000)
    torch.testing.assert_close(estimate, exact, atol=0.02, rtol=0)


# -- the bound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("analytic", [True, False])
def test_the_bound_is_the_one_line_formula(tiny, binary, posterior, analytic):
    model, x = tiny(posterior=posterior), binary(3)
    bound = model.elbo(x, analytic)
    q, prior, z = model.encode(x), model.prior(), bound.z
    assert isinstance(bound, LadderBound)
    torch.testing.assert_close(bound.distortion, -model.decode(z).log_prob(x))
    torch.testing.assert_close(bound.elbo, -(bound.distortion + bound.rate))
    if not analytic:
        torch.testing.assert_close(bound.rate, q.log_prob(z) - prior.log_prob(z))
    else:
        pairs = zip(q.conditionals(z), prior.conditionals(z), strict=True)
        exact = torch.stack([kl_divergence(above, below).sum(-1) for above, below in pairs], 1)
        torch.testing.assert_close(bound.rate_per_level, exact)
    assert bound.rate_per_level.shape == (3, 3) and bound.rate_per_dimension.shape == (3, 6)
    torch.testing.assert_close(bound.rate_per_level.sum(1), bound.rate)
    per_level = [part.sum(1) for part in bound.rate_per_dimension.split((3, 2, 1), 1)]
    torch.testing.assert_close(bound.rate_per_level, torch.stack(per_level, 1))


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_rate_is_against_the_prior_from_above(tiny, binary, posterior):
    model, samples = tiny(posterior=posterior), 20_000
    x = binary(2)
    with torch.no_grad():
        bound = model.elbo(x.repeat(samples, 1, 1, 1))
        q, prior = model.encode(x.repeat(samples, 1, 1, 1)), model.prior()
        exact = q.log_prob(bound.z) - prior.log_prob(bound.z)
        wrong = sum(kl_divergence(level, Normal(0.0, 1.0)).sum(-1) for level in q.conditionals(bound.z))

        def deviations(rate):
            difference = (rate - exact).view(samples, 2)
            return difference.mean(0) / (difference.std(0) / math.sqrt(samples))

    assert (exact.view(samples, 2).mean(0) > 0).all()
    assert (bound.rate_per_level >= -1e-12).all()
    assert (deviations(bound.rate_per_level.sum(1)).abs() < 4).all()
    assert (deviations(wrong).abs() > 6).any()  # the classic mistake is seen


def test_the_merged_posterior_is_another_than_the_message(tiny, binary):
    x = binary(3)
    torch.manual_seed(1)
    ladder = tiny()
    torch.manual_seed(1)
    plain = tiny(posterior="bottom_up")
    assert torch.equal(ladder.encode(x).mean[2], plain.encode(x).mean[2])
    assert not torch.allclose(ladder.encode(x).mean[0], plain.encode(x).mean[0])
    # With messages alone, levels are independent given x: z_1 does not move with z_3.
    for model, moves in ((ladder, True), (plain, False)):
        q = model.encode(x)
        z2, other = torch.randn(3, 2).double(), torch.randn(3, 2).double()
        assert torch.equal(q.conditional(0, z2).loc, q.conditional(0, other).loc) != moves


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_evidence_of_all_images_sums_to_one(tiny, all_images, posterior):
    model, x = widened(tiny((1, 2, 2), latent_dims=(2, 1), posterior=posterior)), all_images((1, 2, 2))
    with torch.no_grad():
        mass = model.log_likelihood(x, 20_000, chunk=20_000).exp().sum()
    assert mass.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("architecture", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_parameter_gets_a_gradient(architecture, posterior, binary):
    options = {"widths": [4], "hidden": 16, "latent_dims": (4, 3, 2)}
    model = LadderVAE((3, 6, 5), architecture=architecture, posterior=posterior, **options).double().train()
    model.elbo(binary(8, (3, 6, 5))).elbo.mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("analytic", [True, False])
def test_the_gradient_is_that_of_the_bound(tiny, binary, posterior, analytic):
    model, x = tiny(posterior=posterior), binary(4)
    parameters = list(model.parameters())
    direction = [torch.randn_like(parameter) for parameter in parameters]

    def bound():
        return model.elbo(x, analytic, torch.Generator().manual_seed(0)).elbo.sum()  # noise held, so a function

    gradients = torch.autograd.grad(bound(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    step, ends = 1e-5, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, change in zip(parameters, direction, strict=True):
                parameter.add_(sign * step * change)
            ends.append(bound())
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_inference_parameters_are_those_that_the_joint_density_does_not_need(tiny, binary):
    model, x = tiny(), binary(3)
    z = tuple(torch.randn(3, size, dtype=torch.float64) for (size,) in model.latent_shape)
    (model.decode(z).log_prob(x) + model.prior().log_prob(z)).sum().backward()
    needed = {id(p) for p in model.parameters() if p.grad is not None}
    inference = {id(p) for p in model.inference_parameters()}
    assert not needed & inference and needed | inference == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("output", [-1e5, 1e5])
def test_scales_are_bounded(tiny, binary, output):
    model = tiny()
    with torch.no_grad():
        for head in model.encoder.heads:
            head.bias[len(head.bias) // 2 :] = output
    q = model.encode(binary(2))
    assert all(((m.scale > 0.999e-3) & (m.scale < 1.001e3)).all() for m in q.messages)
    assert model.elbo(binary(2)).rate.isfinite().all()


# -- what all models do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "chunk"), [(7, 512), (7, 1), (7, 9), (13, 12)])
def test_the_samples_asked_for_are_those_used_whatever_the_chunk(tiny, binary, samples, chunk):
    model, x = tiny(), binary(4)
    weights = torch.cat(list(model.log_weights(x, samples, torch.Generator().manual_seed(0), chunk)))
    q, prior = model.encode(x), model.prior()
    z = q.sample((samples,), torch.Generator().manual_seed(0))
    assert weights.shape == (samples, 4)
    for k in range(samples):
        one = tuple(level[k] for level in z)
        expected = model.decode(one).log_prob(x) + prior.log_prob(one) - q.log_prob(one)
        torch.testing.assert_close(weights[k], expected.detach())


def test_importance_weights_have_gradients(tiny, binary):
    model = tiny()
    next(model.importance_weights(binary(3), 4)).logsumexp(0).mean().backward()
    assert all((parameter.grad != 0).any() for parameter in model.parameters())


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_evaluation_does_not_depend_on_the_batch_size(tiny, binary, posterior):
    model, x = tiny(architecture="conv", widths=[4], posterior=posterior), binary(37)

    def batches(size):
        return lambda: ((x[i : i + size], range(i, min(i + size, 37))) for i in range(0, 37, size))

    results = [
        evaluate(model.train(), batches(size), nll_samples=5, nll_images=20, chunk=chunk).to_dict()
        for size, chunk in [(37, 512), (1, 512), (16, 7), (10, 1)]
    ]
    assert model.training
    for result in results:
        del result["nll_by_samples"]  # the NLL once more
    for result in results[1:]:
        for name, value in result.items():
            first = results[0][name]
            assert value == (None if first is None else pytest.approx(first, abs=1e-9, rel=0)), name


def test_evaluation_is_what_the_model_says(tiny, binary, tiny_vae):
    model, x = tiny(), binary(12)
    result = evaluate(model, lambda: [(x[:5], range(5)), (x[5:], range(5, 12))], nll_samples=6, seed=3)
    with torch.no_grad():
        bound = model.elbo(x, generator=keyed_generators(range(12), 3))
        shuffled = -model.decode(tuple(level.roll(1, 0) for level in bound.z)).log_prob(x)
        noise = model.prior().noise_of(model.encode(x).mean)
    assert result.rate == pytest.approx(bound.rate.mean().item(), abs=1e-9)
    assert result.rate_per_level == pytest.approx(bound.rate_per_level.mean(0).tolist(), abs=1e-9)
    assert sum(result.rate_per_level) == pytest.approx(result.rate, abs=1e-9)
    assert result.shuffled_gap == pytest.approx((shuffled - bound.distortion).mean().item(), abs=1e-9)
    assert result.latent_dim == len(result.bits_per_latent) == 6
    assert result.active_units == (noise.var(0) > 0.01).sum()
    assert result.nll < result.negative_elbo
    assert evaluate(tiny_vae(), lambda: [(x, range(12))]).rate_per_level == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_models_are_bit_equal(tmp_path, binary, dtype):
    model = LadderVAE((1, 5, 4), latent_dims=(3, 2), hidden=5, posterior="bottom_up", likelihood="gaussian").to(dtype)
    x = binary(6).to(dtype)
    again = vlae.load(model.eval().save_pretrained(tmp_path / "model"))
    assert isinstance(again, LadderVAE) and again.config == model.config
    assert again.latent_shape == model.latent_shape == ((3,), (2,)) and again.latent_size == 5
    one, two = (m.elbo(x, generator=torch.Generator().manual_seed(0)) for m in (model, again))
    assert torch.equal(one.elbo, two.elbo) and torch.equal(one.rate_per_level, two.rate_per_level)


def test_samples_and_reconstructions(tiny, binary):
    model, x = tiny(), binary(3)
    first, second = (model.sample(5, 0.7, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (5, 1, 5, 4)
    g = torch.Generator().manual_seed(7)
    z = model.prior().sample((5,), g, temperature=0.7)
    assert torch.equal(first, model.decode(z).sample(generator=g))
    cold = model.sample(2, temperature=0.0, pixel_temperature=1e-9)
    assert torch.equal(cold[0], cold[1])
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x).mean).mean)
    assert not first.requires_grad


def test_autocast(tiny, binary):
    model, x = tiny().float(), binary(2).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = model.elbo(x, generator=torch.Generator().manual_seed(0)).elbo
    assert low.dtype == torch.float32
    full = model.elbo(x, generator=torch.Generator().manual_seed(0)).elbo
    torch.testing.assert_close(low, full, rtol=0.05, atol=0)


def test_batch_statistics_are_used_and_moved_in_training_alone(tiny, binary):
    model, x = tiny(), binary(6)

    def state():
        return [value.clone() for value in model.buffers()]

    def use():
        g = torch.Generator().manual_seed(0)
        return torch.cat([model.log_likelihood(x, 3, g), model.reconstruct(x).flatten(), model.sample(2).flatten()])

    before, expected = state(), model.reconstruct(x)
    model.train()
    use()
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert torch.equal(model.reconstruct(x), expected)
    model.prior().log_prob(model.prior().sample((4,)))  # the prior has no statistics at all
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    model.elbo(x)
    assert any(not torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    with pytest.raises(VlaeError, match="2 images or more; got 1"):
        model.elbo(x[:1])


def test_an_empty_batch_has_empty_bounds(tiny, binary):
    model, x = tiny(), binary(0)
    assert model.elbo(x).elbo.shape == model.log_likelihood(x, 3).shape == (0,)


def test_training_on_real_digits(tmp_path):
    model = LadderVAE((1, 8, 8), latent_dims=(8, 4), widths=[32], hidden=32)
    saved = run.train(
        model,
        ELBO(beta=Linear(0.0, 1.0, finish=0.5)),
        OptimizerSettings("adam", lr=3e-3),
        DataSettings("digits", binarize="dynamic", batch_size=100),
        TrainerSettings(max_epochs=3, precision="32-true", accelerator="cpu", progress_bar=False),
        tmp_path / "run",
        config="",
    )
    trained = vlae.load(saved)
    test = vlae.data.load("digits", "test", binarize="static")
    before, after = (evaluate_dataset(m, test, nll_samples=5) for m in (LadderVAE(**model.config), trained))
    assert after.negative_elbo < before.negative_elbo - 5
    assert len(after.rate_per_level) == 2 and sum(after.rate_per_level) == pytest.approx(after.rate, abs=1e-4)
    assert (tmp_path / "run" / "logs" / "metrics.csv").read_text().count("\n") == 4


# -- the textbook's names, and bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["latent_dim", "latent_dims"])
@pytest.mark.parametrize("flat", [False, True])
def test_textbook_names(binary, key, flat):
    model = LadderVAE.from_config({"input_dim": 16, "hidden_dim": 8, key: [4, 2], "beta": 3.0}).double()
    assert (model.image_shape, model.latent_shape) == ((1, 4, 4), ((4,), (2,)))
    x = binary(5, (1, 4, 4))
    torch.manual_seed(1)
    output = model(x.flatten(1) if flat else x)
    torch.manual_seed(1)
    loss = model.compute_loss(x.flatten(1) if flat else x)
    torch.manual_seed(1)
    bound = model.elbo(x)
    assert output._fields == ("reconstruction", "mu", "log_var", "z")
    assert all(torch.equal(one, two) for one, two in zip(output.z, bound.z, strict=True))
    expected = model.decode(bound.z).mean
    torch.testing.assert_close(output.reconstruction, expected.flatten(1) if flat else expected)
    levels = model.encode(x).conditionals(bound.z)
    for mu, log_var, level in zip(output.mu, output.log_var, levels, strict=True):
        torch.testing.assert_close(mu, level.mean)
        torch.testing.assert_close(log_var, level.variance.log())
    torch.testing.assert_close(loss.reconstruction_loss, bound.distortion.mean())
    torch.testing.assert_close(loss.kl_loss, bound.rate.mean())
    torch.testing.assert_close(loss.loss, bound.distortion.mean() + 3 * bound.rate.mean())


@pytest.mark.parametrize(
    "options",
    [
        {"latent_dims": [32]},
        {"latent_dims": []},
        {"latent_dims": [32, 0]},
        {"latent_dims": [0, 16]},
        {"latent_dims": [32, -1]},
        {"latent_dims": [32, 1.5]},
        {"latent_dims": 0},
        {"latent_dims": 32},
        {"latent_dims": "32,16"},
        {"hidden": 0},
        {"widths": [0]},
        {"architecture": "transformer"},
        {"architecture": "conv", "widths": []},
        {"posterior": "top_down"},
        {"likelihood": "poisson"},
        {"likelihood_options": {"levels": 3}},
        {"image_shape": (1, 0, 4)},
        *({"beta": beta} for beta in (-1.0, math.nan, math.inf, "1", None, True, [1.0])),
    ],
)
def test_bad_settings_are_refused_with_one_line(options):
    with pytest.raises(VlaeError) as caught:
        LadderVAE(**{"image_shape": (1, 4, 4), **options})
    assert len(str(caught.value).splitlines()) == 1


def test_refusals_say_what_to_do():
    with pytest.raises(VlaeError, match=r"two levels or more.*got \[32\]: for one level use VAE"):
        LadderVAE((1, 4, 4), latent_dims=[32])
    with pytest.raises(VlaeError, match="not both"):
        LadderVAE.from_config({"latent_dim": [3, 2], "latent_dims": [3, 2]})
    with pytest.raises(VlaeError, match="unknown key 'latents' for LadderVAE"):
        LadderVAE.from_config({"latents": [3, 2]})


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z[0],
        lambda z: z[:2],
        lambda z: list(z),
        lambda z: tuple(reversed(z)),
        lambda z: (z[0], z[1][:1], z[2]),
        lambda z: tuple(level[0] for level in z),
        lambda z: (z[0], z[1], torch.zeros(())),
        lambda z: (),
        lambda z: None,
    ],
)
def test_other_latents_are_refused(tiny, change):
    model = tiny()
    z = model.prior().sample((2,))
    model.decode(z)
    with pytest.raises(VlaeError, match=r"expected a tuple of latents of shapes \[B, 3\], \[B, 2\], \[B, 1\]"):
        model.decode(change(z))


def test_bad_images_and_a_context_are_refused(tiny, binary):
    model, x = tiny(), binary(3)
    for use in (model.elbo, model, model.compute_loss, model.reconstruct):
        with pytest.raises(VlaeError, match="expected"):
            use(x.transpose(2, 3))
        with pytest.raises(VlaeError, match="takes no context"):
            use(x, context=torch.zeros(3).long())
