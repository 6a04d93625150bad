import pytest
import torch

from vlae.distributions.pointmass import PointMass


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_all_mass_is_at_the_value(dtype):
    value = torch.tensor([[[0, 1], [2, 3]], [[1, 1], [0, 2]]]).to(dtype)
    q = PointMass(value, torch.float64)
    assert (q.batch_shape, q.event_shape) == ((2,), (2, 2))
    z = q.rsample((3,))
    assert z.shape == (3, 2, 2, 2)
    assert z.dtype == dtype
    assert torch.equal(q.log_prob(z), torch.zeros(3, 2, dtype=torch.float64))
    other = value.clone()
    other[1, 0, 1] += 1
    assert q.log_prob(other).tolist() == [0, -torch.inf]
    assert q.log_prob_per_dimension(other)[1].tolist() == [[0, -torch.inf], [0, 0]]
    assert torch.equal(q.mean, value) and torch.equal(q.mode, value)


def test_gradients_pass_through_rsample_and_not_through_sample():
    value = torch.zeros(2, 3, requires_grad=True)
    assert PointMass(value).rsample().requires_grad
    assert not PointMass(value).sample((2,)).requires_grad
