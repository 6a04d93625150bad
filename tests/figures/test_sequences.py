import itertools

import numpy as np
import pytest
import torch

from vlae import VlaeError
from vlae.figures import completions, decompressions, grids, interpolations, latent_arithmetic, traversals
from vlae.figures.sequences import STRIPES, given_part


def render(figure):
    """The figure as bytes [H, W, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def places(picture, image, scale):
    """Where an image [C, H, W] is drawn in the picture, each pixel as a block: (top, left) of every occurrence."""
    block = (image * 255).round().byte().permute(1, 2, 0).expand(-1, -1, 3).numpy().repeat(scale, 0).repeat(scale, 1)
    height, width = block.shape[:2]
    candidates = np.argwhere((picture == block[0, 0]).all(-1))
    inside = [(y, x) for y, x in candidates if y + height <= len(picture) and x + width <= picture.shape[1]]
    return [(y, x) for y, x in inside if np.array_equal(picture[y : y + height, x : x + width], block)]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_stands_once_in_its_row_and_column(channels):
    paths, first, second = (
        torch.rand(4, 3, channels, 8, 8),
        torch.rand(4, channels, 8, 8),
        torch.rand(4, channels, 8, 8) / 2,
    )
    figure = interpolations(paths, ["a", "b", "c", "d"], (first, second), "title", group=2)
    picture = render(figure)
    scale = grids.MAX_SCALE
    rows, columns = [], []
    for row in range(4):
        found = [places(picture, image, scale) for image in (first[row], *paths[row], second[row])]
        assert [len(place) for place in found] == [1] * 5
        tops, lefts = zip(*(place[0] for place in found), strict=True)
        assert len(set(tops)) == 1 and list(lefts) == sorted(lefts)
        rows.append(tops[0])
        columns.append(lefts)
    assert len(set(columns)) == 1
    pitch = 8 * scale + grids.GAP
    assert np.diff(rows).tolist() == [pitch, pitch + grids.BLOCK_GAP // 2, pitch]  # two rows stand together
    assert np.diff(columns[0])[1:3].tolist() == [pitch, pitch]
    assert min(np.diff(columns[0])[[0, 3]]) > pitch  # the originals stand apart
    assert texts(figure) == ["title", "original", "share of the way", "0", "0.5", "1", "original", *"abcd"]


def test_labels_stand_over_their_columns_and_beside_their_rows():
    images = torch.rand(2, 3, 1, 8, 8)
    starts = {"image": images[:1, 0] / 3, "code": images[:1, 1] / 3}
    rows, columns = ["z 17\n1.90 bits", "z 3\n0.04 bits"], ["0.01", "0.5", "0.99"]
    figure = traversals(images, rows, columns, starts, title="one dimension moves")
    picture = render(figure)
    by_text = {text.get_text(): text.get_window_extent() for text in figure.texts}
    for column, label in enumerate(columns):
        ((top, left),) = places(picture, images[0, column], grids.MAX_SCALE)
        box = by_text[label]
        assert (box.x0 + box.x1) / 2 == pytest.approx(left + 40, abs=2)
        assert len(picture) - box.y0 <= top
    for row, label in enumerate(rows):
        ((top, left),) = places(picture, images[row, 0], grids.MAX_SCALE)
        box = by_text[label]
        assert len(picture) - (box.y0 + box.y1) / 2 == pytest.approx(top + 40, abs=3)
        assert box.x1 < left
    ((_, image),) = places(picture, starts["image"][0], grids.MAX_SCALE)
    ((_, code),) = places(picture, starts["code"][0], grids.MAX_SCALE)
    assert image < code < places(picture, images[0, 0], grids.MAX_SCALE)[0][1]
    for box in by_text.values():
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height


def test_columns_are_as_wide_as_their_labels():
    figure = traversals(torch.rand(1, 40, 1, 4, 4), ["z 0"], ["0.12345"] * 40)
    render(figure)
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text() == "0.12345"]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_rows_of_arithmetic_may_have_any_number_of_originals():
    decoded = {name: torch.rand(2, 1, 8, 8) / k for k, name in enumerate(("base", "+ plus", "− minus", "= result"), 1)}
    originals = {
        "base": torch.rand(3, 1, 8, 8) * 0.9,
        "+ plus": torch.rand(1, 1, 8, 8) * 0.8,
        "− minus": torch.rand(2, 1, 8, 8) * 0.7,
    }
    figure = latent_arithmetic(decoded, originals)
    picture = render(figure)
    for images in (*decoded.values(), *originals.values()):
        for image in images:
            assert len(places(picture, image, grids.MAX_SCALE)) == 1
    ((top, _),) = places(picture, decoded["= result"][0], grids.MAX_SCALE)
    ((_, left),) = places(picture, originals["base"][0], grids.MAX_SCALE)
    assert (picture[top : top + 80, left - 4 :] == 255).all()  # nothing beside the result
    assert texts(figure) == ["decoded, 2 draws", "the mean code of", *decoded]
    assert "decoded" in texts(latent_arithmetic({"a": torch.rand(1, 1, 4, 4)}))


def test_unknown_pixels_are_striped_grey_and_given_ones_as_they_are():
    images = torch.rand(2, 3, 6, 8)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[:2] = True
    shown = given_part(images, mask)
    assert torch.equal(shown[:, :, :2], images[:, :, :2])
    unknown = shown[:, :, 2:]
    assert {round(level, 6) for level in unknown.unique().tolist()} == set(STRIPES)
    assert all(0.25 < level < 0.75 for level in STRIPES)  # neither black nor white
    figure = completions(images, mask, torch.rand(2, 4, 3, 6, 8) / 2, ["image 0", "image 1"], "upper")
    picture = render(figure)
    for row in range(2):
        assert (
            len(places(picture, images[row], grids.MAX_SCALE)) == len(places(picture, shown[row], grids.MAX_SCALE)) == 1
        )
    assert texts(figure) == ["upper", "original", "given", "completions", "1", "2", "3", "4", "image 0", "image 1"]


def test_decompressions_stand_beside_their_original():
    originals, drawn = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 1, 8, 8) / 2
    picture = render(decompressions(originals, drawn))
    for row in range(2):
        ((top, left),) = places(picture, originals[row], grids.MAX_SCALE)
        for image in drawn[row]:
            ((other, beside),) = places(picture, image, grids.MAX_SCALE)
            assert other == top and beside > left


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: interpolations(torch.rand(2, 3, 1, 4, 4), ["a"]), r"expected \[1, columns"),
        (lambda: interpolations(torch.rand(3, 1, 4, 4), ["a"] * 3), "expected"),
        (lambda: traversals(torch.rand(1, 2, 1, 4, 4) + 1, ["a"], ["", ""]), "levels"),
        (lambda: traversals(torch.rand(1, 2, 1, 4, 4), ["a"], ["only one"]), "2 images in a row of 1 columns"),
        (
            lambda: interpolations(torch.rand(1, 2, 1, 4, 4), ["a"], (torch.rand(1, 1, 5, 5), torch.rand(1, 1, 4, 4))),
            "one size",
        ),
        (lambda: latent_arithmetic({}), "no terms"),
        (lambda: completions(torch.rand(1, 1, 4, 4), torch.ones(4, 4).bool(), torch.rand(2, 2, 1, 4, 4)), "rows"),
    ],
)
def test_what_does_not_fit_is_refused(draw, said):
    with pytest.raises(VlaeError, match=said):
        draw()
