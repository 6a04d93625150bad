"""A small image classifier, trained here and kept in the cache: a judge of samples that needs no download."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.data import Batches, ImageDataset, load
from vlae.data.sources import Root, cache_dir
from vlae.errors import VlaeError
from vlae.files import replacing, write_text

logger = logging.getLogger("vlae.evaluation")

VERSION = 1  # of the network and its training: a new one asks for new files in the cache
WIDTHS, FEATURES, DROPOUT = (16, 32, 64), 128, 0.3
BATCH, STEPS, EPOCHS, LR = 128, 4000, (5, 30), 5e-3  # about so many steps, in 5 to 30 epochs
CHUNK = 500  # images judged at a time: memory, not the result


class Classifier(nn.Module):
    """p(class | x) for images x [B, *image_shape] in [0, 1]: three convolutions, one hidden layer.

    Args:
        image_shape: (C, H, W), any size.
        classes: how many there are, numbered from 0.

    Attributes:
        test_accuracy: the share of the data set's test images that it gets right, 0 to 1.

    Example:
        >>> judge = Classifier((1, 8, 8), classes=10).eval()
        >>> judge.predict(torch.zeros(3, 1, 8, 8)).shape, judge.features(torch.zeros(3, 1, 8, 8)).shape
        (torch.Size([3]), torch.Size([3, 128]))
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.image_shape, self.classes = image_shape, classes
        self.test_accuracy = float("nan")
        layers: list[nn.Module] = []
        channels, height, width = image_shape
        for maps in WIDTHS:
            # Rounded up, so that images of any size have something left after the last stage.
            layers += [nn.Conv2d(channels, maps, 3, padding=1, bias=False), nn.MaxPool2d(2, ceil_mode=True)]
            layers += [nn.BatchNorm2d(maps), nn.ReLU()]
            channels, height, width = maps, -(-height // 2), -(-width // 2)
        hidden = nn.Linear(channels * height * width, FEATURES)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(DROPOUT), hidden, nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(FEATURES, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, classes], with gradients."""
        return self.head(self.body(x))

    def features(self, x: Tensor) -> Tensor:
        """The hidden layer, [B, 128]: what the Frechet distance is taken on."""
        return self._in_chunks(self.body, x)

    def log_probabilities(self, x: Tensor) -> Tensor:
        """log p(class | x) in nats, [B, classes]."""
        return self._in_chunks(lambda part: self(part).log_softmax(1), x)

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class, int64 [B]."""
        return self.log_probabilities(x).argmax(1)

    def confidence(self, x: Tensor) -> Tensor:
        """The probability of the most probable class, [B]."""
        return self.log_probabilities(x).amax(1).exp()

    @torch.no_grad()
    def _in_chunks(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function` of all images, a few at a time, in this network's own precision."""
        if x.ndim != 4 or tuple(x.shape[1:]) != tuple(self.image_shape):
            expected = ", ".join(map(str, self.image_shape))
            raise VlaeError(f"the classifier expects images of shape [B, {expected}]; got {list(x.shape)}")
        like = next(self.parameters())
        return torch.cat([function(part.to(like)) for part in x.split(CHUNK)])


def trained_classifier(
    name: str, binarize: str | None = None, cache: str | Path | None = None, seed: int = 0, root: Root = None
) -> Classifier:
    """The classifier of a labelled data set, in eval mode: from the cache, else trained on the training split.

    Args:
        name: of the data set, as in `vlae.data.load`.
        binarize: as there. Judge binary samples by a classifier of binary images.
        cache: the directory that it is kept in; by default `classifiers` in the user's cache, `~/.cache/vlae`.
        seed: of its initial weights and its training.
        root: where the data are.

    Returns:
        The same classifier for the same arguments, on one machine.

    Raises:
        VlaeError: the set has no labels, or tests on other classes than it trains on.
    """
    training, test = (load(name, split, root=root, binarize=binarize) for split in ("train", "test"))
    classes = count_classes(training, test)
    key = "-".join([name, binarize or "grey", "x".join(map(str, training.image_shape)), f"seed{seed}", f"v{VERSION}"])
    path = Path(cache or cache_dir() / "classifiers") / f"{key}.safetensors"
    if path.exists():
        try:
            return read(path, training.image_shape, classes)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:120]
            logger.warning(f"the classifier {path} is damaged ({reason}): training it again")
    logger.info(f"training a classifier on {training.protocol}; once, for some minutes, to be kept in {path.parent}")
    classifier = train(training, classes, seed)
    classifier.test_accuracy = accuracy(classifier, test)
    logger.info(f"the classifier's accuracy on {test.protocol}: {classifier.test_accuracy:.2%}")
    try:
        write(classifier, path)
    except OSError as error:  # it serves this once
        logger.warning(f"the classifier can't be kept in {path.parent} ({error.strerror or error})")
    return classifier


def count_classes(training: ImageDataset, test: ImageDataset) -> int:
    """How many classes there are; refuses sets without labels, and classes that are not trained on."""
    if training.labels is None or test.labels is None:
        raise VlaeError(f"{training.name} has no labels to train a classifier on; choose a labelled set, such as mnist")
    unknown = set(test.labels.tolist()) - set(training.labels.tolist())
    if unknown:
        raise VlaeError(f"{training.name}: {len(unknown)} of its test classes have no training images to learn from")
    return int(training.labels.max()) + 1


def accuracy(classifier: Classifier, dataset: ImageDataset) -> float:
    """The share of a labelled set's images that the classifier gets right, 0 to 1."""
    assert dataset.labels is not None
    return (classifier.predict(dataset.tensor()) == dataset.labels).double().mean().item()


def train(training: ImageDataset, classes: int, seed: int = 0) -> Classifier:
    """A classifier trained on these images, a function of them and the seed; its test accuracy is not known yet."""
    batches = Batches(training, min(BATCH, len(training)), shuffle=True, seed=seed, drop_last=True)
    fewest, most = EPOCHS
    epochs = max(fewest, min(most, STEPS // len(batches)))
    reach = min(2, min(training.image_shape[1:]) // 8)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        classifier = in_layout(Classifier(training.image_shape, classes), torch.channels_last)  # twice as fast
        optimizer = torch.optim.AdamW(classifier.parameters(), LR, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, epochs * len(batches))
        for _ in range(epochs):
            for batch in batches:
                logits = classifier(shifted(batch.images, reach).contiguous(memory_format=torch.channels_last))
                optimizer.zero_grad()
                assert batch.labels is not None
                F.cross_entropy(logits, batch.labels).backward()
                optimizer.step()
                schedule.step()
    # The layout picks the kernels: as it will be read from the cache, so that its answers are the same bits then.
    return in_layout(classifier, torch.contiguous_format).eval()


def in_layout(classifier: Classifier, layout: torch.memory_format) -> Classifier:
    """The classifier with its weights in another memory layout."""
    return classifier.to(memory_format=layout)  # type: ignore[call-overload]


def shifted(x: Tensor, reach: int) -> Tensor:
    """Images [B, C, H, W], each moved by up to `reach` pixels each way; zeros enter at the border."""
    *_, height, width = x.shape
    rows, columns = torch.randint(2 * reach + 1, (2, len(x)))
    windows = F.pad(x, [reach] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x)), :, rows, columns]


def write(classifier: Classifier, path: Path) -> None:
    """Writes the weights to `path`, and beside them, with their checksum, what is known of the classifier."""
    weights = safetensors.torch.save({k: v.contiguous() for k, v in classifier.state_dict().items()})
    about = {"test_accuracy": classifier.test_accuracy, "sha256": hashlib.sha256(weights).hexdigest()}
    with replacing(path) as temporary:
        temporary.write_bytes(weights)
    write_text(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")


def read(path: Path, image_shape: tuple[int, int, int], classes: int) -> Classifier:
    """The classifier that `write` put there; any of many errors where the files are not what it wrote."""
    weights, about = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    if hashlib.sha256(weights).hexdigest() != about["sha256"]:
        raise ValueError("its checksum differs")
    classifier = Classifier(image_shape, classes)
    classifier.load_state_dict(safetensors.torch.load(weights))
    classifier.test_accuracy = float(about["test_accuracy"])
    return classifier.eval()
