"""What is wrong with a recipe: every problem with its place, collected and raised together."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecsurgery.errors import InputError

OVERRIDE = "--set "
"""What the place of an override begins with."""


@dataclass(frozen=True)
class Place:
    """Where a value stands: a file (or an override) and a line, and the folder its relative paths start from."""

    file: str
    line: int | None
    folder: Path

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    @property
    def in_text(self) -> bool:
        """Whether it is a place of a file or an override: values that come from Python have none."""
        return self.line is not None or self.file.startswith(OVERRIDE)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `place: path: what; expected`."""

    place: Place
    path: str
    """The key's path in the recipe, as in `steps[0].keep`; empty for the recipe as a whole."""
    what: str

    def __str__(self) -> str:
        # Steps that come from Python have no file: their path alone says where they stand.
        place = "" if self.path.startswith(str(self.place)) else str(self.place)
        return ": ".join(part for part in (place, self.path, self.what) if part)


class RecipeError(InputError):
    """A recipe that cannot be used; `problems` holds everything that was found, in the order of the files.

    `doing`: what the message begins with.
    """

    def __init__(self, problems: Sequence[Problem], *, doing: str = "reading the recipe") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{doing}: {count} problem{'s' if count > 1 else ''}\n{lines}")


class Problems:
    """Collects problems while a recipe is read; one message for each key, the first one found."""

    def __init__(self) -> None:
        self._found: dict[tuple[Place, str], Problem] = {}

    def add(self, place: Place, path: str, what: str) -> None:
        self._found.setdefault((place, path), Problem(place, path, what))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self) -> None:
        """Raises RecipeError if there is any problem."""
        if self._found:
            found = list(self._found.values())
            files = list(dict.fromkeys(problem.place.file for problem in found))
            raise RecipeError(sorted(found, key=lambda each: (files.index(each.place.file), each.place.line or 0)))


def join(path: str, key: str | int) -> str:
    """The path of a key or of a list's element under `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def shown(value: Any) -> str:
    """A value as an error message names it: texts in quotes, truth values as YAML writes them."""
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`, if any is like it at all."""
    by_lower = {each.lower(): each for each in known}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """The message for a word that is none of the known ones, with the nearest of them or else all."""
    known = list(known)
    match = nearest(word, known)
    if match is not None:
        return f"unknown {kind} '{word}'; did you mean '{match}'?"
    expected = f"expected one of: {', '.join(known)}" if known else f"there is no {kind} to name"
    return f"unknown {kind} '{word}'; {expected}"
