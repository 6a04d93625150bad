"""No network, no real cache, no checksums; and writers of small files in the original formats."""

import gzip
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlae.data import sources

REAL = os.environ.get("VLAE_DATA")


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """The cache is empty and no mirror answers."""

    def offline(file):
        raise OSError("no mirror answers")

    monkeypatch.delenv("VLAE_DATA", raising=False)
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources, "_download", offline)


@pytest.fixture
def real():
    """The folder of the real files."""
    if not REAL or not Path(REAL).is_dir():
        pytest.skip("needs the real data sets: set VLAE_DATA to their folder")
    return Path(REAL)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder for small files in the original formats, whose checksums can't be the published ones."""
    monkeypatch.setattr(sources, "_CHECK", False)
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def write_idx():
    def write(path, array):
        path.parent.mkdir(parents=True, exist_ok=True)
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        path.write_bytes(gzip.compress(header + array.tobytes()))

    return write


@pytest.fixture
def write_png():
    def write(path, array):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    return write


@pytest.fixture
def write_png_zip():
    def write(path, images):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name, image in images.items():
                png = io.BytesIO()
                image.save(png, "PNG")
                archive.writestr(name, png.getvalue())

    return write


@pytest.fixture
def rng():
    return np.random.default_rng(0)
