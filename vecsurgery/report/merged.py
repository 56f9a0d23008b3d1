"""What merges made of deltas: a table, the matrices of a merge, and words for the verdict."""

from vecsurgery.report import wording
from vecsurgery.report.numbers import number
from vecsurgery.report.record import MatrixRecord, MergeRecord, Record, StepRecord

TITLE = (
    "Merges (norm of the result over the matrices of blocks; cosine of two of the deltas: least to largest of a matrix)"
)
HEADER = ("step", "method", "deltas and weights", "result", "tensors", "norm", "cosine", "settings")
MATRIX_HEADER = ("matrix", "step", "deltas", "norm", "cosine")


def merges(record: Record) -> list[MergeRecord]:
    """The merges of a record, in order."""
    return record.get("merges", [])


def gone(record: Record) -> dict[str, str]:
    """Delta that was merged away → the delta that it is in."""
    return {name: merge["delta"] for merge in merges(record) for name in merge["deltas"]}


def step_ids(record: Record) -> set[str]:
    """The steps that merge."""
    return {merge["step"] for merge in merges(record)}


def sources(record: Record) -> list[tuple[str, str]]:
    """(what, description) of each merged delta."""
    away = gone(record)
    lines = []
    for merge in merges(record):
        left = f", merged into {away[merge['delta']]}" if merge["delta"] in away else ""
        lines.append((f"delta {merge['delta']}", f"{merge['method']} of {', '.join(merge['deltas'])}{left}"))
    return lines


def rows(record: Record) -> list[list[str]]:
    """The cells of every merge under `HEADER`, in order."""
    settings = wording.step_settings(record)
    found = []
    for merge in merges(record):
        facts = merge["facts"]
        cosine = _span(facts["cosine_least"], facts["cosine_largest"]) if "cosine_least" in facts else "–"
        counts = [f"{merge['tensors']:,}", number(facts.get("merged_norm")), cosine]
        told = settings.get(merge["step"], "") or "–"
        found.append([merge["step"], merge["method"], _weighed(merge), merge["delta"], *counts, told])
    return found


def largest(record: Record, count: int) -> list[list[str]]:
    """The cells under `MATRIX_HEADER` of the matrices whose merged delta is largest; ties in walking order."""
    merging = step_ids(record)
    found = [(each, step) for each in record["matrices"] for step in each["steps"] if step["step"] in merging]
    found.sort(key=lambda item: -item[1]["facts"].get("merged_norm", 0.0))
    return [_matrix(matrix, step) for matrix, step in found[:count]]


def _matrix(matrix: MatrixRecord, step: StepRecord) -> list[str]:
    facts = step["facts"]
    cosine = _span(facts["cosine_least"], facts["cosine_largest"]) if "cosine_least" in facts else "–"
    return [matrix["tensor"], step["step"], number(facts.get("merged")), number(facts.get("merged_norm")), cosine]


def _span(least: float, greatest: float) -> str:
    ends = dict.fromkeys(f"{value:.2g}" for value in (least, greatest))
    return " to ".join(ends)


def _weighed(merge: MergeRecord) -> str:
    weights = merge.get("weights", {})
    return ", ".join(f"{name} × {_shown(weights[name])}" if name in weights else name for name in merge["deltas"])


def _shown(weight: object) -> str:
    return number(weight) if isinstance(weight, int | float) else str(weight)


def clauses(record: Record) -> list[str]:
    """For the verdict: `merged math and code into skills by ties`."""
    found = []
    for merge in merges(record):
        names = [f"`{name}`" for name in merge["deltas"]]
        what = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        found.append(f"merged {what} into `{merge['delta']}` by {merge['method']}")
    return found
