"""Local attention against PyTorch's, whose mask and biases are written out over all pairs of pixels."""

import pytest
import torch
from torch.nn import functional as F

from vlae.nn.attention import ChannelNorm, LocalAttention, LocalTransformer, TransformerBlock


def dense(layer, height, width):
    """For every pair of pixels the number added to the score, [heads, H W, H W]: minus infinity outside the window."""
    r, pixels = layer.reach, height * width
    added = torch.full((layer.heads, pixels, pixels), -torch.inf, dtype=torch.float64)
    for query in range(pixels):
        for key in range(pixels):
            a, b = key // width - query // width, key % width - query % width
            if -r <= a <= 0 and abs(b) <= r and (a < 0 or b <= 0):
                added[:, query, key] = layer.position[:, (a + r) * (2 * r + 1) + b + r]
    return added


@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("reach", [1, 2, 3])
@pytest.mark.parametrize("size", [(4, 5), (1, 3), (3, 1), (1, 1), (6, 3)])
@torch.no_grad()
def test_layer_is_masked_attention_over_all_pixels(heads, reach, size):
    layer = LocalAttention(6, heads, reach, 2).double()
    layer.position.normal_(std=2)
    layer.qkv.weight.mul_(3)
    x, context = torch.randn(2, 6, *size).double(), torch.randn(2, 2, *size).double()
    qkv = F.conv2d(x, layer.qkv.weight, layer.qkv.bias) + F.conv2d(context, layer.context.weight)
    q, k, v = (t.flatten(2).unflatten(1, (heads, 6 // heads)).transpose(2, 3) for t in qkv.chunk(3, dim=1))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=dense(layer, *size))
    expected = layer.output(mixed.transpose(2, 3).flatten(1, 2).unflatten(-1, size))
    torch.testing.assert_close(layer(x, context), expected, atol=1e-12, rtol=0)


def test_window_of_one_layer():
    assert LocalAttention(2, 1, 1, 0).offsets == [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)]
    assert LocalAttention(2, 1, 2, 0).field.mask.int().tolist() == [[1] * 5, [1] * 5, [1, 1, 1, 0, 0]]


def test_weights_of_what_is_outside_are_zero_and_the_first_pixel_sees_itself_alone():
    layer = LocalAttention(4, 2, 2, 0).double()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    value = layer.qkv(x)[:, 8:, :1, :1]
    torch.testing.assert_close(layer(x, None)[:, :, :1, :1], layer.output(value))
    x.requires_grad_()
    layer(x, None).sum().backward()
    assert x.grad.isfinite().all()


@torch.no_grad()
def test_block_is_pre_norm_with_residuals():
    block = TransformerBlock(6, 2, 1, 2).double()
    x, context = torch.randn(2, 6, 3, 4).double(), torch.randn(2, 2, 3, 4).double()

    def norm(x):
        return (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()

    h = x + block.attention(norm(x), context)
    hidden = F.conv2d(norm(h), block.hidden.weight, block.hidden.bias) + F.conv2d(context, block.context.weight)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(block(x, context), h + block.output(hidden))


def test_norm_is_of_each_pixel():
    norm = ChannelNorm(3).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    pixel = F.layer_norm(x[1, :, 2, 3], (3,), norm.weight, norm.bias)
    torch.testing.assert_close(norm(x)[1, :, 2, 3], pixel)


@pytest.mark.parametrize("layers", [0, 1, 4])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_window(layers, kernel_size):
    """To the right, each row above adds r columns, as long as there are layers to go up one row each."""
    r, depth = kernel_size // 2, layers + 1
    field = LocalTransformer(1, 1, layers, kernel_size, channels=4).receptive_field
    expected = {(0, -b) for b in range(1, depth * r + 1)}
    expected |= {(-a, b) for a in range(1, depth * r + 1) for b in range(-depth * r, min(a, depth) * r + 1)}
    assert field.offsets == expected
    assert field.slope == 1 + r


def test_blocks_do_not_share_weights():
    network = LocalTransformer(1, 1, 3, channels=4, context_channels=2)
    names = dict(network.named_parameters(remove_duplicate=False))
    assert len({p.data_ptr() for p in names.values()}) == len(names)
