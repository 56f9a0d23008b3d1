"""A record in totals: per geometry, per layer, per step. Pure arithmetic on the facts, no wording.

Sums of the bias over matrices are sums of squared norms, ‖D Xᵀ‖²/n, so shares of a sum weigh each matrix by what it
does to the activations; norms of several matrices combine as the root of the sum of squares.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from vecsurgery.report.record import MatrixRecord, Record, StepRecord, StoredRecord

ROUNDING_FACTOR = 2.0
"""Above this ratio of the stored to the intended bias the report warns."""
NEGLIGIBLE = 1e-6
"""Share of the raw bias below which growth by rounding is not worth a warning: a thousandth of the output's norm."""


@dataclass(frozen=True)
class Change:
    """What became of one or several matrices, on the stored weights, against one geometry."""

    matrices: int
    before: float
    """Σ RAB of the raw change."""
    intended: float
    stored: float
    norm_before: float
    """Root of Σ ‖raw change‖²."""
    norm_ratio: float | None
    """‖stored change‖/‖raw change‖; None where no matrix has it."""
    norm_ratio_intended: float | None = None
    """‖intended change‖/‖raw change‖: where it is smaller, the rest of the stored norm is rounding."""

    @property
    def left(self) -> float | None:
        """Share of the bias that is left in the stored weights; None where there was none."""
        return self.stored / self.before if self.before > 0 else None

    @property
    def left_intended(self) -> float | None:
        """Share of the bias that the steps meant to leave, before rounding."""
        return self.intended / self.before if self.before > 0 else None


@dataclass(frozen=True)
class StepTotal:
    """What one step did to one delta over all its matrices, as intended (before rounding)."""

    step: str
    method: str
    delta: str
    geometry: str | None
    matrices: int
    norm_ratio: float | None
    left: float | None
    """Σ rab_after / Σ rab."""
    rank: float | None
    """Median number of directions used."""
    energy: float | None
    """Median share of the geometry's energy in those directions."""


def change(stored: Iterable[StoredRecord]) -> Change:
    """Combine measurements of several matrices against one geometry."""
    items = list(stored)
    return Change(
        matrices=len(items),
        before=math.fsum(item["rab_before"] for item in items),
        intended=math.fsum(item["rab_after_intended"] for item in items),
        stored=math.fsum(item["rab_after_stored"] for item in items),
        norm_before=math.sqrt(math.fsum(item["norm_before"] ** 2 for item in items)),
        norm_ratio=_norm_ratio(items, "norm_ratio_stored"),
        norm_ratio_intended=_norm_ratio(items, "norm_ratio_intended"),
    )


def _norm_ratio(
    items: Iterable[StoredRecord], key: Literal["norm_ratio_stored", "norm_ratio_intended"]
) -> float | None:
    """Root of Σ (‖raw‖·ratio)² / Σ ‖raw‖² over the matrices that have the ratio."""
    measured = [(item["norm_before"], item[key]) for item in items if key in item]
    squares = math.fsum(norm * norm for norm, _ in measured)
    kept = math.fsum((norm * ratio) ** 2 for norm, ratio in measured)
    return math.sqrt(kept / squares) if squares > 0 else None


def totals(record: Record) -> dict[str, Change]:
    """Geometry → the change of all matrices measured against it, in the order of the record's geometries."""
    names = [*record["geometry"], *(name for matrix in record["matrices"] for name in matrix["stored"])]
    found = {name: [m["stored"][name] for m in record["matrices"] if name in m["stored"]] for name in names}
    return {name: change(items) for name, items in found.items() if items}


def layers(record: Record) -> dict[int, list[MatrixRecord]]:
    """Layer → its matrices, layers ascending, matrices in walking order."""
    grouped: dict[int, list[MatrixRecord]] = {}
    for matrix in record["matrices"]:
        grouped.setdefault(matrix["layer"], []).append(matrix)
    return dict(sorted(grouped.items()))


def by_layer(record: Record, geometry: str) -> dict[int, Change]:
    """Layer → change of its matrices that were measured against `geometry`."""
    grouped = {
        layer: [matrix["stored"][geometry] for matrix in matrices if geometry in matrix["stored"]]
        for layer, matrices in layers(record).items()
    }
    return {layer: change(items) for layer, items in grouped.items() if items}


def step_totals(record: Record) -> list[StepTotal]:
    """One entry for each step and delta, in the order in which the steps ran on the matrices."""
    grouped: dict[tuple[str, str, str, str | None], list[StepRecord]] = {}
    position: dict[str, int] = {}
    for matrix in record["matrices"]:
        for index, step in enumerate(matrix["steps"]):
            key = (step["step"], step["method"], step["delta"], step.get("geometry"))
            grouped.setdefault(key, []).append(step)
            position[step["step"]] = max(position.get(step["step"], 0), index)
    ordered = sorted(grouped.items(), key=lambda item: position[item[0][0]])
    return [_step_total(key, [step["facts"] for step in steps]) for key, steps in ordered]


def _step_total(key: tuple[str, str, str, str | None], facts: list[dict[str, float]]) -> StepTotal:
    step, method, delta, geometry = key
    return StepTotal(
        step=step,
        method=method,
        delta=delta,
        geometry=geometry,
        matrices=len(facts),
        norm_ratio=_combined_ratio(facts),
        left=_share(facts, "rab_after", "rab"),
        rank=_median(facts, "rank"),
        energy=_median(facts, "energy"),
    )


def _combined_ratio(facts: list[dict[str, float]]) -> float | None:
    """Root of Σ ‖D′‖²/Σ ‖D‖²; of a step that only multiplies, the one number by which it does."""
    pairs = [(fact["norm"], fact["norm_ratio"]) for fact in facts if "norm" in fact and "norm_ratio" in fact]
    squares = math.fsum(norm * norm for norm, _ in pairs)
    if squares > 0:
        return math.sqrt(math.fsum((norm * ratio) ** 2 for norm, ratio in pairs) / squares)
    factors = {abs(fact["factor"]) for fact in facts if fact.keys() == {"factor"}}
    return factors.pop() if len(factors) == 1 else None


def _share(facts: list[dict[str, float]], part: str, whole: str) -> float | None:
    pairs = [(fact[part], fact[whole]) for fact in facts if part in fact and whole in fact]
    total = math.fsum(value for _, value in pairs)
    return math.fsum(value for value, _ in pairs) / total if total > 0 else None


def _median(facts: list[dict[str, float]], name: str) -> float | None:
    values = [fact[name] for fact in facts if name in fact]
    return median(values) if values else None


def least_cleaned(record: Record, geometry: str, *, count: int = 10) -> list[MatrixRecord]:
    """The matrices that still hold most of the bias in the stored weights, greatest first; ties in walking order."""
    measured = [matrix for matrix in record["matrices"] if geometry in matrix["stored"]]
    return sorted(measured, key=lambda matrix: -matrix["stored"][geometry]["rab_after_stored"])[:count]


def rounding(record: Record) -> Mapping[str, list[MatrixRecord]]:
    """Geometry → matrices whose stored bias exceeds `ROUNDING_FACTOR` times the intended one, worst share first."""
    found: dict[str, list[MatrixRecord]] = {}
    for name in totals(record):
        above = [m for m in record["matrices"] if name in m["stored"] and _grew(m["stored"][name])]
        if above:
            found[name] = sorted(above, key=lambda m: -left_stored(m["stored"][name]))
    return found


def left_stored(stored: StoredRecord) -> float:
    """Share of the raw bias that is left in one stored matrix; 0 where there was none."""
    return stored["rab_after_stored"] / stored["rab_before"] if stored["rab_before"] > 0 else 0.0


def _grew(stored: StoredRecord) -> bool:
    grown = stored["rab_after_stored"] > ROUNDING_FACTOR * stored["rab_after_intended"]
    return grown and stored["rab_after_stored"] > NEGLIGIBLE * stored["rab_before"]
