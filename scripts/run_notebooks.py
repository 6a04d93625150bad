"""Runs the notebooks from top to bottom and keeps what they print and draw, as they are committed.

python scripts/run_notebooks.py                          # all of notebooks/, about three minutes on two cores
python scripts/run_notebooks.py notebooks/vlae.ipynb
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from vlae.files import write_text

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TIMEOUT = 1200  # seconds for one cell


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in a fresh kernel; raises `nbclient.exceptions.CellExecutionError`."""
    notebook = nbformat.read(path, as_version=4)
    options = {"timeout": TIMEOUT, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    client = NotebookClient(notebook, **options)
    client.execute(cwd=str(path.parent))
    return tidy(notebook)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what needs a live kernel, which are widgets, and what differs from run to run."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not (is_widget(output) or is_warning(output))]
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = nbformat.NotebookNode()
    return notebook


def is_widget(output: nbformat.NotebookNode) -> bool:
    """Whether an output is drawn by the browser from the kernel's state."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def is_warning(output: nbformat.NotebookNode) -> bool:
    """Whether an output went to standard error."""
    return output.output_type == "stream" and output.name == "stderr"


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes the notebook, whole or not at all."""
    nbformat.validate(notebook)
    write_text(path, json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def main() -> None:
    """Runs what is asked for, one notebook after another."""
    parser = argparse.ArgumentParser(description="Runs notebooks and keeps their outputs.")
    parser.add_argument("paths", type=Path, nargs="*", help="all of notebooks/ if not given")
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    for path in parser.parse_args().paths or sorted(NOTEBOOKS.glob("*.ipynb")):
        started = time.monotonic()
        save(execute(path), path)
        print(f"{path.name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
