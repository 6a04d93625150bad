"""Likelihoods that are kept in a file as they are measured, so that hours of them survive an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlae.errors import VlaeError
from vlae.files import write_text
from vlae.models.base import LatentVariableModel
from vlae.models.saving import fingerprint

MARK = "# vlae likelihoods 1: "


class KeptLikelihoods:
    """A CSV file with a line for every image that is done, after a comment that says what they are of.

    Lines are added, and are on the disk before the next images are measured. A last line that was cut off while it was
    written is dropped. Numbers are written so that they are read back to the last bit.

    Args:
        path: of the file, which need not exist.
        model: whose likelihoods.
        data: the data set's protocol, for people; what counts are the images themselves.
    """

    def __init__(self, path: Path, model: LatentVariableModel, data: str):
        self.path = path
        precision = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.about: dict[str, object] = {"model": fingerprint(model), "precision": precision, "data": data}

    def open(self, images: str, samples: Sequence[int], seed: int) -> dict[int, list[float]]:
        """What is there, by position; afterwards images can be added.

        Args:
            images: their `digest`.
            samples: the numbers of samples K, rising.
            seed: of the noise.

        Raises:
            VlaeError: the file is of another model, other images, other samples or another seed; or is none.
            OSError: it can't be read or written.
        """
        header = MARK + json.dumps({**self.about, "images": images, "samples": list(samples), "seed": seed})
        names = ["position", "elbo", *(f"{name}_{k}" for name in ("nll", "ess") for k in samples)]
        columns = f"{','.join(names)}\n"
        if not self.path.exists():
            write_text(self.path, f"{header}\n{columns}")
            return {}
        text = self.path.read_text(encoding="utf-8", errors="replace")
        there, _, rest = text.partition("\n")
        if reason := difference(there, header) or ("" if rest.startswith(columns) else "has other columns"):
            raise VlaeError(f"{self.path} {reason}: choose another file, or remove it")
        whole = text[: text.rindex("\n") + 1]
        if whole != text:
            write_text(self.path, whole)
        return dict(self.row(line, len(names)) for line in whole.splitlines()[2:])

    def row(self, line: str, columns: int) -> tuple[int, list[float]]:
        """One line's position and numbers."""
        try:
            position, *numbers = line.split(",")
            row = int(position), [float(number) for number in numbers]
        except ValueError:
            row = -1, []
        if len(row[1]) != columns - 1:
            raise VlaeError(f"{self.path} has a line that is none of vlae's, {line[:40]!r}: remove that line")
        return row

    def add(self, images: Mapping[int, Sequence[float]]) -> None:
        """Adds images by their positions; they are on the disk afterwards. Raises `OSError`, which names the file."""
        lines = [",".join([str(position), *map(repr, numbers)]) + "\n" for position, numbers in images.items()]
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.writelines(lines)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:  # a line that was begun is dropped when the file is read
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def difference(line: str, header: str) -> str:
    """What is wrong with a file whose first line is not as it should be, in words; "" where nothing is."""
    if not line.startswith(MARK):
        return "is not a file of likelihoods"
    try:
        there, wanted = (dict(json.loads(each.removeprefix(MARK))) for each in (line, header))
    except (ValueError, TypeError, RecursionError):
        return "is not a file of likelihoods"
    for name, value in wanted.items():
        if there.get(name) != value and name != "data":  # words for people, which a later version may choose otherwise
            found = " ".join(str(there.get(name)).split())[:80]
            return f"holds likelihoods that differ in {name} ({found}, here {value})"
    return ""
