"""What pydantic finds wrong, in one line. It knows nothing of mergekit, whose import is slow and warns."""

from typing import Any

from pydantic import ValidationError


def told(error: ValidationError, whole: str) -> str:
    """What was found wrong, in one line; `whole` is what problems of no single key are told of."""
    problems = {
        ".".join(str(part) for part in details["loc"]) or whole: _message(details)
        for details in error.errors(include_url=False)
    }
    return "; ".join(f"{where}: {message}" for where, message in problems.items())


def _message(details: Any) -> str:
    if details["type"] == "missing":
        return "this parameter is required"
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    return f"{details['msg'].replace('Input should be', 'expected', 1)}; got {details['input']!r}"
