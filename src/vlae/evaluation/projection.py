"""Codes in a plane: two of their dimensions, principal components, or UMAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlae.data import ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation.codes import (
    check_bound,
    check_dimensions,
    code_bits,
    code_means,
    dimension_names,
    has_closed_rate,
    largest,
    with_bits,
)
from vlae.models.base import LatentVariableModel

KINDS = ("first", "informative", "pca", "umap")
DRAWS = 16  # of z per image, for rates without a closed form


@dataclass(frozen=True)
class Projection:
    """Codes in a plane.

    Attributes:
        points: float64 [N, 2].
        axes: what the two coordinates are.
        about: how they were chosen, in words.
    """

    points: Tensor
    axes: tuple[str, str]
    about: str


def project(
    model: LatentVariableModel,
    dataset: ImageDataset,
    kind: str | None = None,
    dimensions: Sequence[int] | None = None,
    space: str = "latent",
    seed: int = 0,
) -> Projection:
    """The posterior means of a data set's images in a plane.

    Args:
        model: with a code of two dimensions or more.
        dataset: images of its shape and levels.
        kind: "first" (two dimensions), "informative" (the two of the largest rate), "pca" or "umap"; None takes the
            most informative ones where there is a rate of single dimensions, else principal components.
        dimensions: or these two.
        space: "latent" or "noise".
        seed: of sampled rates and of UMAP.

    Raises:
        VlaeError: the model has no code, one of a single dimension, or none of that kind.
    """
    if kind is not None and kind not in KINDS:
        raise VlaeError(f"the projection must be one of {', '.join(KINDS)}; got {kind!r}")
    if kind is not None and dimensions is not None:
        raise VlaeError(f"give the projection {kind!r} or the dimensions {', '.join(map(str, dimensions))}, not both")
    means = code_means(model, dataset, space)
    if means.shape[1] < 2:
        raise VlaeError("z has one dimension, which makes no plane: vlae viz aggregate-posterior draws it")
    if kind is None and dimensions is None:
        kind = "informative" if model.has_bound and not model.discrete else "pca"
    if kind == "pca":
        return by_pca(means)
    if kind == "umap":
        return by_umap(means, seed)
    if model.discrete:
        raise VlaeError(f"the codes of a {type(model).__name__} are numbers in no order: take --projection pca or umap")
    if kind == "informative":
        check_bound(model)
    bits = code_bits(model, dataset, 1 if has_closed_rate(model) else DRAWS, seed) if model.has_bound else None
    names = dimension_names(model, space)
    if dimensions is not None:
        about = "two dimensions as asked for"
        dimensions = check_dimensions(dimensions, len(names))
    elif kind == "informative":
        assert bits is not None
        dimensions = largest(bits, 2)
        both, total = bits.mean(0)[dimensions].sum(), bits.sum(1).mean()
        about = f"the two dimensions of the largest rate ({both:.1f} of {total:.1f} bits)"
    else:
        dimensions, about = [0, 1], f"the first two of {len(names)} dimensions"
    return by_dimensions(means, dimensions, [with_bits(names[d], bits, d) for d in dimensions], about)


def principal_components(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The first two principal components of codes [N, D], [N, 2], and the share of the variance of each, [2].

    The sign of each is such that its largest loading is positive, so that the picture is the same everywhere.
    """
    _check(codes, 2)
    centred = codes.double() - codes.double().mean(0)
    _, spread, loadings = torch.linalg.svd(centred, full_matrices=False)
    variance = spread.square()
    total = variance.sum()
    if not total > 0:
        raise VlaeError("all codes are the same: they have no principal components")
    axes = loadings[:2]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return centred @ axes.T, variance[:2] / total


def by_pca(codes: Tensor) -> Projection:
    """Codes [N, D] along their first two principal components."""
    points, shares = principal_components(codes)
    first, second = (
        f"{which} principal component ({share:.0%} of the variance)"
        for which, share in zip(("first", "second"), shares.tolist(), strict=True)
    )
    return Projection(
        points, (first, second), f"PCA of {codes.shape[1]} dimensions: {shares.sum():.0%} of the variance"
    )


def by_umap(codes: Tensor, seed: int = 0) -> Projection:
    """Codes [N, D] by UMAP (McInnes et al. 2018, arXiv 1802.03426), which keeps neighbours and not distances.

    Raises:
        VlaeError: umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise VlaeError(f"UMAP is not there ({error}): pip install 'vlae[umap]', or take --projection pca") from None
    _check(codes, 4)
    # With a seed it runs on one thread, and gives the same picture each time.
    made = UMAP(n_neighbors=min(15, len(codes) - 1), random_state=seed, n_jobs=1).fit_transform(codes.numpy())
    names = ("UMAP, first coordinate", "UMAP, second coordinate")
    about = f"UMAP of {codes.shape[1]} dimensions: neighbours are kept, distances are not"
    return Projection(torch.as_tensor(made).double(), names, about)


def by_dimensions(codes: Tensor, dimensions: Sequence[int], names: Sequence[str], about: str) -> Projection:
    """Two dimensions of codes [N, D] as they are; `names` are those of the two."""
    if len(dimensions) != 2:
        raise VlaeError(f"a scatter is of two dimensions; got {len(dimensions)}")
    first, second = names
    return Projection(codes[:, list(dimensions)], (first, second), about)


def _check(codes: Tensor, least: int) -> None:
    if codes.ndim != 2 or len(codes) < least or codes.shape[1] < 2:
        raise VlaeError(f"expected codes of two dimensions or more, of {least} images or more; got {list(codes.shape)}")
    if not codes.isfinite().all():
        raise VlaeError("the codes hold NaN or infinite values: there is nothing to draw")
