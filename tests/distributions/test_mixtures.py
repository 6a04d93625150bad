import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vlae import VlaeError
from vlae.distributions import (
    AutoregressiveMixturePrior,
    DiagonalGaussian,
    GaussianMixture,
    IAFHead,
    MixturePrior,
    NormalMixture,
    VampPrior,
)
from vlae.distributions.scan import greedy


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def oracle(logits, means, log_scales):
    """PyTorch's mixture of diagonal Gaussians over vectors or maps."""
    components = Independent(Normal(means, log_scales.exp()), means.ndim - 1)
    return MixtureSameFamily(Categorical(logits=logits), components)


def parameters(components, *shape):
    logits = torch.randn(components).double()
    return logits, 2 * torch.randn(components, *shape).double(), 0.5 * torch.randn(components, *shape).double()


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3, 2)])
@pytest.mark.parametrize("components", [1, 5])
def test_a_gaussian_mixture_is_pytorchs(shape, components):
    given = parameters(components, *shape)
    prior, z = GaussianMixture(*given), 2 * torch.randn(7, 2, *shape).double()
    torch.testing.assert_close(prior.log_prob(z), oracle(*given).log_prob(z))
    conditionals = prior.conditionals(z)
    first = (..., *[0] * len(shape))
    marginal = MixtureSameFamily(
        Categorical(logits=given[0]), Normal(given[1][:, *first[1:]], given[2][:, *first[1:]].exp())
    )
    torch.testing.assert_close(conditionals.log_prob(z)[first], marginal.log_prob(z[first]))


def test_conditionals_are_bayes_rule():
    prior = GaussianMixture(*parameters(3, 2))
    z, grid = torch.tensor([0.3, 0.0]).double(), torch.linspace(-12, 12, 4001).double()
    line = torch.stack([torch.full_like(grid, 0.3), grid], 1)
    joint = prior.log_prob(line).exp()
    conditional = prior.conditionals(line).log_prob(line)[:, 1].exp()
    torch.testing.assert_close(conditional, joint / torch.trapezoid(joint, grid))
    mean = torch.trapezoid(grid * joint, grid) / torch.trapezoid(joint, grid)
    torch.testing.assert_close(prior.conditionals(z).mean[1], mean)


def test_the_noise_of_a_value_is_its_normal_quantile():
    mixture = NormalMixture(*(torch.randn(6, 3).double() for _ in range(3)))
    value = torch.randn(6).double()
    torch.testing.assert_close(mixture.noise_of(value), Normal(0.0, 1.0).icdf(mixture.cdf(value)))
    torch.testing.assert_close(mixture.log_prob(value), MixtureSameFamily.log_prob(mixture, value))
    alone = NormalMixture(torch.zeros(1), torch.tensor([1.0]), torch.tensor([math.log(2.0)]))
    value = torch.tensor([-19.0, 5.0, 21.0])  # far out, where a cumulative probability in float32 is 0 or 1
    torch.testing.assert_close(alone.noise_of(value), torch.tensor([-10.0, 2.0, 10.0]), atol=1e-3, rtol=0)
    assert alone.noise_of(torch.tensor([-1e9, 1e9])).isfinite().all()


def test_draws_pick_components_by_weight_and_scale_their_noise():
    logits = torch.tensor([0.2, 0.5, 0.3]).double().log()
    mixture = NormalMixture(logits, torch.tensor([-10.0, 0.0, 10.0]).double(), torch.zeros(3).double())
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999999]).double()
    wide = NormalMixture(*(each.expand(6, 3) for each in (mixture.log_weights, mixture.means, mixture.log_scales)))
    zero = torch.zeros(6).double()
    assert wide.draw(uniforms, zero).tolist() == [-10, -10, 0, 0, 10, 10]
    torch.testing.assert_close(wide.draw(uniforms, zero + 3, 0.5) - wide.draw(uniforms, zero), zero + 1.5)


@pytest.mark.parametrize("shape", [(2,), (2, 1, 2)])
def test_samples_of_a_mixture_have_its_moments(shape):
    given = parameters(3, *shape)
    z, expected, count = GaussianMixture(*given).sample((50_000,), seeded()), oracle(*given), 50_000
    assert ((z.mean(0) - expected.mean).abs() < 5 * expected.variance.sqrt() / math.sqrt(count)).all()
    assert ((z.var(0) / expected.variance - 1).abs() < 0.04).all()


def test_temperature_zero_leaves_the_components_means():
    logits, means, log_scales = parameters(3, 2)
    z = GaussianMixture(logits, means, log_scales).sample((500,), seeded(), temperature=0.0)
    distances = torch.cdist(z, means)
    assert (distances.min(1).values < 1e-12).all()
    shares = distances.argmin(1).bincount(minlength=3) / 500
    assert (shares - logits.softmax(0)).abs().max() < 0.1
    warm, cold = (GaussianMixture(logits, means, log_scales).sample((500,), seeded(), t) for t in (1.0, 0.5))
    torch.testing.assert_close(cold - z, 0.5 * (warm - z))


def test_a_mixture_prior_holds_what_it_mixes():
    module = MixturePrior((3,), components=4).double()
    with torch.no_grad():
        module.logits.copy_(torch.randn(4))
        module.log_scales.copy_(torch.tensor([1e6, -1e6, 0.0]).expand(4, 3))  # soft-bounded
    prior = module()
    assert (prior.log_scales.abs() < math.log(1000.1)).all()
    z = torch.randn(5, 3).double()
    expected = oracle(module.logits, module.means, prior.log_scales.t())
    torch.testing.assert_close(prior.log_prob(z), expected.log_prob(z))


@pytest.mark.parametrize("dimensions", [1, 4])
@pytest.mark.parametrize("components", [1, 3])
def test_an_autoregressive_mixture_is_a_product_of_pytorchs_mixtures(dimensions, components):
    module = AutoregressiveMixturePrior(dimensions, components, hidden=(8,)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    z = torch.randn(5, dimensions).double()
    total = torch.zeros(5).double()
    for i in range(dimensions):
        seen = torch.where(torch.arange(dimensions) < i, z, 17.0)  # whatever comes later must not matter
        numbers = module.made(seen).view(5, dimensions, 3, components)[:, i]
        s = numbers[:, 2]
        scales = torch.exp(s / (1 + s.abs() / math.log(1000)))
        total += MixtureSameFamily(Categorical(logits=numbers[:, 0]), Normal(numbers[:, 1], scales)).log_prob(z[:, i])
    torch.testing.assert_close(module().log_prob(z), total)


def test_components_of_an_autoregressive_mixture_start_apart():
    for dimensions in (1, 3):
        module = AutoregressiveMixturePrior(dimensions, 3, hidden=(8,))
        means = module().conditionals(torch.zeros(dimensions)).means
        assert (means.diff(dim=-1) > 0.1).all()


def test_an_autoregressive_mixture_is_sampled_through_its_scan():
    module = AutoregressiveMixturePrior(3, 2, hidden=(8,)).double()
    with torch.no_grad():  # two far-apart narrow modes, the second dimension at the first's place plus ten
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    cold = module().sample((200,), seeded(), temperature=0.0)
    means = module().conditionals(cold).means
    assert ((cold[..., None] - means).abs().min(-1).values < 1e-12).all()
    mixed = {tuple(row) for row in (cold[..., None] - means).abs().argmin(-1).tolist()}
    assert len(mixed) == 8  # every combination of components turns up


class Encoder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, self.calls = shape, []
        self.linear = nn.Linear(12, 2 * math.prod(shape))

    def forward(self, images):
        self.calls.append(images)
        mean, log_stddev = self.linear(images.flatten(1)).chunk(2, 1)
        return DiagonalGaussian(mean.unflatten(1, self.shape), log_stddev.unflatten(1, self.shape))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(3,), (2, 1, 2)])
def test_a_vamp_prior_mixes_the_posteriors_of_its_pseudo_inputs(shape, learned):
    module, encode = (
        VampPrior(shape, (3, 2, 2), components=5, learned_weights=learned).double(),
        Encoder(shape).double(),
    )
    if learned:
        module.logits.data.normal_()
    prior, z = module(encode), torch.randn(7, *shape).double()
    (images,) = encode.calls
    assert images.shape == (5, 3, 2, 2) and (images >= 0).all() and (images <= 1).all()
    q = encode(module.pseudo_inputs)
    each = torch.stack([q.log_prob(one.expand(5, *shape)) for one in z])
    weights = module.logits.log_softmax(0) if learned else torch.full((5,), -math.log(5)).double()
    torch.testing.assert_close(prior.log_prob(z), (each + weights).logsumexp(1))
    prior.log_prob(z).sum().backward()
    assert module.raw.grad.abs().sum() > 0 and encode.linear.weight.grad.abs().sum() > 0
    assert (module.logits.grad is not None) == learned


def test_pseudo_inputs_stay_in_range_and_start_from_images():
    module = VampPrior((2,), (1, 2, 2), components=5).double()
    with torch.no_grad():
        module.raw.copy_(1e4 * torch.randn_like(module.raw))
    assert ((module.pseudo_inputs >= 0) & (module.pseudo_inputs <= 1)).all()
    images = torch.rand(3, 1, 2, 2)
    images[0] = 0.0
    images[1] = 1.0
    before = module.pseudo_inputs.clone()
    module.initialise(images)
    torch.testing.assert_close(module.pseudo_inputs[:3], images.double().clamp(0.02, 0.98))
    assert torch.equal(module.pseudo_inputs[3:], before[3:])  # not again from the first: twins would stay twins
    module.initialise(torch.rand(9, 1, 2, 2))


def test_a_vamp_prior_refuses_posteriors_that_are_not_gaussian():
    head = IAFHead((2,), 3, hidden=(4,)).double()
    with pytest.raises(VlaeError, match=r"mixes Gaussian posteriors, not IAFPosterior"):
        VampPrior((2,), (1, 2, 2)).double()(lambda images: head(torch.zeros(len(images), 7).double()))


@pytest.mark.parametrize("module", [MixturePrior((3,)), AutoregressiveMixturePrior(3)], ids=lambda m: type(m).__name__)
def test_mixtures_have_no_most_likely_value_to_take(module):
    with pytest.raises(VlaeError, match="mode") as caught:
        module().scan(greedy, 2)
    assert len(str(caught.value).splitlines()) == 1
