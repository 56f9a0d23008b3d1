"""Computing some rows of a tensor alone: where that gives the bits that the whole tensor would have."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.delta import DeltaSource, Dense, WithAdapter
from vecsurgery.delta.reading import is_transposed, seen_shape
from vecsurgery.editing.merging import merged_whole
from vecsurgery.editing.touches import Touch
from vecsurgery.fits import Multiplier
from vecsurgery.merges import Merge

_ENTRY_BY_ENTRY = {"scale", "fit", "left out", "source", "drop", "mean"}
"""Effects that give each entry of a delta without a look at the others."""


def by_rows(
    info: TensorInfo,
    touched: Sequence[Touch],
    deltas: Mapping[str, DeltaSource],
    merges: Mapping[str, Merge],
    multiplier: Callable[[Touch, TensorInfo], Multiplier],
) -> bool:
    """Whether rows of the edited tensor need the same rows of W and of the deltas, and no others.

    Of a block matrix: where nothing but numbers meets its deltas, none of which is made with factors (a product of some
    rows is rounded in another order) or lies transposed on disk. `multiplier`: what a step multiplies by.
    """
    if info.matrix is None:
        return not merged_whole(touched, merges, info)
    if info.matrix.transposed or not all(entry_by_entry(touch, info, multiplier) for touch in touched):
        return False
    return not any(_factored_or_transposed(source, info.parameter) for source in deltas.values())


def entry_by_entry(touch: Touch, info: TensorInfo, multiplier: Callable[[Touch, TensorInfo], Multiplier]) -> bool:
    """Whether a step gives each entry of a tensor's delta without a look at the others, in the same way everywhere."""
    if touch.effect not in _ENTRY_BY_ENTRY or touch.rows is not None:
        return False
    return touch.effect not in ("scale", "fit") or not isinstance(multiplier(touch, info), Mapping)


def _factored_or_transposed(source: DeltaSource, parameter: str) -> bool:
    if source.rank(parameter) is not None:
        return True
    stored = source.stored(parameter)
    return any(isinstance(each, WithAdapter) or is_transposed(each.layout.tensors[name]) for each, name in stored)


def zeros(info: TensorInfo, rows: "slice | Tensor | None") -> Dense:
    """The delta of rows (all for None) that it leaves as they are, of a tensor whose bytes it changes somewhere."""
    if rows is None:
        return Dense(torch.zeros(seen_shape(info)))
    return Dense(torch.zeros(len(torch.empty(info.shape[0], 0)[rows]), *info.shape[1:]))
