"""Reading tensors for a delta: matching names, orientation, rows, and the refusal of NaN and infinity."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vecsurgery.checkpoint import Stored
from vecsurgery.checkpoint.types import Layout, TensorInfo
from vecsurgery.errors import InputError

if TYPE_CHECKING:
    from vecsurgery.checkpoint.types import Weights as Weights
else:
    # Tests check annotations at run time; an isinstance test of this protocol would compute fingerprints.
    Weights = Any

Rows = slice | Tensor | None
"""A run of rows, indices of rows, or None for all of them."""

_CHUNK = 1 << 24
"""Bytes compared at a time."""
_TINY = 1 << 16
"""Bytes of a tensor that are compared as a copy."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Finder:
    """Finds the stored tensor that gives a parameter its values: its own, or one that it is tied to."""

    layout: Layout

    def find(self, parameter: str) -> TensorInfo | None:
        found = self._table.get(parameter)
        if found is not None:
            return found
        owner = self.layout.tied.get(parameter, parameter)
        names = (owner, *(alias for alias, other in self.layout.tied.items() if other == owner))
        return next((self._table[name] for name in names if name in self._table), None)

    @cached_property
    def _table(self) -> dict[str, TensorInfo]:
        return self.layout.by_parameter()


def label(weights: Weights) -> str:
    """How messages name a checkpoint: its folder, or what it is."""
    folder = getattr(weights, "folder", None)
    return str(folder) if folder is not None else f"{type(weights).__name__} of {weights.layout.architecture!r}"


def is_float(info: TensorInfo) -> bool:
    return bool(getattr(torch, info.dtype).is_floating_point)


def nbytes(info: TensorInfo) -> int:
    """Bytes of a stored tensor."""
    return math.prod(info.shape) * int(getattr(torch, info.dtype).itemsize)


def is_transposed(info: TensorInfo) -> bool:
    return info.matrix is not None and info.matrix.transposed


def seen_shape(info: TensorInfo) -> tuple[int, ...]:
    """The shape of the tensor's delta: (out, in) for a matrix, the stored shape otherwise."""
    return info.shape[::-1] if is_transposed(info) else info.shape


def has_vocabulary_rows(info: TensorInfo) -> bool:
    """True where the rows are tokens, whose number may differ between checkpoints."""
    return info.kind in ("embedding", "head") and len(info.shape) > 0


def row_indices(rows: Rows, count: int) -> Int[Tensor, " rows"]:
    """The rows meant by `rows` in a tensor with `count` rows."""
    if rows is None:
        return torch.arange(count)
    if isinstance(rows, slice):
        return torch.arange(count)[rows]
    return rows.nonzero().flatten() if rows.dtype == torch.bool else rows.to(torch.int64)


def wide_type(*types: torch.dtype, precise: bool = False) -> torch.dtype:
    """The type to compute in: float32, or float64 where a tensor is stored so (`precise`: or in float32)."""
    wide = torch.float64 in types or (precise and torch.float32 in types)
    return torch.float64 if wide else torch.float32


def peak(values: Float[Tensor, "..."]) -> float:
    """max |x| in one pass; NaN or infinity where there is one, 0 for an empty tensor."""
    if not values.numel():
        return 0.0
    # four times faster than the maximum norm; where there is NaN, both are
    lowest, highest = torch.aminmax(values)
    return max(-float(lowest), float(highest))


def require_finite(values: Float[Tensor, "..."], tensor: str, origin: str) -> None:
    """Refuse NaN and infinity. `origin` names the checkpoint or adapter. Errors: InputError."""
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"reading tensor {tensor!r} of {origin}: it holds NaN or infinity, expected finite numbers; "
            "the file is damaged or the training diverged, use another checkpoint"
        )


def row_chunks(shape: tuple[int, ...], itemsize: int, size: int = _CHUNK) -> Iterator[slice | None]:
    """Slices along the first dimension of about `size` bytes each; None (all) for a tensor that needs no cutting."""
    total = math.prod(shape) * itemsize
    if total <= size or not shape:
        yield None
        return
    step = max(1, size * shape[0] // total)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def same_bytes(first: Shaped[Tensor, "..."], second: Shaped[Tensor, "..."]) -> bool:
    """True where two tensors have equal shape and equal bytes; of different types: equal values."""
    if first.shape != second.shape:
        return False
    if first.dtype != second.dtype:
        return torch.equal(first.to(torch.float64), second.to(torch.float64))
    integers = _INTEGERS[first.dtype.itemsize]
    return torch.equal(first.contiguous().view(integers), second.contiguous().view(integers))


def _small_and_alike(info: TensorInfo, other: TensorInfo) -> bool:
    """Whether both tensors are of one type, shape and orientation, and fit into one chunk."""
    alike = info.shape == other.shape and info.dtype == other.dtype and is_transposed(info) == is_transposed(other)
    return alike and nbytes(info) <= _CHUNK


def same_tensor(
    first: tuple[Weights, TensorInfo], second: tuple[Weights, TensorInfo], mask: Bool[Tensor, " rows"] | None = None
) -> bool:
    """Compare two stored tensors chunk by chunk, reading no further than the first difference.

    Rows that only one of them has, and rows where `mask` is False, are not compared.
    """
    (weights, info), (others, other) = first, second
    if mask is None and _small_and_alike(info, other):
        if isinstance(weights, Stored) and isinstance(others, Stored) and nbytes(info) <= _TINY:
            # a tenth of the time that two tensors take
            return bytes(weights.data(info.name)) == bytes(others.data(other.name))
        return same_bytes(weights.read(info.name), others.read(other.name))
    if seen_shape(info)[1:] != seen_shape(other)[1:]:
        return False
    if is_transposed(info) != is_transposed(other):
        return same_bytes(weights.read(info.name).T, others.read(other.name))
    if len(info.shape) == 0:
        return same_bytes(weights.read(info.name), others.read(other.name))
    rows = min(info.shape[0], other.shape[0], *([] if mask is None else [len(mask)]))
    if rows != info.shape[0] and not has_vocabulary_rows(info):
        return False
    itemsize = max(getattr(torch, entry.dtype).itemsize for entry in (info, other))
    for chunk in row_chunks((rows, *info.shape[1:]), itemsize):
        part = slice(0, rows) if chunk is None else chunk
        pair = weights.read(info.name, part), others.read(other.name, part)
        if mask is not None:
            pair = pair[0][mask[part]], pair[1][mask[part]]
        if not same_bytes(*pair):
            return False
    return True
