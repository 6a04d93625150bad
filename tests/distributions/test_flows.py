import math

import pytest
import torch
import zuko
from torch.autograd.functional import jacobian

from vlae import VlaeError
from vlae.distributions import AutoregressiveFlowPrior, SplineFlowPrior, StandardNormalPrior

FLOWS = [
    (dimensions, steps, affine, order)
    for dimensions in (1, 2, 5)
    for steps in (0, 1, 2, 3, 4)
    for affine in (True, False)
    for order in ("reversed", "same")
]


def flow(dimensions, steps, affine=True, order="reversed"):
    module = AutoregressiveFlowPrior(dimensions, steps, (8, 8), affine, order).double()
    with torch.no_grad():  # larger than at initialisation, so that every map is far from the identity
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module()


def normal(eps):
    return -0.5 * (eps**2).sum(-1) - 0.5 * eps.shape[-1] * math.log(2 * math.pi)


@pytest.mark.parametrize(("dimensions", "steps", "affine", "order"), FLOWS)
def test_log_prob_is_that_of_the_noise_plus_the_log_determinant(dimensions, steps, affine, order):
    prior = flow(dimensions, steps, affine, order)
    for z in torch.randn(3, dimensions, dtype=torch.float64):
        matrix = jacobian(prior.noise_of, z)
        log_determinant = torch.linalg.slogdet(matrix).logabsdet
        torch.testing.assert_close(prior.log_prob(z), normal(prior.noise_of(z)) + log_determinant)
        if not affine:
            torch.testing.assert_close(log_determinant.item(), 0.0, atol=1e-12, rtol=0)
        elif steps:
            assert log_determinant.abs() > 1e-4


@pytest.mark.parametrize(("dimensions", "steps", "affine", "order"), FLOWS)
def test_agrees_with_zukos_own_flow_and_goes_round(dimensions, steps, affine, order):
    prior = flow(dimensions, steps, affine, order)
    z = torch.randn(7, dimensions, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob_per_dimension(z).sum(-1), prior.log_prob(z))
    drawn = prior.sample((6,), generator=torch.Generator().manual_seed(1))
    eps = torch.randn(6, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(prior.noise_of(drawn), eps, atol=1e-8, rtol=0)
    base = zuko.distributions.DiagNormal(torch.zeros(dimensions).double(), torch.ones(dimensions).double())
    transform = zuko.transforms.ComposedTransform(*(step() for step in prior.steps)) if steps else None
    if transform is None:
        torch.testing.assert_close(prior.log_prob(z), base.log_prob(z))
        return
    oracle = zuko.distributions.NormalizingFlow(transform, base)
    torch.testing.assert_close(prior.log_prob(z), oracle.log_prob(z))
    torch.testing.assert_close(drawn, transform.inv(eps), atol=1e-8, rtol=0)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("order", ["reversed", "same"])
def test_mass_in_two_dimensions_is_one(affine, order):
    prior = flow(2, 3, affine, order)
    # The flow's own samples say where the mass is; the trapezoidal rule is exact to rounding for such smooth densities.
    drawn = prior.sample((2000,))
    low, high = drawn.min(0).values - 4, drawn.max(0).values + 4
    axes = [torch.linspace(float(a), float(b), 800, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    with torch.no_grad():
        density = prior.log_prob(torch.cartesian_prod(*axes)).exp().view(800, 800)
    mass = torch.trapezoid(torch.trapezoid(density, axes[1]), axes[0])
    torch.testing.assert_close(mass.item(), 1.0, atol=2e-4, rtol=0)


@pytest.mark.parametrize("order", ["reversed", "same"])
def test_order_says_what_the_noise_depends_on(order):
    seen = jacobian(flow(5, 2, order=order).noise_of, torch.randn(5).double()) != 0
    assert not seen.triu(1).any() if order == "same" else seen.triu(1).any()
    one_step = jacobian(flow(5, 1, order=order).noise_of, torch.randn(5).double()) != 0
    assert not one_step.triu(1).any()


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_scan_draws_the_samples_of_the_same_noise(steps, affine, dimensions):
    prior = flow(dimensions, steps, affine, "same")
    noise = torch.randn(4, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    log_prob = torch.zeros(4, dtype=torch.float64)

    def visit(sites, conditional):
        z = conditional.mean + conditional.stddev * noise[:, sites.index]
        log_prob.add_(conditional.log_prob(z).sum(1))
        return z

    z = prior.scan(visit, 4)
    torch.testing.assert_close(z, prior.sample((4,), torch.Generator().manual_seed(2)), atol=1e-8, rtol=0)
    torch.testing.assert_close(log_prob, prior.log_prob(z), atol=1e-8, rtol=0)


def test_a_reversed_flow_says_why_it_can_not_be_scanned():
    with pytest.raises(VlaeError, match=r"no closed form.*flow_order='same'"):
        flow(3, 2, order="reversed").scan(lambda sites, conditional: conditional.mean, 1)
    assert flow(3, 1, order="reversed").scan(lambda sites, conditional: conditional.mean, 2).shape == (2, 3)


@pytest.mark.parametrize("steps", [0, 2])
def test_temperature_scales_the_noise(steps):
    prior = flow(3, steps) if steps else StandardNormalPrior(3).double()()
    warm, cold = (prior.sample((5,), torch.Generator().manual_seed(0), temperature=t) for t in (1.0, 0.25))
    torch.testing.assert_close(prior.noise_of(cold), 0.25 * prior.noise_of(warm), atol=1e-9, rtol=0)
    assert torch.equal(warm, prior.sample((5,), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("steps", [0, 2])
def test_dtype_follows_the_module(steps):
    module = AutoregressiveFlowPrior(2, steps, (4,)) if steps else StandardNormalPrior(2)
    for dtype in (torch.float64, torch.float32):
        assert module.to(dtype)().sample((2,)).dtype == dtype


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dimensions", [1, 4])
def test_every_parameter_gets_a_gradient(affine, dimensions):
    module = AutoregressiveFlowPrior(dimensions, 3, (8,), affine)
    module().log_prob(torch.randn(16, dimensions)).sum().backward()
    assert all((p.grad != 0).any() for p in module.parameters())


@pytest.mark.parametrize(
    "arguments", [(0, 1), (3, 1, (0,)), (3, 1, (8,), True, "backwards")], ids=["dimensions", "width", "order"]
)
def test_impossible_flows_are_refused(arguments):
    with pytest.raises(VlaeError):
        AutoregressiveFlowPrior(*arguments)


@pytest.mark.parametrize("coupling", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_spline_flow_is_zukos_neural_spline_flow(dimensions, coupling):
    module = SplineFlowPrior(dimensions, steps=3, bins=5, hidden=(8, 8), coupling=coupling).double()
    passes = {"passes": 2} if coupling else {}
    oracle = zuko.flows.NSF(dimensions, transforms=3, bins=5, hidden_features=(8, 8), **passes).double()
    for mine, theirs in zip(module.steps, oracle.transform.transforms, strict=True):
        with torch.no_grad():
            for parameter in mine.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
        theirs.load_state_dict(mine.state_dict())
    z = 4 * torch.randn(200, dimensions, dtype=torch.float64)
    torch.testing.assert_close(module().log_prob(z), oracle().log_prob(z))
    noise = torch.randn(50, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = module().sample((50,), torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, oracle().transform.inv(noise), atol=1e-9, rtol=0)


def test_splines_leave_the_tails_alone():
    prior = SplineFlowPrior(3, steps=2, hidden=(8,)).double()()
    far = torch.tensor([[6.0, -7.0, 100.0]]).double()
    assert torch.equal(prior.noise_of(far), far)
    torch.testing.assert_close(prior.log_prob(far), normal(far))
    near = torch.tensor([[0.5, -1.0, 2.0]]).double()
    assert (prior.noise_of(near) != near).all()


def test_a_coupling_samples_in_two_passes_a_step_and_transforms_half_by_half():
    module = SplineFlowPrior(6, steps=1, hidden=(8,), coupling=True).double()
    assert module.steps[0].passes == 2
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    seen = jacobian(module().noise_of, torch.randn(6).double()) != 0
    assert torch.equal(seen[:3, :3], torch.eye(3).bool()) and torch.equal(seen[3:, 3:], torch.eye(3).bool())
    assert seen[3:, :3].all() and not seen[:3, 3:].any()


def test_bins_and_widths_are_those_asked_for():
    module = SplineFlowPrior(4, steps=2, bins=6, hidden=(7,))
    assert [step.total for step in module.steps] == [17, 17]
    assert module.steps[0].hyper[0].weight.shape[0] == 7
    assert [step.order.tolist() for step in module.steps] == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert [s.order.tolist() for s in SplineFlowPrior(3, hidden=(7,), order="same").steps] == [[0, 1, 2]] * 2


def test_a_spline_flow_says_why_it_can_not_be_scanned():
    with pytest.raises(VlaeError, match=r"not normal under a spline flow.*autoregressive_mixture"):
        SplineFlowPrior(3, order="same")().scan(lambda sites, conditional: conditional.mean, 1)


def test_no_steps_are_the_standard_normal():
    prior, z = AutoregressiveFlowPrior(3, steps=0)(), torch.randn(5, 3)
    torch.testing.assert_close(prior.log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1))
    assert prior.conditionals(z) is not None


def test_a_prior_of_more_dimensions_than_hidden_units_depends_on_all_of_them():
    torch.manual_seed(0)
    prior = AutoregressiveFlowPrior(60, steps=1, hidden=(16, 16)).double()()
    found = sum(jacobian(prior.noise_of, torch.randn(60).double()) != 0 for _ in range(30))  # ReLUs: not at every place
    assert found[-1].all()
    assert not found.triu(1).any()


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_mixed_precision_leaks_no_mass(kind):
    """The networks compute in 16 bits; the density that they parametrise is one all the same."""
    torch.manual_seed(0)
    module = AutoregressiveFlowPrior(2, steps=4) if kind == "affine" else SplineFlowPrior(2, steps=2)
    for parameter in module.parameters():
        parameter.data.mul_(2)
    side = torch.linspace(-14, 14, 1401)
    z = torch.cartesian_prod(side, side)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        log_prob = module().log_prob(z)
    assert log_prob.dtype == torch.float32
    mass = log_prob.double().exp().sum() * (side[1] - side[0]).double() ** 2
    assert abs(mass - 1) < 1e-3
