"""The Row LSTM against PyTorch's LSTM cell run pixel by pixel, and its window against the triangles it is made of."""

import pytest
import torch
from torch import nn

from vlae import VlaeError
from vlae.nn.rowlstm import PixelRNN, RowLSTM


def cell_of(layer, reach):
    """PyTorch's cell for [input window, hidden window of the row above], its gates in the order i, f, g, o."""
    weights = [w.permute(0, 2, 3, 1).flatten(1) for w in (layer.input.weight, layer.state.weight)]
    o, f, i, g = torch.cat(weights, dim=1).chunk(4)
    cell = nn.LSTMCell(sum(w.shape[1] for w in weights), layer.states).double()
    cell.weight_ih.data = torch.cat([i, f, g, o])
    o, f, i, g = layer.input.bias.chunk(4)
    cell.bias_ih.data = torch.cat([i, f, g, o])
    cell.weight_hh.data.zero_()  # the hidden states are among the inputs here
    cell.bias_hh.data.zero_()
    return cell


def reference(layer, x, reach):
    """One pixel after another, in one image x [channels, H, W]: each starts its own LSTM `memory` rows above it."""
    cell, (_, height, width) = cell_of(layer, reach), x.shape
    zeros = x.new_zeros(layer.states)
    result = x.new_zeros(layer.states, height, width)

    def at(row, column):
        return x[:, row, column] if 0 <= column < width else torch.zeros_like(x[:, 0, 0])

    for i in range(height):
        start = 0 if layer.memory is None else max(0, i - layer.memory)
        h = c = {}
        for row in range(start, i + 1):
            new_h, new_c = {}, {}
            for j in range(width):
                inputs = [at(row, j + b) for b in range(-reach, 1)]
                inputs += [h.get(j + b, zeros) for b in range(-reach, reach + 1)]
                new_h[j], new_c[j] = cell(torch.cat(inputs), (zeros, c.get(j, zeros)))
            h, c = new_h, new_c
        result[:, i] = torch.stack([h[j] for j in range(width)], dim=1)
    return x + layer.output(result[None])[0]


@pytest.mark.parametrize("memory", [None, 1, 2, 5])
@pytest.mark.parametrize("reach", [1, 2])
@torch.no_grad()
def test_layer_is_an_lstm_from_row_to_row(memory, reach):
    layer = RowLSTM(3, 2 * reach + 1, 0, memory).double()
    for p in layer.parameters():
        p.mul_(3)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    expected = torch.stack([reference(layer, image, reach) for image in x])
    torch.testing.assert_close(layer(x, None), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("memory", [4, 5, 100])
def test_a_memory_that_reaches_the_top_is_unrestricted(memory):
    layer = RowLSTM(4, 3, 0, None).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    everything = layer(x, None)
    layer.memory = memory
    torch.testing.assert_close(layer(x, None), everything, atol=1e-14, rtol=0)
    layer.memory = 3
    assert not torch.allclose(layer(x, None)[:, :, 4], everything[:, :, 4], atol=1e-6)
    torch.testing.assert_close(layer(x, None)[:, :, :4], everything[:, :, :4], atol=1e-14, rtol=0)


def test_context_enters_the_gates():
    layer = RowLSTM(4, 3, 2, None).double()
    x, context = torch.randn(1, 4, 3, 3).double(), torch.randn(1, 2, 1, 1).double()
    whole = layer(x, context.expand(1, 2, 3, 3))
    with torch.no_grad():
        layer.input.bias += (layer.context.weight[:, :, 0, 0] @ context.flatten()).detach()
        torch.testing.assert_close(layer(x, torch.zeros(1, 2, 3, 3).double()), whole)


def test_forget_gates_start_open():
    layer = RowLSTM(4, 3, 0, None)
    _, f, _, _ = layer.input.bias.chunk(4)
    others = torch.cat([layer.input.bias[:2], layer.input.bias[4:]])
    assert f.min() > 0.6 > others.abs().max()


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("height", [1, 2, 7])
@pytest.mark.parametrize("memory", [None, 1, 3])
@pytest.mark.parametrize("layers", [1, 3])
def test_window_is_composed_of_triangles(kernel_size, height, memory, layers):
    network = PixelRNN(1, 1, layers, kernel_size, channels=1, memory=memory, image_height=height)
    r, top = kernel_size // 2, height - 1
    rows = top if memory is None else min(memory, top)
    triangle = {(-a, b) for a in range(rows + 1) for b in range(-(a + 1) * r, a * r + 1)}
    field = {(-a, b) for a in range(r + 1) for b in range(-r, r + 1) if a or b < 0}
    for _ in range(layers):
        field = {(i + k, j + m) for i, j in field for k, m in triangle if i + k >= -top}
    assert network.receptive_field.offsets == field


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("memory", [1, 3])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_window_with_a_memory(layers, memory, kernel_size):
    field = PixelRNN(1, 1, layers, kernel_size, channels=1, memory=memory).receptive_field
    assert field.mask.shape[0] - 1 == kernel_size // 2 + layers * memory
    assert field.slope == 1 + kernel_size // 2
    assert (0, 0) not in field.offsets


def test_wide_windows_are_computed():
    field = PixelRNN(1, 1, 7, 5, channels=2, image_height=64).receptive_field
    assert field.mask.shape[0] == 64
    assert field.slope == 3


def test_images_taller_than_the_window_are_refused():
    network = PixelRNN(1, 1, 1, channels=2, image_height=4)
    assert network(torch.rand(1, 1, 3, 9)).shape == (1, 1, 1, 3, 9)
    with pytest.raises(VlaeError, match="4 rows at most; got 5"):
        network(torch.rand(1, 1, 5, 4))
    assert PixelRNN(1, 1, 1, channels=2, image_height=4, memory=2)(torch.rand(1, 1, 5, 4)).shape == (1, 1, 1, 5, 4)
