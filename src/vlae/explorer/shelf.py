"""What the page offers: models, loaded when they are asked for, and the images that each can be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from vlae.data import ImageDataset, files, load, names, sources
from vlae.errors import VlaeError
from vlae.explorer.pictures import fit
from vlae.explorer.workbench import Workbench
from vlae.models.base import LatentVariableModel
from vlae.models.saving import CONFIG, pretrained_names, trained_on
from vlae.models.saving import load as load_model

MOST_IMAGES = 240  # of a set that the page can show
FIRST = "mnist-dynamic"  # of the models that come with the package
KEPT = 4  # models and strips in memory

# What the test split of a set is read from; one of the alternatives must be there, since the page downloads nothing.
# Sets that are not named here are made on the spot.
NEEDED: dict[str, list[list[sources.File]]] = {
    "mnist": [files.MNIST[2:]],
    "fashion_mnist": [files.FASHION_MNIST[2:]],
    "binarized_mnist": [[files.PACKED_FILE], files.AMAT_FILES],
    "omniglot": [[files.OMNIGLOT_BOX28], files.OMNIGLOT_ZIPS],
    "caltech101_silhouettes": [[files.CALTECH]],
    "cifar10": [files.CIFAR10[5:]],
    "dsprites": [[files.DSPRITES_FACTORIAL], [files.DSPRITES_FULL]],
}


@dataclass(frozen=True)
class Strip:
    """Test images as the model takes them.

    Attributes:
        images: [N, C, H, W].
        labels: int64 [N], or None.
        context: what a conditional model is told of each, or None: of these images nothing is known.
        note: what they are, in words.
    """

    images: Tensor
    labels: Tensor | None
    context: Tensor | None
    note: str


class Shelf:
    """The models and data sets of the page; only names that are on it can be asked for, never paths.

    Args:
        models: what to offer first, by name: models, or directories of saved ones.
        outputs: the directory of runs, whose saved models are offered too; None offers no runs.
        root: where data are looked for (see `vlae.data.load`).
        pretrained: whether to offer the models that come with the package.

    Runs come after what is given, the newest first, and then what comes with the package.
    """

    def __init__(
        self,
        models: Mapping[str, LatentVariableModel | Path] | None = None,
        outputs: Path | None = Path("outputs"),
        root: str | None = None,
        pretrained: bool = True,
    ):
        self._models: dict[str, LatentVariableModel | Path] = dict(models or {})
        self.root = root
        if outputs is not None:
            for path in sorted(outputs.glob(f"*/model/{CONFIG}"), key=lambda path: -path.stat().st_mtime):
                self._models.setdefault(path.parent.parent.as_posix(), path.parent)
        if pretrained:
            shipped = resources.files("vlae") / "pretrained"
            for name in sorted(pretrained_names(), key=lambda name: (name != FIRST, name)):
                self._models.setdefault(name, Path(str(shipped / name)))
        if not self._models:
            raise VlaeError("there is no model to explore: give one, or train one (vlae train --config digits)")
        self._benches: dict[str, Workbench] = {}
        self._strips: dict[tuple[str, str], Strip] = {}

    @property
    def names(self) -> list[str]:
        """The models, those that were given first."""
        return list(self._models)

    def bench(self, name: str) -> Workbench:
        """A model, ready to work with."""
        if name not in self._models:
            raise VlaeError(f"no model {name!r} here: choose one of {', '.join(self._models)}")
        if name not in self._benches:
            model = self._models[name]
            loaded = load_model(model) if isinstance(model, Path) else model
            _remember(self._benches, name, Workbench(loaded, name))
        return self._benches[name]

    def sets(self, name: str) -> list[dict[str, str | None]]:
        """The data sets for a model, its own first: name, and why it can't be shown (None where it can)."""
        own = self._own(name)
        first = [own["name"]] if own.get("name") else []
        others = [each for each in names() if each not in first and each != "folder"]
        return [{"name": each, "reason": self._missing(each, own)} for each in [*first, *others]]

    def strip(self, name: str, data: str) -> Strip:
        """The first test images of a data set, as images of the model.

        Raises:
            VlaeError: an unknown set, or one whose files are not there.
        """
        known = {entry["name"]: entry["reason"] for entry in self.sets(name)}
        if data not in known:
            raise VlaeError(f"no data set {data!r} here: choose one of {', '.join(map(str, known))}")
        if reason := known[data]:
            raise VlaeError(f"{data} can't be shown: {reason}")
        if (name, data) not in self._strips:
            _remember(self._strips, (name, data), self._strip(name, data))
        return self._strips[name, data]

    def _strip(self, name: str, data: str) -> Strip:
        own, model = self._own(name), self.bench(name).model
        mine = data == own.get("name")
        options = own.get("options") or {} if mine else {}
        dataset: ImageDataset = load(data, "test", root=self._root(own if mine else {}), **options)
        dataset = dataset.subset(min(MOST_IMAGES, len(dataset)))
        levels, same = model.likelihood.levels, dataset.image_shape == tuple(model.image_shape)
        if mine and own.get("binarize"):
            dataset = dataset.binarized(own["binarize"])
        fits = same and levels in (None, dataset.effective_levels)
        note = dataset.protocol
        if not fits:
            channels, height, width = model.image_shape
            kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
            values = {None: "", 2: ", black and white"}.get(levels, f", {levels} levels")
            note += f"; shown as this model takes them: {width}x{height}, {kind}{values}"
        context = None
        if model.condition is not None:
            try:
                context = model.context_of(dataset.labels, dataset.factors, data)
            except VlaeError:  # of another set, which knows nothing of the sort
                context = None
        return Strip(fit(dataset.tensor(), model), dataset.labels, context, note)

    def _own(self, name: str) -> dict[str, Any]:
        """What the model says of its own training data."""
        return trained_on(self.bench(name).model)

    def _root(self, own: Mapping[str, Any]) -> str | None:
        """Where the files are; a model's own place may be another machine's."""
        return self.root or (own["root"] if Path(own.get("root") or "").is_dir() and own.get("root") else None)

    def _missing(self, data: str, own: Mapping[str, Any]) -> str | None:
        """Why the test images of a set can't be shown, in words; None where its files are there."""
        mine = data == own.get("name")
        root = self._root(own if mine else {})
        try:
            if data == "folder":
                load("folder", "test", root=root, **own.get("options") or {})
                return None
            if data not in names():
                return "it was no set of vlae's"
            needed = NEEDED.get(data)
            if needed is None or any(all(sources.find(file, root) for file in every) for every in needed):
                return None
        except VlaeError as error:
            return str(error)
        looked = " or ".join(str(place / needed[0][0].folders[0]) for place in sources.places(root))
        return f"its files are not in {looked}"


def _remember(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Keeps the latest few."""
    while len(kept) >= KEPT:
        kept.pop(next(iter(kept)))
    kept[key] = value
