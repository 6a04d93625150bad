import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset, random_split

from vlae.data import ImageDataset, load
from vlae.errors import VlaeError


class Items(Dataset):
    """A torch `Dataset` of these items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_grey_bytes_keep_their_levels():
    x = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    data = ImageDataset.from_any(x)
    assert data.levels == 256
    assert torch.equal(data.images, x)
    assert torch.equal(data.tensor(), x.float() / 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_are_rounded_to_levels(dtype):
    data = ImageDataset.from_any(torch.tensor([0.0, 0.5, 0.25, 1.0], dtype=dtype).reshape(1, 2, 2))
    assert data.levels == 256
    assert data.image_shape == (1, 2, 2)
    assert data.images.flatten().tolist() == [0, 128, 64, 255]


def test_every_level_survives_the_round_trip():
    for levels in (2, 17, 256):
        x = torch.arange(levels, dtype=torch.uint8).reshape(1, 1, 1, levels)
        data = ImageDataset.from_any(x.float() / (levels - 1), levels=levels)
        assert torch.equal(data.images, x)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.int64])
def test_only_zeros_and_ones_are_binary(dtype):
    assert ImageDataset.from_any(torch.eye(4).reshape(1, 4, 4).to(dtype)).levels == 2


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int32", "float64", ">f4"])
def test_arrays_of_any_byte_order(dtype):
    x = np.linspace(0, 1, 18).reshape(2, 3, 3)
    x = x if "f" in dtype else (255 * x).round()
    frozen = x.astype(dtype)
    frozen.setflags(write=False)
    assert (ImageDataset.from_any(frozen).tensor()[:, 0].numpy() - np.linspace(0, 1, 18).reshape(2, 3, 3)).max() < 0.01


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((1, 1, 2, 2), float("nan")), "NaN"),
        (torch.full((1, 1, 2, 2), float("inf")), "infinite"),
        (torch.full((1, 1, 2, 2), -0.1), "expected floats in"),
        (torch.full((1, 1, 2, 2), 200.0), "divide by 255"),
        (torch.full((1, 1, 2, 2), 300), "expected integers in 0..255"),
        (torch.rand(2, 2), "expected .N, C, H, W."),
        (torch.rand(0, 1, 2, 2), "none of them 0"),
        (torch.rand(5, 32, 32, 3), "channels second"),
        (torch.rand(1, 1, 2, 2).to(torch.complex64), "complex"),
        (np.array([["a"]]), "can't be images"),
        ([1, 2], "torch Dataset"),
        (None, "torch Dataset"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(x, message):
    with pytest.raises(VlaeError, match=message) as error:
        ImageDataset.from_any(x)
    assert "\n" not in str(error.value)


def test_torch_datasets_with_and_without_labels():
    x = torch.rand(5, 1, 4, 4)
    pairs = ImageDataset.from_any(TensorDataset(x, torch.arange(5)))
    assert pairs.labels.tolist() == [0, 1, 2, 3, 4]
    assert pairs.labels.dtype == torch.int64
    assert torch.equal(pairs.images, ImageDataset.from_any(x).images)
    assert ImageDataset.from_any(TensorDataset(x)).labels is None


def test_torch_datasets_of_pillow_images():
    class Photos(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return Image.new("RGB", (6, 4), (i, 2, 3)), i

    data = ImageDataset.from_any(Photos())
    assert data.image_shape == (3, 4, 6)
    assert data.images[1, :, 0, 0].tolist() == [1, 2, 3]


def test_torch_datasets_that_cannot_be_used():
    class Broken(Dataset):
        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, i):
            return self.items[i]

    class Endless(Dataset):
        def __getitem__(self, i):
            return torch.zeros(1, 2, 2)

    for items, message in [
        ([], "empty"),
        ([torch.rand(1, 2, 2), torch.rand(1, 3, 3)], "different shapes"),
        ([(torch.rand(1, 2, 2), "cat")], "labels must be integers"),
        ([torch.rand(7)], "expected .C, H, W."),
    ]:
        with pytest.raises(VlaeError, match=message):
            ImageDataset.from_any(Broken(items))
    with pytest.raises(VlaeError, match="needs __len__"):
        ImageDataset.from_any(Endless())


def test_unsigned_tensors_are_taken_like_arrays():
    x = torch.tensor([0, 255, 7, 1], dtype=torch.uint16).reshape(1, 1, 2, 2)
    assert ImageDataset.from_any(x).images.flatten().tolist() == [0, 255, 7, 1]


UNSIGNED = ["u2", ">u2", "u4", ">u4", "u8", ">u8"]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_unsigned_integers_of_any_width(dtype):
    x = np.array([0, 255, 7, 1], dtype).reshape(1, 1, 2, 2)
    assert ImageDataset.from_any(x).images.flatten().tolist() == [0, 255, 7, 1]
    native = torch.from_numpy(x.astype(x.dtype.newbyteorder("=")))
    assert ImageDataset.from_any(native).images.flatten().tolist() == [0, 255, 7, 1]
    assert ImageDataset.from_any(x, labels=np.array([3], dtype)).labels.tolist() == [3]
    assert ImageDataset.from_any(x, factors=np.array([[3]], dtype)).factors.tolist() == [[3]]
    one = ImageDataset.from_any(Items([(x[0], np.array(3, dtype)[()])]))
    assert one.labels.tolist() == [3] and one.images.flatten().tolist() == [0, 255, 7, 1]


def test_floats_that_torch_does_not_compute_with():
    x = np.array([0.0, 0.5, 0.25, 1.0]).reshape(1, 1, 2, 2)
    wide = x.astype(np.longdouble)
    for given in (wide, Items([wide[0]]), *(torch.from_numpy(x).to(dtype) for dtype in FLOAT8)):
        assert ImageDataset.from_any(given).images.flatten().tolist() == [0, 128, 64, 255]
    factors = ImageDataset.from_any(x, factors=wide.reshape(1, 4)).factors
    assert factors.dtype == torch.float64 and factors.tolist() == [[0.0, 0.5, 0.25, 1.0]]
    assert ImageDataset.from_any(x, labels=np.array([1], ">i8")).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: np.full((1, 2, 2), 2**64 - 3, np.uint64), "integers of 2.63 or more"),
        (lambda: torch.full((1, 2, 2), 2**64 - 3, dtype=torch.uint64), "integers of 2.63 or more"),
        (lambda: np.full((1, 2, 2), np.nan, np.longdouble), "NaN"),
        (lambda: torch.full((1, 2, 2), float("nan")).to(torch.float8_e5m2), "NaN"),
        (lambda: np.zeros((1, 2, 2), np.complex64), "complex64"),
        (lambda: np.zeros((1, 2, 2), object), "object"),
        (lambda: torch.zeros(1, 2, 2).to_sparse(), "sparse_coo"),
        (lambda: torch.zeros(1, 2, 2).to_mkldnn(), "mkldnn"),
        (lambda: torch.zeros(1, 2, 2, device="meta"), "meta"),
        (lambda: torch.zeros(1, 2, 2, dtype=torch.uint8).view(torch.uint4), "uint4"),
        (lambda: torch.zeros(1, 2, 2, dtype=torch.uint8).view(torch.bits8), "bits8"),
    ],
)
@pytest.mark.parametrize("use", ["images", "item", "labels", "factors"])
def test_numbers_that_cannot_be_used_are_refused_in_one_line(given, message, use):
    x, image = given(), torch.rand(1, 1, 4, 4)
    arguments = {
        "images": lambda: {"x": x},
        "item": lambda: {"x": Items([x])},
        "labels": lambda: {"x": image, "labels": x.reshape(-1)[:1] if message == "NaN" else x},
        "factors": lambda: {"x": image, "factors": x.reshape(1, -1) if message == "NaN" else x},
    }[use]()
    with pytest.raises(VlaeError, match=message) as error:
        ImageDataset.from_any(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "levels",
    [2.5, -1, 0, 1, 257, float("nan"), float("inf"), -float("inf"), "17", "a", True, [17], 17j, np.array([3, 4])],
)
def test_levels_are_an_integer_from_2_to_256(levels):
    for use in (
        lambda: ImageDataset.from_any(torch.rand(2, 2, 2), levels=levels),
        lambda: ImageDataset(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), levels),
    ):
        with pytest.raises(VlaeError, match="integer from 2 to 256") as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("levels", [17, 17.0, np.int64(17), torch.tensor(17)])
def test_levels_are_an_integer_whatever_its_type(levels):
    data = ImageDataset.from_any(torch.rand(2, 2, 2), levels=levels)
    assert type(data.levels) is int and "17 levels" in data.protocol


@pytest.mark.parametrize("rows", [[], [2], [-3], [0.5], ["a"], [True, False], [[0, 1]], None])
def test_a_subset_of_no_images_or_of_none_of_these_is_refused(rows):
    whole = ImageDataset.from_any(torch.rand(2, 1, 4, 4))
    for part in (Subset(whole, rows), Subset(Subset(whole, rows), rows)):
        with pytest.raises(VlaeError, match=r"positions from 0 to 1") as error:
            ImageDataset.from_any(part)
        assert "\n" not in str(error.value)
    assert len(ImageDataset.from_any(Subset(whole, np.array([1, 0, -1])))) == 3


def test_an_empty_subset_of_anything_else_is_refused():
    with pytest.raises(VlaeError, match="Subset is empty"):
        ImageDataset.from_any(Subset(TensorDataset(torch.rand(2, 1, 4, 4)), []))


@pytest.mark.parametrize("first", [torch.rand(1, 2, 2), (torch.rand(1, 2, 2), 0), (torch.rand(1, 2, 2),), ()])
@pytest.mark.parametrize("second", [torch.rand(1, 3, 3), (torch.rand(1, 3, 3), 0), (torch.rand(1, 3, 3),), ()])
def test_items_that_are_not_alike_are_refused(first, second):
    with pytest.raises(VlaeError, match="make them alike") as error:
        ImageDataset.from_any(Items([first, second]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("binarize", [None, "dynamic", "threshold"])
def test_a_subset_of_a_set_stays_what_that_is(binarize):
    whole, rows = load("digits", binarize=binarize), [5, 3, 900, 3]
    for part in (Subset(whole, rows), Subset(Subset(whole, range(1000)), rows)):
        found = ImageDataset.from_any(part)
        assert found.protocol == whole.protocol.replace(f"{len(whole)} images", "4 images")
        assert torch.equal(found.labels, whole.labels[rows]) and torch.equal(found.images, whole.images[rows])
        assert (found.levels, found.effective_levels) == (whole.levels, whole.effective_levels)
    first, second = map(ImageDataset.from_any, random_split(whole, [0.5, 0.5]))
    assert len(first) + len(second) == len(whole) and first.levels == second.levels == 17


def test_a_subset_of_anything_else_is_read_item_by_item():
    pairs = TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6))
    assert ImageDataset.from_any(Subset(pairs, [4, 2]), levels=17, split="test").labels.tolist() == [4, 2]


@pytest.mark.parametrize(
    "option", [{"labels": [1, 2]}, {"levels": 5}, {"split": "test"}, {"name": "x"}, {"factors": [[1]]}]
)
def test_a_set_has_its_own_options(option):
    whole = load("digits")
    for given in (whole, Subset(whole, [1, 2])):
        with pytest.raises(VlaeError, match=f"has its own {next(iter(option))}"):
            ImageDataset.from_any(given, **option)


def test_a_palettes_colours_are_meant_and_other_kinds_are_refused():
    class One(torch.utils.data.Dataset):
        def __init__(self, image):
            self.image = image

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return self.image, i

    red = Image.new("RGB", (4, 4), (255, 0, 0)).quantize(4)
    assert red.mode == "P"
    images = ImageDataset.from_any(One(red)).tensor()
    assert images.shape == (2, 3, 4, 4) and images[:, 0].min() == 1 and images[:, 1:].max() == 0
    with pytest.raises(VlaeError, match="kind CMYK"):
        ImageDataset.from_any(One(Image.new("CMYK", (4, 4))))
