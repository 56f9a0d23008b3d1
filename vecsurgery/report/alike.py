"""Deltas that a step took for several, and that are nearly one: told by the cosines that steps measure."""

from vecsurgery.report.record import Record

SAME = 0.999
"""Cosine from which two deltas of a matrix are nearly one."""


def warnings(record: Record) -> list[str]:
    """One warning for each step two of whose deltas have such a cosine in some matrix (fact `cosine_largest`)."""
    largest: dict[str, dict[str, float]] = {}
    names: dict[str, dict[str, None]] = {}
    for matrix in record["matrices"]:
        for step in matrix["steps"]:
            if "cosine_largest" in step["facts"]:
                largest.setdefault(step["step"], {})[matrix["tensor"]] = step["facts"]["cosine_largest"]
                names.setdefault(step["step"], {})[step["delta"]] = None
    merged = {merge["step"]: merge["deltas"] for merge in record.get("merges", [])}
    return [
        _text(step, merged.get(step, [*names[step]]), [*cosines.values()])
        for step, cosines in largest.items()
        if max(cosines.values()) >= SAME
    ]


def _text(step: str, deltas: list[str], cosines: list[float]) -> str:
    listed = f"{', '.join(deltas[:-1])} and {deltas[-1]}"
    which = f"the deltas {listed}" if len(deltas) == 2 else f"two of the deltas {listed}"
    count = sum(cosine >= SAME for cosine in cosines)
    return (
        f"{step}: {which} are nearly the same in {count} of {len(cosines)} matrices (cosine up to {max(cosines):.4f}), "
        "and each of them counts; check that no model is named twice"
    )
