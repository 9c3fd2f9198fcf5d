"""The layout of pipeline/: no room (package) imports another, and the hall (shared modules) imports no room."""

import ast
from pathlib import Path

from tests.script import ROOT

ROOMS = {path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").exists()}


def rooms_imported_by(path: Path) -> set[str]:
    """Return the rooms whose modules a file imports."""
    nodes = ast.walk(ast.parse(path.read_text()))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[1] for module in modules if module.startswith("pipeline.")} & ROOMS


def test_the_hall_imports_no_room() -> None:
    for path in (ROOT / "pipeline").glob("*.py"):
        assert rooms_imported_by(path) == set(), path.name


def test_no_room_imports_another() -> None:
    for room in ROOMS:
        for path in (ROOT / "pipeline" / room).glob("*.py"):
            assert rooms_imported_by(path) <= {room}, path


def test_each_script_has_a_room_and_uses_no_other() -> None:
    for script in ("producer", "consumer", "dashboard"):
        assert rooms_imported_by(ROOT / f"{script}.py") == {script}
