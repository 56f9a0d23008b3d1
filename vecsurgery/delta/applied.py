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
from vecsurgery.delta.reading import Rows, Weights


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
        """The tensor in its stored type and orientation; of a matrix all rows are computed, whichever are asked for."""
        info = self.layout.tensors[tensor]
        entry = self.folder.entries.get(info.parameter)
        if entry is None:
            return self.weights.read(tensor, rows)
        if info.matrix is not None or not isinstance(rows, slice) or rows.step not in (None, 1):
            values = self.changed(info, entry, self.weights.read(tensor), None)
            return values if rows is None else values[rows]
        return self.changed(info, entry, self.weights.read(tensor, rows), rows)

    def changed(self, info: TensorInfo, entry: Entry, values: Tensor, rows: slice | None) -> Tensor:
        """`values`, the stored rows `rows` of a tensor (all of a matrix), with the delta."""
        delta = self.folder.dense(info.parameter, rows)
        if delta is not None and entry.transposed:
            delta = delta.T
        if not values.is_floating_point():
            delta = None
        sum_of = added if self.way == "apply" else removed
        return self._patched(info, sum_of(values, delta), rows)

    def _patched(self, info: TensorInfo, values: Tensor, rows: slice | None) -> Tensor:
        patch = self.folder.patch(info.parameter, self.way)
        if patch is None:
            return values
        places, change = patch
        start = 0 if rows is None else rows.indices(info.shape[0])[0] * (values.numel() // max(1, values.shape[0]))
        stop = start + values.numel()
        if places is None:
            return patched(values, None, change[start:stop])
        first, last = (int(each) for each in torch.searchsorted(places, torch.tensor([start, stop])))
        return patched(values, places[first:last] - start, change[first:last]) if last > first else values
