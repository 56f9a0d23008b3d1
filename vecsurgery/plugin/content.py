"""The YAML of a configuration: read, told from a recipe, and checked as mergekit checks it, in one line each."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registered_methods
from pydantic import ValidationError

from vecsurgery.errors import InputError
from vecsurgery.plugin.wording import told
from vecsurgery.recipe.problems import unknown

_RECIPE = ("into", "deltas", "geometry", "steps", "extends", "output", "evaluate", "gates")
"""Keys of a recipe that a configuration of mergekit cannot have."""


def content_of(path: Path) -> dict[str, Any]:
    """The map in a file. Errors: InputError for a file that cannot be read, other content, or a recipe."""
    doing = f"reading the configuration {path}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{doing}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{doing}: expected YAML: {line}{error.problem}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{doing}: expected YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{doing}: expected a map with merge_method, models and base_model")
    keys = [key for key in _RECIPE if key in content]
    if keys and "merge_method" not in content:
        raise InputError(
            f"{path}: this is a recipe of vecsurgery (it has {', '.join(keys)}), not a configuration of mergekit; run "
            f"it with `vecsurgery run {path} OUT`"
        )
    return content


def require_method(path: Path, content: Mapping[str, Any], ours: Iterable[str]) -> str:
    """The name of the merge method. Errors: InputError where it is missing, or none of mergekit's and of `ours`."""
    method = content.get("merge_method")
    if not isinstance(method, str):
        given = "is missing" if method is None else f"is {method!r}"
        raise InputError(f"{path}: merge_method {given}; expected the name of a method, as in `merge_method: linear`")
    known = dict.fromkeys([*(each.spec.name for each in registered_methods()), *ours])
    if method not in known:
        raise InputError(f"{path}: merge_method: {unknown('method', method, known)}")
    return method


def validated(path: Path, content: Mapping[str, Any]) -> Any:
    """mergekit's own reading of it, a MergeConfiguration. Errors: InputError naming what mergekit does not take."""
    try:
        return MergeConfiguration.model_validate(content)
    except ValidationError as error:
        raise InputError(f"reading the configuration {path}: {told(error, 'the configuration')}") from error
    except (RuntimeError, ValueError) as error:
        raise InputError(f"reading the configuration {path}: {error}") from error
