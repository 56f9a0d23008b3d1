"""What the result is judged by: the rows of `evaluate` and the conditions of `gates`."""

from collections.abc import Collection

from .grammar import DataKeys, GateKeys
from .named import Named
from .problems import Problems, join
from .tree import Node
from .types import ROLES, DataSpec, GateMeasure, GateSpec, WritingSpec
from .validation import key_names, validated

_LIMITS: dict[GateMeasure, str] = {
    "retention": "max",
    "forgetting": "min",
    "perplexity_ratio": "max",
    "think_format": "min",
}
"""Measure → the limit without which its gate would mean nothing."""
_WRITING = ("samples", "longest", "tags")
"""Keys of `think_format` alone."""
_NO_PROMPT = ("max_tokens", "max_length")
"""Data keys that would cut what is asked."""


class Judging:
    """Builds gates; every problem is recorded, and one that is wrong is left out."""

    def __init__(self, named: Named, problems: Problems, evaluated: Collection[str]) -> None:
        self.named, self.problems, self.evaluated = named, problems, evaluated

    def gates(self, node: Node | None) -> tuple[GateSpec, ...]:
        """The gates of a list. `smoke` is one of them unless the list is empty."""
        smoke = GateSpec("smoke")
        if node is None:
            return (smoke,)
        if not isinstance(node.value, tuple):
            self.problems.add(node.place, "gates", f"expected a list of gates, or [] for none; got {node.describe()}")
            return ()
        built = [self._gate(gate, join("gates", index)) for index, gate in enumerate(node.value)]
        gates = tuple(gate for gate in built if gate is not None)
        smokes = [index for index, gate in enumerate(built) if gate is not None and gate.measure == "smoke"]
        for index in smokes[1:]:
            place, path = node.value[index].place, join("gates", index)
            self.problems.add(place, path, f"smoke stands twice (first in gates[{smokes[0]}]); keep one")
        return (*gates, smoke) if gates and not smokes else gates

    def _gate(self, node: Node, path: str) -> GateSpec | None:
        keys = validated(node, GateKeys, path, self.problems)
        if not isinstance(node.value, dict):
            return None
        named = node.child("measure")
        measure = named.value if named is not None else None
        if measure == "smoke":
            self._require_bare(node, path)
            data = None
        else:
            data = self._data(node, path, keys)
        if keys is None:
            return None
        self._check_limits(node, path, keys)
        writing = self._writing(node, path, keys)
        return GateSpec(keys.measure, keys.min, keys.max, data, node.place.line or 0, writing)

    def _writing(self, node: Node, path: str, keys: GateKeys) -> WritingSpec | None:
        """How much is written for `think_format`; keys that do not go with the measure are problems."""
        thinks = keys.measure == "think_format"
        for key in _NO_PROMPT if thinks else _WRITING:
            child = node.child(key)
            if child is not None:
                what = "prompts are not cut" if thinks else "this key goes with think_format"
                self.problems.add(child.place, join(path, key), f"{what}; remove it")
        if not thinks:
            return None
        given = {key: getattr(keys, key) for key in _WRITING if getattr(keys, key) is not None}
        opening, closing = given.get("tags", WritingSpec.tags)
        if not opening.strip() or not closing.strip() or opening in closing or closing in opening:
            place = node.children()["tags"].place
            self.problems.add(place, join(path, "tags"), "expected two tags, neither of them a part of the other")
        return WritingSpec(**given)

    def _require_bare(self, node: Node, path: str) -> None:
        for key in ("min", "max", *_WRITING, *key_names(DataKeys)):
            child = node.child(key)
            if child is not None:
                self.problems.add(child.place, join(path, key), "smoke takes neither limits nor data; remove this key")

    def _check_limits(self, node: Node, path: str, keys: GateKeys) -> None:
        needed = _LIMITS.get(keys.measure)
        if needed is not None and getattr(keys, needed) is None:
            self.problems.add(node.place, join(path, needed), f"this key is required for {keys.measure}")
        if keys.min is not None and keys.max is not None and keys.min > keys.max:
            self.problems.add(node.place, join(path, "min"), f"min {keys.min:g} is above max {keys.max:g}")
        if keys.measure == "perplexity_ratio" and keys.max is not None and keys.max <= 0.0:
            place = node.children()["max"].place
            self.problems.add(place, join(path, "max"), f"a ratio of perplexities is above 0; got max {keys.max:g}")
        if keys.measure == "think_format" and keys.min is not None and keys.min > 1.0:
            place = node.children()["min"].place
            self.problems.add(place, join(path, "min"), f"a share is at most 1; got min {keys.min:g}")

    def _data(self, node: Node, path: str, keys: GateKeys | None) -> DataSpec | None:
        """The gate's own rows; None where those of `evaluate` in the same role serve."""
        if node.child("data") is not None:
            return self.named.data(node, path, keys)
        beside = [key for key in key_names(DataKeys) if node.child(key) is not None]
        role = ROLES.get(keys.measure) if keys is not None else None
        if beside:
            place = node.children()[beside[0]].place
            self.problems.add(place, join(path, beside[0]), f"{beside[0]} goes with data, which is missing here")
        elif keys is not None and role not in self.evaluated:
            instead = f" (or rows under evaluate.{role})" if role is not None else ""
            self.problems.add(node.place, join(path, "data"), f"this key is required{instead}")
        return None
