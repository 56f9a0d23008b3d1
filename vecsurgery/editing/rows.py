"""Computing some rows of a tensor alone: where that gives the bits that the whole tensor would have."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.delta import DeltaSource, Dense
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

    Of a block matrix: where nothing but numbers meets its deltas, none of which comes as factors (a product of some
    rows is rounded in another order) or lies transposed on disk. `multiplier`: what a step multiplies by.
    """
    if info.matrix is None:
        return not merged_whole(touched, merges, info)
    if info.matrix.transposed or not all(_entry_by_entry(touch, info, multiplier) for touch in touched):
        return False
    return not any(_factored_or_transposed(source, info.parameter) for source in deltas.values())


def _entry_by_entry(touch: Touch, info: TensorInfo, multiplier: Callable[[Touch, TensorInfo], Multiplier]) -> bool:
    if touch.effect not in _ENTRY_BY_ENTRY or touch.rows is not None:
        return False
    return touch.effect not in ("scale", "fit") or not isinstance(multiplier(touch, info), Mapping)


def _factored_or_transposed(source: DeltaSource, parameter: str) -> bool:
    stored = (weights.layout.tensors[name].matrix for weights, name in source.stored(parameter))
    return source.rank(parameter) is not None or any(matrix is not None and matrix.transposed for matrix in stored)


def zero_rows(info: TensorInfo, rows: "slice | Tensor") -> Dense:
    """The delta of rows that it leaves as they are, in a tensor that it changes elsewhere."""
    count = len(torch.empty(info.shape[0], 0)[rows])
    return Dense(torch.zeros(()).expand(count, *info.shape[1:]))
