import numpy as np
import pytest
import torch

from vlae import VlaeError
from vlae.figures import grids
from vlae.figures.sheets import sheet


def test_sets_stand_below_each_other_in_rows_with_their_names():
    data, samples = torch.rand(3, 1, 4, 5), torch.rand(6, 1, 4, 5)
    figure = sheet({"data": data, "samples": samples}, columns=3, title="title")
    assert [text.get_text() for text in figure.texts] == ["title", "data", "samples", ""]
    mosaic = np.asarray(figure.axes[0].images[0].get_array())
    scale = (mosaic.shape[1] - 4 * grids.GAP) // 15
    for index, image in enumerate(torch.cat([data, samples])):
        row, column = divmod(index, 3)
        top, left = (grids.GAP + n * (side * scale + grids.GAP) for n, side in ((row, 4), (column, 5)))
        drawn = mosaic[top : top + 4 * scale : scale, left : left + 5 * scale : scale, 0]
        np.testing.assert_array_equal(drawn, (image[0] * 255).round().byte().numpy())
    assert len(mosaic) == 3 * (4 * scale + grids.GAP) + grids.GAP


@pytest.mark.parametrize(
    ("sets", "columns", "said"),
    [
        ({}, 3, "at least one set"),
        ({"a": torch.rand(3, 1, 4, 4)}, 0, "one column"),
        ({"a": torch.rand(4, 1, 4, 4)}, 3, "a has shape .* multiple of 3"),
        ({"a": torch.rand(0, 1, 4, 4)}, 3, "multiple of 3"),
        ({"a": torch.rand(3, 1, 4, 4), "b": torch.rand(3, 1, 4, 5)}, 3, "b has shape"),
        ({"a": torch.full((3, 1, 4, 4), 1.5)}, 3, "levels"),
    ],
)
def test_bad_sets_are_refused(sets, columns, said):
    with pytest.raises(VlaeError, match=said):
        sheet(sets, columns)
