"""Weights that stand in a wrong form or place: the message says what to write instead."""

from collections.abc import Sequence

from .problems import Problems, join
from .tree import Node

_KEYS = ("weight", "weights")


def is_weights(node: Node, path: str, deltas: Sequence[str], problems: Problems) -> bool:
    """Whether weights are a map; recorded with the map that was meant where they are not."""
    if isinstance(node.value, dict):
        return True
    what = f"expected a map from deltas to numbers, as in {_meant(node, deltas)}; got {node.describe()}"
    problems.add(node.place, path, what)
    return False


def refuse_weights(node: Node, path: str, deltas: Sequence[str], problems: Problems, *, beside: str = "") -> None:
    """Records a weight in a map that has none. `beside`: what else may have been meant."""
    for key in _KEYS:
        child = node.child(key)
        if child is not None:
            where = f"`weights: {_meant(child, deltas)}` at the top level"
            problems.add(child.place, join(path, key), f"unknown key '{key}'; did you mean {where}{beside}?")


def _meant(node: Node, deltas: Sequence[str]) -> str:
    """A list as the numbers of the deltas in order, a number as that of each; else 1.0 for all."""
    given = node.plain()
    if isinstance(given, dict):
        values = [given.get(name, 1.0) for name in deltas]
    else:
        values = given if isinstance(given, list) and len(given) == len(deltas) else [given] * len(deltas)
    shown = [value if isinstance(value, int | float) and not isinstance(value, bool) else 1.0 for value in values]
    return "{" + ", ".join(f"{name}: {value}" for name, value in zip(deltas, shown, strict=True)) + "}"
