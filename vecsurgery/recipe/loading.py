"""Loading a recipe: the file or map, what it extends, overrides, validation, the canonical text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .building import Builder
from .canonical import canonical_text
from .foreign import mergekit
from .grammar import TOP_LEVEL
from .problems import Place, Problems
from .respelling import respelled
from .sources import overridden, read_file
from .steps import Method
from .tree import Node, from_python
from .types import Recipe


def load(
    path: str | Path, methods: Mapping[str, Method], *, overrides: Sequence[str] = (), require_files: bool = True
) -> Recipe:
    """The recipe in a file, resolved and validated. No model and no data file is opened.

    Arguments:
        path: a YAML file; its relative paths start at its folder, those of a recipe that it `extends` at that one's.
        methods: the projectors, fits and merges by name, as `vecsurgery.methods.available()` gives them.
        overrides: `ADDRESS=VALUE` texts, applied in order: `output.dtype=float32`, `retain_energy.keep=0.05` (a step by
            its id or method). The value is YAML; its relative paths start at the folder of `path`.
        require_files: False checks the language alone: data files and local models need not exist.

    Raises RecipeError with every problem at once, each with file, line, key and what was expected.
    """
    problems = Problems()
    root = read_file(Path(path), problems)
    return _built(root, methods, overrides, problems, source=Path(path), require_files=require_files)


def from_mapping(
    mapping: Mapping[str, Any],
    methods: Mapping[str, Method],
    *,
    folder: Path,
    overrides: Sequence[str] = (),
    require_files: bool = True,
) -> Recipe:
    """The recipe that plain Python values give: the map that its YAML would be; relative paths start at `folder`.

    `extends` is for files and unknown here. Otherwise as `load`.
    """
    problems = Problems()
    root = from_python(mapping, Place("recipe", None, Path(folder)), problems)
    if not isinstance(root.value, dict):
        problems.add(root.place, "", f"a recipe is a map of keys; got {root.describe()}")
    return _built(root, methods, overrides, problems, source=None, require_files=require_files)


def _built(
    root: Node | None,
    methods: Mapping[str, Method],
    overrides: Sequence[str],
    problems: Problems,
    *,
    source: Path | None,
    require_files: bool,
) -> Recipe:
    recipe = None
    if root is not None and isinstance(root.value, dict):
        foreign = mergekit(root)
        if foreign is not None:
            problems.add(root.place, "", foreign)
            problems.raise_any()
        root = overridden(root, overrides, TOP_LEVEL, problems)
        top_level = TOP_LEVEL if source is None else (*TOP_LEVEL, "extends")
        root = respelled(root, methods, problems, top_level=top_level)
        recipe = Builder(methods, problems, require_files=require_files).recipe(root, source)
    problems.raise_any()
    if recipe is None:
        raise RuntimeError("a recipe without problems was not built")
    return replace(recipe, text=canonical_text(recipe))
