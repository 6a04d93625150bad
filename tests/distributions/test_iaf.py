import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import Normal

from vlae import VlaeError
from vlae.distributions import (
    AutoregressiveFlowPrior,
    DiagonalGaussian,
    IAFHead,
    IAFPosterior,
    StandardNormal,
    make_posterior,
)

OPTIONS = [
    {"steps": 1},
    {"steps": 2},
    {"steps": 3, "gated": False},
    {"steps": 2, "order": "same"},
]


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def head(dimensions, spread=0.3, **options):
    module = IAFHead((dimensions,), 3, **{"hidden": (8, 8), **options}).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module


def posterior(dimensions, batch=2, **options):
    module = head(dimensions, **options)
    return module(torch.randn(batch, module.features_needed).double())


def density(q, z):
    """log q of one z [D] for the first image: the Gaussian's before the flow, and the Jacobian of the way there."""
    base, _ = q._inverse(z[None])
    expected = Normal(q.base_mean, q.base_log_stddev.exp()).log_prob(base)[0].sum()
    forward = jacobian(lambda b: q._forward(b[None])[0][0], base[0].detach())
    return expected - torch.linalg.slogdet(forward).logabsdet


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_log_prob_is_that_of_the_gaussian_minus_the_log_determinant(dimensions, options):
    q = posterior(dimensions, batch=1, **options)
    drawn = q.rsample((3,), seeded())
    cached, shares = q.log_prob(drawn), q.log_prob_per_dimension(drawn)
    assert drawn.shape == (3, 1, dimensions) and cached.shape == (3, 1)
    torch.testing.assert_close(shares.sum(-1), cached)
    for z, log_prob in zip(drawn[:, 0], cached[:, 0], strict=True):
        torch.testing.assert_close(log_prob, density(q, z), atol=1e-10, rtol=0)
        torch.testing.assert_close(q.log_prob(z[None])[0], density(q, z), atol=1e-10, rtol=0)
    elsewhere = torch.randn(dimensions).double()
    torch.testing.assert_close(q.log_prob(elsewhere[None])[0], density(q, elsewhere), atol=1e-10, rtol=0)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_way_there_and_back(options):
    q = posterior(4, batch=3, **options)
    base = torch.randn(5, 3, 4).double()
    z, log_scales = q._forward(base)
    back, again = q._inverse(z)
    assert (z - base).abs().max() > 0.1
    torch.testing.assert_close(back, base, atol=1e-12, rtol=0)
    torch.testing.assert_close(again, log_scales, atol=1e-12, rtol=0)


def test_mass_in_two_dimensions_is_one():
    q = posterior(2, batch=1, steps=2)
    drawn = q.sample((2000,), seeded())[:, 0]
    low, high = drawn.min(0).values - 3, drawn.max(0).values + 3
    axes = [torch.linspace(float(a), float(b), 500, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    with torch.no_grad():
        mass = q.log_prob(torch.cartesian_prod(*axes)[:, None]).exp().view(500, 500)
    assert abs(torch.trapezoid(torch.trapezoid(mass, axes[1]), axes[0]).item() - 1) < 1e-4


def test_rsample_is_the_flow_of_reparametrised_noise():
    q = posterior(3, batch=2)
    noise = torch.randn(2, 3, dtype=torch.float64, generator=seeded())
    z = q.rsample(generator=seeded())
    torch.testing.assert_close(z, q._forward(q.base_mean + q.base_log_stddev.exp() * noise)[0])
    each = [seeded(4), seeded(5)]
    together = q.rsample((2,), each)
    alone = torch.stack([torch.randn(2, 3, dtype=torch.float64, generator=seeded(s)) for s in (4, 5)], 1)
    torch.testing.assert_close(together, q._forward(q.base_mean + q.base_log_stddev.exp() * alone)[0])
    torch.testing.assert_close(q.mean, q._forward(q.base_mean)[0])
    assert torch.equal(q.mean, q.mean) and q.mean.shape == (2, 3)
    assert q.batch_shape == (2,) and q.event_shape == (3,)
    assert z.requires_grad and not q.sample().requires_grad


def test_log_prob_of_the_latest_sample_needs_no_pass():
    q = posterior(3)
    z = q.rsample()
    steps, q.steps = q.steps, []  # whoever inverts now gets something else
    cached = q.log_prob(z)
    assert not torch.equal(cached, q.log_prob(z.clone()))
    q.steps = steps
    torch.testing.assert_close(cached, q.log_prob(z.clone()), atol=1e-12, rtol=0)
    earlier, _ = z, q.rsample()
    torch.testing.assert_close(cached, q.log_prob(earlier), atol=1e-12, rtol=0)


def test_gradients_are_the_same_by_both_ways_and_reach_everything():
    module = head(3, steps=2)
    features = torch.randn(4, module.features_needed).double().requires_grad_()
    gradients = []
    for same in (True, False):
        q = module(features)
        z = q.rsample(generator=seeded())
        loss = (q.log_prob(z if same else z.clone()) + StandardNormal((3,), z).log_prob(2 * z)).sum()
        gradients.append(torch.autograd.grad(loss, [features, *module.parameters()]))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
        assert (one != 0).any()
    (one,) = torch.autograd.grad(
        module(features.detach()).log_prob(torch.ones(4, 3).double()).sum(), module.steps[1].made[0].weight
    )
    assert (one != 0).any()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("backwards_step", [0, 1])
def test_a_step_sees_earlier_dimensions_and_all_of_the_context(gated, backwards_step):
    step = head(5, gated=gated, hidden=(64,)).steps[backwards_step]
    z, context = torch.randn(1, 5).double(), torch.randn(1, 3).double()
    for number in range(2):
        seen = jacobian(lambda v, n=number: step(v, context)[n][0], z)[:, 0] != 0
        upper, lower = seen.triu(1).sum(), seen.tril(-1).sum()
        assert not seen.diagonal().any()
        assert (upper, lower) == ((10, 0) if backwards_step else (0, 10))
        assert (jacobian(lambda c, n=number: step(z, c)[n][0], context) != 0).all()
    assert step.order == ([4, 3, 2, 1, 0] if backwards_step else [0, 1, 2, 3, 4])


def test_gates_start_open_and_never_enlarge():
    step = head(4, spread=0).steps[0]
    shift, log_scale = step(torch.randn(50, 4).double(), torch.randn(50, 3).double())
    assert (log_scale < 0).all() and (log_scale.exp() > 0.7).all()
    wide = head(4, spread=0, gated=False).steps[0]
    wide.load_state_dict(step.state_dict())
    z, context = torch.randn(50, 4).double(), torch.randn(50, 3).double()
    m, s = wide(z, context)
    shift, log_scale = step(z, context)
    torch.testing.assert_close(log_scale.exp(), torch.sigmoid(s + 2))
    torch.testing.assert_close(shift, (1 - torch.sigmoid(s + 2)) * m)


class Inverse:
    """A step of an autoregressive flow prior, z to noise: as it stands, a step of an inverse autoregressive flow."""

    def __init__(self, step):
        self.step = step
        self.order = step.order.argsort().tolist()

    def __call__(self, z, context):
        transform = self.step().meta(z).base
        return transform.shift, transform.log_scale.expand(z.shape)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_autoregressive_flow_prior_is_an_inverse_autoregressive_flow_posterior(steps):
    """Chen et al. 2017, section 3.2: the same bound, sample by sample.

    With z ~ q(z|x) Gaussian and eps = f^-1(z): log p(x|z) + log p_AF(z) - log q(z|x), the flow in the prior, is
    log p(x|f(eps)) + log N(eps) - log q_IAF(eps|x), the inverse path of the same flow in the posterior and a decoder
    that reads f(eps).
    """
    module = AutoregressiveFlowPrior(4, steps, hidden=(8,)).double()
    decoder = torch.nn.Linear(4, 6).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    prior, x = module(), torch.randint(0, 2, (7, 6)).double()
    q = DiagonalGaussian(torch.randn(7, 4).double(), 0.3 * torch.randn(7, 4).double())

    def log_likelihood(z):
        return -torch.nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="none").sum(1)

    z = q.sample(generator=seeded())
    with_flow_prior = log_likelihood(z) + prior.log_prob(z) - q.log_prob(z)

    eps = prior.noise_of(z)
    q_iaf = IAFPosterior(q.mean, q.log_stddev, torch.zeros(7, 1), [Inverse(step) for step in module.steps])
    f_eps = eps
    for step in reversed(prior.steps):
        f_eps = step().inv(f_eps)
    standard = StandardNormal((4,), eps)
    with_iaf_posterior = log_likelihood(f_eps) + standard.log_prob(eps) - q_iaf.log_prob(eps)
    torch.testing.assert_close(with_flow_prior, with_iaf_posterior, atol=1e-10, rtol=0)
    torch.testing.assert_close(q_iaf.rsample(generator=seeded()), eps, atol=1e-10, rtol=0)

    for i in range(7):  # and the density of eps = f^-1(z), from the Jacobian of that map alone
        log_determinant = torch.linalg.slogdet(jacobian(prior.noise_of, z[i])).logabsdet
        assert log_determinant.abs() > 1e-3
        density = q.log_prob(z)[i] - log_determinant
        torch.testing.assert_close(q_iaf.log_prob(eps)[i], density, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dimensions", [1, 4])
def test_float32_stays_finite_at_extremes(dimensions):
    module = head(dimensions).float()
    features = (torch.tensor([[-1e4], [0.0], [1e4]]) * torch.ones(module.features_needed)).requires_grad_()
    q = module(features)
    z = q.rsample()
    assert z.dtype == torch.float32 and z.isfinite().all() and q.mean.isfinite().all()
    q.log_prob(z).sum().backward()
    assert features.grad.isfinite().all()
    assert module(features[1:2]).log_prob(torch.tensor([[-1e4] * dimensions, [1e4] * dimensions])).isfinite().all()


def test_features_are_mean_scale_and_context():
    module = make_posterior("iaf", (4,), 10, steps=1, hidden=[8], context=5)
    assert module.features_needed == 13
    assert make_posterior("iaf", (4,), 10, hidden=[8]).features_needed == 18
    features = torch.randn(2, 13)
    q = module(features)
    assert torch.equal(q.base_mean, features[:, :4]) and torch.equal(q.context, features[:, 8:])
    s = features[:, 4:8]
    torch.testing.assert_close(q.base_log_stddev, s / (1 + s.abs() / math.log(1000)))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 3), {}, r"needs a latent vector; z has shape \[2, 3, 3\]"),
        ((3,), {"steps": 0}, r"steps of an IAF posterior must be 1 or more; got 0"),
        ((3,), {"context": 0}, r"context of an IAF posterior must be 1 or more"),
        ((3,), {"order": "other"}, r"'reversed' or 'same'"),
        ((3,), {"hidden": (0,)}, r"hidden widths of an IAF posterior"),
        ((3,), {"depth": 3}, r"'iaf' has no option 'depth': its options are steps, hidden, order, context, gated"),
    ],
)
def test_impossible_posteriors_are_refused(shape, options, message):
    with pytest.raises(VlaeError, match=message):
        make_posterior("iaf", shape, 8, **options)


def test_networks_narrower_than_z_cut_nothing_off():
    q = posterior(12, batch=1, steps=1, hidden=(5, 5))
    for parameter in q.steps[0].made.parameters():
        torch.nn.init.uniform_(parameter)  # no path off by chance
    seen = jacobian(lambda base: q._forward(base[None])[0][0], torch.rand(12).double()) != 0
    assert seen[11].all() and not seen.triu(1).any()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_sample_that_was_changed_in_place_is_another_z(mode):
    q = posterior(3)
    with mode():
        z = q.rsample((4,), seeded())
        kept = q.log_prob(z)
        torch.testing.assert_close(kept, q.log_prob(z.clone()))
        z += 0.5
        assert (q.log_prob(z) - kept).abs().min() > 1e-3
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))


def test_log_prob_of_a_sample_in_inference_mode():
    q = posterior(3)
    with torch.inference_mode():
        z = q.sample((4,), seeded())
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))
