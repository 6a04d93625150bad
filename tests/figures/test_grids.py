from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from vlae.errors import VlaeError
from vlae.figures import grids, image_grid, rate_per_dimension, receptive_field, recon_grid, save, training_curves


def render(figure: Figure) -> np.ndarray:
    """The figure as bytes [H, W, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def cell(figure: Figure, row: int, column: int, columns: int, size: tuple[int, int], block: int = 0) -> np.ndarray:
    """The picture where an image is drawn, one value per pixel of the image, each checked to fill its block."""
    picture = render(figure)
    box = figure.axes[block].get_window_extent()
    height, width = size
    scale, rest = divmod(round(box.width) - grids.GAP * (columns + 1), columns * width)
    assert scale > 1
    assert rest == 0
    top = len(picture) - round(box.y1) + grids.GAP + row * (height * scale + grids.GAP)
    left = round(box.x0) + grids.GAP + column * (width * scale + grids.GAP)
    blocks = picture[top : top + height * scale, left : left + width * scale]
    blocks = blocks.reshape(height, scale, width, scale, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return blocks[:, 0, :, 0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(7, 5), (8, 8), (28, 28)])
@pytest.mark.parametrize("title", [None, "samples at temperature 0.8"])
def test_image_grid_shows_every_level_in_whole_blocks(channels, size, title):
    images = torch.rand(7, channels, *size, generator=torch.Generator().manual_seed(1))
    figure = image_grid(images, columns=3, title=title)
    assert len(figure.axes) == 1
    assert render(figure).shape[0] == pytest.approx(figure.get_figheight() * figure.dpi)
    for n in range(7):
        expected = (images[n] * 255).round().permute(1, 2, 0).expand(-1, -1, 3).numpy()
        np.testing.assert_array_equal(cell(figure, n // 3, n % 3, 3, size), expected)


def test_recon_grid_pairs_rows_and_breaks_into_blocks():
    originals, means, draws = torch.rand(3, 5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    figure = recon_grid(originals, {"mean": means, "draw": draws}, columns=3, title="pairs")
    assert len(figure.axes) == 2
    assert [t.get_text() for t in figure.texts] == ["pairs", *["original", "mean", "draw"] * 2]
    for row, images in enumerate((originals, means, draws)):
        for n in range(5):
            block, column = divmod(n, 3)
            expected = (images[n] * 255).round().permute(1, 2, 0).expand(-1, -1, 3).numpy()
            drawn = cell(figure, row, column, (3, 2)[block], (8, 8), block)
            np.testing.assert_array_equal(drawn, expected)


def test_recon_grid_labels_a_single_tensor():
    images = torch.zeros(2, 3, 4, 4)
    figure = recon_grid(images, images, row_labels=("x", "greedy"))
    assert [t.get_text() for t in figure.texts] == ["x", "greedy"]


def test_labels_and_titles_stay_inside_the_figure():
    images = torch.zeros(1, 1, 8, 8)
    figure = recon_grid(images, {"a rather long name of a row": images}, title="a title of many words" * 7)
    figure.canvas.draw()
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
    labels = figure.texts[1:]
    assert all(t.get_window_extent().x1 < figure.axes[0].get_window_extent().x0 for t in labels)


def test_default_grid_is_about_square():
    width, height = image_grid(torch.zeros(64, 1, 8, 8)).get_size_inches()
    assert width == height


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(1, 8, 8), r"\[1, 8, 8\].*\[N, C, H, W\]"),
        (torch.zeros(2, 2, 8, 8), "C = 1 or 3"),
        (torch.zeros(0, 1, 8, 8), "expected"),
        (torch.full((1, 1, 2, 2), 1.01), r"1\.01, expected \[0, 1\]"),
        (torch.full((1, 1, 2, 2), -0.1), r"-0\.1"),
        (torch.tensor([0.0, float("nan")]).reshape(1, 1, 1, 2), "nan"),
    ],
)
def test_bad_images_are_refused_in_one_line(images, said):
    with pytest.raises(VlaeError, match=said) as error:
        image_grid(images)
    assert "\n" not in str(error.value)


def test_bad_arguments_are_refused():
    images = torch.zeros(2, 1, 4, 4)
    with pytest.raises(VlaeError, match="columns"):
        image_grid(images, columns=0)
    with pytest.raises(VlaeError, match=r"greedy has shape \[1, 1, 4, 4\]"):
        recon_grid(images, {"greedy": images[:1]})
    with pytest.raises(VlaeError, match="at least one"):
        recon_grid(images, {})


def test_save_makes_directories_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "grids" / "recon_grid.png"
    assert save(image_grid(torch.zeros(1, 1, 8, 8)), path) == path
    figure = image_grid(torch.ones(4, 1, 8, 8))
    save(figure, str(path))
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), render(figure))


def test_a_save_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = save(image_grid(torch.zeros(1, 1, 8, 8)), tmp_path / "grid.png")
    before = path.read_bytes()
    figure = image_grid(torch.ones(1, 1, 8, 8))

    def full_disk(target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(VlaeError, match="No space left"):
        save(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_refuses_other_formats_and_impossible_places(tmp_path):
    figure = image_grid(torch.zeros(1, 1, 2, 2))
    with pytest.raises(VlaeError, match="PNG"):
        save(figure, tmp_path / "grid.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(VlaeError, match="can't write"):
        save(figure, tmp_path / "file" / "grid.png")


def test_no_pyplot_state_and_no_global_setting(tmp_path):
    before = matplotlib.rcParams.copy()
    images = torch.zeros(2, 1, 4, 4)
    save(recon_grid(images, images), tmp_path / "recon.png")
    save(receptive_field(torch.ones(2, 3, dtype=torch.bool), slope=2), tmp_path / "field.png")
    save(rate_per_dimension(torch.ones(3)), tmp_path / "rate.png")
    save(training_curves({"train/rate": [(0, 1.0)]}), tmp_path / "curves.png")
    assert matplotlib.rcParams.copy() == before
    assert pyplot.get_fignums() == []
