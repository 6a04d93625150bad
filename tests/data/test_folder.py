import numpy as np
import pytest
import torch
from PIL import Image

import vlae
from vlae.data import Batches, load
from vlae.errors import VlaeError
from vlae.evaluation.passes import batches_of


@pytest.fixture
def photos(tmp_path, write_png, rng):
    """Twelve images of different sizes, each of one colour of its own; sub-folders, and files that are no images."""
    folder = tmp_path / "photos"
    for i in range(12):
        size = (20 + i, 30 - i)
        write_png(
            folder / f"{'ab'[i // 6]}" / f"{i:02}.{'PNG' if i % 2 else 'png'}", np.full((*size, 3), 20 * i, np.uint8)
        )
    (folder / "readme.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def colours(data):
    return set((data.images.flatten(1)[:, 0] // 20).tolist())


def test_files_are_split_by_their_sorted_names(photos):
    parts = [load("folder", split, path=photos, size=8) for split in ("train", "validation", "test")]
    assert [colours(part) for part in parts] == [set(range(10)), {10}, {11}]
    assert parts[0].image_shape == (3, 8, 8)
    assert parts[0].labels is None
    assert colours(load("folder", "train+validation", path=photos, size=8)) == set(range(11))


def test_small_folders_have_no_held_out_images(tmp_path, write_png):
    for n in (1, 2):
        write_png(tmp_path / "few" / f"{n}.png", np.zeros((4, 4), np.uint8))
        assert len(load("folder", path=tmp_path / "few", size=4)) == n
        for split in ("validation", "test"):
            with pytest.raises(VlaeError, match=f"{n} images, none left for split .*at least 3"):
                load("folder", split, path=tmp_path / "few", size=4)
    write_png(tmp_path / "few" / "3.png", np.zeros((4, 4), np.uint8))
    assert [len(load("folder", split, path=tmp_path / "few", size=4)) for split in ("train", "val", "test")] == [
        1,
        1,
        1,
    ]


def test_the_path_may_lie_below_the_root(photos, monkeypatch):
    assert len(load("folder", root=photos.parent, path="photos", size=4)) == 10
    monkeypatch.setenv("VLAE_DATA", str(photos.parent))
    assert len(load("folder", path="photos", size=4)) == 10


def test_the_middle_square_is_resized(tmp_path, write_png):
    image = np.zeros((10, 30), np.uint8)
    image[:, 10:20] = 200
    write_png(tmp_path / "x" / "a.png", image)
    data = load("folder", path=tmp_path / "x", size=5, mode="L")
    assert data.images.min() > 180  # a good filter looks a little beyond the square's edge


def test_images_of_one_size_need_no_option(tmp_path, write_png, rng):
    x = rng.integers(256, size=(4, 6, 3), dtype=np.uint8)
    write_png(tmp_path / "x" / "a.png", x)
    data = load("folder", path=tmp_path / "x")
    assert np.array_equal(data.images[0].permute(1, 2, 0), x)


def test_grey_palette_and_transparent_images(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    Image.new("P", (4, 4)).save(folder / "a.gif")
    Image.new("RGBA", (4, 4), (9, 9, 9, 255)).save(folder / "b.png")
    Image.new("L", (4, 4), 9).save(folder / "c.bmp")
    for mode, channels in (("L", 1), ("RGB", 3)):
        for split in ("train", "validation", "test"):
            assert load("folder", split, path=folder, mode=mode).image_shape == (channels, 4, 4)


def test_photographs_stored_on_their_side_are_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by a quarter
    (tmp_path / "x").mkdir()
    Image.new("RGB", (8, 4)).save(tmp_path / "x" / "a.jpg", exif=exif)
    assert load("folder", path=tmp_path / "x").image_shape == (3, 8, 4)


def position_photos(folder, write_png):
    """Images whose pixels tell where they are: red the row, green the column, blue the file."""
    row, column = np.mgrid[:20, :24].astype(np.uint8)
    for i in range(12):
        write_png(folder / f"{i:02}.png", np.stack([row, column, np.full_like(row, i)], axis=2))
    return folder


def test_crops_are_windows_of_one_image_at_every_position(tmp_path, write_png):
    folder = position_photos(tmp_path / "x", write_png)
    data = load("folder", path=folder, crop=8, crops_per_epoch=3000)
    crops = data.epoch_images(0, 0)
    assert crops.shape == (3000, 3, 8, 8)
    corner = crops[:, :, :1, :1]
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(crops - corner, torch.stack([row, column, 0 * row])[None].expand_as(crops).to(torch.uint8))
    rows, columns, files = corner[:, :, 0, 0].long().unbind(1)
    assert rows.unique().tolist() == list(range(13))
    assert columns.unique().tolist() == list(range(17))
    assert files.unique().tolist() == list(range(10))
    assert files.bincount().min() > 200


def test_training_crops_are_new_in_each_epoch_and_resume(tmp_path, write_png):
    folder = position_photos(tmp_path / "x", write_png)
    data = load("folder", path=folder, crop=8, crops_per_epoch=50)
    assert len(data) == 50
    assert torch.equal(data.epoch_images(1, 2), data.epoch_images(1, 2))
    for other in ((1, 3), (2, 2)):
        assert not torch.equal(data.epoch_images(1, 2), data.epoch_images(*other))
    batches = Batches(data, 20, shuffle=True)
    epochs = [list(batches) for _ in range(2)]
    batches.load_state_dict({"epoch": 1, "served": 1})
    assert all(torch.equal(a.images, b.images) for a, b in zip(epochs[1][1:], batches, strict=True))
    few = data.subset(7)
    assert len(few) == len(few.epoch_images(0, 0)) == 7


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_crops_are_fixed(tmp_path, write_png, split):
    folder = position_photos(tmp_path / "x", write_png)
    options = {"path": folder, "crop": 8, "crops_per_epoch": 50}
    for binarize in (None, "static", "dynamic"):
        data = load("folder", split, binarize=binarize, **options)
        again = load("folder", split, binarize=binarize, **options)
        assert torch.equal(data.tensor(), again.tensor())
        assert torch.equal(data.epoch_images(0, 0), again.epoch_images(1, 1))
    assert len({tuple(crop.flatten().tolist()) for crop in data.images}) > 20


def test_crops_of_training_and_validation_images_together(tmp_path, write_png):
    folder = position_photos(tmp_path / "x", write_png)
    data = load("folder", "train+validation", path=folder, crop=8, crops_per_epoch=500)
    assert len(data) == 500
    assert data.epoch_images(0, 0)[:, 2, 0, 0].unique().tolist() == list(range(11))
    assert not torch.equal(data.epoch_images(0, 0), data.epoch_images(0, 1))


def test_the_note_of_crops_of_two_splits_counts_the_files_of_both(tmp_path, write_png):
    folder = position_photos(tmp_path / "x", write_png)
    for options in ({"size": 8}, {"crop": 8}):
        data = load("folder", "train+validation", path=folder, **options)
        for part in ("10 of 12 files", "1 of 12 files"):
            assert part in data.protocol
        assert f": {len(data)} images" in data.protocol
    assert len(data.sources) == 11


@pytest.mark.parametrize("split", ["train", "train+validation", "test"])
@pytest.mark.parametrize("binarize", [None, "threshold", "dynamic"])
def test_one_draw_of_crops_stands_for_all_visits(tmp_path, write_png, split, binarize):
    folder = position_photos(tmp_path / "x", write_png)
    data = load("folder", split, path=folder, crop=8, crops_per_epoch=50, binarize=binarize)
    fixed = data.drawn()
    assert not fixed.redrawn and data.redrawn == data.training
    assert torch.equal(fixed.tensor(), data.tensor())
    for size in (7, 50):
        assert torch.equal(torch.cat([batch.images for batch in Batches(fixed, size)]), data.tensor())
    assert torch.equal(torch.stack([fixed[k] for k in range(50)]), data.tensor())


def test_the_bound_of_crops_is_of_those_in_the_pictures(tmp_path, write_png):
    folder = position_photos(tmp_path / "x", write_png)
    data = load("folder", path=folder, crop=8, crops_per_epoch=20)
    model = vlae.VAE((3, 8, 8), latent_dim=2, architecture="mlp", widths=[4], likelihood="gaussian")
    for few in (data, data.subset(5)):
        measured = torch.cat([x for x, _, _ in batches_of(model, few, 6)])
        assert torch.equal(measured, few.tensor())  # what `suite` makes its pictures of


def test_binarised_crops(tmp_path, write_png):
    folder = position_photos(tmp_path / "x", write_png)
    options = {"path": folder, "crop": 8, "crops_per_epoch": 50}
    with pytest.raises(VlaeError, match='use binarize="dynamic"'):
        load("folder", binarize="static", **options)
    for binarize in ("dynamic", "threshold"):
        batch = next(iter(Batches(load("folder", binarize=binarize, **options), 50)))
        assert set(batch.images.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None, "size": 4}, "needs path"),
        ({"path": "nowhere", "size": 4}, "no directory nowhere"),
        ({"size": 4, "crop": 4}, "not both"),
        ({"size": 0}, "size=0, expected a positive integer"),
        ({"crop": "big"}, "crop='big', expected a positive integer"),
        ({"crop": 4, "crops_per_epoch": -1}, "crops_per_epoch=-1"),
        ({"crops_per_epoch": 5}, "needs crop"),
        ({"size": 4, "mode": "CMYK"}, 'expected "L" or "RGB"'),
        ({"crop": 21}, "too small for crop=21"),
        ({}, "different sizes; give size=... or crop=..."),
        ({"stride": 2}, "folder has no option stride; expected path, size, crop, mode, crops_per_epoch"),
    ],
)
def test_wrong_options_get_one_line(photos, options, message):
    with pytest.raises(VlaeError, match=message) as error:
        load("folder", **{"path": photos, **options})
    assert "\n" not in str(error.value)


def test_a_folder_without_images_and_a_broken_image(tmp_path):
    with pytest.raises(VlaeError, match=r"0 images, none left for split 'train'; expected .bmp"):
        load("folder", path=tmp_path, size=4)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(VlaeError, match=r"a\.png: not a readable image"):
        load("folder", path=tmp_path, size=4)


def test_what_8_opaque_bits_would_lose_is_refused(tmp_path, rng):
    pixels = rng.integers(0, 256, (6, 6, 4), dtype=np.uint8)
    frames = [Image.fromarray(pixels[..., k]) for k in range(3)]
    frames[0].save(tmp_path / "several.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(pixels, "RGBA").save(tmp_path / "seen_through.png")
    (tmp_path / "deep.ppm").write_bytes(b"P6 1 1 65535\n" + bytes([0x80, 0xFF] * 3))
    expected = {"several.gif": "holds 3 images", "seen_through.png": "transparent", "deep.ppm": "more than 8 bits"}
    for name, message in expected.items():
        folder = tmp_path / message.replace(" ", "_")
        folder.mkdir()
        (tmp_path / name).rename(folder / name)
        with pytest.raises(VlaeError, match=message):
            load("folder", path=folder)


def test_parts_of_different_sizes_are_not_joined(tmp_path, write_png, rng):
    for k in range(10):
        side = 8 if k < 8 else 12  # the last ones are held out
        write_png(tmp_path / f"{k}.png", rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    with pytest.raises(VlaeError, match="3x8x8 and 3x12x12"):
        load("folder", "train+validation", path=tmp_path)


def test_a_folder_may_be_named_by_a_year(tmp_path, write_png, rng, monkeypatch):
    write_png(tmp_path / "2024" / "a.png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    assert load("folder", path=2024).image_shape == (3, 8, 8)
