"""What an output holds that is no checkpoint: a delta with its patch, an adapter with the errors of its ranks."""

from vecsurgery.checkpoint import readable
from vecsurgery.report.numbers import counted, percent
from vecsurgery.report.record import AdapterMatrixRecord, Record, WrittenRecord
from vecsurgery.report.wording import kinds

_LISTED = 5


def written(record: Record) -> list[str]:
    """Sentences about a delta or an adapter, a line each; none for a checkpoint."""
    found = record.get("written")
    if found is None:
        return []
    return _delta(found) if found["format"] == "delta" else _adapter(found)


def clause(record: Record) -> list[str]:
    """The same in the words of a verdict."""
    found = record.get("written")
    if found is None:
        return []
    if found["format"] == "delta":
        return [f"written as a delta with a patch of {readable(found.get('patch_bytes', 0))}"]
    lost = f", cut off by {percent(found['rounding'])} of a matrix's norm at most" if found["rounding"] else ", exact"
    left = found.get("dropped", [])
    out = f" and without {kinds(left, numbers=False)}" if left else ""
    return [f"written as an adapter{lost}{out}"]


def inexact(record: Record) -> list[AdapterMatrixRecord]:
    """Matrices of an adapter that are cut off or rounded, the largest error first."""
    matrices = record["written"].get("matrices", []) if "written" in record else []
    return sorted((each for each in matrices if each["error"] > 0.0), key=lambda each: -each["error"])


def _delta(found: WrittenRecord) -> list[str]:
    shapes = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
    patched = found.get("patched", {})
    return [
        f"The delta holds {counted(found['tensors'], 'tensor')} ({shapes}) in {readable(found['bytes'])}; rounding its "
        f"values took at most {percent(found['rounding'])} of a tensor's norm.",
        f"With its patch of {readable(found.get('patch_bytes', 0))}, `apply` gives the bytes that this result has as a "
        f"checkpoint with the tensors, types and shapes of its base, and `undo` those of the base: it sets "
        f"{patched.get('apply', 0)} entries that apply would miss, and {patched.get('undo', 0)} that undo would.",
    ]


def _adapter(found: WrittenRecord) -> list[str]:
    matrices = found.get("matrices", [])
    ranks = sorted({each["rank"] for each in matrices})
    cut = sorted((each for each in matrices if each["error"] > 0.0), key=lambda each: -each["error"])
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank"
    lines = [f"The adapter holds {counted(len(matrices), 'matrix')} of {rank} in {readable(found['bytes'])}."]
    if cut:
        named = ", ".join(f"{each['tensor']} {percent(each['error'])}" for each in cut[:_LISTED])
        more = f" and {len(cut) - _LISTED} more" if len(cut) > _LISTED else ""
        lines.append(f"Share of the delta's norm that it loses, ‖D − B A‖/‖D‖: {named}{more}.")
    else:
        lines.append("It is exact: the edited delta is of that rank.")
    dropped = found.get("dropped", [])
    if dropped:
        lines.append(f"Left out, since no adapter holds them: {counted(len(dropped), 'tensor')}, {kinds(dropped)}.")
    return lines
