"""The report as plain text: aligned tables, no colours, for a terminal, a log or a diff."""

import textwrap
from collections.abc import Callable, Sequence

from vecsurgery.report import fitted, holding, judged, merged, orthogonal, outcome, summary, wording
from vecsurgery.report.numbers import counted, duration, number, percent
from vecsurgery.report.record import ModelRecord, OthersRecord, Record

_WIDTH = 120
_LISTED = 4
"""Names of matrices that a line holds."""


def text(record: Record, *, worst: int = 10) -> str:
    """Render a record: verdict, gates, warnings, evaluation, sources, merges, steps, interference, fits, bias per layer
    on the stored weights, the `worst` matrices, what was not edited, notes, times.
    """
    sections: list[Callable[[Record], list[str]]] = [
        _head,
        _gates,
        _warnings,
        _evaluation,
        _sources,
        _merges,
        _steps,
        _orthogonal,
        _fits,
        holding.written,
        _outcomes,
        lambda record: [line for name in summary.totals(record) for line in _worst(record, name, worst)],
        lambda record: _merged_matrices(record, worst),
        _passed,
        _end,
    ]
    blocks = [section(record) for section in sections]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


BIAS = (
    "Activation energy, also called bias (retention activation bias, RAB): the mean squared output that the change "
    "adds for the inputs which a geometry's text gives to a matrix. Intended: as the steps left the change. Stored: as "
    "it is in the written weights, after rounding to their type. Left: stored as a share of before."
)
"""The terms of the report, told once."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, last_left: bool = False) -> list[str]:
    """Align cells in columns; the first `left` ones (and the last, if asked for) to the left, others to the right."""
    widths = [max(len(cells[column]) for cells in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column < left or (last_left and column == len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (header, *rows)
    ]


def optional(share: float | None) -> str:
    """A percentage, or a dash where there is none."""
    return "–" if share is None else percent(share)


def figure(value: float | None) -> str:
    """A measure: three significant digits, small ones in full; a dash where there is none."""
    return "–" if value is None else number(value) if value == 0 or abs(value) >= 1000 else f"{value:.3g}"


def model(item: ModelRecord) -> str:
    """Reference, the revision it resolved to, and the beginning of its fingerprint."""
    revision = f" at {item['revision'][:12]}" if item["revision"] else ""
    return f"{item['reference']}{revision} (fingerprint {item['fingerprint'][:12]})"


def treated(item: OthersRecord) -> str:
    """What `others` did to tensors, in words."""
    return {"source": "added unchanged", "mean": "averaged over the deltas", "drop": "dropped"}[item["treatment"]]


def sources(record: Record) -> list[tuple[str, str]]:
    """(what, description) of `into`, each delta and each geometry."""
    lines, away = [("into", model(record["into"]))], merged.gone(record)
    for name, delta in record["deltas"].items():
        adapter, tuned, base = delta.get("adapter"), delta["tuned"], delta["base"]
        pair = [model(item) for item in (tuned, base) if item]
        described = f"adapter {model(adapter)}" if adapter else " − ".join(pair)
        described = f"delta {model(delta['file'])}" if "file" in delta else described
        weight = delta.get("weight", 1.0)
        weighed = f", weight {number(weight) if isinstance(weight, int | float) else weight}"
        if name in away:
            weighed = f", merged into {away[name]}"
        changed = f", {counted(delta['changed'], 'tensor')} changed" if "changed" in delta else ""
        lines.append((f"delta {name}", described + weighed + changed))
    lines += merged.sources(record)
    for name, item in record["geometry"].items():
        counts = wording.counts({what: count for what, count in item["counts"].items() if what != "positions"})
        positions = f"{counted(item['tokens'], 'position')} at {counted(item['sites'], 'site')}"
        lines.append((f"geometry {name}", f"{positions}; tokens: {item['rule']}" + (f"; {counts}" if counts else "")))
    return lines


def _head(record: Record) -> list[str]:
    made = f"vecsurgery {record['versions'].get('vecsurgery', '')}".rstrip()
    return [f"{record['output']}, made by {made}, {record['created']}", outcome.verdict(record)]


def _sources(record: Record) -> list[str]:
    return table(*_split(sources(record)), left=2)


def _split(pairs: Sequence[tuple[str, str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return pairs[0], pairs[1:]


def _merges(record: Record) -> list[str]:
    rows = merged.rows(record)
    return [merged.TITLE, *table(merged.HEADER, rows, left=4, last_left=True)] if rows else []


def _merged_matrices(record: Record, count: int) -> list[str]:
    """The matrices of merges, where no other table names matrices."""
    rows = [] if summary.totals(record) else merged.largest(record, count)
    return ["Matrices with the largest merged delta", *table(merged.MATRIX_HEADER, rows, left=2)] if rows else []


def _steps(record: Record) -> list[str]:
    merging = merged.step_ids(record)
    settings = wording.step_settings(record)
    rows = [
        [
            total.step,
            total.method,
            total.delta,
            total.geometry or "–",
            str(total.matrices),
            optional(total.norm_ratio),
            optional(total.left),
            number(total.rank),
            optional(total.energy),
            settings.get(total.step, "") or "–",
        ]
        for total in summary.step_totals(record)
        if total.step not in merging
    ]
    if not rows:
        return [] if merging else ["No step touched a matrix."]
    header = [
        "step",
        "method",
        "delta",
        "geometry",
        "matrices",
        "norm kept",
        "bias left",
        "directions",
        "energy in them",
        "settings",
    ]
    title = "Steps, as intended (directions and the share of the geometry's energy in them: medians over the matrices)"
    return [title, *table(header, rows, left=4, last_left=True)]


def _orthogonal(record: Record) -> list[str]:
    rows = [found.cells for found in orthogonal.orthogonal(record)]
    return [*textwrap.wrap(orthogonal.TITLE, _WIDTH), *table(orthogonal.HEADER, rows, left=2)] if rows else []


def _fits(record: Record) -> list[str]:
    lines = []
    for fit in fitted.fits(record):
        lines += ["", f"Fit {fitted.title(fit)}", *table(*_split(fitted.described(fit)))]
    return lines[1:]


def _gates(record: Record) -> list[str]:
    """Failed ones first."""
    lines = [f"{'passed' if gate['passed'] else 'FAILED'}  {gate['reason']}" for gate in judged.gates(record)]
    return ["Gates", *lines] if lines else []


def _evaluation(record: Record) -> list[str]:
    rows = []
    for row in judged.rows(record):
        values = [figure(row.values[model]) for model in judged.MODELS]
        rows.append([row.data, row.title, row.unit, *values, optional(row.of_raw), row.good])
    if not rows:
        return []
    header = ["data", "measure", "unit", *judged.MODELS, "of raw's effect", "good is"]
    told = f"Evaluation ({'; '.join(judged.sources(record))}); raw: `into` plus the deltas as loaded"
    return [told, *table(header, rows, left=3)]


def _outcomes(record: Record) -> list[str]:
    lines: list[str] = []
    found, amplified = summary.totals(record), fitted.unamplified(record)
    for name, total in found.items():
        rows = [_change_row(str(layer), change) for layer, change in summary.by_layer(record, name).items()] + [
            _change_row("all", total)
        ]
        header = ["layer", "matrices", "bias before", "intended", "stored", "left", "norm kept"]
        notes = textwrap.wrap(amplified[name], _WIDTH) if name in amplified else []
        lines += ["", f"Bias on {name}", *notes, *table(header, rows)]
    return [*textwrap.wrap(BIAS, _WIDTH), *lines] if found else []


def _change_row(label: str, change: summary.Change) -> list[str]:
    bias = [number(change.before), number(change.intended), number(change.stored)]
    return [label, str(change.matrices), *bias, optional(change.left), optional(change.norm_ratio)]


def _worst(record: Record, geometry: str, count: int) -> list[str]:
    matrices = summary.least_cleaned(record, geometry, count=count)
    if len(matrices) < 2:
        return []
    rows = [
        [
            matrix["tensor"],
            number(matrix["stored"][geometry]["rab_before"]),
            number(matrix["stored"][geometry]["rab_after_stored"]),
            optional(summary.left_stored(matrix["stored"][geometry])),
            optional(matrix["stored"][geometry].get("norm_ratio_stored")),
        ]
        for matrix in matrices
    ]
    return [
        f"Matrices with most bias on {geometry} left",
        *table(["matrix", "bias before", "stored", "left", "norm kept"], rows),
    ]


def _passed(record: Record) -> list[str]:
    lines = []
    for item in record["others"]:
        if item["tensors"]:
            what = f"{counted(len(item['tensors']), 'tensor')} of {item['delta']} outside the blocks' matrices"
            named = f"{wording.kinds(item['tensors'])}; {item['step']}, others: {item['treatment']}"
            lines.append(f"{what}: {treated(item)} ({named})")
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for left in record["left_out"]:
        groups.setdefault((left["step"], left["delta"], left["unprotected"]), []).append(left["tensor"])
    for (step, delta, unprotected), names in groups.items():
        how = "added unprotected" if unprotected else "passes unchanged"
        what = names[0] if len(names) == 1 else f"{len(names)} matrices"
        listed = f": {', '.join(names[:_LISTED])}" if len(names) > 1 else ""
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        lines.append(f"{what} left out of {step}: the change by {delta} {how}{listed}{more}")
    return lines


def _warnings(record: Record) -> list[str]:
    found = outcome.warnings(record)
    order = ", the weightiest first" if len(found) > 1 else ""
    return [f"Warnings ({len(found)}){order}", *(f"- {line}" for line in found)] if found else []


def _end(record: Record) -> list[str]:
    spent = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in record["seconds"].items())
    return [f"Note: {line}" for line in outcome.notes(record)] + ([f"Time: {spent}."] if spent else [])
