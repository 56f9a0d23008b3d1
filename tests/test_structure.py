"""The house keeps its shape: imports go one way, and no room or function outgrows its walls."""

import ast
from pathlib import Path

import pytest

import vecsurgery

PACKAGE = Path(vecsurgery.__file__).parent
ORDER = [
    "linalg", "recipe", "checkpoint", "delta", "calibration", "forward", "geometry", "projectors", "merges", "fits",
    "methods", "evaluation", "report", "editing", "planning", "surgery", "studies", "plugin", "demo", "cli",
]  # fmt: skip
"""Rooms from the lowest to the highest; `methods` is a module of its own between them."""
FOUNDATION = {"errors", "progress"}
ONLY = {
    "projectors": {"linalg", "delta"}, "merges": {"linalg", "recipe", "delta"}, "fits": {"linalg", "delta"},
    "linalg": set(), "recipe": set(),
}  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "recipes" not in path.parts)


def _rooms_imported(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {parts[1] for name in names if (parts := name.split("."))[0] == "vecsurgery" and len(parts) > 1}
    return rooms


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent != PACKAGE], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    allowed = ONLY.get(room, set(ORDER[: ORDER.index(room)])) | FOUNDATION | {room, "__version__"}
    assert _rooms_imported(path) <= allowed


def test_every_folder_of_the_package_is_a_room_with_a_docstring() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ORDER) - {"methods"}
    for room in rooms:
        docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert docstring, room
        assert "ay not" in docstring, room


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small_and_documented(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node) is not None and len(node.body) > 1
            start = node.body[1].lineno if documented else node.body[0].lineno
            assert (node.end_lineno or start) - start < 60, node.name


@pytest.mark.parametrize("room", ORDER)
def test_no_public_name_is_shadowed_by_a_module_of_the_same_name(room: str) -> None:
    """Importing `room.name` as a module would replace the function `name` that the room exports lazily."""
    stub = PACKAGE / room / "__init__.pyi"
    if not stub.exists():
        return
    modules = {path.stem for path in (PACKAGE / room).glob("*.py")}
    for node in ast.walk(ast.parse(stub.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not {alias.name for alias in node.names} & modules
