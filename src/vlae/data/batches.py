"""Batches cut from a set in memory: fast, seeded, and resumed bit for bit."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vlae.data.datasets import ImageDataset
from vlae.data.seeds import Stream, generator
from vlae.errors import VlaeError
from vlae.processes import rows


class Batch(NamedTuple):
    """Some images of a set.

    Attributes:
        images: floats [B, C, H, W] in [0, 1].
        labels: int64 [B], or None.
        indices: int64 [B], positions in the data set.
        factors: ground-truth factors [B, F], or None.
        total: images in the batch of all processes, of which these are a share; None where there is one process.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor
    factors: Tensor | None = None
    total: int | None = None


class Batches:
    """An iterable over the batches of one epoch after another.

    Order, crops and dynamic draws are a pure function of (seed, epoch, batch number), so `state_dict` needs two
    numbers. Each iteration is one epoch from its start; a full one moves on to the next epoch, an abandoned one does
    not. The first iteration after `load_state_dict` serves what was left.

    Args:
        dataset: the images.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        shuffle: a new order in every epoch, else the set's own.
        seed: of everything random.
        drop_last: leave out a last batch that is smaller.
        device: where images are converted, binarised and handed out; they travel there as uint8.
        share: (index, count): hand out only the rows of process `index` of `count` of each batch. Together they are the
            batch that one process would have, draws and all.

    Raises:
        VlaeError: `batch_size` is not positive, leaves no batch at all, or leaves a process without an image.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise VlaeError(f"batch_size={batch_size}: expected at least 1")
        if drop_last and len(dataset) < batch_size:
            raise VlaeError(f"no batch of {batch_size} in {len(dataset)} images; use drop_last=False")
        last = batch_size if drop_last else len(dataset) % batch_size or batch_size
        if min(batch_size, last) < share[1]:
            raise VlaeError(
                f"{min(batch_size, last)} images in a batch for {share[1]} processes, which need one each: "
                "data.batch_size is that of all of them together"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.device = torch.device(device)
        self.share = share
        self.epoch = 0
        self._served = 0  # batches of this epoch that were handed out
        self._skip = 0  # how many of them the next iteration leaves out: only after load_state_dict

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch; the present one keeps its place in it."""
        if epoch != self.epoch:
            self.epoch, self._served, self._skip = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been handed out."""
        return {"epoch": self.epoch, "served": self._served}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken, given the same data, batch size and seed."""
        epoch, served = state["epoch"], state["served"]
        if not 0 <= served < len(self):
            raise VlaeError(f"{served} batches served of {len(self)}: the state is of other data or batch size")
        self.epoch, self._served, self._skip = epoch, served, served

    def __iter__(self) -> Iterator[Batch]:
        epoch, first, self._skip = self.epoch, self._skip, 0
        pixels = self.dataset.epoch_images(self.seed, epoch)
        count = len(self.dataset)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=generator(Stream.ORDER, self.seed, epoch))
        for number in range(first, len(self)):
            batch = self._cut(pixels, order[number * self.batch_size :][: self.batch_size], epoch, number)
            # The epoch turns with its last batch, not after it: a caller that counts batches never asks for more.
            last = number + 1 == len(self)
            self.epoch, self._served = (epoch + 1, 0) if last else (epoch, number + 1)
            yield batch

    def _cut(self, pixels: Tensor, indices: Tensor, epoch: int, number: int) -> Batch:
        labels, factors = self.dataset.labels, self.dataset.factors
        noise = generator(Stream.VISIT, self.seed, epoch, number, device=self.device)
        images = self.dataset.to_float(pixels.index_select(0, indices).to(self.device), noise)
        # The draw is the whole batch's, so that it is the same for any number of processes.
        total, mine = len(indices), rows(len(indices), *self.share)
        images, indices = images[mine], indices[mine]
        return Batch(
            images=images,
            labels=None if labels is None else labels[indices].to(self.device),
            indices=indices.to(self.device),
            factors=None if factors is None else factors[indices].to(self.device),
            total=None if self.share[1] == 1 else total,
        )
