"""Several processes that train or measure one model together: which one this is, and what they tell each other.

torchrun or Lightning start them, torch.distributed carries what they say. There is one *whole batch* in training, the
same for any number of processes. Each process has some of its rows, next to each other, and all draw the same noise,
that of the whole batch, and take their own rows of it; so the noise of an image does not depend on where it is. The
loss is that of the whole batch, computed by every process from the values of all images, and each process sends the
gradient through its own rows alone: the gradients of all processes add up to that of the whole batch, whatever function
of the batch the loss is and however many rows each one has.

With one process, and outside of `batch_of`, everything here hands back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from vlae.errors import VlaeError

T = TypeVar("T")

LONG = timedelta(days=1)  # how long one process may wait for another, which is noticed at once where it has ended

# Images in the whole batch, inside of `batch_of`. No context variable, since torch.compile can't read one.
_total: int | None = None


# -- who is who -------------------------------------------------------------------------------------------------------


def connected() -> bool:
    """Whether there are several processes that can talk to each other."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def index() -> int:
    """The number of this process among all, from 0."""
    return dist.get_rank() if connected() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if connected() else 1


def launched() -> int:
    """How many processes torchrun has started in all; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def per_machine() -> int:
    """How many of them it has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() > 1 else 1


def index_on_machine() -> int:
    """The number of this process among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def first() -> bool:
    """Whether this is the process that prints and writes, also before they can talk to each other.

    torchrun gives a RANK; what Lightning starts has a LOCAL_RANK on the machine of NODE_RANK.
    """
    if connected():
        return index() == 0
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def connect() -> None:
    """Lets the processes that torchrun started talk to each other on CPUs; Lightning does so itself for training."""
    if launched() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=LONG)


# -- the whole batch --------------------------------------------------------------------------------------------------


def rows(total: int, index: int, count: int) -> slice:
    """The rows of a batch of `total` that are those of process `index` of `count`: as many each as can be.

    Example:
        >>> [rows(7, index, 3) for index in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(total * index // count, total * (index + 1) // count)


@contextmanager
def batch_of(images: int | None) -> Iterator[None]:
    """Inside, each process computes with its own rows of one batch of so many images; None: all compute the same."""
    global _total
    before, _total = _total, images if connected() else None
    try:
        yield
    finally:
        _total = before


def total(own: int) -> int:
    """How many images the whole batch has, of which this process has `own`."""
    if _total is None:
        return own
    mine = rows(_total, index(), count())
    if own != mine.stop - mine.start:
        raise VlaeError(f"{own} rows where this process has {mine.stop - mine.start} of a batch of {_total}")
    return _total


def samples(many: int) -> int:
    """How many samples of each of its images this process has in so many rows of a batch; 1 if it is alone."""
    if _total is None:
        return 1
    mine = rows(_total, index(), count())
    images = mine.stop - mine.start
    if not images or many % images:
        raise VlaeError(f"{many} rows where this process has {images} images of a batch of {_total}")
    return many // images


def own(x: Tensor, dim: int = 0) -> Tensor:
    """The rows of this process of something that all have the same of, for the whole batch."""
    if _total is None:
        return x
    mine = rows(x.shape[dim], index(), count())
    return x.narrow(dim, mine.start, mine.stop - mine.start)


def whole(x: Tensor) -> Tensor:
    """The rows of all processes, [total, ...], of x [own, ...]. A gradient goes back through the own rows alone.

    For the end of the computation, where every process makes the same loss of it.
    """
    return x if _total is None else _Whole.apply(x, total(len(x)))


def summed(x: Tensor) -> Tensor:
    """The sum over processes, with the gradient of the sum: for what an image's own value is then made from."""
    return x if _total is None else _Sum.apply(x)


class _Whole(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, total: int) -> Tensor:
        parts = [rows(total, each, count()) for each in range(count())]
        sizes = [part.stop - part.start for part in parts]
        ctx.own = parts[index()]
        # All send as many rows, the most that anyone has: not every backend takes uneven ones.
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded)
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own], None


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        result = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result


# -- work that is dealt out -------------------------------------------------------------------------------------------


def mine(number: int) -> bool:
    """Whether piece of work `number`, from 0, is this process's: they are dealt out in turn."""
    return number % count() == index()


def in_turn(work: Callable[[], Sequence[T]]) -> list[T]:
    """What all processes made of their pieces of work, in the order of the pieces.

    Args:
        work: makes one thing of each piece that is `mine`.

    Raises:
        VlaeError: one of them did; it is then raised in all.
    """
    if not connected():
        return list(work())
    made: list[T] = []
    problem = None
    try:
        made = list(work())
    except VlaeError as error:
        problem = str(error)
    every: list[Any] = [None] * count()
    dist.all_gather_object(every, (made, problem))
    if problems := [text for _, text in every if text is not None]:
        raise VlaeError(problems[0])
    return [every[k % count()][0][k // count()] for k in range(sum(len(part) for part, _ in every))]


def after_first(work: Callable[[], T]) -> T:
    """What `work` gives, in the first process before all others: what it writes, they find.

    Raises:
        VlaeError: that of the first process is raised in all.
    """
    made: list[T] = []
    in_turn(lambda: made.append(work()) or [] if first() else [])  # type: ignore[func-returns-value]
    return made[0] if made else work()


def of_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, told to all; the others don't do it.

    Raises:
        VlaeError: that of the first process is raised in all.
    """
    return in_turn(lambda: [work()] if first() else [])[0] if connected() else work()


def wait() -> None:
    """Until all are here."""
    if connected():
        in_turn(lambda: [])


# -- how they end -----------------------------------------------------------------------------------------------------


def ended_elsewhere(error: BaseException) -> bool:
    """Whether this error is that another process has ended while this one waited for it."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    lost = isinstance(error, dist.DistError) or any(word in str(error) for word in words)
    return connected() and isinstance(error, RuntimeError) and lost


def first_to_fail() -> bool:
    """Whether no other process has said yet that it failed: that one's line is enough."""
    several = max(launched(), count()) > 1 or not first()
    if not several:
        return True
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=5),
        )
        return store.add(f"vlae/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (RuntimeError, KeyError, ValueError):  # the store is gone with the first process, which has said why
        return first()
