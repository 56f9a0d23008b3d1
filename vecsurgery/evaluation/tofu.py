"""open-unlearning's TOFU_EVAL.json, `{metric: {"agg_value": …, "value_by_index": {row: {…}}}}`, read and written."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vecsurgery.checkpoint import write_bytes
from vecsurgery.errors import InputError, RunError
from vecsurgery.evaluation.catalogue import measure, recognised
from vecsurgery.evaluation.types import EvaluatedModel, Figure, Measured

NAME = "TOFU_EVAL.json"
OTHER = "other"
"""Where figures stand that only another program computes."""
_LARGEST = 1 << 30
"""Bytes; files of all TOFU metrics with their texts have some ten million."""


def read_tofu(path: Path, label: str) -> EvaluatedModel:
    """The figures of a TOFU_EVAL.json under a label.

    Names that are measures of ours stand under their data source, any other under `other` with its own name. Entries
    beside `agg_value` and `value_by_index` are passed over. What a row holds must be numbers, texts, null or lists of
    them: anything else, NaN and repeated names included, is an InputError naming file and metric.
    """
    found: dict[str, dict[str, Figure]] = {}
    for name, content in _parsed(path).items():
        known = recognised(name)
        data, measured = known if known is not None else (OTHER, measure(name))
        figure = _figure(path, name, content, measured.entry)
        found.setdefault(data, {})[measured.name] = figure
    data_sources = {
        name: Measured(figures, rows=max(len(figure.by_index) for figure in figures.values()))
        for name, figures in found.items()
    }
    return EvaluatedModel(label, str(path), None, data_sources)


def tofu_text(model: EvaluatedModel) -> str:
    """The figures of a model as a TOFU_EVAL.json, in the order of its data."""
    metrics = {
        _key(data, name): figure.to_dict()
        for data, measured in model.data.items()
        for name, figure in measured.figures.items()
    }
    return json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _key(data: str, name: str) -> str:
    """The name of a figure; that of a measure which is none of ours begins with its data source, too."""
    if data == OTHER:
        return name
    described = measure(name)
    return described.key_for(data) if "{data}" in described.key else f"{data}_{name}"


def write_tofu(model: EvaluatedModel, folder: Path) -> Path:
    """Write FOLDER/LABEL/TOFU_EVAL.json. Raises RunError where that fails."""
    path = tofu_path(folder, model.label)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, tofu_text(model).encode())
    except OSError as error:
        raise RunError(f"writing {path}: {error.strerror or error}") from error
    return path


def tofu_path(folder: Path, label: str) -> Path:
    """Where the figures of a model are written."""
    return folder / label / NAME


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"reading {path}: it has more than {_LARGEST} bytes; expected a {NAME}")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_refused)
    except OSError as error:
        raise InputError(f"reading {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"reading {path}: not the JSON of a {NAME} ({error})") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"reading {path}: expected an object of metrics, as open-unlearning's {NAME} has")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return dict(pairs)


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _figure(path: Path, name: str, content: Any, key: str) -> Figure:
    where = f"reading {path}: metric {name!r}"
    if not isinstance(content, dict) or "agg_value" not in content:
        raise InputError(f"{where}: expected an object with `agg_value`")
    value = content["agg_value"]
    if value is not None and not _is_number(value):
        raise InputError(f"{where}: `agg_value` is {value!r}; expected a finite number or null")
    rows = content.get("value_by_index") or {}
    if not isinstance(rows, dict):
        raise InputError(f"{where}: `value_by_index` is {type(rows).__name__}; expected an object of rows")
    entries = {index: _entry(where, index, entry, key) for index, entry in rows.items() if entry is not None}
    return Figure(None if value is None else float(value), entries, key)


def _entry(where: str, index: str, entry: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: row {index!r} is {entry!r}; expected an object")
    for name, value in entry.items():
        several = value if isinstance(value, list) else [value]
        if not all(each is None or _is_number(each) or (isinstance(each, str) and name != key) for each in several):
            raise InputError(f"{where}: row {index!r} has {name!r}: {value!r}; expected numbers, texts or null")
    return entry


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
