"""How alike the splits of a labelled data set are: the share of the test set's largest classes, and images in common.

python scripts/compare_splits.py caltech101_silhouettes
"""

from __future__ import annotations

import argparse
import sys

import torch

from vlae import VlaeError, cli, data
from vlae.data import ImageDataset

SPLITS = ("train", "validation", "test")
LARGEST = 4


def rows(splits: dict[str, ImageDataset], largest: int = LARGEST) -> list[str]:
    """One line for each split: images, those of its largest class, the share of the test set's largest classes in it,
    and how many test images are equal to one of its own.

    Raises:
        VlaeError: the images have no labels.
    """
    test = splits["test"]
    if any(each.labels is None for each in splits.values()):
        raise VlaeError(f"{test.name} has no labels: name a data set of classes")
    classes = torch.bincount(test.labels)
    common = classes.topk(min(largest, len(classes))).indices
    pixels = {name: [image.tobytes() for image in each.tensor().numpy()] for name, each in splits.items()}
    lines = []
    for name, each in splits.items():
        share = torch.isin(each.labels, common).double().mean()
        own = set(pixels[name])
        also = "" if name == "test" else f"; {sum(image in own for image in pixels['test'])} test images are among them"
        lines.append(
            f"{name}: {len(each):,} images, at most {int(torch.bincount(each.labels).max())} of a class; "
            f"{100 * share:.1f}% in the {len(common)} largest classes of the test set{also}"
        )
    return lines


def main() -> int:
    """The command; the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of a data set with labels")
    options = parser.parse_args()
    try:
        print("\n".join(rows({split: data.load(options.name, split) for split in SPLITS})))
    except VlaeError as error:
        return cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
