"""The lower half of digits, given the upper: a VLAE beside a PixelCNN without a latent code.

    python benchmarks/completion.py --model mnist-codec --baseline mnist-pixelcnn --plot completion.png

The upper half determines most digits, but what a PixelCNN knows of it is what its window sees. A classifier says which
digit came out, and whether it is the true one; the originals are its ceiling, a blank lower half its floor.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from codec import Page, choose_model, held_out
from lossy import mean_and_error
from torch import Tensor
from training import table

from vlae import VlaeError, cli, figures
from vlae.data import ImageDataset
from vlae.evaluation.classifier import Classifier, trained_classifier
from vlae.models import PixelCNN
from vlae.models.base import LatentVariableModel
from vlae.sampling import complete

AT_ONCE = 1024  # images times candidates
SURE = 0.9
DRAWN, SHOWN = 3, 10  # completions of so many images in the figure


@dataclass(frozen=True)
class Verdict:
    """What the classifier says of a set of images, image by image, [N] each: whether their label, and how surely."""

    right: Tensor
    confidence: Tensor

    @classmethod
    def of(cls, judge: Classifier, images: Tensor, labels: Tensor) -> Verdict:
        """Of images [N, C, H, W]."""
        found = judge.log_probabilities(images)
        return cls(found.argmax(1) == labels, found.amax(1).exp())

    def row(self, name: str) -> tuple[str, ...]:
        """(name, right, sure, right where sure) in per cent with standard errors."""
        sure = self.confidence > SURE
        both = percent(self.right[sure]) if sure.any() else ""
        return name, percent(self.right), percent(sure), both


def percent(values: Tensor) -> str:
    """The mean of [N] shares, in per cent, with its standard error."""
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f} ± {100 * error:.1f} %"


def upper_half(images: Tensor) -> Tensor:
    """Which pixels are given, bool [1, 1, H, 1]."""
    height = images.shape[2]
    return (torch.arange(height) < height // 2).view(1, 1, height, 1)


def with_latents(
    model: LatentVariableModel, images: Tensor, candidates: int, rounds: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Completions by `vlae.sampling.complete`, [N, C, H, W], and their effective candidates, [N]."""
    size, mask = max(1, AT_ONCE // candidates), upper_half(images)
    made, effective = [], []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        found = complete(model, part, mask, candidates, rounds, seed=(seed * 1_000_003 + start))
        made.append(found.images)
        effective.append(found.effective_candidates)
    return torch.cat(made), torch.cat(effective)


def without_latents(model: PixelCNN, images: Tensor, seed: int = 0) -> Tensor:
    """Completions by a PixelCNN, [N, C, H, W]: exact samples, since all given pixels come before the unknown ones."""
    mask, made = upper_half(images), []
    with model.evaluating(), torch.no_grad():
        for start in range(0, len(images), AT_ONCE):
            part = images[start : start + AT_ONCE]
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            made.append(model.distribution(len(part)).complete(part, mask, generator=generator)[0])
    return torch.cat(made)


def drawn(model: LatentVariableModel, baseline: PixelCNN, images: Tensor, candidates: int) -> dict[str, Tensor]:
    """The rows of the figure: what is given, and some completions by each model."""
    given = torch.where(upper_half(images), images, torch.full_like(images, 0.5))
    seeds = range(1, DRAWN + 1)
    return {
        "given": given,
        **{f"VLAE {seed}": with_latents(model, images, candidates, seed=seed)[0] for seed in seeds},
        **{f"PixelCNN {seed}": without_latents(baseline, images, seed) for seed in seeds},
    }


def run(
    model: LatentVariableModel,
    baseline: PixelCNN,
    dataset: ImageDataset,
    names: tuple[str, str],
    candidates: int,
    plot: Path | None,
    page: Page,
) -> None:
    """Measures, says and draws everything."""
    judge = trained_classifier(dataset.name, dataset.binarize)
    images, labels = dataset.tensor(), dataset.labels
    assert labels is not None  # or there would be no classifier
    page.say(f"VLAE: {names[0]}. PixelCNN: {names[1]}. Data: {dataset.protocol}.")
    completed, effective = with_latents(model, images, candidates)
    blank = torch.where(upper_half(images), images, torch.zeros_like(images))
    verdicts = {
        "originals (ceiling)": images,
        f"VLAE, {candidates} candidates": completed,
        "PixelCNN": without_latents(baseline, images),
        "lower half blank (floor)": blank,
    }
    said = {name: Verdict.of(judge, x, labels) for name, x in verdicts.items()}
    header = ("lower half", "true digit", f"confidence over {SURE:g}", "true digit among these")
    page.say(table(header, [verdict.row(name) for name, verdict in said.items()]))
    _, ours, theirs, _ = said.values()
    gain, error = mean_and_error(ours.right.double() - theirs.right.double())
    quartiles = effective.double().quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)).tolist()
    page.say(
        f"VLAE against PixelCNN on the same images: {100 * gain:+.1f} ± {100 * error:.1f} percentage points. "
        f"Effective candidates of {candidates}: mean {effective.mean():.1f}, median {quartiles[2]:.1f}, quartiles "
        f"{quartiles[1]:.1f} and {quartiles[3]:.1f}, least {quartiles[0]:.1f}. One completion per image and model; "
        "± is one standard error over images."
    )
    if plot is not None:
        rows = drawn(model, baseline, images[:SHOWN], candidates)
        figures.save(figures.recon_grid(images[:SHOWN], rows, "the lower half, given the upper"), plot)
        print(plot)


def main() -> int:
    parser = argparse.ArgumentParser(description="Completion of the lower half: VLAE and PixelCNN, by a classifier.")
    parser.add_argument("--model", default="mnist-codec", help="pretrained name, directory of a saved model, or a run")
    parser.add_argument("--baseline", required=True, help="a PixelCNN of the same data, likewise")
    parser.add_argument("--images", type=int, default=500, help="test images, the first so many")
    parser.add_argument("--candidates", type=int, default=64, help="z's per image and round")
    parser.add_argument("--plot", type=Path, help="PNG of some completions")
    parser.add_argument("--write", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    if options.images < 1 or options.candidates < 1:
        return cli.fail("--images and --candidates must be positive")
    page = Page()
    try:
        model, baseline = choose_model(options.model), choose_model(options.baseline)
        if not isinstance(baseline, PixelCNN) or baseline.image_shape != model.image_shape:
            return cli.fail(f"--baseline {options.baseline}: not a PixelCNN of images of the same shape")
        names = (options.model, options.baseline)
        run(model, baseline, held_out(model, options.images), names, options.candidates, options.plot, page)
        page.write(options.write)
    except VlaeError as error:
        return cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
