"""Sprites: coloured shapes drawn on the spot from seven known factors, in every combination."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vlae.data.datasets import ImageDataset
from vlae.data.factors import grid, rows_of
from vlae.data.sources import Root
from vlae.errors import VlaeError

# Everything is made of sums, products and comparisons, which are exact alike everywhere: no sine, no power.
COLOURS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
BACKGROUNDS = ((0, 0, 0), (128, 128, 128), (255, 255, 255))
SCALES = (0.14, 0.18, 0.22)  # radius, in sides of the image
TURNS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # cosine and sine of 0, 90, 180 and 270 degrees, anticlockwise
PLACES = (-0.25, -0.15, -0.05, 0.05, 0.15, 0.25)  # of the centre of mass, from the middle, in sides of the image
SHAPES = ("triangle", "half disc", "angle", "heart")
FACTORS = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "background": len(BACKGROUNDS),
    "scale": len(SCALES),
    "orientation": len(TURNS),
    "x": len(PLACES),
    "y": len(PLACES),
}
_FINE = 4  # a pixel is covered by how many of its 4 x 4 points the shape contains


def sprites(split: str, root: Root, *, size: int = 32, whole: bool = False) -> ImageDataset:
    """Coloured shapes, RGB, drawn on the spot: each of the 31,104 combinations of their factors once.

    `factors` are the classes of shape, colour, background, scale, orientation, x and y; `labels` are the shape's. A
    fixed random tenth of the images is the test split, another one validation; `whole=True` gives all of them in the
    order of the grid, as measures of disentanglement need it, whatever the split.

    Raises:
        VlaeError: `size` is not an integer in 16..128, or `whole` not a boolean.
    """
    every = grid(tuple(FACTORS.values()))
    factors = every[rows_of(split, len(every), whole)]
    return ImageDataset(
        render(factors, size),
        name="sprites",
        split=split,
        labels=factors[:, 0].contiguous(),
        factors=factors,
        factor_names=tuple(FACTORS),
        factor_sizes=tuple(FACTORS.values()),
        note=f"{'all' if whole else 'a fixed part'} of the grid {'x'.join(map(str, FACTORS.values()))}",
    )


def render(factors: Tensor, size: int = 32) -> Tensor:
    """The images of these factors, alone a function of them.

    Args:
        factors: int64 [N, 7], classes of shape, colour, background, scale, orientation, x and y.
        size: side of the images, 16 to 128.

    Returns:
        uint8 [N, 3, size, size].

    Raises:
        VlaeError: `size` is out of range.

    Example:
        >>> image = render(torch.tensor([[0, 0, 0, 2, 0, 2, 2]]), size=16)[0]  # a red triangle on black
        >>> image.shape, image[0].max(), image[1:].max()
        (torch.Size([3, 16, 16]), tensor(255, dtype=torch.uint8), tensor(0, dtype=torch.uint8))
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 16 <= size <= 128:
        raise VlaeError(f"sprites: size={size!r}, expected an integer from 16 to 128")
    shape, colour, background, scale, orientation, x, y = factors.numpy().T
    covered = _coverage(size)[shape, scale, orientation, x, y]
    images = np.empty((len(covered), 3, size, size), np.uint8)
    for c, b in np.ndindex(len(COLOURS), len(BACKGROUNDS)):
        rows = (colour == c) & (background == b)
        images[rows] = _mixture(c, b)[:, covered[rows]].swapaxes(0, 1)
    return torch.from_numpy(images)


def _mixture(colour: int, background: int) -> np.ndarray:
    """What is seen of a pixel by how much of it is covered, uint8 [3, 17]: mixed in integers, rounded to nearest."""
    full = _FINE**2
    part = np.arange(full + 1)
    front, back = np.array(COLOURS[colour])[:, None], np.array(BACKGROUNDS[background])[:, None]
    return ((part * front + (full - part) * back + full // 2) // full).astype(np.uint8)


@lru_cache(maxsize=2)
def _coverage(size: int) -> np.ndarray:
    """How many of a pixel's 16 points a shape contains, uint8 [shape, scale, orientation, x, y, size, size]."""
    points = np.arange(1 - _FINE * size, _FINE * size, 2) / (2 * _FINE * size)  # -1/2..1/2, symmetric to the last bit
    offsets = points - np.array(PLACES)[:, None]
    right, down = offsets[:, None, None, :], offsets[None, :, :, None]  # [x, y, row, column]
    places = len(PLACES)
    counts = np.empty((len(SHAPES), len(SCALES), len(TURNS), places, places, size, size), np.uint8)
    for s, o in np.ndindex(len(SCALES), len(TURNS)):
        cos, sin = TURNS[o]
        u = (cos * right - sin * down) / SCALES[s]
        v = (-sin * right - cos * down) / SCALES[s]
        for i, inside in enumerate((_triangle, _half_disc, _angle, _heart)):
            cells = inside(u, v).reshape(places, places, size, _FINE, size, _FINE)
            counts[i, s, o] = cells.sum((3, 5), dtype=np.uint8)
    counts.flags.writeable = False  # it is shared
    return counts


# Whether a shape of radius 1 contains a point (u to the right, v up): each has its centre of mass at 0, and none looks
# the same after a turn, so that no two combinations of factors give one image.


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Upright, with equal sides but a shorter base: corners (0, 1) and (+-0.7, -0.5)."""
    return (v >= -0.5) & (1.5 * np.abs(u) <= 0.7 * (1 - v))


def _half_disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The upper half of a disc; its centre of mass lies 4 / (3 pi) above its base."""
    v = v + 0.4244131815783876
    return (v >= 0) & (u * u + v * v <= 1)


def _angle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The letter L of three squares with sides of 0.7."""
    u, v = u / 0.7 + 5 / 6, v / 0.7 + 5 / 6
    return (np.minimum(u, v) >= 0) & (np.minimum(u, v) <= 1) & (np.maximum(u, v) <= 2)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The curve (u^2 + v^2 - 1)^3 = u^2 v^3; its centre of mass lies at v = 0.2935."""
    u, v = 1.25 * u, 1.25 * v + 0.2935
    a = u * u + v * v - 1
    return a * a * a <= u * u * v * v * v
