import pytest
import torch
import zuko
from torch.autograd.functional import jacobian

from vlae import VlaeError
from vlae.nn import MADE, MaskedConv2d


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 5), (5, 1)])
def test_convolution_sees_the_pixels_before_its_own_and_in_type_b_its_own(kind, kernel_size, size):
    layer = MaskedConv2d(2, 3, kernel_size, kind).double()
    seen = jacobian(lambda x: layer(x).sum(1), torch.randn(1, 2, *size).double())[0, :, :, 0].abs().sum(2) > 0
    reach = kernel_size // 2
    for i in range(size[0]):
        for j in range(size[1]):
            for k in range(size[0]):
                for m in range(size[1]):
                    near = abs(k - i) <= reach and abs(m - j) <= reach
                    before = (k, m) < (i, j) or (kind == "B" and (k, m) == (i, j))
                    assert seen[i, j, k, m] == (near and before)


def test_convolution_is_that_of_the_full_kernel_with_zeros():
    layer = MaskedConv2d(2, 3, 5, "B").double()
    full = torch.zeros(3, 2, 5, 5, dtype=torch.float64)
    full[:, :, :3] = layer.weight.detach()
    full[:, :, 2, 3:] = 0
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, full, layer.bias, padding=2))


def test_masked_weights_get_no_gradient():
    layer = MaskedConv2d(1, 2, 3, "A")
    layer(torch.randn(1, 1, 4, 4)).square().sum().backward()
    assert (layer.weight.grad[:, :, ~layer.mask.bool()] == 0).all()
    assert (layer.weight.grad[:, :, layer.mask.bool()] != 0).all()


@pytest.mark.parametrize("kernel_size", [-3, 0, 1, 2, 4])
def test_kernels_without_a_centre_or_neighbours_are_refused(kernel_size):
    with pytest.raises(VlaeError, match="kernel_size must be odd"):
        MaskedConv2d(1, 1, kernel_size)


def test_unknown_mask_is_refused():
    with pytest.raises(VlaeError, match="mask_type"):
        MaskedConv2d(1, 1, 3, "C")


@pytest.mark.parametrize(
    ("inputs", "hidden", "outputs"),
    [(10, 32, 10), (10, 32, 30), (5, [16, 16], 10), (2, 8, 2), (1, 8, 1), (1, 8, 4), (6, 2, 6), (4, [], 4)],
)
def test_made_output_blocks_see_the_inputs_before_theirs(inputs, hidden, outputs):
    # ELU: ReLU could switch off a path by chance.
    made = MADE(inputs, hidden, outputs, activation=torch.nn.ELU).double()
    seen = jacobian(made, torch.randn(inputs).double()) != 0
    block = torch.arange(outputs) // (outputs // inputs)
    allowed = torch.arange(inputs)[None] < block[:, None]
    assert not (seen & ~allowed).any()
    if hidden == [] or min([hidden] if isinstance(hidden, int) else hidden) >= inputs:
        assert torch.equal(seen, allowed)


def test_made_of_one_input_learns_a_constant():
    made = MADE(1, 8, 2)
    y = made(torch.randn(5, 1))
    assert y.shape == (5, 2)
    y.sum().backward()
    assert all((p.grad != 0).any() for p in made.parameters())


def test_made_takes_any_leading_shape():
    made = MADE(4, 8, 8)
    x = torch.randn(3, 2, 4)
    torch.testing.assert_close(made(x)[1, 1], made(x[1, 1]))


@pytest.mark.parametrize("sizes", [(0, 8, 4), (3, 8, 4), (3, 8, 0), (3, 0, 3), (3, [4, -1], 3)])
def test_impossible_made_is_refused(sizes):
    with pytest.raises(VlaeError):
        MADE(*sizes)


# -- hidden layers that are narrower than the input -------------------------------------------------------------------


def dependence(function, dimensions):
    """Which output depends on which input, by autograd at random places: [outputs, inputs]."""
    seen = torch.zeros(dimensions, dimensions, dtype=torch.bool)
    for _ in range(30):
        seen |= jacobian(function, torch.randn(dimensions).double()) != 0
    return seen


@pytest.mark.parametrize(
    ("dimensions", "hidden"), [(10, [4]), (10, [4, 3]), (40, [32, 32]), (5, [1]), (7, [6]), (6, [9, 2])]
)
def test_narrow_layers_see_far(dimensions, hidden):
    torch.manual_seed(0)
    made = MADE(dimensions, hidden, dimensions, activation=torch.nn.ELU).double()
    seen = dependence(made, dimensions)
    assert not seen.triu().any()
    missed = seen.new_ones(dimensions, dimensions).tril(-1) & ~seen
    assert missed.sum(1).max() <= -(-(dimensions - 1) // min(hidden)) + 1
    assert not missed[-1].any(), "the last one sees all before it"


@pytest.mark.parametrize("hidden", [[9], [10, 10], [64, 64], [100, 9]])
def test_wide_layers_are_as_zuko_makes_them(hidden):
    before = torch.ones(10, 10).tril(-1).bool().repeat_interleave(2, 0)
    theirs = zuko.nn.MaskedMLP(before, hidden)
    ours = MADE(10, hidden, 20).network
    for name, mask in theirs.named_buffers():
        assert torch.equal(mask, dict(ours.named_buffers())[name])
    seen = dependence(MADE(10, hidden, 10, activation=torch.nn.ELU).double(), 10)
    assert torch.equal(seen, seen.new_ones(10, 10).tril(-1))
