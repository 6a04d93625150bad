"""What a budget means: images, epochs, and what fits into a duration."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlae import VlaeError
from vlae.experiments.plan import Load, Timing, chosen, duration, images_within, makespan, with_budget

MNIST = Load(available=50_000, validation=10_000, epochs=12, batch=64)


@pytest.mark.parametrize(
    ("images", "each", "epochs", "shown"),
    [
        (6_000, 6_000, 1, 93 * 64),  # the last batch is not full
        (49_999, 49_999, 1, 781 * 64),
        (50_000, 50_000, 1, 781 * 64),
        (120_000, 50_000, 2, 2 * 781 * 64),
        (10, 10, 1, 10),  # less than a batch is one batch
        (None, 50_000, 12, 12 * 781 * 64),
    ],
)
def test_images_become_a_limit_or_epochs(images, each, epochs, shown):
    assert MNIST.budgeted(images) == (each, epochs)
    assert MNIST.shown(images) == shown
    base = {"data": {"name": "mnist"}, "trainer": {"max_epochs": 12, "precision": "auto"}, "seed": 3}
    config = with_budget(base, MNIST, images)
    assert config["seed"] == 3 and config["trainer"]["precision"] == "auto"
    assert config["data"].get("limit") == (each if each < 50_000 else None)
    assert config["trainer"]["max_epochs"] == epochs
    assert base == {"data": {"name": "mnist"}, "trainer": {"max_epochs": 12, "precision": "auto"}, "seed": 3}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20m", 1200),
        ("2h", 7200),
        ("90s", 90),
        ("1h30m", 5400),
        ("0.5h", 1800),
        ("hour", None),
        ("20", None),
        ("", None),
    ],
)
def test_durations(text, seconds):
    assert duration(text) == seconds


def test_budgets_by_name_and_number():
    budgets = {"minutes": 6000, "full": None}
    assert chosen(budgets, "minutes") == 6000
    assert chosen(budgets, "full") is None
    assert chosen(budgets, "128") == 128
    with pytest.raises(VlaeError, match="choose one of minutes, full"):
        chosen(budgets, "hours")


def test_a_duration_gives_all_cells_the_images_that_fit():
    timings = {"a": Timing(start=10, image=0.01, evaluation=20), "b": Timing(start=10, image=0.03, evaluation=20)}
    loads = dict.fromkeys(timings, Load(50_000, 0, 12, 64))
    # 0.9 of 1000 s, less 60 s that don't depend on the images, at 0.04 s for an image of both
    assert images_within(1000, timings, loads) == (900 - 60) / 0.04
    # with two workers: at most half of all and half of the longest
    n = images_within(1000, timings, loads, workers=2)
    assert 30 + 0.02 * n + (30 + 0.03 * n) / 2 == pytest.approx(900, abs=0.04)


def test_validation_and_cells_that_are_not_trained_cost_as_well():
    load = Load(1_000, validation=200, epochs=50, batch=10)
    assert load.work(500) == 500 + 100
    assert load.work(3_000) == 3 * (1_000 + 100)
    timings = {"trained": Timing(0, 0.1, 0), "given": Timing(0, 0, 100)}
    n = images_within(300 / 0.9, timings, {"trained": load})
    assert n == 1_999  # one epoch of work 1,100 fits into 200 s, two do not


def test_more_time_than_the_configurations_need_changes_nothing_in_them():
    assert images_within(1e9, {"a": Timing(1, 0.01, 1)}, {"a": MNIST}) is None
    assert images_within(100, {"given": Timing(1, 0, 1)}, {}) is None


def test_too_short_a_duration_is_refused():
    with pytest.raises(VlaeError, match="longer budget"):
        images_within(30, {"a": Timing(20, 0.01, 20)}, {"a": MNIST})
    with pytest.raises(VlaeError, match="longer budget"):
        images_within(-5, {"given": Timing(1, 0, 1)}, {})


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 4))
def test_no_order_takes_longer_than_the_makespan(seconds, workers):
    worst = 0
    for order in itertools.permutations(seconds) if len(seconds) < 6 else [seconds, sorted(seconds)]:
        free = [0] * workers
        for length in order:  # the next cell goes to the first free worker
            free[free.index(min(free))] += length
        worst = max(worst, *free)
    assert worst <= makespan(seconds, workers) + 1e-9
    assert makespan(seconds, 1) == sum(seconds)
