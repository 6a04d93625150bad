import argparse
import math
import sys
from pathlib import Path

import pytest
import torch

from vlae import VlaeError
from vlae.nn.cached import CachedPixelCNN

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import sampling
from sampling import Cell, Memory

TINY = {"layers": 1, "channels": 4}
CELLS = [Cell(side=side, batch=batch, **TINY) for side in (5, 6) for batch in (1, 2)]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """One call of each is enough."""
    monkeypatch.setattr(sampling, "SHORTEST", 0.0)


@pytest.mark.parametrize("slanted", [False, True])
def test_wavefront_and_obvious_loop_are_the_same(slanted):
    assert sampling.check_same(Cell(side=6, batch=2, slanted=slanted, **TINY)) < sampling.TOLERANCE


@pytest.mark.parametrize(("shift", "message"), [(0.001, "logits differ"), (100.0, "draw different pixels")])
def test_a_difference_is_noticed(monkeypatch, shift, message):
    parameters = CachedPixelCNN.parameters
    monkeypatch.setattr(CachedPixelCNN, "parameters", lambda *arguments: parameters(*arguments) + shift)
    with pytest.raises(VlaeError, match=message):
        sampling.check_same(CELLS[0])


def test_the_networks_depend_on_the_pixels():
    """Else the check would check nothing."""
    p = Cell(side=6).distribution()
    x = torch.zeros(1, 1, 6, 6)
    other = x.clone()
    other[:, :, 0, 0] = 1
    assert (p.network(x, p.context) - p.network(other, p.context)).abs().max() > 0.1


def test_ratios_are_finite_and_positive():
    for speed in sampling.measure(CELLS, rounds=2).values():
        assert len(speed.ratios) == 2
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in speed.ratios)
        assert speed.sample_seconds > 0 and speed.loop_seconds > 0 and speed.set_up_seconds > 0


def test_memory_of_a_process_of_its_own():
    peak = sampling.peak_of(Cell(side=32, batch=16, layers=1))
    assert peak.ours > 0 and peak.full_pass > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be forgotten on Linux only")
def test_peak_memory_counts_what_is_gone_again():
    torch.ones(2**25)  # 128 MiB, before
    sampling.forget_peak()
    before = sampling.peak_memory()
    torch.ones(2**24)  # 64 MiB
    assert 60 < sampling.peak_memory() - before < 80


def test_shares_of_the_profile_add_up():
    (speed,) = sampling.measure(CELLS[:1], rounds=1).values()
    profile = sampling.profile(speed)
    assert sum(profile.shares.values()) == pytest.approx(1)
    assert profile.shares.keys() <= {*sampling.GROUPS, sampling.OTHER, sampling.PYTHON}
    assert profile.calls > 10


def test_a_run_prints_writes_and_draws(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sampling, "cells_of", lambda quick: (CELLS[:2], CELLS))
    monkeypatch.setattr(sampling, "peak_of", lambda cell: Memory(1.0, 2.0))
    monkeypatch.setattr(sampling, "SIDE", 6)
    picture = tmp_path / "new" / "plot.png"
    options = argparse.Namespace(quick=False, exact=True, profile=True, rounds=1, plot=picture)
    text = sampling.run(options)
    assert text in capsys.readouterr().out.replace(f"plot: {picture}", "")
    assert "**Ratio" in text and "| 6x6 " in text and "run as a whole" in text and "tanh" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("seconds", "text"), [(2e-6, "2.0 µs"), (0.0342, "34 ms"), (1.5, "1.5 s"), (300, "5.0 min"), (8.2 * 3600, "8.2 h")]
)
def test_times_are_written_for_people(seconds, text):
    assert sampling.time_of(seconds) == text
