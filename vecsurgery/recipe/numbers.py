"""Numbers over a model, as mergekit writes them: one number, a gradient over the blocks, or a list of filters."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from vecsurgery.errors import InputError

from .problems import shown
from .types import FilteredNumber

NUMBER_SCHEMA = {
    "anyOf": [
        {"type": "number"},
        {"type": "array", "items": {"type": "number"}, "minItems": 1},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "filter": {"type": "string"},
                    "value": {
                        "anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]
                    },
                },
                "required": ["value"],
                "additionalProperties": False,
            },
        },
    ]
}
"""The JSON Schema of what `parse_number` accepts."""
NUMBERS_SCHEMA = {"anyOf": [*NUMBER_SCHEMA["anyOf"], {"type": "object", "additionalProperties": NUMBER_SCHEMA}]}
"""The JSON Schema of what `parse_numbers` accepts."""


def parse_number(value: Any) -> "float | list[float] | tuple[FilteredNumber, ...]":
    """A number of the recipe language from plain data.

    Accepted: a finite number; a list of them (a gradient over the blocks); a list of `{filter, value}` maps, where an
    entry without `filter` (or with "*") is the default and must be the last. Raises ValueError for anything else.
    """
    if not isinstance(value, list):
        return _plain(value, "a number, a list of numbers, or a list of {filter, value}")
    if not value:
        raise ValueError("expected at least one value in the list; it is empty")
    if not any(isinstance(entry, Mapping) for entry in value):
        return [_plain(entry, "a number") for entry in value]
    entries = tuple(_filtered(entry) for entry in value)
    for entry in entries[:-1]:
        if entry.filter is None:
            raise ValueError("an entry without filter matches everything; it must be the last of the list")
    return entries


def parse_numbers(value: Any) -> "float | list[float] | tuple[FilteredNumber, ...] | dict[str, Any]":
    """A number of the recipe language for all deltas, or a map from deltas to numbers. Raises ValueError."""
    if not isinstance(value, Mapping):
        return parse_number(value)
    found = {}
    for name, each in value.items():
        try:
            found[name] = parse_number(each)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def _plain(value: Any, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected {expected}; got {shown(value)}")
    if not math.isfinite(value):
        raise ValueError(f"a number must be finite; got {value}")
    return float(value)


def _filtered(entry: Any) -> FilteredNumber:
    if not isinstance(entry, Mapping) or "value" not in entry or not set(entry) <= {"filter", "value"}:
        raise ValueError(f"expected maps {{filter: text, value: number}} throughout the list; got {shown(entry)}")
    name = entry.get("filter")
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"a filter is dotted components of a tensor's name, as in self_attn; got {shown(name)}")
    value = parse_number(entry["value"])
    if isinstance(value, tuple):
        raise ValueError("filters cannot be nested; expected a number or a list of numbers as the value")
    return FilteredNumber(None if name == "*" else name, value)


def each_value(numbers: Any) -> Iterator[float]:
    """Every value in what `parse_number` or `parse_numbers` gives."""
    if isinstance(numbers, int | float):
        yield float(numbers)
    elif isinstance(numbers, FilteredNumber):
        yield from each_value(numbers.value)
    else:
        for number in numbers.values() if isinstance(numbers, Mapping) else numbers:
            yield from each_value(number)


def plain_number(number: Any) -> Any:
    """The inverse of `parse_number`: plain data that a recipe can hold."""
    if not isinstance(number, tuple):
        return list(number) if isinstance(number, list) else number
    entries = [(each.filter, plain_number(each.value)) for each in number]
    return [{"value": value} if name is None else {"filter": name, "value": value} for name, value in entries]


def plain_numbers(numbers: Any) -> Any:
    """The inverse of `parse_numbers`."""
    if isinstance(numbers, Mapping):
        return {name: plain_number(number) for name, number in numbers.items()}
    return plain_number(numbers)


def value_at(
    number: Any, name: str, layer: int | None, blocks: int, position: Literal["before", "block", "after"]
) -> float:
    """The number that holds for one tensor.

    A gradient v_0 … v_m runs over the blocks: block l of L takes the value at l·m/(L − 1), linearly between its two
    neighbours; a tensor before the blocks (embedding) takes v_0, one behind them (final norm, head) v_m. In a list of
    filters the first entry that matches decides; a filter matches whole dotted components of `name` in a row, so that
    `layers.1` does not match `layers.11`.

    Arguments: `number` as `parse_number` gives it; `name` the tensor's full name; `layer` 0-based (None outside the
    blocks); `blocks` their count, ≥ 1 for `position` "block". Raises InputError where no filter matches the name.
    """
    if isinstance(number, int | float):
        return float(number)
    if isinstance(number, tuple):
        for entry in number:
            if entry.filter is None or _holds(entry.filter, name):
                return value_at(entry.value, name, layer, blocks, position)
        filters = ", ".join(str(entry.filter) for entry in number)
        raise InputError(
            f"finding the number for the tensor {name}: none of the filters {filters} matches it; "
            "add a last entry without filter, as in {value: 1.0}"
        )
    if position != "block" or layer is None:
        return float(number[-1] if position == "after" else number[0])
    exact = layer / max(blocks - 1, 1) * (len(number) - 1)
    lower = min(int(exact), len(number) - 1)
    upper = min(lower + 1, len(number) - 1)
    share = exact - lower
    return float((1.0 - share) * number[lower] + share * number[upper])


def _holds(pattern: str, name: str) -> bool:
    return f".{pattern}." in f".{name}."
