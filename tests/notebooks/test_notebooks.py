"""The notebooks run from top to bottom, and what is committed comes from such a run."""

import base64
import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="the notebooks are run with nbclient: install vlae[dev]")
pytest.importorskip("ipykernel", reason="the notebooks need a kernel: install vlae[dev]")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "scripts" / "run_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    return [
        base64.b64decode(output["data"]["image/png"])
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def test_both_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["latent_playground", "vlae"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, runner, monkeypatch):
    monkeypatch.setenv("VLAE_NOTEBOOK_EPOCHS", "2")
    monkeypatch.delenv("VLAE_DATA", raising=False)
    notebook = runner.execute(path)  # raises where a cell does, and the cells assert what they claim
    committed = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert len(pictures(notebook)) == len(pictures(committed)) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_a_whole_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text()), "a path of somebody's machine"
    assert all(picture.startswith(b"\x89PNG") for picture in pictures(notebook))


def test_a_cell_that_fails_is_noticed(tmp_path, runner):
    from nbclient.exceptions import CellExecutionError

    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2, 'no'")])
    path = tmp_path / "broken.ipynb"
    nbformat.write(broken, path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="no"):
        runner.save(runner.execute(path), path)
    assert path.read_bytes() == before
