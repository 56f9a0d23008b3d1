"""Parameters that mergekit's own methods do not know: mergekit takes them without a word and ignores them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registered_methods

from vecsurgery.errors import InputError
from vecsurgery.plugin.methods import PREFIX
from vecsurgery.recipe.problems import nearest

_PARTS = ("models", "slices", "sources", "modules")
"""Keys of a configuration below which parts of it may have parameters of their own."""


def check_parameters(path: Path, content: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Look at a configuration with a method of mergekit's own; `content` as the YAML has it.

    `warn` is told of keys that mergekit does not have, and of parameters that another of its methods has: one
    configuration is often tried with several. Errors: InputError for a parameter that none of its methods has.
    """
    specs = {method.spec.name: [each.name for each in method.spec.parameters] for method in registered_methods()}
    method = content["merge_method"]
    for key in content:
        if key not in MergeConfiguration.model_fields:
            warn(
                f"{path}: mergekit has no key {key!r} and ignores it{_meant(str(key), MergeConfiguration.model_fields)}"
            )
    known = specs[method]
    others = {name for other, names in specs.items() if not other.startswith(PREFIX) for name in names}
    for where, name in _given(content, ""):
        if name in known:
            continue
        named = f"its parameters are {', '.join(known)}" if known else "it has none"
        if name not in others:
            raise InputError(
                f"{path}: {where}: unknown parameter {name!r} of {method}{_meant(name, known)}, which mergekit would "
                f"ignore; {named}"
            )
        warn(f"{path}: {where}: {method} has no parameter {name!r}, and mergekit ignores it; {named}")


def _meant(word: str, known: Any) -> str:
    match = nearest(word, list(known))
    return f" (did you mean {match!r}?)" if match is not None else ""


def _given(part: Any, path: str) -> Iterator[tuple[str, str]]:
    """(where, name) of every parameter of a part of a configuration, once for each place."""
    if isinstance(part, list):
        for entry in part:
            yield from _given(entry, path)
    if not isinstance(part, Mapping):
        return
    own = part.get("parameters")
    if isinstance(own, Mapping):
        of = f" of {part['model']}" if "model" in part else f" of {path}" if path else ""
        yield from ((f"parameters{of}", str(name)) for name in own)
    for key in _PARTS:
        below = part.get(key)
        named = below.values() if key == "modules" and isinstance(below, Mapping) else [below]
        for entry in named:
            yield from _given(entry, key)
