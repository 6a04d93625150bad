"""`load`: a data set by its name."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlae.data import sets, sources
from vlae.data.datasets import ImageDataset, check_binarize, check_split
from vlae.data.dsprites import dsprites
from vlae.data.folder import directory_of, folder
from vlae.data.omniglot import omniglot
from vlae.data.sprites import sprites
from vlae.errors import VlaeError

_SETS: dict[str, Callable[..., ImageDataset]] = {
    "digits": sets.digits,
    "mnist": sets.mnist,
    "fashion_mnist": sets.fashion_mnist,
    "binarized_mnist": sets.binarized_mnist,
    "omniglot": omniglot,
    "caltech101_silhouettes": sets.caltech101_silhouettes,
    "cifar10": sets.cifar10,
    "dsprites": dsprites,
    "sprites": sprites,
    "folder": folder,
}


def names() -> list[str]:
    """The names that `load` knows."""
    return list(_SETS)


def load(
    name: str,
    split: str = "train",
    root: str | Path | None = None,
    binarize: str | None = None,
    **options: Any,
) -> ImageDataset:
    """A data set by its name, in its published split.

    Args:
        name: one of `names()`.
        split: "train", "validation", "test" or "train+validation".
        root: where its files are; by default `$VLAE_DATA`. Files found neither there nor in the cache are downloaded
            into the cache.
        binarize: None, "static" (one fixed draw), "dynamic" (a new draw at each visit in training splits, the fixed
            one in the others) or "threshold" (x >= 0.5).
        **options: of the set: `size` of mnist and fashion_mnist; `variant` of omniglot; `variant` and `whole` of
            dsprites; `size` and `whole` of sprites; `path`, `size`, `crop`, `mode`, `crops_per_epoch` of folder.

    Raises:
        VlaeError: an unknown name, split or option; files missing or broken; or the set is already binary.

    Example:
        >>> load("digits", binarize="dynamic").protocol
        'digits, train: 1197 images, dynamic binarisation, a new draw at each visit'
    """
    split = check_request(name, split, binarize, options)
    sources.places(root)
    read = _SETS[name]
    first, *others = [read(part, root, **options).binarized(binarize) for part in split.split("+")]
    for other in others:
        first = first.join(other)
    first.options = options
    if name == "folder":  # wherever it was looked for: by this directory one knows it again
        first.options = {**options, "path": str(directory_of(options["path"], root))}
    return first


def check_request(name: str, split: str, binarize: str | None, options: Mapping[str, Any]) -> str:
    """Refuses what `load` would, as far as no file is read; returns the split by its full name."""
    if name not in _SETS:
        raise VlaeError(f"no data set {name!r}; expected one of {', '.join(_SETS)}")
    split = check_split(split)
    check_binarize(binarize)
    known = [p.name for p in inspect.signature(_SETS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = ", ".join(sorted(options.keys() - set(known)))
    if unknown:
        raise VlaeError(f"{name} has no option {unknown}; expected {', '.join(known) or 'none'}")
    if options.get("whole") and "+" in split:
        raise VlaeError(f"{name}: whole=True gives all images in every split; give one, not {split!r}")
    return split
