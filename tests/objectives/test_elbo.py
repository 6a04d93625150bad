from dataclasses import replace

import pytest
import torch

from vlae import VAE, Bound, VlaeError
from vlae.models import LadderVAE
from vlae.objectives import ELBO, IWAE, Linear, SoftFreeBits


def bound(rates, distortion=None):
    """A bound with these rates per dimension, [B, *latent_shape], that a gradient can be asked of."""
    rates = torch.as_tensor(rates, dtype=torch.float64).clone().requires_grad_()
    distortion = torch.arange(len(rates)).double() if distortion is None else distortion
    return Bound(distortion.requires_grad_(), rates.flatten(1).sum(1), rates, torch.zeros_like(rates))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("per", ["image", "channel", "dimension"])
def test_beta_multiplies_the_rate_and_nothing_else(beta, per):
    b = bound(torch.rand(5, 3))
    loss = ELBO(beta, per=per)(b, 0.0)
    torch.testing.assert_close(loss, b.distortion.mean() + beta * b.rate.mean())
    loss.backward()
    torch.testing.assert_close(b.distortion.grad, torch.full((5,), 0.2).double())
    torch.testing.assert_close(b.rate_per_dimension.grad, torch.full((5, 3), beta / 5).double())


def test_the_plain_objective_is_the_negative_elbo_even_for_negative_rates():
    b = bound([[-1.0, 0.2], [-3.0, 0.1]])
    torch.testing.assert_close(ELBO()(b, 0.0), -b.elbo.mean())


RATES = torch.tensor([[[0.1, 0.3], [2.0, 0.0]], [[0.3, 0.5], [4.0, 6.0]]])  # [B, channels, positions]


@pytest.mark.parametrize(
    ("per", "floor", "expected"),
    [
        ("image", 7.0, 7.0),  # mean 6.6
        ("image", 6.0, 6.6),
        ("channel", 1.0, 1.0 + 6.0),  # channels' means 0.6 and 6
        ("channel", 6.5, 13.0),
        ("dimension", 0.3, 0.3 + 0.4 + 3.0 + 3.0),  # 0.2, 0.4, 3, 3
        ("dimension", 3.5, 14.0),
    ],
)
def test_floor_is_taken_after_the_mean_over_the_batch(per, floor, expected):
    loss = ELBO(beta=2.0, free_nats=floor, per=per)(bound(RATES, torch.zeros(2).double()), 0.0)
    torch.testing.assert_close(loss.item(), 2 * expected, rtol=1e-6, atol=0)


def test_the_channels_of_a_vector_are_its_dimensions():
    b = bound(torch.rand(4, 3))
    torch.testing.assert_close(ELBO(free_nats=0.5, per="channel")(b, 0), ELBO(free_nats=0.5, per="dimension")(b, 0))


@pytest.mark.parametrize("per", ["image", "channel", "dimension"])
def test_below_the_floor_the_rate_has_no_gradient(per):
    b = bound(RATES)
    ELBO(free_nats=100.0, per=per)(b, 0.0).backward()
    assert (b.rate_per_dimension.grad == 0).all()
    assert (b.distortion.grad == 0.5).all()
    c = bound(RATES)
    ELBO(free_nats=1e-3, per=per)(c, 0.0).backward()
    torch.testing.assert_close(c.rate_per_dimension.grad, torch.full_like(c.rate_per_dimension, 0.5))


def test_only_groups_below_the_floor_lose_their_gradient():
    b = bound([[0.1, 3.0], [0.2, 5.0]])
    ELBO(free_nats=1.0, per="dimension")(b, 0.0).backward()
    assert b.rate_per_dimension.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]


def test_the_reported_bound_is_not_clipped():
    b = bound([[0.1, 0.2]], torch.tensor([5.0]).double())
    loss = ELBO(free_nats=7.0)(b, 0.0)
    assert loss.item() == 12.0
    torch.testing.assert_close(b.elbo.item(), -5.3)
    torch.testing.assert_close(b.rate.item(), 0.3)


def test_schedules_are_read_at_the_progress():
    b = bound([[2.0], [2.0]], torch.zeros(2).double())
    objective = ELBO(beta=Linear(0.0, 1.0), free_nats=Linear(8.0, 0.0))
    assert [objective(b, p).item() for p in (0.0, 0.5, 0.8, 1.0)] == pytest.approx([0.0, 2.0, 1.6, 2.0])


def ladder_bound():
    """Two images, levels of 2 and 3 dimensions, whose mean rates are (0.5, 1.5) and (4, 0, 2)."""
    rates = torch.tensor([[0.0, 1.0, 3.0, -1.0, 1.0], [1.0, 2.0, 5.0, 1.0, 3.0]]).double().requires_grad_()
    z = (torch.zeros(2, 2), torch.zeros(2, 3))
    return Bound(torch.zeros(2).double().requires_grad_(), rates.sum(1), rates, z)


@pytest.mark.parametrize(
    ("per", "floor", "expected"),
    [("level", 3.0, 3.0 + 6.0), ("level", 1.0, 2.0 + 6.0), ("level", 7.0, 14.0), ("image", 9.0, 9.0)]
    + [(per, 1.0, 1.0 + 1.5 + 4.0 + 1.0 + 2.0) for per in ("dimension", "channel")],
)
def test_floor_of_each_level_of_a_ladder(per, floor, expected):
    assert ELBO(free_nats=floor, per=per)(ladder_bound(), 0.0).item() == pytest.approx(expected)


def test_levels_are_those_of_a_ladder_model(binary):
    model, x = LadderVAE((1, 5, 4), latent_dims=(3, 2), widths=[6], hidden=8).double(), binary(4)
    bound = model.elbo(x)
    torch.testing.assert_close(ELBO(per="level").groups(bound), bound.rate_per_level)
    single = VAE((1, 5, 4), latent_dim=3, architecture="mlp").double().elbo(x)
    torch.testing.assert_close(ELBO(per="level").groups(single), single.rate[:, None])


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"beta": float("nan")}, {"free_nats": -0.1}])
def test_negative_weights_are_refused(options):
    with pytest.raises(VlaeError, match="must be a number of 0 or more, or a schedule"):
        ELBO(**options)


def test_penalties_are_minimised_too_and_not_reported(tiny_vae, binary, monkeypatch):
    model, x = tiny_vae(), binary(4)
    torch.manual_seed(0)
    plain, _ = ELBO().compute(model, x, 0.0)
    elbo = type(model).elbo
    penalty = torch.arange(4.0).double()
    monkeypatch.setattr(type(model), "elbo", lambda *a, **k: replace(elbo(*a, **k), penalty=penalty))
    torch.manual_seed(0)
    loss, bound = ELBO().compute(model, x, 0.0)
    assert loss.item() == pytest.approx(plain.item() + 1.5)
    assert -bound.elbo.mean().item() == pytest.approx(plain.item())


def test_what_needs_the_images_says_so():
    with pytest.raises(NotImplementedError, match="IWAE needs more than the bound: call compute"):
        IWAE()(bound([[1.0]]), 0.0)


@pytest.mark.parametrize("per", ["pixel", "", None])
def test_unknown_groups_are_refused(per):
    with pytest.raises(VlaeError, match="per 'image', 'level', 'channel' or 'dimension'"):
        ELBO(per=per)


def soft(rates, **options):
    """gamma after each of these mean rates, one update each."""
    objective, gammas = SoftFreeBits(10.0, interval=1, **options), []
    for rate in rates:
        objective.update(bound(torch.tensor([[rate - 1.0], [rate + 1.0]])))
        gammas.append(objective.gamma.item())
    return gammas


def test_soft_free_bits_move_gamma_by_ten_percent_as_the_paper_says():
    assert soft([9.9, 9.0]) == pytest.approx([0.9, 0.81])  # below the target: down
    assert soft([10.0, 10.4, 10.5]) == [1, 1, 1]  # within 5% above it: kept
    assert soft([9.0, 9.0, 10.6, 10.2, 11.0]) == pytest.approx([0.9, 0.81, 0.891, 0.891, 0.9801])  # above: up
    assert soft([9.0, 20.0, 20.0]) == pytest.approx([0.9, 0.99, 1.0])  # never above 1
    assert soft([1.0] * 100, minimum=0.25)[-1] == 0.25


def test_gamma_multiplies_the_rate_and_nothing_else():
    objective = SoftFreeBits(10.0, interval=1)
    objective.update(bound([[1.0]]))
    b = bound(torch.rand(4, 3))
    loss = objective(b, 0.5)
    torch.testing.assert_close(loss, b.distortion.mean() + 0.9 * b.rate.mean())
    loss.backward()
    torch.testing.assert_close(b.rate_per_dimension.grad, torch.full((4, 3), 0.9 / 4).double())
    assert not objective.gamma.requires_grad


def test_gamma_moves_by_the_mean_of_an_interval_and_starts_afresh():
    objective = SoftFreeBits(10.0, interval=3)
    for rate, gamma in [(1.0, 1), (1.0, 1), (29.5, 1), (1.0, 1), (1.0, 1), (1.0, 0.9), (50.0, 0.9)]:
        objective.update(bound([[rate]]))
        assert objective.gamma.item() == pytest.approx(gamma)


def test_state_travels_in_the_state_dict():
    objective, again = SoftFreeBits(10.0, interval=2), SoftFreeBits(10.0, interval=2)
    for _ in range(3):
        objective.update(bound([[1.0]]))
    again.load_state_dict(objective.state_dict())
    for each in (objective, again):
        each.update(bound([[1.0]]))
    assert objective.gamma == again.gamma == pytest.approx(0.81)


@pytest.mark.parametrize("options", [{"target_nats": 0.0}, {"target_nats": -1.0}, {"target_nats": 1.0, "interval": 0}])
def test_impossible_targets_are_refused(options):
    with pytest.raises(VlaeError, match="soft free bits"):
        SoftFreeBits(**options)


def test_free_bits_stop_a_models_encoder_from_being_pushed(tiny_vae, binary):
    model, x = tiny_vae(), binary(4)
    bound = model.elbo(x)
    floor = 2 * bound.rate.mean().item()
    ELBO(beta=1e6, free_nats=floor)(bound, 0.0).backward()
    free = [p.grad.clone() for p in model.encoder.parameters()]
    model.zero_grad()
    torch.manual_seed(0)
    for parameter, gradient in zip(model.encoder.parameters(), free, strict=True):
        assert gradient.abs().max() < 1e4, parameter.shape  # a rate's gradient times 1e6 would be far above
    ELBO(beta=1e6)(model.elbo(x), 0.0).backward()
    assert max(p.grad.abs().max() for p in model.encoder.parameters()) > 1e4
