"""`benchmarks/ratios.py`: what it reads out of the other benchmarks' words, and where it puts it."""

import sys
from pathlib import Path

import pytest

from vlae import VlaeError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import ratios

PRINTED = {
    "training.py": "Medians of 3 alternating blocks of 6 s; the first step ... **Ratio 1.97**.",
    "scaling.py": "| 1 | 295 | 1.00 | 100% | 128 | 0.0 MiB |\n| 2 | 486 | 1.65 | 82% | 64 | 3.2 MiB |",
    "sampling.py": "a full pass for each pixel, extrapolated from one. **Ratio 25 at batch 1, 1,580 at batch 64**.",
    "likelihood.py": "is extrapolated from its speed. **Ratio 2.50**, and 2.73 against the loop on the network.",
    "codec.py": "| whole file          | 147,604   | 118.083       | 0.15062      | +0.473 % ± 0.020 |\n"
    "| gzip -9 on packed bits     | 321,543   | 257.23        | 0.3281       | 2.18       |\n"
    "| PNG, 1 mosaic              | 358,547   | 286.84        | 0.3659       | 2.43       |",
}


def test_every_number_is_found_where_it_is_printed(monkeypatch):
    monkeypatch.setattr(ratios, "run", lambda command: PRINTED[command[0]])
    lines = ratios.ratios().splitlines()
    numbers = [line.split("|")[3].strip() for line in lines if "benchmarks/" in line]
    assert numbers == ["1.97", "1.65", "25", "1,580", "2.50", "2.18", "2.43", "+0.473"]


def test_benchmarks_exist_and_take_these_options():
    for script, *options in ratios.BENCHMARKS:
        text = (ratios.HERE / script).read_text()
        assert all(f'"{option}"' in text for option in options if option.startswith("--"))


def test_a_missing_number_and_a_failed_benchmark_are_errors(monkeypatch, tmp_path):
    monkeypatch.setattr(ratios, "run", lambda command: "nothing")
    with pytest.raises(VlaeError, match="printed no ratio of training, images a second"):
        ratios.ratios()
    monkeypatch.undo()
    monkeypatch.setattr(ratios, "HERE", tmp_path)
    (tmp_path / "bad.py").write_text("raise SystemExit('no')")
    with pytest.raises(VlaeError, match=r"benchmarks/bad.py --x failed: no$"):
        ratios.run(("bad.py", "--x"))


def test_the_table_goes_to_its_place_and_nowhere_else():
    page = f"before\n{ratios.BEGIN}\nold\n{ratios.END}\nafter\n"
    assert ratios.store(page, "new") == f"before\n{ratios.BEGIN}\nnew\n{ratios.END}\nafter\n"
    assert ratios.store(ratios.PAGE.read_text(), "new").count("new") >= 1
    for wrong in ("", page + page, ratios.BEGIN, f"{ratios.END}{ratios.BEGIN}"):
        with pytest.raises(VlaeError, match="no one place"):
            ratios.store(wrong, "new")
