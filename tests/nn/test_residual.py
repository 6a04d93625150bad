import pytest
import torch

from vlae.nn import PointwiseBlock, ResidualBlock
from vlae.nn.residual import halved

SIZES = [(8, 8), (7, 5), (1, 6), (6, 1), (1, 1), (2, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_down_halves_and_up_restores_any_size(size):
    x = torch.randn(2, 3, *size)
    down = ResidualBlock.down(3, 4)(x)
    assert down.shape == (2, 4, (size[0] + 1) // 2, (size[1] + 1) // 2) == (2, 4, *halved(size))
    assert ResidualBlock.up(4, 3, size)(down).shape == x.shape


@pytest.mark.parametrize("block", [ResidualBlock.same(3), PointwiseBlock(3)])
def test_blocks_that_keep_the_size_are_the_identity_plus_a_branch(block):
    x = torch.randn(2, 3, 5, 4)
    last = block.second
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    assert torch.equal(block(x), x)
    torch.nn.init.ones_(last.bias)
    torch.testing.assert_close(block(x), x + 1)


def test_pointwise_block_does_not_widen_the_field():
    block, x = PointwiseBlock(2).double(), torch.randn(1, 2, 3, 3).double()
    seen = torch.autograd.functional.jacobian(block, x)[0, :, :, :, 0].abs().sum((0, 3)) > 0
    assert torch.equal(seen, torch.eye(9, dtype=torch.bool).view(3, 3, 3, 3))
