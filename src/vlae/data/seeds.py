"""Randomness without hidden state: every draw has a key, and the key alone decides it."""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for: the first number of its key, so that no two uses share a key."""

    ORDER = 1  # permutation of an epoch
    VISIT = 2  # dynamic binarisation of one batch
    CROPS = 3  # crops of an epoch
    STATIC = 4  # the one fixed binarisation of a split
    FIXED_CROPS = 5  # the one fixed set of crops of a split
    SPLIT = 6  # which images are held out, where a set comes without official splits


def generator(stream: Stream, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device` that is a pure function of `(stream, *key)`.

    The key is mixed by `numpy.random.SeedSequence`, whose output is the same on every platform and version.
    """
    words = [int(stream), *(number % 2**64 for number in key)]
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)
