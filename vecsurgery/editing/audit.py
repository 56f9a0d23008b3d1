"""Reading each tensor once: a pass asks this, which keeps the last tensor for whoever asks for it again (the base of a
delta is usually `into` itself), and hashes what it hands out where the pass writes.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vecsurgery.checkpoint import Stored, tensor_bytes
from vecsurgery.checkpoint.types import Layout, Weights

_WAITING = 8
"""Tensors whose hash may be outstanding before the reader waits."""
_SMALL = 1 << 16
"""Tensors of fewer bytes are hashed at once: handing one to the thread takes as long."""


class Reader:
    """What every reader of other weights says of them."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    @cached_property
    def layout(self) -> Layout:
        return self._weights.layout

    @property
    def fingerprint(self) -> str:
        return self._weights.fingerprint

    @property
    def config(self) -> Any:
        return self._weights.config

    @property
    def folder(self) -> Path | None:
        return getattr(self._weights, "folder", None)


class Remembered(Reader):
    """Weights that hand out again, without reading, what was asked for last."""

    def __init__(self, weights: Weights, _label: str = "") -> None:
        super().__init__(weights)
        self._last: tuple[str, slice | Tensor | None, Tensor] | None = None
        self._lock = threading.Lock()

    def read(self, tensor: str, rows: "slice | Tensor | None" = None) -> Tensor:
        """The tensor, or rows of it."""
        with self._lock:
            if self._last is None or self._last[0] != tensor or not _same_rows(self._last[1], rows):
                self._last = None  # gone before the next one comes
                self._last = (tensor, rows, self._weights.read(tensor, rows))
            return self._last[2]


def _same_rows(first: "slice | Tensor | None", second: "slice | Tensor | None") -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and bool((first == second).all())
    return type(first) is type(second) and not isinstance(first, Tensor) and first == second


class Audited(Reader):
    """Weights that remember the SHA-256 of every tensor that was read, computed beside the caller's work.

    Rows must be asked for as consecutive slices; then the hash is that of the whole tensor (of the rows that were read,
    where a vocabulary is longer than that of `into`).
    """

    def __init__(self, weights: Weights, label: str) -> None:
        super().__init__(weights)
        self._label = label
        self._digests: dict[str, Any] = {}
        self.whole: set[str] = set()
        """Tensors that were read from end to end, of those whose hashes were taken last."""
        self._reached: dict[str, int] = {}
        self._last: tuple[str, int, int, Tensor] | None = None
        self._whole = False
        self._pool = ThreadPoolExecutor(1, "input-hasher")
        self._waiting: deque[Future[None]] = deque()

    def read(self, tensor: str, rows: "slice | Tensor | None" = None) -> Tensor:
        """The tensor, or consecutive rows of it; what was read last is handed out again, whole or in part."""
        if isinstance(rows, Tensor):
            return self._weights.read(tensor, rows)
        if rows is None and self._last is not None and self._last[0] == tensor and self._whole:
            return self._last[3]
        shape = self._weights.layout.tensors[tensor].shape
        start, stop, _ = (rows or slice(None)).indices(shape[0] if shape else 1)
        if self._last is not None and self._last[0] == tensor:
            _, first, end, held = self._last
            if first <= start and stop <= end:
                return held if rows is None else held[start - first : stop - first]
        values = self._weights.read(tensor, rows)
        self._last, self._whole = (tensor, start, stop, values), rows is None
        if start != self._reached.get(tensor, 0):
            return values  # read again, as a tied tensor is that the files hold twice: hashed already
        self._reached[tensor] = stop
        digest = self._digests.setdefault(tensor, hashlib.sha256())
        if start == 0 and values.nbytes < _SMALL:  # no earlier rows of it wait for the thread
            _update(digest, values)
            return values
        self._waiting.append(self._pool.submit(_update, digest, values))
        if len(self._waiting) > _WAITING:
            self._waiting.popleft().result()
        return values

    def read_joined(self, tensors: Sequence[str]) -> Tensor:
        """Whole tensors of one type, end to end, each with its own hash: for many small ones."""
        if not isinstance(self._weights, Stored):
            return torch.cat([self.read(name).reshape(-1) for name in tensors])
        pieces = [self._weights.data(name) for name in tensors]
        for name, piece in zip(tensors, pieces, strict=True):
            if name not in self._reached:
                self._digests[name] = hashlib.sha256(piece)
                self._reached[name] = _length(self.layout, name)
        dtype: torch.dtype = getattr(torch, self.layout.tensors[tensors[0]].dtype)
        joined = bytearray().join(pieces)
        return torch.frombuffer(joined, dtype=dtype) if joined else torch.empty(0, dtype=dtype)

    def take_hashes(self) -> dict[str, str]:
        """`label: tensor` → SHA-256 of what was read since the last call."""
        while self._waiting:
            self._waiting.popleft().result()
        hashes = {f"{self._label}: {name}": digest.hexdigest() for name, digest in self._digests.items()}
        self.whole = {name for name in self._digests if self._reached[name] == _length(self.layout, name)}
        self._digests.clear()
        self._reached.clear()
        self._last = None
        return hashes

    def close(self) -> None:
        """End the hashing thread."""
        self._pool.shutdown(cancel_futures=True)


def _length(layout: Layout, tensor: str) -> int:
    shape = layout.tensors[tensor].shape
    return shape[0] if shape else 1


def _update(digest: Any, values: Tensor) -> None:
    digest.update(tensor_bytes(values))
