import pytest
import torch

from vlae import Bound, VlaeError
from vlae.objectives import Capacity, Cyclical


def bound(rates, distortion=0.0):
    """A bound with these rates [B] and one distortion."""
    rates = torch.as_tensor(rates, dtype=torch.float64).clone().requires_grad_()
    distortion = torch.full((len(rates),), distortion, dtype=torch.float64, requires_grad=True)
    return Bound(distortion, rates, rates[:, None], rates[:, None])


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 7.0 + 3 * 4.0), (0.2, 7.0 + 3 * 0.0), (0.25, 7.0 + 3 * 1.0), (0.5, 7.0 + 3 * 6.0), (1.0, 7.0 + 3 * 6.0)],
)
def test_loss_is_the_formula(progress, expected):
    """The mean rate is 4, C rises from 0 to 10 at half of the training."""
    loss = Capacity(10.0, gamma=3.0, finish=0.5)(bound([3.0, 5.0], 7.0), progress)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(("progress", "sign"), [(0.1, 1.0), (0.9, -1.0)])
def test_the_rate_is_pushed_towards_the_capacity_from_both_sides(progress, sign):
    b = bound([3.0, 5.0])
    Capacity(10.0, gamma=3.0)(b, progress).backward()
    assert b.rate.grad.tolist() == [sign * 1.5] * 2
    assert b.distortion.grad.tolist() == [0.5] * 2


def test_capacity_may_be_any_schedule():
    objective = Capacity(Cyclical(2.0, 6.0, cycles=2, rising=1.0), gamma=1.0)
    assert objective(bound([0.0]), 0.25).item() == pytest.approx(4.0)


def test_gradient_by_differences(linear_gaussian, flat_images, gradients_are_right):
    assert gradients_are_right(Capacity(3.0, 10.0), linear_gaussian(), flat_images(3), progress=0.3)


def test_training_reaches_the_capacity(linear_gaussian, flat_images):
    model, x, objective = linear_gaussian(), flat_images(256), Capacity(1.5, gamma=50.0, finish=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(300):
        optimizer.zero_grad()
        objective.compute(model, x, step / 300)[0].backward()
        optimizer.step()
    assert model.elbo(x).rate.mean().item() == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize("options", [{"max_nats": -1.0}, {"gamma": -1.0}, {"gamma": float("nan")}, {"finish": 0.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(VlaeError):
        Capacity(**options)
