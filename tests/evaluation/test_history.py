"""What `doctor` reads of a run's files."""

import math

import pytest

from vlae.errors import VlaeError
from vlae.evaluation.history import History, make_objective, read_history, read_rows
from vlae.objectives import ELBO, Capacity


def row(epoch, distortion, rate=10.0, stage="train"):
    return {"epoch": float(epoch), f"{stage}/distortion": distortion, f"{stage}/rate": rate}


def test_each_bound_has_its_epoch():
    rows = [{"epoch": 1.0}, row(2, 5.0), row(2, 7.0, stage="validation"), {"epoch": 3.0}, row(4, 6.0, 2.0)]
    history = History({}, rows=rows)
    assert history.negative_elbos("train") == [(2, 15.0), (4, 8.0)]
    assert history.negative_elbos("validation") == [(2, 17.0)]


def test_rises_are_of_what_was_minimised():
    rows = [row(1, 100.0, 1.0), row(2, 90.0, 5.0), row(3, 92.0, 2.0)]
    settings = {"trainer": {"max_epochs": 3}}
    assert History(settings, ELBO(beta=4.0), rows).rises("train") == [-10 + 16, 2 - 12]
    # Free bits let the rate rise on purpose: the distortion has to rise as well.
    assert History(settings, ELBO(free_nats=8.0), rows).rises("train") == [-10, -1]
    assert History(settings, Capacity(), rows).rises("train") == [-10, -1]


def test_rises_pass_over_epochs_that_are_no_numbers():
    rows = [row(1, 100.0), row(2, math.nan), row(3, 104.0), row(4, math.inf), row(5, 101.0)]
    assert History({}, ELBO(), rows).rises("train") == [4, -3]


def test_what_is_not_as_training_wrote_it_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,x\n1,hello\n")
    with pytest.raises(VlaeError, match="something else than numbers"):
        read_rows(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("x\n1\n")
    with pytest.raises(VlaeError, match="without an epoch"):
        read_rows(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("epoch,x,y\n1,2,\n")
    assert read_rows(tmp_path / "metrics.csv") == [{"epoch": 1.0, "x": 2.0}]  # what an epoch did not log
    (tmp_path / "config.yaml").write_text("[")
    with pytest.raises(VlaeError, match="can't be read"):
        read_history(tmp_path)
    assert make_objective({"objective": {"class_path": "vlae.models.VAE"}}) is None and make_objective({}) is None
