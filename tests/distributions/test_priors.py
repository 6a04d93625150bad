import math

import pytest
import torch
from scipy.stats import kstest
from torch.autograd.functional import jacobian

from vlae import VlaeError
from vlae.distributions import StandardNormalPrior, make_prior

SCANNABLE = {
    "normal",
    "normal maps",
    "flow same",
    "autoregressive_mixture",
    "mixture",
    "mixture maps",
    "vamp",
    "vamp weights",
    "delta",
    "map_flow same",
}
CHOOSES_COMPONENTS = {"autoregressive_mixture", "mixture", "mixture maps", "vamp", "vamp weights"}


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def normal(eps):
    return -0.5 * (eps**2).sum() - 0.5 * eps.numel() * math.log(2 * math.pi)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_log_prob_is_that_of_the_noise_plus_the_log_determinant(any_prior, case, dimensions):
    module = any_prior(case, dimensions)
    prior = module()
    assert prior.event_shape == module.shape and prior.batch_shape == ()
    for z in 1.5 * torch.randn(3, *module.shape, dtype=torch.float64):
        matrix = jacobian(prior.noise_of, z).view(dimensions, dimensions)
        expected = normal(prior.noise_of(z)) + torch.linalg.slogdet(matrix).logabsdet
        torch.testing.assert_close(prior.log_prob(z), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dimensions", [1, 5, 12])
def test_shares_sum_to_log_prob_and_batches_do_not_matter(any_prior, case, dimensions):
    module = any_prior(case, dimensions)
    prior, z = module(), torch.randn(3, 4, *module.shape, dtype=torch.float64)
    shares, total = prior.log_prob_per_dimension(z), prior.log_prob(z)
    assert shares.shape == z.shape and total.shape == (3, 4)
    torch.testing.assert_close(shares.flatten(2).sum(2), total)
    torch.testing.assert_close(prior.log_prob(z[1, 2]), total[1, 2])
    torch.testing.assert_close(prior.noise_of(z)[2, 1], prior.noise_of(z[2, 1]))


def test_mass_in_two_dimensions_is_one(any_prior, case):
    module = any_prior(case, 2, spread=0.2)
    prior = module()
    drawn = prior.sample((2000,), seeded()).flatten(1)  # says where the mass is
    low, high = drawn.min(0).values - 5, drawn.max(0).values + 5
    axes = [torch.linspace(float(a), float(b), 500, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    with torch.no_grad():
        grid = torch.cartesian_prod(*axes).view(-1, *module.shape)
        density = torch.cat([prior.log_prob(part) for part in grid.split(50_000)]).exp().view(500, 500)
    mass = torch.trapezoid(torch.trapezoid(density, axes[1]), axes[0])
    torch.testing.assert_close(mass.item(), 1.0, atol=1e-4, rtol=0)


def test_samples_follow_the_density(any_prior, case):
    """The noise of samples is independent and standard normal, and the density is that of this noise (above)."""
    prior = any_prior(case, 5)()
    count = 4000
    eps = prior.noise_of(prior.sample((count,), seeded(3))).detach().flatten(1)
    assert min(kstest(column.numpy(), "norm").pvalue for column in eps.t()) > 1e-3
    for moments in (eps, eps**2, eps.abs()):  # no dependence in location or in scale
        correlations = torch.corrcoef(moments.t()) - torch.eye(5)
        assert correlations.abs().max() < 4.5 / math.sqrt(count)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("dimensions", [1, 5, 12])
def test_the_noise_of_a_sample_is_the_noise_that_was_drawn(any_prior, case, dimensions, temperature):
    if case in CHOOSES_COMPONENTS:
        pytest.skip("a component is drawn besides: tests/distributions/test_mixtures.py")
    module = any_prior(case, dimensions, spread=0.2)
    noise = torch.randn(6, *module.shape, dtype=torch.float64, generator=seeded())
    drawn = module().sample((6,), seeded(), temperature)
    torch.testing.assert_close(module().noise_of(drawn), temperature * noise, atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (0,)])
def test_samples_are_repeatable_and_have_the_shape_asked_for(any_prior, case, shape):
    module = any_prior(case, 5)
    drawn = module().sample(shape, seeded(), temperature=0.7)
    assert drawn.shape == (*shape, *module.shape) and not drawn.requires_grad and not drawn.is_inference()
    assert torch.equal(drawn, module().sample(shape, seeded(), 0.7))


@pytest.mark.parametrize("dimensions", [1, 5])
def test_conditionals_see_earlier_dimensions_only_and_make_up_the_density(any_prior, case, dimensions):
    module = any_prior(case, dimensions)
    prior, z = module(), torch.randn(4, *module.shape, dtype=torch.float64)
    if case not in SCANNABLE:
        with pytest.raises(VlaeError, match=r"closed form|not normal"):
            prior.conditionals(z)
        return
    torch.testing.assert_close(prior.conditionals(z).log_prob(z).flatten(1).sum(1), prior.log_prob(z))
    for i in range(dimensions):
        other = z.clone()
        other.flatten(1)[:, i] += 1
        before, after = prior.conditionals(z), prior.conditionals(other)
        for moment in ("mean", "variance"):
            one, other_one = (getattr(p, moment).flatten(1)[:, : i + 1] for p in (before, after))
            torch.testing.assert_close(one, other_one, atol=1e-9, rtol=1e-9)  # a flow composes it of rounded numbers


@pytest.mark.parametrize("dimensions", [1, 5, 12])
def test_scan_hands_out_the_conditionals(any_prior, case, dimensions):
    module = any_prior(case, dimensions)
    prior, z = module(), torch.randn(4, *module.shape, dtype=torch.float64)
    log_prob, visited = torch.zeros(4, dtype=torch.float64), []

    def visit(sites, conditional):
        values = z[sites.index] if len(module.shape) == 3 else z[:, sites.index]
        assert conditional.batch_shape == values.shape
        log_prob.add_(conditional.log_prob(values).sum(1))
        visited.append(values.shape[1])
        return values

    if case not in SCANNABLE:
        with pytest.raises(VlaeError, match=r"closed form|not normal"):
            prior.scan(visit, 4)
        return
    scanned = prior.scan(visit, 4)
    assert torch.equal(scanned, z) and not scanned.is_inference()
    assert sum(visited) == dimensions
    torch.testing.assert_close(log_prob, prior.log_prob(z).detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dimensions", [1, 12])
def test_every_parameter_gets_a_gradient(any_prior, case, dimensions):
    module = any_prior(case, dimensions, spread=0)
    learned = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if case.split()[0] in ("normal", "delta"):
        assert not learned
        return
    if case.startswith("map_flow") and module.shape[1:] == (1, 1):
        pytest.skip("a single pixel has no neighbours: what reads them is never used")
    module().log_prob(torch.randn(32, *module.shape).double()).sum().backward()
    assert [name for name, p in learned if p.grad is None or not (p.grad != 0).any()] == []


@pytest.mark.parametrize("dimensions", [1, 12])
def test_float32_stays_finite_at_extremes(any_prior, case, dimensions):
    module = any_prior(case, dimensions).float()
    prior = module()
    drawn = prior.sample((3000,), seeded())
    assert drawn.dtype == torch.float32 and drawn.isfinite().all()
    signs = torch.randn(4, dimensions).sign()
    ends = torch.tensor([0.0, 1e-30, 5.0, 30.0, 1e4])
    z = (ends[:, None, None] * signs).view(-1, *module.shape).requires_grad_()
    assert prior.log_prob(z).isfinite().all() and prior.noise_of(z).isfinite().all()
    prior.log_prob_per_dimension(z).sum().backward()
    assert z.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)


def test_dtype_follows_the_module(any_prior, case):
    module = any_prior(case, 5)
    assert module().sample((2,)).dtype == torch.float64
    assert module.float()().sample((2,)).dtype == torch.float32


def test_a_saved_prior_is_the_same_one(any_prior, case):
    one, other = any_prior(case, 5), any_prior(case, 5)
    other.load_state_dict(one.state_dict())
    z = torch.randn(3, *one.shape).double()
    assert torch.equal(one().log_prob(z), other().log_prob(z))


def test_standard_normal_is_scanned_in_one_step():
    prior, calls = StandardNormalPrior(3).double()(), []

    def visit(sites, conditional):
        calls.append(sites.index.tolist())
        assert (conditional.mean == 0).all() and (conditional.stddev == 1).all()
        return torch.ones(conditional.batch_shape)

    assert prior.scan(visit, 4).shape == (4, 3)
    assert calls == [[0, 1, 2]]


def test_only_a_vamp_prior_asks_for_the_encoder(any_prior, case):
    assert any_prior(case, 1).module.needs_encoder == case.startswith("vamp")


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("gaussian", (3,), {}, r"unknown prior 'gaussian': choose one of normal, mixture, .*map_flow"),
        ("flow", (3,), {"step": 3}, r"'flow' has no option 'step': its options are steps, hidden, affine, order"),
        ("normal", (3,), {"steps": 3}, r"its options are none"),
        ("vamp", (3,), {}, r"'vamp' needs the option 'image_shape'"),
        ("flow", (4, 2, 2), {}, r"'flow' needs z to be a vector; .*\[4, 2, 2\]: choose one of normal, .*map_flow"),
        ("map_flow", (3,), {}, r"'map_flow' needs z to be a map .*: choose one of normal, .*delta"),
        ("flow", (3,), {"steps": -1}, r"steps of a flow must be 0 or more; got -1"),
        ("flow", (3,), {"order": "backwards"}, r"'reversed' or 'same'; got 'backwards'"),
        ("flow", (3,), {"hidden": 8}, r"'flow' can't be made with"),
        ("spline", (3,), {"bins": 1}, r"2 bins or more; got 1"),
        ("spline", (3,), {"steps": 0}, r"1 or more; got 0"),
        ("mixture", (3,), {"components": 0}, r"components of a mixture prior must be 1 or more"),
        ("autoregressive_mixture", (3,), {"components": 0}, r"components of an autoregressive mixture"),
        ("vamp", (3,), {"image_shape": (1, 2, 2), "components": 0}, r"components of a VampPrior"),
        ("delta", (3,), {"alpha": 1.0}, r"at least 0 and less than 1; got 1.0"),
        ("delta", (3,), {"rate": -1.0}, r"can commit to a rate of 0 to"),
        ("delta", (1,), {"rate": 1.0}, r"2 dimensions at least"),
        ("map_flow", (4, 2, 2), {"steps": 0}, r"steps of a map flow must be 1 or more"),
        ("map_flow", (4, 2, 2), {"order": "other"}, r"'reversed' or 'same'"),
        ("map_flow", (4, 2, 2), {"kernel_size": 2}, r"kernel_size must be odd"),
        ("map_flow", (4, 2), {}, r"latent maps \(C, H, W\)"),
    ],
)
def test_impossible_priors_are_refused_in_one_line(name, shape, options, message):
    with pytest.raises(VlaeError, match=message) as error:
        make_prior(name, shape, **options)
    assert "\n" not in str(error.value)
