"""What a record comes to in words: its warnings, gathered, and the one-line verdict."""

import re
from collections.abc import Iterable

from vecsurgery.report import alike, fitted, holding, judged, merged, orthogonal, summary
from vecsurgery.report.numbers import counted, percent
from vecsurgery.report.record import Record
from vecsurgery.report.wording import kinds

_ADDED = 1.1
"""A stored norm above this multiple of the intended one is told as what it is: rounding."""
_HEAVY = (
    ("of the delta's norm is left",),
    ("unprotected",),
    ("differs: into has", "into and base differ by"),
    ("vocabulary rows", "has no row for", "ends texts with", "cannot be compared by string"),
)
"""What the weightier warnings say, the weightiest first."""
_NUMBER = re.compile(r"[-+]?\d[\d.,e+-]*")


def warnings(record: Record) -> list[str]:
    """Every warning of the run, its geometries, fits, figures and matrices, and those that the stored figures give.

    Warnings of matrices that differ in their numbers only are one warning, told of the first matrix with a count.
    The weightiest come first (see `by_weight`).
    """
    found = _of_matrices(record) + _of_selection(record)
    found += alike.warnings(record)
    found += fitted.warnings(record)
    found += [*record["warnings"], *_of_rounding(record)]
    found += record["written"]["warnings"] if "written" in record else []
    found += judged.warnings(record)
    found += [f"geometry {name}: {text}" for name, item in record["geometry"].items() for text in item["warnings"]]
    return by_weight(found)


def notes(record: Record) -> list[str]:
    """What is to be settled before the result is published; no warning about the surgery, and not counted as one."""
    return record.get("notes", [])


def by_weight(found: Iterable[str]) -> list[str]:
    """Warnings in the order in which a reader should judge them: a delta that is gone or unprotected, models that are
    no kin, tokens that mean something else, whatever else there is. Equals stay as they came.
    """
    return sorted(found, key=_weight)


def _weight(text: str) -> int:
    return next((rank for rank, phrases in enumerate(_HEAVY) if any(phrase in text for phrase in phrases)), len(_HEAVY))


def of_matrices(found: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """One warning for all matrices whose warnings differ in their numbers only. `found`: step, delta, tensor, text.

    >>> of_matrices([("trim", "one", "a", "only 0.25 is left"), ("trim", "one", "b", "only 0.5 is left")])
    ['trim, one: a: only 0.25 is left (and 1 more like it)']
    """
    grouped: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for step, delta, tensor, text in found:
        grouped.setdefault((step, delta, _NUMBER.sub("#", text)), []).append((tensor, text))
    lines = []
    for (step, delta, _), alike_ones in grouped.items():
        tensor, text = alike_ones[0]
        more = f" (and {len(alike_ones) - 1} more like it)" if len(alike_ones) > 1 else ""
        lines.append(f"{step}, {delta}: {tensor}: {text}{more}")
    return lines


def _of_matrices(record: Record) -> list[str]:
    return of_matrices(
        (step["step"], step["delta"], matrix["tensor"], text)
        for matrix in record["matrices"]
        for step in matrix["steps"]
        for text in step["warnings"]
    )


def _of_rounding(record: Record) -> list[str]:
    lines = []
    for name, matrices in summary.rounding(record).items():
        worst = matrices[0]["stored"][name]
        before = worst["rab_before"]
        left = f"{percent(worst['rab_after_stored'] / before)} of it is left, " if before > 0 else ""
        meant = f"{percent(worst['rab_after_intended'] / before)} was intended" if before > 0 else "none was intended"
        lines.append(
            f"rounding to the storage type more than doubled the bias on {name} of {counted(len(matrices), 'matrix')}; "
            f"worst is {matrices[0]['tensor']}: {left}{meant}"
        )
    return lines


def _of_selection(record: Record) -> list[str]:
    unprotected = [item for item in record["left_out"] if item["unprotected"]]
    if not unprotected:
        return []
    return [
        f"{counted(len(unprotected), 'matrix')} left out of a projection by the selection and added unprotected, "
        f"first {unprotected[0]['tensor']} (step {unprotected[0]['step']})"
    ]


def verdict(record: Record) -> str:
    """One line: which deltas were made orthogonal, how much of the bias is gone from the stored weights, what is left
    of the delta, what fits did to it, what else was added, whether the gates passed (first where one failed), how many
    warnings.

    Example: "Removed 97 % of the `retain` activation energy of `unlearning` in 168 block matrices while keeping 81 % of
    its norm; the embedding and norms added unchanged; no warnings."
    """
    clauses = [_clause(record, name, change) for name, change in summary.totals(record).items()]
    beside = [] if clauses else _without_geometry(record)
    clauses = [*orthogonal.clauses(record), *clauses, *merged.clauses(record), *beside]
    clauses += _other_fits(record)
    clauses += _added_beside(record)
    clauses += holding.clause(record)
    gates = judged.clause(record)
    if gates:
        clauses.insert(len(clauses) if all(gate["passed"] for gate in judged.gates(record)) else 0, gates)
    if record["left_out"]:
        clauses.append(f"{counted(len(record['left_out']), 'matrix')} left out by the selection")
    count = len(warnings(record))
    clauses.append(counted(count, "warning") if count else "no warnings")
    line = "; ".join(clauses)
    return f"{line[0].upper()}{line[1:]}."


def _clause(record: Record, geometry: str, change: summary.Change) -> str:
    steps = [step for matrix in record["matrices"] for step in matrix["steps"] if step.get("geometry") == geometry]
    deltas = " + ".join(f"`{name}`" for name in dict.fromkeys(step["delta"] for step in steps))
    subject = f"the `{geometry}` activation energy of {deltas or 'the change'}"
    where = f" in {counted(change.matrices, 'block matrix')}"
    norm = _norm(change)
    amplification = fitted.amplification(record, geometry)
    if amplification is not None and change.left is not None:
        return _amplified(amplification, geometry, change, where)
    if change.left is None:
        return f"found no activity of {deltas or 'the change'} on `{geometry}` to remove{where}{norm}"
    if change.left > 1:
        return f"raised {subject}{where} to {percent(change.left)} of what it was{norm}"
    return f"removed {percent(1 - change.left)} of {subject}{where}{norm}"


def _added_beside(record: Record) -> list[str]:
    """What was added beside the matrices that steps touched: embeddings, norms, biases."""
    told = []
    for treatment, how in (("source", "added unchanged"), ("mean", "averaged")):
        names = [name for item in record["others"] if item["treatment"] == treatment for name in item["tensors"]]
        told += [f"{kinds(dict.fromkeys(names), numbers=False)} {how}"] if names else []
    return told


def _amplified(found: fitted.Amplification, geometry: str, change: summary.Change, where: str) -> str:
    """What the projection removed and what the factor made of the rest: the two told apart."""
    energy = f"the `{geometry}` activation energy of `{found.fits[0]['delta']}`"
    removed = found.left is not None and found.left <= 1
    done = " and ".join(fitted.clause(fit, what="the rest" if removed else None) for fit in found.fits)
    norm = f", {percent(change.norm_ratio)} of the norm" if change.norm_ratio is not None else ""
    if found.left is None or not removed:
        return f"{done} (in the result: {percent(change.left or 0.0)} of {energy}{where}{norm})"
    result = f"in the result: {percent(change.left or 0.0)} of that energy{norm}"
    return f"removed {percent(1 - found.left)} of {energy}{where}, then {done} ({result})"


def _other_fits(record: Record) -> list[str]:
    """Fits that the clauses of the geometries do not tell of: no bias of their matrices was measured."""
    measured = [name for name, change in summary.totals(record).items() if change.left is not None]
    told = [found for name in measured if (found := fitted.amplification(record, name)) is not None]
    known = {fit["step"] for found in told for fit in found.fits}
    return [fitted.clause(fit) for fit in fitted.fits(record) if fit["step"] not in known]


def _norm(change: summary.Change) -> str:
    """What is left of the delta: the stored norm, and the intended one where rounding added to it."""
    if change.norm_ratio is None:
        return ""
    intended = change.norm_ratio_intended
    if intended is None or change.norm_ratio <= _ADDED * intended:
        return f" while keeping {percent(change.norm_ratio)} of its norm"
    return (
        f" while keeping {percent(intended)} of its norm ({percent(change.norm_ratio)} as stored: the rest is rounding "
        "to the storage type)"
    )


def _without_geometry(record: Record) -> list[str]:
    told = {fit["step"] for fit in fitted.fits(record)} | {found.step for found in orthogonal.orthogonal(record)}
    told |= {merge["step"] for merge in merged.merges(record)}
    steps = [
        f"{total.step} on `{total.delta}` kept {percent(total.norm_ratio)} of its norm over "
        f"{counted(total.matrices, 'matrix')}"
        for total in summary.step_totals(record)
        if total.norm_ratio is not None and total.step not in told
    ]
    return steps or ([] if told else _as_they_are(record))


def _as_they_are(record: Record) -> list[str]:
    """A recipe whose steps touched no matrix adds its deltas as they are."""
    return [
        f"added `{name}` as it is" + (f" ({counted(item['changed'], 'tensor')})" if "changed" in item else "")
        for name, item in record["deltas"].items()
    ] or ["no matrix was changed by a step"]
