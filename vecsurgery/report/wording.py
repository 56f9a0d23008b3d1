"""Phrases that several renderings share: kinds of tensors, counts of rows, settings of steps."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vecsurgery.report.numbers import counted, number
from vecsurgery.report.record import Record

_KINDS = (
    ("bias", re.compile(r"\.bias$")),
    ("norm", re.compile(r"norm|(^|[._])ln(_|\d|\.|$)")),
    ("head", re.compile(r"lm_head|embed_out|(^|\.)output\.weight$")),
    ("embedding", re.compile(r"embed|(^|\.)w[tp]e\.")),
    ("router", re.compile(r"router|(^|\.)gate\.")),
    ("expert tensor", re.compile(r"experts?(\.|$)")),
)
"""What a tensor outside of the measured matrices is, by its name; the first that fits."""
_PLURALS = {"bias": "biases"}
_PLACES = {"id", "as", "delta", "deltas", "geometry", "modules", "layers", "where", "except"}
_ROWS = {"data", "template", "rows", "limit", "max_tokens", "max_length", "seed"}
"""Keys of a step that say where it acts and on what, not how."""


def kinds(names: Iterable[str], *, numbers: bool = True) -> str:
    """The kinds of these tensors, a few words in place of many names.

    >>> kinds(["lm_head.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"])
    'the head and 2 norms'
    """
    found = Counter(_kind(name) for name in names)
    words = [_counted(kind, count, numbers) for kind, count in found.items()]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(name.lower())), "other tensor")


def _counted(kind: str, count: int, numbers: bool) -> str:
    if count == 1:
        return f"the {kind}" if kind in ("head", "embedding") else f"1 {kind}"
    if not numbers:
        return _PLURALS.get(kind, f"{kind}s")
    return f"{count:,} {_PLURALS[kind]}" if kind in _PLURALS else counted(count, kind)


def counts(found: Mapping[str, Any]) -> str:
    """Counts of rows and tokens without those that are zero.

    >>> counts({"rows": 24, "repeats": 0, "tokens": 1288})
    '24 rows, 1,288 tokens'
    """
    return ", ".join(f"{count:,} {what}" for what, count in found.items() if isinstance(count, int) and count)


def settings(options: Mapping[str, Any]) -> str:
    """How a step works: its keys and values, without those that say on what. Lists and maps are left to the recipe.

    >>> settings({"project": "null_space", "geometry": "g", "rtol": 0.1, "others": "drop"})
    'rtol 0.1, others drop'
    """
    verbs = {"project", "fit", "merge"}
    shown = {key: value for key, value in options.items() if key not in _PLACES | _ROWS | verbs}
    return ", ".join(
        f"{key} {_value(value)}" for key, value in shown.items() if isinstance(value, bool | int | float | str)
    )


def step_settings(record: Record) -> dict[str, str]:
    """Step id → its settings, from the recipe that the record holds."""
    import yaml

    content = yaml.safe_load(record["recipe"])
    steps = content.get("steps") if isinstance(content, dict) else None
    return {str(step.get("id", _name(step))): settings(step) for step in steps or [] if isinstance(step, dict)}


def _name(step: Mapping[str, Any]) -> str:
    return str(step.get("project") or step.get("fit") or step.get("merge") or "scale")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)
