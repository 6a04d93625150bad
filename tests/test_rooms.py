"""A room imports only rooms above it in the list of docs/architecture.md."""

import ast
import re
from pathlib import Path

import pytest

import vlae

PACKAGE = Path(vlae.__file__).parent
PAGE = PACKAGE.parent.parent / "docs" / "architecture.md"
ALSO = {("objectives/terms.py", "evaluation")}  # the perceptual term's classifier, fetched when a training begins


def listed() -> dict[str, int]:
    """Rooms, and modules that are rooms of their own, with the row that they have in the list."""
    rows = PAGE.read_text(encoding="utf-8").partition("| room | what is in it |")[2].partition("\n\n")[0].splitlines()
    names = [re.findall(r"`(\w+)(?:/|\.py)`", row.split("|")[1]) for row in rows[2:]]
    return {name: place for place, several in enumerate(names) for name in several}


def imported(path: Path) -> set[str]:
    """The rooms that a module imports from, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "vlae":
            modules |= {f"vlae.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {module.split(".")[1] for module in modules if module.startswith("vlae.")}


def of_rooms() -> list[str]:
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if path.as_posix() not in ("__init__.py", "__main__.py"))


@pytest.mark.skipif(not PAGE.is_file(), reason="an installed package has no docs")
@pytest.mark.parametrize("path", of_rooms())
def test_a_room_imports_only_rooms_above_it(path):
    rooms, own = listed(), path.removesuffix(".py").split("/")[0]
    assert own in rooms, f"docs/architecture.md does not list {own}"
    for other in imported(PACKAGE / path) - {own, "__version__"}:
        assert other in rooms, f"{path} imports {other} from vlae, which docs/architecture.md does not list"
        above = rooms[other] < rooms[own] or ("/" not in path and rooms[other] == rooms[own])  # a row of modules
        assert above or (path, other) in ALSO, f"{path} imports {other}"
