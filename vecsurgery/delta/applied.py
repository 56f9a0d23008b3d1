"""A checkpoint with a delta folder applied, or taken away again, bit for bit, tensor by tensor on demand."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vecsurgery.checkpoint.types import Layout, TensorInfo
from vecsurgery.delta.bits import added, patched, removed
from vecsurgery.delta.description import Entry
from vecsurgery.delta.folder import DeltaFolder, Way
from vecsurgery.delta.reading import Rows, Weights, is_transposed, row_indices


@dataclass(frozen=True)
class Applied:
    """W′, the bits that the delta's maker meant, from W (`way` apply), or W from W′ (`way` undo).

    W ± D is computed as `bits.added` and `bits.removed` say, then the patch turns over the bits that this misses.
    `weights`: the delta's base, or what `apply` made of it; whether it is, is for the caller to verify.
    """

    weights: Weights
    folder: DeltaFolder
    way: Way = "apply"

    @property
    def layout(self) -> Layout:
        return self.weights.layout

    @property
    def config(self) -> Any:
        return self.weights.config

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.way} {self.weights.fingerprint} {self.folder.fingerprint}".encode()).hexdigest()

    def read(self, tensor: str, rows: Rows = None) -> Tensor:
        """The tensor in its stored type and orientation.

        With `rows`, only these are computed where that can be (`by_rows`).
        """
        info = self.layout.tensors[tensor]
        entry = self.folder.entries.get(info.parameter)
        if entry is None:
            return self.weights.read(tensor, rows)
        if not self.by_rows(tensor) or (isinstance(rows, slice) and rows.step not in (None, 1)):
            values = self.changed(info, entry, self.weights.read(tensor), None)
            return values if rows is None else values[rows]
        if isinstance(rows, Tensor):
            rows = row_indices(rows, info.shape[0])
        return self.changed(info, entry, self.weights.read(tensor, rows), rows)

    def by_rows(self, tensor: str) -> bool:
        """Whether rows of the tensor as stored are rows of the delta, which is seen as (out, in)."""
        return not is_transposed(self.layout.tensors[tensor])

    def changed(self, info: TensorInfo, entry: Entry, values: Tensor, rows: Rows) -> Tensor:
        """`values`, the stored rows `rows` of a tensor (all of a transposed one), with the delta. `rows`: a run, or
        indices.
        """
        delta = self.folder.dense(info.parameter, rows)
        if delta is not None and entry.transposed:
            delta = delta.T
        if not values.is_floating_point():
            delta = None
        sum_of = added if self.way == "apply" else removed
        return self._patched(info, sum_of(values, delta), rows)

    def _patched(self, info: TensorInfo, values: Tensor, rows: Rows) -> Tensor:
        patch = self.folder.patch(info.parameter, self.way)
        if patch is None or not values.numel():
            return values
        places, change = patch
        width = values.numel() // len(values) if values.ndim else 1
        if isinstance(rows, Tensor):
            return _patched_rows(values, rows, width, places, change)
        start = 0 if rows is None else rows.indices(info.shape[0])[0] * width
        stop = start + values.numel()
        if places is None:
            return patched(values, None, change[start:stop])
        first, last = (int(each) for each in _positions(places, torch.tensor([start, stop])))
        return patched(values, places[first:last] - start, change[first:last]) if last > first else values


def _patched_rows(values: Tensor, rows: Tensor, width: int, places: Tensor | None, change: Tensor) -> Tensor:
    """`values`, the rows `rows` of a tensor (any order, also twice), with what a patch of the tensor says of them."""
    if places is None:
        return patched(values, None, change.reshape(-1, width)[rows].reshape(-1))
    first, last = _positions(places, rows * width), _positions(places, (rows + 1) * width)
    counts = last - first
    row = torch.repeat_interleave(torch.arange(len(rows)), counts)
    found = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row] + first[row]
    return patched(values, places[found].to(torch.int64) + (row - rows[row]) * width, change[found])


def _positions(places: Tensor, bounds: Tensor) -> Tensor:
    """How many of the ascending places lie below each bound. Places of int32 belong to tensors that need no more."""
    most = torch.iinfo(places.dtype).max
    return torch.searchsorted(places, bounds.clamp(max=most).to(places.dtype))
