"""The recipes that are shipped: their names, their texts, and a copy to start from."""

import re
from pathlib import Path

from vecsurgery.errors import InputError

from .problems import unknown

_EXTENDS = re.compile(r"^extends: (\S+)", re.MULTILINE)


def names() -> tuple[str, ...]:
    """The shipped recipes, sorted by name."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def text(name: str) -> str:
    """The text of a shipped recipe. Raises InputError, with the nearest match, where there is none of that name."""
    name = name.removesuffix(".yaml")
    if name not in names():
        raise InputError(f"looking for a shipped recipe: {unknown('recipe', name, names())}")
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def summary(name: str) -> str:
    """The first line of the recipe's opening comment: what it does."""
    return text(name).partition("\n")[0].lstrip("# ").strip()


def copy(name: str, destination: Path | None = None) -> Path:
    """Writes a shipped recipe to `destination` (a file, or a folder to put NAME.yaml in; here by default).

    What it `extends` is put beside it, unless a file of that name is there: then that one is extended. Returns the
    file. Raises InputError where it exists already: nothing is overwritten.
    """
    content = text(name)
    path = destination if destination is not None else Path()
    if path.is_dir():
        path = path / f"{name.removesuffix('.yaml')}.yaml"
    _write(path, content)
    for extended in extends(name):
        if not (path.parent / extended).exists():
            _write(path.parent / extended, text(extended))
    return path


def extends(name: str) -> tuple[str, ...]:
    """The files that a shipped recipe extends, the nearest first. Raises InputError for an unknown name."""
    found: list[str] = []
    asked = _asked(name)
    while asked is not None:
        found.append(asked)
        asked = _asked(asked)
    return tuple(found)


def _asked(name: str) -> str | None:
    match = _EXTENDS.search(text(name))
    return match.group(1) if match else None


def _write(path: Path, content: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError as error:
        raise InputError(f"writing the recipe {path}: it exists already; give another path or remove it") from error
    except OSError as error:
        raise InputError(f"writing the recipe {path}: {error.strerror or error}") from error


def _folder() -> Path:
    """Package data in an installed wheel; the folder beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"
