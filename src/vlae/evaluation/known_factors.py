"""What the measures of disentanglement start from: codes, and the classes of the factors that vary, as arrays."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlae.errors import VlaeError

LARGEST = 1e100  # of a code: its squares and their sums stay finite
ROUNDING = 1e-6  # a dimension that varies by less than this share of its values shows float32's rounding


def codes_and_classes(codes: Tensor, factors: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Codes and factors, checked.

    Factors with one value among the images are left out: no code could tell of them. A dimension of the code that is
    constant but for float32's rounding becomes 0.

    Args:
        codes: floats or integers [N, D].
        factors: integers, or floats with integral values, [N, F].

    Returns:
        codes float64 [N, D]; int64 [N, varying factors], the classes of each factor numbered from 0 without gaps.

    Raises:
        VlaeError: other shapes; codes that are not finite, or beyond 1e100; factors that are no integers; fewer than
            two that vary; fewer images than twice the classes of a factor.

    Example:
        >>> z, v = codes_and_classes(torch.zeros(4, 2), torch.tensor([[5, 1, 7], [5, 2, 3], [5, 1, 7], [5, 2, 3]]))
        >>> v.T
        array([[0, 1, 0, 1],
               [1, 0, 1, 0]])
    """
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or not codes.numel():
        raise VlaeError(
            f"expected codes [N, D] and factors [N, F] of the same images; got {list(codes.shape)} and "
            f"{list(factors.shape)}"
        )
    z, v = (t.detach().cpu().to(torch.float64).numpy() for t in (codes, factors))
    if not (np.abs(z) <= LARGEST).all():
        raise VlaeError("the codes hold NaN, infinite or absurdly large values: there is nothing to measure")
    if not (np.isfinite(v).all() and (v == np.round(v)).all()):
        raise VlaeError("the factors must be classes, whole numbers: cut continuous ones into bins first")
    classes = np.stack([np.unique(column, return_inverse=True)[1] for column in v.T], 1) if v.size else v
    classes = classes[:, classes.max(0, initial=0) > 0].astype(np.int64)
    if classes.shape[1] < 2:
        raise VlaeError(
            f"disentanglement takes at least two factors that vary; {classes.shape[1]} of {v.shape[1]} do among these "
            f"{len(v)} images"
        )
    if len(classes) < 2 * (most := int(classes.max()) + 1):
        raise VlaeError(f"a factor has {most} classes in {len(classes)} images: give at least {2 * most} images")
    rounding = np.ptp(z, 0) <= ROUNDING * np.abs(z).max(0)
    return np.where(rounding, 0.0, z), classes
