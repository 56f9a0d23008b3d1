"""YAML as a tree in which every value knows its file and line.

Scalars follow YAML 1.2: `1e-3` is a number, `yes`, `no`, `on` and dates are text. Only plain data is built: no tag but
those of scalars, maps and lists is accepted, so that nothing can be executed on load.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .problems import Place, Problems, join

_TAG = "tag:yaml.org,2002:"
_NUMBER = {
    "int": re.compile(r"[-+]?[0-9][0-9_]*"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}
_MOST_NODES = 20_000


@dataclass(frozen=True)
class Node:
    """A value of the recipe with its place: a scalar, a tuple of nodes, or a map from text to nodes."""

    value: "bool | int | float | str | tuple[Node, ...] | dict[str, Node] | None"
    place: Place

    def children(self) -> "dict[str, Node]":
        """The entries of a map; nothing for any other value."""
        return self.value if isinstance(self.value, dict) else {}

    def child(self, key: str) -> "Node | None":
        """The entry of a map, or None where it is missing or null."""
        node = self.children().get(key)
        return None if node is None or node.value is None else node

    def texts(self) -> "list[tuple[int | None, Node, str]]":
        """The texts of a text or of a list: (index in the list or None, node, text). Other values are left out."""
        if isinstance(self.value, str):
            return [(None, self, self.value)]
        entries = enumerate(self.value) if isinstance(self.value, tuple) else ()
        return [(index, node, node.value) for index, node in entries if isinstance(node.value, str)]

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value

    def describe(self) -> str:
        """The value as an error message names it."""
        names = {dict: "a map", tuple: "a list", type(None): "nothing", bool: "a truth value", str: "text"}
        kind = names.get(type(self.value), "a number")
        if isinstance(self.value, dict | tuple | None):
            return kind
        shown = str(self.value).lower() if isinstance(self.value, bool) else repr(self.value)
        return f"{kind} {shown}"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""


Loader.yaml_implicit_resolvers = {}
Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver(_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
for _kind in ("int", "float"):
    _starts = list("-+0123456789") + ([] if _kind == "int" else ["."])
    Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_NUMBER[_kind].pattern})$"), _starts)


def read_text(text: str, place: Place, problems: Problems, *, one_line: bool = False) -> Node | None:
    """The tree of a YAML text; None where it has no tree at all (the problem is then recorded).

    `place` gives file and folder; `one_line` keeps its line for every node (an override has no lines of its own).
    """
    try:
        root = _composed(text)
        return Node(None, place) if root is None else _YamlReader(place, problems, one_line).node(root, "", None)
    except yaml.reader.ReaderError as error:
        line, what = text.count("\n", 0, error.position) + 1, f"{error.reason} (code {error.character:#x})"
    except yaml.MarkedYAMLError as error:
        mark, started = error.problem_mark or error.context_mark, error.context_mark
        line = 1 if mark is None else mark.line + 1
        since = "" if started is None or one_line else f" (from line {started.line + 1})"
        what = ", ".join(part for part in (f"{error.context}{since}" if error.context else None, error.problem) if part)
    except RecursionError:
        line, what = 1, "nested too deeply"
    problems.add(place if one_line else replace(place, line=line), "", f"not valid YAML: {what}")
    return None


def _composed(text: str) -> yaml.Node | None:
    loader = Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


class _YamlReader:
    """Turns PyYAML's nodes into ours and records what may not stand in a recipe."""

    def __init__(self, place: Place, problems: Problems, one_line: bool) -> None:
        self.place, self.problems, self.one_line = place, problems, one_line
        self.open: set[int] = set()
        self.count = 0

    def at(self, node: yaml.Node) -> Place:
        return self.place if self.one_line else replace(self.place, line=node.start_mark.line + 1)

    def node(self, node: yaml.Node, path: str, place: Place | None) -> Node:
        """`place`: where the key of this value stands, if it has one."""
        place = place or self.at(node)
        self.count += 1
        if id(node) in self.open or self.count > _MOST_NODES:
            self.problems.add(place, path, "an alias (*name) repeats its own surroundings, or too many values")
            return Node(None, place)
        if node.tag not in {_TAG + kind for kind in ("map", "seq", "str", "null", "bool", "int", "float")}:
            name = node.tag.replace(_TAG, "!!")
            self.problems.add(place, path, f"the tag {name} is not allowed; a recipe is plain maps, lists and scalars")
            return Node(None, place)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self.entries(node, path), place)
            if isinstance(node, yaml.SequenceNode):
                items = enumerate(node.value)
                return Node(tuple(self.node(item, join(path, index), None) for index, item in items), place)
            return checked(Node(self.scalar(node, path, place), place), path, self.problems)
        finally:
            self.open.discard(id(node))

    def entries(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self.at(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add(place, path, "a key must be text, not a map or a list")
                continue
            key = str(key_node.value)
            if key_node.tag != _TAG + "str":
                self.problems.add(place, join(path, key), f"a key must be text; write it in quotes: '{key}'")
            elif key in found:
                first = f" (first on line {found[key].place.line})" if found[key].place.line else ""
                self.problems.add(place, join(path, key), f"the key '{key}' stands twice{first}; keep one")
                continue
            found[key] = self.node(value_node, join(path, key), place)
        return found

    def scalar(self, node: yaml.Node, path: str, place: Place) -> bool | int | float | str | None:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in _NUMBER and _NUMBER[kind].fullmatch(text):
            digits = text.replace("_", "")
            return int(digits) if kind == "int" else float(digits.replace(".inf", "inf").replace(".nan", "nan"))
        if kind != "str":
            self.problems.add(place, path, f"'{text}' is no !!{kind}")
        return text


def checked(node: Node, path: str, problems: Problems) -> Node:
    """The same node; a number that is infinite or not a number is recorded as a problem."""
    if isinstance(node.value, float) and not math.isfinite(node.value):
        problems.add(node.place, path, f"a number must be finite; got {node.value}")
    return node


def from_python(value: Any, place: Place, problems: Problems, path: str = "") -> Node:
    """The tree of plain Python values: maps with text keys, lists, texts, paths, numbers, truth values, None."""
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        for key in wrong:
            problems.add(place, join(path, str(key)), f"a key must be text; got {key!r}")
        entries = {str(key): from_python(each, place, problems, join(path, str(key))) for key, each in value.items()}
        return Node(entries, place)
    if isinstance(value, Path):
        return Node(str(value), place)
    if value is None or isinstance(value, bool | int | float | str):
        return checked(Node(value, place), path, problems)
    if isinstance(value, Sequence):
        items = enumerate(value)
        return Node(tuple(from_python(each, place, problems, join(path, index)) for index, each in items), place)
    kind = type(value).__name__
    problems.add(place, path, f"a recipe holds maps, lists, text, numbers and truth values; got a {kind}")
    return Node(None, place)


def merged(under: Node, over: Node) -> Node:
    """`over` laid on `under`: maps are merged entry by entry, anything else is replaced."""
    if not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return over
    entries = dict(under.value)
    for key, node in over.value.items():
        entries[key] = merged(entries[key], node) if key in entries else node
    return Node(entries, over.place)
