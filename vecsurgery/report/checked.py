"""What `check` found, as text: what was compared, what differs, and one line to conclude."""

import textwrap
from collections.abc import Mapping
from typing import Any

from vecsurgery.report.numbers import counted, percent
from vecsurgery.report.outcome import by_weight
from vecsurgery.report.plain import table
from vecsurgery.report.wording import counts

_STRANGERS = "unrelated models differ by about 140 %"
_COMPARED = (
    "Compared: RoPE, normalisation, activation, heads, windows and tying of all models; shapes of all tensors; tokens "
    "by their strings; tokenizers with their files; rows of calibration, fits and evaluation with each other. No model "
    "was run."
)
_WIDTH = 120


def check_text(found: Mapping[str, Any], *, weights: bool = False) -> str:
    """Render what `vecsurgery.check` returns. `weights`: every tensor was read and is finite."""
    facts = found["facts"]
    warnings = by_weight(found["warnings"])
    blocks = [table(("what", "found"), _lines(facts), left=2)[1:], textwrap.wrap(_COMPARED + _read(weights), _WIDTH)]
    if warnings:
        order = ", the weightiest first" if len(warnings) > 1 else ""
        blocks.append([f"Warnings ({len(warnings)}){order}", *(f"- {warning}" for warning in warnings)])
    blocks.append([_verdict(len(warnings))])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _read(weights: bool) -> str:
    return " Every number of every checkpoint was read, and all are finite." if weights else ""


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One line for `into`, each delta, each geometry, and each set of rows."""
    sizes = [f"{facts['architecture']}, {counted(facts['blocks'], 'block')}, {counted(facts['tensors'], 'tensor')}"]
    sizes.append(f"{counted(facts['sites'], 'site')} (inputs that can be measured)")
    named = facts.get("models", {})
    lines = [("into", ": ".join(part for part in (named.get("into"), ", ".join(sizes)) if part))]
    for name, delta in facts.get("deltas", {}).items():
        lines.append((f"delta {name}", "; ".join([delta, *_kinship(facts, name), *_tokens(facts, name)])))
    lines += [(f"geometry {name}", _rows(item)) for name, item in facts.get("geometry", {}).items()]
    lines += [(name, _rows(item)) for name, item in facts.get("rows", {}).items()]
    return lines


def _kinship(facts: Mapping[str, Any], delta: str) -> list[str]:
    distance = facts.get("distances", {}).get(delta)
    if distance is None:
        return []
    return [f"into and base differ by {percent(distance)} of the base's norm ({_STRANGERS})"]


def _tokens(facts: Mapping[str, Any], delta: str) -> list[str]:
    rows = facts.get("vocabulary rows without delta", {}).get(delta)
    return [f"{counted(rows, 'row')} of the vocabulary get no delta"] if rows else []


def _rows(item: Mapping[str, Any]) -> str:
    return counts(item) or "nothing"


def _verdict(warnings: int) -> str:
    if not warnings:
        return "Nothing speaks against this recipe."
    return f"Nothing makes this recipe impossible; {counted(warnings, 'warning')} to judge before you run it."
