"""What a step touches: parsing `layers`, and the test of one tensor against a selection."""

import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

from .problems import shown
from .types import Selection

_LAYERS = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")
_MOST_LAYERS = 100_000


def parse_layers(value: Any) -> tuple[int, ...]:
    """Block numbers from `"a-b"` (0-based, inclusive), a number, or a list of either; sorted, each once.

    Raises ValueError for anything else.
    """
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ValueError("expected at least one block number; the list is empty")
    return tuple(sorted({layer for entry in entries for layer in _layers(entry)}))


def _layers(entry: Any) -> range:
    match = _LAYERS.fullmatch(str(entry)) if isinstance(entry, int | str) and not isinstance(entry, bool) else None
    if match is None:
        raise ValueError(f'expected block numbers from 0, as in 3, "0-7" or [0, "4-7"]; got {shown(entry)}')
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < _MOST_LAYERS:
        raise ValueError(f'expected a range "first-last" with first ≤ last < {_MOST_LAYERS}; got {shown(entry)}')
    return range(first, last + 1)


def plain_layers(layers: tuple[int, ...]) -> list[int | str]:
    """The inverse of `parse_layers`: runs of block numbers as ranges."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return [first if first == last else f"{first}-{last}" for first, last in runs]


def lacking(layers: Collection[int] | None, blocks: int) -> str | None:
    """What to say of block numbers beyond the last of a model with so many blocks; None where there are none."""
    beyond = tuple(layer for layer in layers or () if layer >= blocks)
    if not beyond:
        return None
    there = f"{blocks} block{'s' if blocks > 1 else ''}, 0 to {blocks - 1}" if blocks else "no blocks"
    return f"the model has {there}; leave out {', '.join(map(str, plain_layers(beyond)))}"


def selects(selection: Selection, *, name: str, layer: int | None, roles: Collection[str]) -> bool:
    """Whether a step with this selection touches a tensor.

    All restrictions must hold: `modules` (one of the tensor's `roles` is named; a fused matrix has several and is one
    matrix), `layers` (its block is named; a tensor outside the blocks has none), `where` (a glob matches the full
    `name`), `except` (none does). In a glob `*` stands for any characters, dots included.
    """
    if selection.modules is not None and not set(selection.modules) & set(roles):
        return False
    if selection.layers is not None and layer not in selection.layers:
        return False
    if selection.where and not any(fnmatchcase(name, glob) for glob in selection.where):
        return False
    return not any(fnmatchcase(name, glob) for glob in selection.exclude)
