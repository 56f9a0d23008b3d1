"""Two checkpoints compared: what differs in which tensor, by role and by layer, and their records side by side."""

import difflib
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from vecsurgery.evaluation.catalogue import measure, order
from vecsurgery.report import summary
from vecsurgery.report.record import Record

Key = TypeVar("Key", bound=Hashable)
Cell = float | str | None
"""A figure or a word of one of the two; None where it has none."""


@dataclass(frozen=True)
class Along:
    """Two changes of one tensor from a common origin: their inner product and squared norms."""

    product: float
    squared_a: float
    squared_b: float


@dataclass(frozen=True)
class TensorComparison:
    """One tensor that both have."""

    tensor: str
    """Its stored name in A."""
    role: str
    layer: int | None
    """None outside the blocks."""
    shape: tuple[int, ...]
    """Of what was compared, as stored in A; for the vocabulary's tensors the rows that both have."""
    types: tuple[str, str]
    same: bool
    """Equal type, shape and bytes."""
    changed: int
    """Entries whose values differ."""
    squared_difference: float | None
    """‖A − B‖²; None where one of the two holds NaN or infinity."""
    squared_norm: float | None
    """‖B‖²."""
    along: Along | None = None
    """A − into against B − into, where a common `into` is known."""


@dataclass(frozen=True)
class Total:
    """Several tensors together."""

    tensors: int
    same: int
    relative: float | None
    """‖A − B‖/‖B‖; None where ‖B‖ is zero or a tensor is not finite."""
    changed: float
    """Share of the entries whose values differ."""
    cosine: float | None
    """Of A − into and B − into over the tensors that both changed; None where `into` is not known, or none is."""


@dataclass(frozen=True)
class Comparison:
    """What `vecsurgery.compare` found.

    `a`, `b`: as the caller named them; `only_a`, `only_b`: tensors that the other has not; `into`: what the cosines are
    relative to; `records`: those of the runs that made the two, where they lie beside the weights.
    """

    a: str
    b: str
    tensors: tuple[TensorComparison, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    into: str | None = None
    records: tuple[Record | None, Record | None] = (None, None)
    warnings: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether all weights are the same byte for byte."""
        return not self.only_a and not self.only_b and all(each.same for each in self.tensors)

    def total(self) -> Total:
        """All tensors together."""
        return total(self.tensors)

    def by_role(self) -> dict[str, Total]:
        """Role → total, in walking order."""
        return _grouped(self.tensors, lambda each: each.role)

    def by_layer(self) -> dict[int, Total]:
        """Block → total, ascending; what is outside the blocks is left out."""
        inside = [each for each in self.tensors if each.layer is not None]
        return dict(sorted(_grouped(inside, lambda each: each.layer or 0).items()))

    def by_layer_and_role(self) -> dict[tuple[int, str], Total]:
        """(block, role) → total."""
        inside = [each for each in self.tensors if each.layer is not None]
        return _grouped(inside, lambda each: (each.layer or 0, each.role))

    def measures(self) -> dict[str, tuple[Cell, Cell]]:
        """Figures of the two records side by side: bias, norm, fits, evaluation of the results, gates."""
        first, second = (_figures(record) if record else {} for record in self.records)
        names = dict.fromkeys([*first, *second])
        return {name: (first.get(name), second.get(name)) for name in names}

    def recipe_changes(self) -> list[str]:
        """Keys that differ between the two recipes, `- key: value` of A and `+ key: value` of B; [] without two."""
        first, second = self.records
        if first is None or second is None:
            return []
        lines = difflib.unified_diff(_keys(first["recipe"]), _keys(second["recipe"]), n=0, lineterm="")
        return [f"{line[0]} {line[1:]}" for line in list(lines)[2:] if not line.startswith("@@")]

    def text(self, *, worst: int = 10) -> str:
        """Aligned tables, as the command prints them; `worst`: how many of the most different tensors are named."""
        from vecsurgery.report.compared import comparison_text

        return comparison_text(self, worst=worst)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is undefined is null."""
        known = [record is not None for record in self.records]
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "into": self.into,
            "weights": {
                "total": _plain(self.total()),
                "roles": {role: _plain(each) for role, each in self.by_role().items()},
                "layers": {str(layer): _plain(each) for layer, each in self.by_layer().items()},
                "tensors": {each.tensor: _plain_tensor(each) for each in self.tensors},
                "only_a": list(self.only_a),
                "only_b": list(self.only_b),
            },
            "records": dict(zip("ab", known, strict=True)),
            "verdicts": dict(zip("ab", (verdict(record) for record in self.records), strict=True)),
            "measures": {name: dict(zip("ab", values, strict=True)) for name, values in self.measures().items()},
            "recipe": self.recipe_changes() if all(known) else None,
            "warnings": list(self.warnings),
        }


def verdict(record: Record | None) -> str | None:
    """The verdict that a record holds."""
    return None if record is None else record.get("verdict")


def total(tensors: Iterable[TensorComparison]) -> Total:
    """Several tensors together: norms as the root of the sum of squares."""
    items = list(tensors)
    differences = [each.squared_difference for each in items]
    norms = [each.squared_norm for each in items]
    entries = sum(math.prod(each.shape) for each in items)
    return Total(
        tensors=len(items),
        same=sum(each.same for each in items),
        relative=relative(_summed(differences), _summed(norms)),
        changed=sum(each.changed for each in items) / entries if entries else 0.0,
        cosine=_cosine([each.along for each in items if each.along is not None]),
    )


def relative(squared_difference: float | None, squared_norm: float | None) -> float | None:
    """‖A − B‖/‖B‖ from the squares; 0 where nothing differs, None where it is undefined."""
    if squared_difference is None or squared_norm is None:
        return None
    if squared_difference == 0:
        return 0.0
    return math.sqrt(squared_difference / squared_norm) if squared_norm > 0 else None


def _summed(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _cosine(changes: list[Along]) -> float | None:
    both = [each for each in changes if each.squared_a > 0 and each.squared_b > 0]
    if not both:
        return None
    norms = [math.sqrt(math.fsum(squares)) for squares in ([e.squared_a for e in both], [e.squared_b for e in both])]
    value = math.fsum(each.product for each in both) / (norms[0] * norms[1])
    return max(-1.0, min(1.0, value))


def _grouped(tensors: Iterable[TensorComparison], key: Callable[[TensorComparison], Key]) -> dict[Key, Total]:
    groups: dict[Key, list[TensorComparison]] = {}
    for each in tensors:
        groups.setdefault(key(each), []).append(each)
    return {name: total(group) for name, group in groups.items()}


def _plain(each: Total) -> dict[str, Any]:
    return {
        "tensors": each.tensors,
        "same": each.same,
        "relative": each.relative,
        "changed": each.changed,
        "cosine": each.cosine,
    }


def _plain_tensor(each: TensorComparison) -> dict[str, Any]:
    figures = _plain(total([each]))
    return {
        "role": each.role,
        "layer": each.layer,
        "shape": list(each.shape),
        "types": list(each.types),
        **{key: figures[key] for key in ("relative", "changed", "cosine")},
        "same": each.same,
    }


def _figures(record: Record) -> dict[str, Cell]:
    """What a record measured, by the words of a table."""
    found: dict[str, Cell] = {}
    for name, change in summary.totals(record).items():
        found |= {f"bias left on {name}": change.left, f"norm kept, measured on {name}": change.norm_ratio}
    for fit in record.get("fits", []):
        for fact, title in (("factor", "factor"), ("share", "share of the raw forgetting kept")):
            if fact in fit["facts"]:
                found[f"{fit['step']}: {title}"] = fit["facts"][fact]
    for data, measured in record.get("evaluation", {}).items():
        edited = measured["figures"].get("edited", {})
        found |= {f"{data}: {measure(name).title}": edited[name] for name in order(set(edited)) if measure(name).shown}
    for gate in record.get("gates", []):
        title = f"gate {gate['measure']}"
        value = "" if gate["value"] is None else f" ({gate['value']:.3g})"
        number = sum(name.startswith(title) for name in found)
        found[title if not number else f"{title} {number + 1}"] = ("passed" if gate["passed"] else "FAILED") + value
    return found


def _keys(recipe: str) -> list[str]:
    """A canonical recipe as lines `path of keys: value`, steps by their id; one that is no YAML as it stands."""
    try:
        content = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return recipe.splitlines()
    return [f"{path}: {json.dumps(value, ensure_ascii=False)}" for path, value in _flat(content, "")]


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [line for key, own in value.items() for line in _flat(own, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        return [line for index, entry in enumerate(value) for line in _flat(entry, f"{path}[{_entry(entry, index)}]")]
    return [(path, value)]


def _entry(entry: Any, index: int) -> str:
    """How an entry of a list is addressed: a step by its id, a gate by its measure, another by its number."""
    named = entry.get("id", entry.get("measure")) if isinstance(entry, Mapping) else None
    return str(named if named is not None else index)
