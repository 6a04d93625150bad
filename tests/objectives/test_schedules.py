import pytest

from vlae import VlaeError
from vlae.objectives import Constant, Cyclical, Linear
from vlae.objectives.schedules import as_schedule


def test_constant_and_numbers():
    assert [Constant(3.0)(p) for p in (0.0, 0.5, 1.0)] == [3.0] * 3
    assert as_schedule(2)(0.7) == 2.0
    schedule = Linear(0.0, 1.0)
    assert as_schedule(schedule) is schedule


@pytest.mark.parametrize(
    ("progress", "value"), [(-0.1, 2.0), (0.0, 2.0), (0.2, 2.0), (0.3, 4.0), (0.4, 6.0), (0.6, 10.0), (1.0, 10.0)]
)
def test_linear_rises_between_its_ends_only(progress, value):
    assert Linear(2.0, 10.0, begin=0.2, finish=0.6)(progress) == pytest.approx(value)


def test_cycles():
    schedule = Cyclical(1.0, 3.0, cycles=4, rising=0.5)
    for cycle in range(4):
        values = [schedule((cycle + within) / 4) for within in (0.0, 0.25, 0.5, 0.75, 0.999)]
        assert values == pytest.approx([1.0, 2.0, 3.0, 3.0, 3.0])
    assert schedule(1.0) == 3.0  # training ends at the top, not at the start of a fifth cycle


@pytest.mark.parametrize("limits", [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_ramps_are_refused(limits):
    with pytest.raises(VlaeError, match="0 <= begin < finish <= 1"):
        Linear(0.0, 1.0, *limits)


@pytest.mark.parametrize("options", [{"cycles": 0}, {"cycles": 1.5}, {"rising": 0.0}, {"rising": 1.5}])
def test_impossible_cycles_are_refused(options):
    with pytest.raises(VlaeError, match=next(iter(options))):
        Cyclical(**options)
