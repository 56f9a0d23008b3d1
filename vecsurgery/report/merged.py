"""What merges made of deltas, in words."""

from vecsurgery.report.numbers import counted, number
from vecsurgery.report.record import MergeRecord, Record


def merges(record: Record) -> list[MergeRecord]:
    """The merges of a record, in order."""
    return record.get("merges", [])


def gone(record: Record) -> dict[str, str]:
    """Delta that was merged away → the delta that it is in."""
    return {name: merge["delta"] for merge in merges(record) for name in merge["deltas"]}


def sources(record: Record) -> list[tuple[str, str]]:
    """(what, description) of each merged delta."""
    away = gone(record)
    lines = []
    for merge in merges(record):
        weights = merge.get("weights", {})
        named = [f"{name} × {_shown(weights[name])}" if name in weights else name for name in merge["deltas"]]
        left = f", merged into {away[merge['delta']]}" if merge["delta"] in away else ""
        counts = f", {counted(merge['tensors'], 'tensor')} merged"
        lines.append(
            (f"delta {merge['delta']}", f"{merge['method']} of {', '.join(named)}{counts}{_alike(merge)}{left}")
        )
    return lines


def _shown(weight: object) -> str:
    return number(weight) if isinstance(weight, int | float) else str(weight)


def _alike(merge: MergeRecord) -> str:
    """How alike the deltas of its matrices were."""
    facts = merge["facts"]
    if "cosine_least" not in facts:
        return ""
    least, largest = facts["cosine_least"], facts["cosine_largest"]
    return f"; cosine of two deltas of a matrix from {least:.2g} to {largest:.2g}"


def clauses(record: Record) -> list[str]:
    """For the verdict: `merged math and code into skills by ties`."""
    found = []
    for merge in merges(record):
        names = [f"`{name}`" for name in merge["deltas"]]
        what = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        found.append(f"merged {what} into `{merge['delta']}` by {merge['method']}")
    return found
