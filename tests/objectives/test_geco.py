import math

import pytest
import torch

from vlae import Bound, VlaeError
from vlae.objectives import GECO


def bound(distortion, rate=2.0):
    """A bound with this mean distortion."""
    distortion = torch.tensor([distortion - 1.0, distortion + 1.0], dtype=torch.float64).requires_grad_()
    rate = torch.full((2,), rate, dtype=torch.float64).requires_grad_()
    return Bound(distortion, rate, rate[:, None], rate[:, None])


def test_loss_is_the_lagrangian():
    objective = GECO(target_nats=80.0)
    objective.log_multiplier.fill_(math.log(3.0))
    b = bound(90.0)
    loss = objective(b, 0.5)
    assert loss.item() == pytest.approx(2.0 + 3 * 10.0)
    loss.backward()
    assert b.distortion.grad.tolist() == pytest.approx([1.5] * 2)
    assert b.rate.grad.tolist() == [0.5] * 2


def test_multiplier_follows_the_average_of_the_constraint():
    objective = GECO(target_nats=10.0, speed=0.1, decay=0.8)
    expected, average = 0.0, None
    for distortion in (10.4, 10.8, 9.0, 30.0, 10.0, 9.5, 8.0, 8.0):
        objective.update(bound(distortion))
        average = distortion - 10 if average is None else 0.8 * average + 0.2 * (distortion - 10)
        expected += 0.1 * max(-1.0, min(1.0, average))
        assert objective.average.item() == pytest.approx(average)
        assert objective.multiplier == pytest.approx(math.exp(expected))


def test_too_much_distortion_raises_it_and_it_stays_within_limits():
    high, low = GECO(10.0, speed=1.0, limit=50.0), GECO(10.0, speed=1.0, limit=50.0)
    for _ in range(20):
        high.update(bound(500.0))
        low.update(bound(1.0))
    assert high.multiplier == pytest.approx(50.0) and low.multiplier == pytest.approx(1 / 50.0)


def test_it_finds_the_rate_and_the_multiplier_of_a_known_trade_off():
    """distortion = 10 exp(-rate / 5): at 4 nats the rate is 5 log 2.5, and lambda = -drate/ddistortion = 5/4."""
    objective, free = GECO(target_nats=4.0, speed=0.01), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([free], lr=0.05)
    for _ in range(3000):
        rate = torch.nn.functional.softplus(free).expand(2)
        b = Bound(10 * torch.exp(-rate / 5), rate, rate[:, None], rate[:, None])
        optimizer.zero_grad()
        objective(b, 0.0).backward()
        optimizer.step()
        objective.update(b)
    assert b.distortion[0].item() == pytest.approx(4.0, abs=0.02)
    assert b.rate[0].item() == pytest.approx(5 * math.log(2.5), abs=0.02)
    assert objective.multiplier == pytest.approx(1.25, abs=0.02)


def test_training_a_model_reaches_its_target(linear_gaussian):
    """Black and white images: 6 (log(2 pi s^2) + 0.25 / s^2) / 2 = 4.7 nats without a code, 0 with a perfect one."""
    model, target = linear_gaussian(), 2.0
    x = torch.randint(2, (256, 1, 1, 1)).double().expand(256, 1, 2, 3)
    objective = GECO(target_nats=target, speed=0.02)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = []
    for _ in range(500):
        optimizer.zero_grad()
        loss, b = objective.compute(model, x, 0.0)
        loss.backward()
        optimizer.step()
        objective.update(b)
        seen.append(b.distortion.mean().item())
    assert sum(seen[-100:]) / 100 == pytest.approx(target, abs=0.1)


def test_target_per_dimension_is_that_of_all_of_them(linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(3)
    losses = []
    for objective in (GECO(target_per_dim=0.5), GECO(target_nats=3.0)):
        torch.manual_seed(0)
        losses.append(objective.compute(model, x, 0.0)[0])
    torch.testing.assert_close(*losses)
    with pytest.raises(VlaeError, match="call compute"):
        GECO(target_per_dim=0.5)(bound(1.0), 0.0)


def test_state_travels_in_the_state_dict():
    objective, again = GECO(10.0), GECO(10.0)
    for distortion in (10.4, 9.0, 12.0):
        objective.update(bound(distortion))
    again.load_state_dict(objective.state_dict())
    for each in (objective, again):
        each.update(bound(10.7))
    assert objective.multiplier == again.multiplier != 1.0
    assert objective.average == again.average


def test_gradient_by_differences(linear_gaussian, flat_images, gradients_are_right):
    assert gradients_are_right(GECO(target_nats=2.0), linear_gaussian(), flat_images(3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_nats": 1.0, "target_per_dim": 1.0},
        {"target_nats": 1.0, "speed": 0.0},
        {"target_nats": 1.0, "decay": 1.0},
        {"target_nats": 1.0, "limit": 1.0},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(VlaeError, match="GECO needs"):
        GECO(**options)
