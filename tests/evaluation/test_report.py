import csv
import json

import pytest

from vlae.evaluation import evaluate
from vlae.evaluation.report import TOLERANCE, _csv, compare, print_table


@pytest.fixture
def result(tiny_vlae, binary):
    x = binary(6)
    return evaluate(tiny_vlae(), lambda: [(x, range(6))], nll_samples=3)


def expected(result, **changes):
    names = ("distortion", "rate", "negative_elbo", "nll")
    return {name: getattr(result, name) + changes.get(name, 0.0) for name in names}


def test_expected_numbers_pass_and_missed_ones_fail(result, capsys):
    assert compare(result, expected(result)) == 0
    assert compare(result, expected(result, nll=0.9 * TOLERANCE)) == 0
    assert "passed" in capsys.readouterr().out
    for name in expected(result):
        assert compare(result, expected(result, **{name: 1.1 * TOLERANCE})) == 1
        assert compare(result, expected(result, **{name: float("nan")})) == 1
    assert "FAILED" in capsys.readouterr().out


def test_table_and_csv_show_the_numbers(result, capsys):
    print_table(result, "a title")
    shown = capsys.readouterr().out
    for value in (result.distortion, result.rate, result.negative_elbo, result.nll):
        assert f"{value:.3f}" in shown
    rows = dict(csv.reader(_csv(result).splitlines()))
    assert float(rows["nll"]) == result.nll
    assert json.loads(json.dumps(result.to_dict()))["rate"] == result.rate
