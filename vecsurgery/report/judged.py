"""What a run was judged by, in words: the figures of `evaluate` on three models, and the gates."""

from typing import NamedTuple

from vecsurgery.evaluation.catalogue import FORGET, RETAIN, measure, order
from vecsurgery.report.numbers import counted
from vecsurgery.report.record import GateRecord, Record

MODELS = ("into", "raw", "edited")
"""Columns of the table: before, with the deltas as loaded, and the result."""
_HIGH_IS_KNOWN = {"token_probability", "row_probability", "paraphrased_probability", "accuracy", "rouge"}
_LOW_IS_KNOWN = {"capped_loss", "nll", "perplexity"}
_HIGH_IS_GOOD = {"truth_ratio", "forget_quality"}
_ALWAYS = {
    **dict.fromkeys(("think_format", "stop_rate", "answer_accuracy", "compliance", "right_and_compliant"), "high"),
    **dict.fromkeys(("unclosed_rate", "loop_rate", "think_kl", "answer_kl"), "low"),
}
"""The good end of measures of what a reasoning model writes, on any data."""
_NEGLIGIBLE = 1e-6
"""Relative change by the raw delta below which a share of it says nothing."""


class Row(NamedTuple):
    """One figure of one data source."""

    data: str
    title: str
    unit: str
    good: str
    """"high" or "low": where a good result stands; empty where the data have no role."""
    values: dict[str, float | None]
    """into, raw and edited → value."""
    of_raw: float | None
    """(edited − into)/(raw − into): how much of what the raw delta does here is left."""


def rows(record: Record) -> list[Row]:
    """The table of `evaluate`: data source by data source, figures in the catalogue's order."""
    found = []
    for data, measured in record.get("evaluation", {}).items():
        figures = measured["figures"]
        names = {name for values in figures.values() for name in values}
        for name in order(names):
            described = measure(name)
            if described.shown:
                values = {model: figures.get(model, {}).get(name) for model in MODELS}
                found.append(Row(data, described.title, described.unit, good(data, name), values, _of_raw(values)))
    return found


def good(data: str, name: str) -> str:
    """Whether "high" or "low" is the good end of a measure: of thoughts, or on data with the role of forget or retain;
    else empty.
    """
    if name in _ALWAYS:
        return _ALWAYS[name]
    if data not in (FORGET, RETAIN):
        return ""
    if name in _HIGH_IS_GOOD:
        return "high"
    high_is_known = name in _HIGH_IS_KNOWN or name.startswith("leak@")
    if not high_is_known and name not in _LOW_IS_KNOWN:
        return ""
    return "high" if high_is_known == (data == RETAIN) else "low"


def _of_raw(values: dict[str, float | None]) -> float | None:
    into, raw, edited = (values[model] for model in MODELS)
    if into is None or raw is None or edited is None or abs(raw - into) <= _NEGLIGIBLE * max(abs(raw), abs(into)):
        return None
    return (edited - into) / (raw - into)


def sources(record: Record) -> list[str]:
    """`forget: 40 rows, 312 scored tokens`, a line for each data source."""
    return [
        f"{data}: {counted(item['rows'], 'row')}, {counted(item['tokens'], 'scored token')}"
        for data, item in record.get("evaluation", {}).items()
    ]


def warnings(record: Record) -> list[str]:
    """Warnings of the evaluation, which name their data source themselves."""
    return [text for item in record.get("evaluation", {}).values() for text in item["warnings"]]


def gates(record: Record) -> list[GateRecord]:
    """The gates of a record, failed ones first."""
    return sorted(record.get("gates", []), key=lambda gate: gate["passed"])


def clause(record: Record) -> str:
    """`passed all 3 gates`, `failed 1 of 3 gates (retention)`; empty where there are none."""
    found = gates(record)
    failed = [gate["measure"] for gate in found if not gate["passed"]]
    if failed:
        named = ", ".join(f"`{name}`" for name in dict.fromkeys(failed))
        return f"failed {len(failed)} of {counted(len(found), 'gate')} ({named})"
    if not found:
        return ""
    if len(found) == 1:
        return f"passed the gate `{found[0]['measure']}`"
    return "passed both gates" if len(found) == 2 else f"passed all {len(found)} gates"
