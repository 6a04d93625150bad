"""Images in: named data sets, anything of your own, and batches that resume bit for bit.

Example:
    >>> import vlae.data
    >>> digits = vlae.data.load("digits", split="test")
    >>> len(digits), digits.image_shape, digits.levels
    (300, (1, 8, 8), 17)
    >>> batches = vlae.data.Batches(digits, batch_size=128)
    >>> [len(batch.images) for batch in batches]
    [128, 128, 44]
"""

from vlae.data.batches import Batch, Batches
from vlae.data.datasets import ImageDataset
from vlae.data.loading import load, names

__all__ = ["Batch", "Batches", "ImageDataset", "load", "names"]
