"""What the result is judged by: the rows of `evaluate` and the conditions of `gates`."""

from collections.abc import Collection

from .grammar import DataKeys, GateKeys
from .named import Named
from .problems import Problems, join
from .tree import Node
from .types import ROLES, DataSpec, GateMeasure, GateSpec
from .validation import key_names, validated

_LIMITS: dict[GateMeasure, str] = {"retention": "max", "forgetting": "min", "perplexity_ratio": "max"}
"""Measure → the limit without which its gate would mean nothing."""


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
        return GateSpec(keys.measure, keys.min, keys.max, data, node.place.line or 0)

    def _require_bare(self, node: Node, path: str) -> None:
        for key in ("min", "max", *key_names(DataKeys)):
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
