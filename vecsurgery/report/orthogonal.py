"""What steps that take several deltas at once did to their interference, over all matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from vecsurgery.report.numbers import counted, number, percent
from vecsurgery.report.record import Record

TITLE = (
    "Interference between deltas, as intended (before rounding): overlap of their singular directions, weighted by the "
    "singular values; medians over the matrices. Cut: share of the stacked directions that was cut, means"
)
HEADER = ("step", "deltas", "matrices", "passed unchanged", "before", "after", "cut, outputs", "cut, inputs")


@dataclass(frozen=True)
class Orthogonal:
    """One step over all its matrices."""

    step: str
    deltas: tuple[str, ...]
    matrices: int
    """In which the deltas were made orthogonal."""
    passed: int
    """In which they were left as they are: a lone delta, or no conflict."""
    before: float | None
    """Median interference of the deltas as they came; None where no matrix was changed."""
    after: float | None
    cut_outputs: float
    """Mean share of the directions that was cut."""
    cut_inputs: float

    @property
    def cells(self) -> list[str]:
        """A line of the table under `HEADER`."""
        counts = [str(self.matrices), str(self.passed)]
        figures = [number(self.before), number(self.after), percent(self.cut_outputs), percent(self.cut_inputs)]
        return [self.step, " + ".join(self.deltas), *counts, *figures]


def orthogonal(record: Record) -> list[Orthogonal]:
    """One entry for each step whose facts tell of it, in the order of the matrices."""
    facts: dict[str, list[dict[str, float]]] = {}
    deltas: dict[str, dict[str, None]] = {}
    for matrix in record["matrices"]:
        seen = set()
        for step in matrix["steps"]:
            if "orthogonalised" not in step["facts"]:
                continue
            deltas.setdefault(step["step"], {})[step["delta"]] = None
            if step["step"] not in seen:  # each delta of a matrix carries the figures of the matrix
                facts.setdefault(step["step"], []).append(step["facts"])
            seen.add(step["step"])
    return [_total(step, tuple(deltas[step]), found) for step, found in facts.items()]


def clauses(record: Record) -> list[str]:
    """The same for the verdict."""
    return [_clause(found) for found in orthogonal(record)]


def _total(step: str, deltas: tuple[str, ...], facts: Sequence[dict[str, float]]) -> Orthogonal:
    changed = [fact for fact in facts if fact["orthogonalised"]]
    before, after, outputs, inputs = (
        [fact.get(name, 0.0) for fact in changed]
        for name in ("interference", "interference_after", "cut_outputs", "cut_inputs")
    )
    return Orthogonal(
        step=step,
        deltas=deltas,
        matrices=len(changed),
        passed=len(facts) - len(changed),
        before=median(before) if changed else None,
        after=median(after) if changed else None,
        cut_outputs=fmean(outputs) if changed else 0.0,
        cut_inputs=fmean(inputs) if changed else 0.0,
    )


def _clause(found: Orthogonal) -> str:
    names = " and ".join(f"`{name}`" for name in found.deltas)
    lone = len(found.deltas) == 1
    kept = "as it is" if lone else "as they are"
    passed = f"left {names} {kept} in {counted(found.passed, 'matrix')}" if found.passed else ""
    if not found.matrices:
        return f"{passed} (there is no other delta to make it orthogonal to)" if lone else passed
    done = (
        f"made {names} orthogonal in {counted(found.matrices, 'matrix')} (interference {number(found.before)} before, "
        f"{number(found.after)} after)"
    )
    return f"{done}, {passed.replace(names, 'it' if lone else 'them')}" if passed else done
