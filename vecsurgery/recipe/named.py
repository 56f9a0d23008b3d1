"""What a recipe names outside itself: models and data files, resolved against the folder of the file that says so."""

from dataclasses import replace
from pathlib import Path

from .grammar import DataKeys, parse_texts
from .problems import Problems, join
from .references import absolute, parse_reference
from .tree import Node
from .types import DataSpec, Reference
from .validation import validated

_DELTA = "delta.json"
"""What a delta folder is known by."""


class Named:
    """Resolves models and files; every problem on the way is recorded, and what is wrong comes out as None."""

    def __init__(self, problems: Problems, *, require_files: bool) -> None:
        self.problems, self.require_files = problems, require_files

    def reference(self, node: Node | None, path: str) -> Reference | None:
        """The model that a text names; None where there is none or it is wrong."""
        if node is None:
            return None
        if not isinstance(node.value, str):
            self.problems.add(node.place, path, f"expected a folder or a hub id; got {node.describe()}")
            return None
        try:
            found = parse_reference(node.value, node.place.folder, require_files=self.require_files)
        except ValueError as error:
            self.problems.add(node.place, path, str(error))
            return None
        place = f"{node.place}: {path}" if node.place.in_text else path
        adapter = found.adapter and replace(found.adapter, place=place)
        return replace(found, place=place, adapter=adapter)

    def files(self, node: Node | None, path: str) -> tuple[Path, ...]:
        """The files that a text or a list of texts names, relative to where they are stated."""
        found = []
        for index, child, text in node.texts() if node is not None else ():
            where = path if index is None else join(path, index)
            try:
                file = absolute(text, child.place.folder)
                kind = "file" if file.is_file() else "folder" if file.is_dir() else None
            except (OSError, RuntimeError, ValueError) as error:
                self.problems.add(child.place, where, f"the path {text!r} cannot be used: {error}")
                continue
            if kind == "folder":
                self.problems.add(child.place, where, f"{file} is a folder; expected a file")
            elif kind is None and self.require_files:
                what = f"there is no file {file} (relative paths start at the folder of the recipe)"
                self.problems.add(child.place, where, what)
            found.append(file)
        return tuple(found)

    def delta_folder(self, node: Node | None, path: str) -> Path | None:
        """The folder of a delta, named by itself or by the delta.json in it."""
        if node is None:
            return None
        if not isinstance(node.value, str):
            self.problems.add(node.place, path, f"expected the folder of a delta; got {node.describe()}")
            return None
        try:
            folder = absolute(node.value, node.place.folder)
            folder = folder.parent if folder.name == _DELTA and not folder.is_dir() else folder
            found = (folder / _DELTA).is_file()
        except (OSError, RuntimeError, ValueError) as error:
            self.problems.add(node.place, path, f"the path {node.value!r} cannot be used: {error}")
            return None
        if not found and self.require_files:
            what = f"there is no {_DELTA} in {folder} (relative paths start at the folder of the recipe)"
            self.problems.add(node.place, path, f"{what}; expected a folder that extract or format: delta has made")
        return folder

    def data(self, node: Node, path: str, keys: DataKeys | None) -> DataSpec | None:
        """The rows that the data keys of a map name; `keys` are these, validated, or None where they are wrong."""
        data = self.files(node.child("data"), join(path, "data"))
        named = node.child("template")
        template = named if named is not None and named.value not in ("auto", "none") else None
        templates = self.files(template, join(path, "template"))
        if keys is None:
            return None
        return DataSpec(
            data=data,
            template=str(templates[0]) if templates else keys.template,
            rows=keys.rows,
            limit=keys.limit,
            max_tokens=keys.max_tokens,
            max_length=keys.max_length,
            seed=keys.seed,
        )

    def rows(self, node: Node, path: str) -> DataSpec | None:
        """The rows that a path, a list of paths, or a map with data keys names."""
        if isinstance(node.value, dict):
            keys = validated(node, DataKeys, path, self.problems)
            self.require_data(node, path)
            return self.data(node, path, keys)
        try:
            parse_texts(node.plain())
        except ValueError as error:
            self.problems.add(node.place, path, f"{error}; a map with the key data is allowed too")
            return None
        return DataSpec(self.files(node, path))

    def require_data(self, node: Node, path: str) -> None:
        """Records a map that has no `data`."""
        if node.child("data") is None:
            self.problems.add(node.place, join(path, "data"), "this key is required")
