"""The layers below everything know nothing of what is built of them (docs/architecture.md, rooms)."""

import ast
from pathlib import Path

import pytest

import vlae

ROOT = Path(vlae.__file__).parent
BELOW = {"errors", "files", "machine", "processes", "noise"}


@pytest.mark.parametrize("path", sorted((ROOT / "nn").glob("*.py")), ids=lambda path: path.name)
def test_layers_import_only_what_is_below_them(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        modules += [f"vlae.{name.name}" for name in node.names] if modules == ["vlae"] else []
        rooms = {module.split(".")[1] for module in modules if module.startswith("vlae.")}
        assert rooms <= BELOW | {"nn"}, f"{path.name} imports {rooms}"
