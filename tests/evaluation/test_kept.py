"""The file of likelihoods: any bytes in it are likelihoods of these images, or are refused in one line."""

import json

import pytest

from vlae import VlaeError
from vlae.evaluation import KeptLikelihoods
from vlae.evaluation.kept import MARK


@pytest.fixture
def kept(tmp_path, tiny_vae):
    return KeptLikelihoods(tmp_path / "nll.csv", tiny_vae(), "digits")


IMAGES = {k: [-20.5 - k, 20.1, 20.0625, 1.0, 1.5] for k in (3, 0, 2)}


def filled(kept):
    """The bytes of a file with three images."""
    kept.open("these", [1, 2], 0)
    kept.add(IMAGES)
    return kept.path.read_bytes()


def refused(kept, data):
    kept.path.write_bytes(data)
    with pytest.raises(VlaeError) as caught:
        kept.open("these", [1, 2], 0)
    assert str(kept.path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert kept.path.read_bytes() == data
    return str(caught.value)


def test_what_is_added_is_read(kept):
    filled(kept)
    assert kept.open("these", [1, 2], 0) == IMAGES


def test_any_cut_loses_the_last_lines_alone(kept):
    data = filled(kept)
    start = data.index(b"3,")
    for end in range(start, len(data)):
        kept.path.write_bytes(data[:end])
        assert list(kept.open("these", [1, 2], 0)) == [3, 0, 2][: data[start:end].count(b"\n")]
        kept.add({3: IMAGES[3]})
        assert kept.open("these", [1, 2], 0)[3] == IMAGES[3]


@pytest.mark.parametrize("position", ["nan", "inf", "", "1.5", "1e300", "-0.5"])
def test_positions_that_are_none_are_refused(kept, position):
    assert "remove that line" in refused(kept, filled(kept).replace(b"\n0,", f"\n{position},".encode()))


@pytest.mark.parametrize("about", ["[1]", "7", '"x"', "null", "[" * 20_000, "{", '{"model": "' + "a\\n" * 5000 + '"}'])
def test_headers_that_are_none_are_refused(kept, about):
    assert "choose another file" in refused(kept, f"{MARK}{about}\n".encode())


def test_any_damage(kept, mutations):
    data = filled(kept)
    outcomes = {"read": 0, "refused": 0}
    for damaged in mutations(data, 400):
        kept.path.write_bytes(damaged)
        try:
            rows = kept.open("these", [1, 2], 0)
        except VlaeError as error:
            message = str(error)
            assert str(kept.path) in message and "\n" not in message and len(message) < 500
            outcomes["refused"] += 1
        else:
            assert all(isinstance(k, int) and len(row) == 5 for k, row in rows.items())
            outcomes["read"] += 1
    assert min(outcomes.values()) > 0


def test_another_measurement_is_named(kept):
    filled(kept)
    with pytest.raises(VlaeError, match=r"differ in seed \(0, here 1\)"):
        kept.open("these", [1, 2], 1)
    about = json.loads(kept.path.read_text().partition("\n")[0].removeprefix(MARK))
    assert about["images"] == "these" and about["samples"] == [1, 2]
