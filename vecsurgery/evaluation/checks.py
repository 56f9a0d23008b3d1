"""Checkers: whether an answer is right or obeys, by what its row of the data says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from vecsurgery.calibration.rows import Row
from vecsurgery.errors import InputError
from vecsurgery.evaluation.extras import require
from vecsurgery.evaluation.instructions import instruction_checks

Check = Callable[[str], bool]
"""Whether an answer passes."""

SECONDS = 2.0
"""A regular expression of the data that takes longer counts as not found."""
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_FENCE = re.compile(r"\A```\w*\n(.*)\n?```\Z", re.DOTALL)


@dataclass(frozen=True)
class RowChecks:
    """The checkers of one row; None for a kind that the row does not have.

    `right`: whether an answer is right. `obeys`: whether it follows every instruction.
    """

    right: Check | None
    obeys: Check | None


def row_checks(row: Row) -> RowChecks:
    """What the fields `check` (right or wrong) and `instruction_check`, `instruction_id_list` and `kwargs` (obeyed or
    not) of a row say.

    A check is one of these, or a list of them, all of which must hold of the answer without white space around it:

    - {"exact": text, or list of texts}: it is one of them.
    - {"number": n, "tolerance": t}: its last number lies within t of n (0 where t is left out); 1,234.5 is one number.
    - {"regex": pattern}: the pattern of the package `regex` (a superset of Python's) occurs in it; a search that takes
      longer than 2 seconds has not found it.
    - {"json_schema": schema}: it is JSON, alone or in one code fence, that the schema allows.

    Instructions are those of IFEval in its published form (see `instruction_checks`).

    Raises InputError naming file and row for a checker that is unknown or wrong, and for a package that is missing.
    """
    right = _all(row, "check")
    obeys = [check for check in (_all(row, "instruction_check"), instruction_checks(row)) if check is not None]
    return RowChecks(right, _both(obeys) if obeys else None)


def _all(row: Row, name: str) -> Check | None:
    if name not in row.checks:
        return None
    value = row.checks[name]
    entries = value if isinstance(value, list) else [value]
    where = f"{row.where}: `{name}`"
    if not entries:
        raise InputError(f"{where} is empty; expected one checker at least")
    return _both([_check(where, entry) for entry in entries])


def _both(checks: Sequence[Check]) -> Check:
    return lambda answer: all(check(answer) for check in checks)


def _check(where: str, entry: Any) -> Check:
    known = ", ".join(_KINDS)
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {entry!r}; expected an object with one of {known}")
    kinds = [name for name in entry if name in _KINDS]
    others = [name for name in entry if name not in _KINDS and not (name == "tolerance" and kinds == ["number"])]
    if others or len(kinds) != 1:
        near = get_close_matches(str(others[0]), _KINDS, n=1) if others else []
        came = ", ".join(map(repr, entry)) or "nothing"
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where} has {came}; expected exactly one of {known} (number may have a tolerance){meant}")
    return _KINDS[kinds[0]](where, entry)


def _exact(where: str, entry: Mapping[str, Any]) -> Check:
    value = entry["exact"]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: exact is {value!r}; expected a text or a list of texts")
    wanted = {text.strip() for text in texts}
    return lambda answer: answer.strip() in wanted


def _number(where: str, entry: Mapping[str, Any]) -> Check:
    value, tolerance = entry["number"], entry.get("tolerance", 0.0)
    for name, each in (("number", value), ("tolerance", tolerance)):
        if isinstance(each, bool) or not isinstance(each, int | float) or not math.isfinite(each):
            raise InputError(f"{where}: {name} is {each!r}; expected a finite number")

    def check(answer: str) -> bool:
        found = last_number(answer)
        return found is not None and abs(found - value) <= tolerance

    return check


def last_number(text: str) -> float | None:
    """The last number of a text; None where it has none.

    Digits with or without groups of three behind commas, a decimal part, a sign that no letter or digit precedes, an
    exponent. Digits behind a letter (H2O) are no number. Example:

    >>> last_number("It costs 1,250.50 euros, not 3."), last_number("x = -4e2")
    (3.0, -400.0)
    """
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def _regex(where: str, entry: Mapping[str, Any]) -> Check:
    pattern = entry["regex"]
    if not isinstance(pattern, str):
        raise InputError(f"{where}: regex is {pattern!r}; expected the text of a regular expression")
    found = _search(f"{where}: regex", pattern)
    return lambda answer: found(answer.strip())


def _search(where: str, pattern: str) -> Check:
    """Whether a pattern occurs in a text; never for longer than `SECONDS`."""
    library = require("regex", "regex", "checking answers by a regular expression")
    try:
        compiled = library.compile(pattern)
    except library.error as error:
        raise InputError(f"{where} {pattern!r} is no regular expression: {error}") from error

    def check(text: str) -> bool:
        try:
            return compiled.search(text, timeout=SECONDS) is not None
        except TimeoutError:
            return False

    return check


def _json_schema(where: str, entry: Mapping[str, Any]) -> Check:
    schema = entry["json_schema"]
    library = require("jsonschema", "jsonschema", "checking answers by a JSON schema")
    referencing = require("referencing", "referencing", "checking answers by a JSON schema")
    if not isinstance(schema, Mapping | bool):
        raise InputError(f"{where}: json_schema is {schema!r}; expected an object")
    kind = library.validators.validator_for(schema, default=library.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except library.SchemaError as error:
        raise InputError(f"{where}: json_schema is no JSON schema: {error.message}") from error
    # An empty registry: what a schema refers to is not fetched from anywhere.
    validator = _bounded(library, kind, where)(schema, registry=referencing.Registry())

    def check(answer: str) -> bool:
        try:
            return bool(validator.is_valid(_parsed(answer)))
        except (ValueError, RecursionError):
            return False
        except referencing.exceptions.Unresolvable as error:
            raise InputError(f"{where}: json_schema refers to what is not in it: {error}") from error

    return check


def _bounded(library: Any, kind: Any, where: str) -> Any:
    """A kind of validator whose patterns end in time."""

    def pattern(_validator: Any, wanted: str, instance: Any, _schema: Any) -> Any:
        if isinstance(instance, str) and not _search(f"{where}: pattern", wanted)(instance):
            yield library.ValidationError(f"{instance!r} does not match {wanted!r}")

    return library.validators.extend(kind, {"pattern": pattern})


def _parsed(answer: str) -> Any:
    """The JSON that an answer is; raises ValueError where it is none."""
    text = answer.strip()
    fenced = _FENCE.match(text)
    return json.loads(fenced[1] if fenced else text, parse_constant=_refused)


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


_KINDS: dict[str, Callable[[str, Mapping[str, Any]], Check]] = {
    "exact": _exact,
    "number": _number,
    "regex": _regex,
    "json_schema": _json_schema,
}
