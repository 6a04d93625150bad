"""What a training says: to the console, to the run's log, and not twice."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlae.errors import VlaeError


class LogFile(logging.FileHandler):
    """A log whose lines may be lost on a full disk: the console has them, and what matters fails by itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Passes over the line, without the traceback that logging would print."""


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Copies this package's log lines to a file as well as to the console, and to the file alone what ends the block.

    That error the command prints.
    """
    handler = LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("vlae")
    package.addHandler(handler)
    try:
        yield
    except VlaeError as error:
        handler.emit(logging.makeLogRecord({"levelname": "ERROR", "msg": str(error)}))
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Lightning's hints about loaders, loggers and hardware out of the way."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    report = threading.excepthook

    def report_but_not_twice(args: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread has met a full disk: the training meets the same error, and prints it in one line.
        if not issubclass(args.exc_type, OSError):
            report(args)

    threading.excepthook = report_but_not_twice
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        threading.excepthook = report
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
