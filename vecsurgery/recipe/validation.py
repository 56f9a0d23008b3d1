"""From a map of the tree to an options model: unknown keys with the nearest match, the rest by pydantic.

Values are validated as strict JSON: no text becomes a number, no truth value either.
"""

import json
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .problems import Problems, join, nearest, shown, unknown
from .tree import Node

_EXPECTED = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected a map",
}

Model = TypeVar("Model", bound=BaseModel)


def key_names(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of an options model under the names that a recipe uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def check_keys(node: Node, known: Iterable[str], path: str, problems: Problems) -> None:
    """Records every key of a map that is not known."""
    known = list(known)
    for key, child in node.children().items():
        if key not in known:
            problems.add(child.place, join(path, key), unknown("key", key, known))


def is_map(node: Node, keys: Iterable[str], path: str, problems: Problems) -> bool:
    """Whether the node is a map; recorded as a problem where it is not."""
    if isinstance(node.value, dict):
        return True
    problems.add(node.place, path, f"expected a map with some of the keys {', '.join(keys)}; got {node.describe()}")
    return False


def validated(
    node: Node, model: type[Model], path: str, problems: Problems, *, also_known: Sequence[str] = ()
) -> Model | None:
    """The options that a map of the tree gives, or None where something is wrong (then recorded).

    A key without a value counts as absent, unless the option itself can be null. Keys in `also_known` are allowed and
    left to the caller.
    """
    fields = key_names(model)
    if not is_map(node, [*also_known, *fields], path, problems):
        return None
    check_keys(node, [*fields, *also_known], path, problems)
    values = {
        key: child.plain()
        for key, child in node.children().items()
        if key in fields and (child.value is not None or _takes_null(fields[key]))
    }
    try:
        return model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            _record(details, node, path, problems)
        return None


def _takes_null(field: FieldInfo) -> bool:
    """Whether null says something else than the default does."""
    return field.default is not None and NoneType in get_args(field.annotation)


def _record(details: ErrorDetails, node: Node, path: str, problems: Problems) -> None:
    """One pydantic error, at the deepest node of the tree that its location reaches."""
    for key in details["loc"]:
        if isinstance(node.value, dict) and key in node.value:
            node = node.value[str(key)]
        elif isinstance(node.value, tuple) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
        else:
            if details["type"] in ("missing", "extra_forbidden"):
                path = join(path, key)
            break
        path = join(path, key)
    problems.add(node.place, path, _message(details))


def _message(details: ErrorDetails) -> str:
    kind, given = details["type"], details["input"]
    if kind == "missing":
        return "this key is required"
    if kind in ("value_error", "assertion_error"):
        return str(details.get("ctx", {}).get("error", details["msg"]))
    if kind == "extra_forbidden":
        return "unknown key"
    text = _EXPECTED.get(kind) or details["msg"].replace("Input should be", "expected", 1)
    match = _nearest_choice(kind, given, details)
    return f"{text}; got {shown(given)}" + (f"; did you mean '{match}'?" if match else "")


def _nearest_choice(kind: str, given: Any, details: ErrorDetails) -> str | None:
    if kind != "literal_error" or not isinstance(given, str):
        return None
    expected = str(details.get("ctx", {}).get("expected", ""))
    return nearest(given, [word for word in expected.replace(" or ", ", ").replace("'", "").split(", ") if word])
