"""The weights of a base with an adapter on it, computed on demand in float32: what `base+adapter` refers to."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vecsurgery.checkpoint.types import Layout, TensorInfo
from vecsurgery.delta.adapter import Adapter
from vecsurgery.delta.reading import Rows, Weights, is_transposed


@dataclass(frozen=True)
class WithAdapter:
    """W + scale·B·A for every tensor that the adapter changes, the base's own tensor for all others.

    `adapter_folder`: a PEFT LoRA adapter (see `Adapter` for its kinds). Changed tensors are float32 (float64 where
    stored so), never rounded to the base's type: rounding would drown a small update. As `tuned` of a difference to
    the same base, the delta is the adapter's, factored.
    """

    weights: Weights
    adapter_folder: Path

    def __post_init__(self) -> None:
        self.adapter  # noqa: B018 - refuses an adapter that does not fit before anything is read

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter as a delta on `weights`."""
        return Adapter(self.adapter_folder.name, self.adapter_folder, self.weights)

    @property
    def config(self) -> Any:
        return self.weights.config

    @property
    def folder(self) -> Path | None:
        """The base's folder, where it has one."""
        return getattr(self.weights, "folder", None)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.weights.fingerprint}+{self.adapter.fingerprint}".encode()).hexdigest()

    @cached_property
    def layout(self) -> Layout:
        """The base's, with the types and row numbers of the changed tensors."""
        layout = self.weights.layout
        changed = set(self.adapter.names)
        tensors = {
            name: self._changed(info) if info.parameter in changed else info for name, info in layout.tensors.items()
        }
        return replace(layout, tensors=tensors)

    def read(self, tensor: str, rows: Rows = None) -> Tensor:
        """The tensor with the adapter's part, in the base's orientation; `rows`: only these of the first dimension."""
        info = self.layout.tensors[tensor]
        saved = self.adapter.saved(info.parameter)
        wide = getattr(torch, info.dtype)
        if saved is not None:
            return (saved if rows is None else saved[rows]).to(wide)
        delta = self.adapter.read(info.parameter, None if is_transposed(info) else rows)
        if delta is None:
            return self.weights.read(tensor, rows).to(wide)
        values = delta.dense()
        if is_transposed(info):
            values = values.T if rows is None else values.T[rows]
        return self.weights.read(tensor, rows).to(wide) + values

    def _changed(self, info: TensorInfo) -> TensorInfo:
        saved = self.adapter.saved(info.parameter)
        dtype = "float64" if info.dtype == "float64" else "float32"
        return replace(info, dtype=dtype, shape=info.shape if saved is None else tuple(saved.shape))
