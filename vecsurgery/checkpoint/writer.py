"""One output shard, streamed: tensors arrive piece by piece, are hashed and written meanwhile, never held.

The file has its final name only when every byte of it is on disk.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from torch import Tensor

from vecsurgery.checkpoint.atomic import replacing, write_all
from vecsurgery.checkpoint.hashes import tensor_bytes
from vecsurgery.checkpoint.shards import ShardPlan, TensorPlan
from vecsurgery.errors import RunError

Chunk = Tensor | bytes | bytearray | memoryview
"""Consecutive rows of a tensor in the output type, or their bytes."""

_PIECE = 1 << 21
"""Bytes handed to the disk at a time: few enough that the allocator uses their memory again."""
_SMALL = 1 << 16
"""Chunks of fewer bytes are collected: handing over each one would take longer than writing it."""
_WAITING = 16
"""Pieces under way before the caller waits: what bounds memory to little more than the tensor in hand."""


@dataclass(frozen=True)
class WrittenFile:
    """A finished file of the output: its name, its bytes and their SHA-256."""

    file: str
    size: int
    sha256: str


def write_shard(folder: Path, shard: ShardPlan, tensors: Iterable[tuple[str, Tensor | Iterable[Chunk]]]) -> WrittenFile:
    """Write one shard from its tensors, in the plan's order, each in one piece or as consecutive chunks of rows, which
    must not change afterwards.

    The bytes go to `NAME.part` in `folder`, synced and renamed at the end; writing and hashing run beside the caller's
    computing. Errors: RunError where the disk is full or what came differs from the plan (name, order, type, number of
    bytes); then no file is left. What the iterators raise passes through, and leaves no file either.
    """
    path = folder / shard.file
    with replacing(path) as file:
        sink = _Sink(file, path)
        with sink.closed_at_the_end():
            sink.put(memoryview(shard.header()))
            _put_tensors(sink, shard, iter(tensors))
    return WrittenFile(shard.file, sink.size, sink.sha256())


def _put_tensors(sink: "_Sink", shard: ShardPlan, tensors: Iterator[tuple[str, Tensor | Iterable[Chunk]]]) -> None:
    for plan in shard.tensors:
        name, chunks = next(tensors, (None, ()))
        if name != plan.name:
            raise RunError(f"writing {shard.file}: tensor {name!r} came, the plan expects {plan.name!r} here")
        _put_tensor(sink, plan, (chunks,) if isinstance(chunks, Tensor) else chunks)
        del chunks  # before the next tensor is computed
    surplus = next(tensors, None)
    if surplus is not None:
        raise RunError(f"writing {shard.file}: tensor {surplus[0]!r} came after the last one of the plan")


def _put_tensor(sink: "_Sink", plan: TensorPlan, chunks: Iterable[Chunk]) -> None:
    written = 0
    for chunk in chunks:
        if isinstance(chunk, Tensor):
            dtype = str(chunk.dtype).removeprefix("torch.")
            if dtype != plan.dtype:
                raise RunError(f"writing tensor {plan.name!r}: values of type {dtype} came, the plan says {plan.dtype}")
            data = tensor_bytes(chunk)
        else:
            data = memoryview(chunk).cast("B")
        written += len(data)
        if written > plan.nbytes:
            break
        sink.put(data)
    if written != plan.nbytes:
        raise RunError(
            f"writing tensor {plan.name!r}: {written} bytes came, {plan.nbytes} expected for {plan.dtype} {plan.shape}"
        )


class _Sink:
    """Writes and hashes a stream of pieces, each in a thread of its own, in order."""

    def __init__(self, file: FileIO, path: Path) -> None:
        self.size = 0
        self._file, self._path = file, path
        self._digest = hashlib.sha256()
        self._writer = ThreadPoolExecutor(1, "shard-writer")
        self._hasher = ThreadPoolExecutor(1, "shard-hasher")
        self._waiting: deque[Future[None]] = deque()
        self._small = bytearray()

    def put(self, data: memoryview) -> None:
        """Take the next bytes of the file, which must not change afterwards."""
        self.size += len(data)
        if len(data) < _SMALL:
            self._small += data
            if len(self._small) >= _PIECE:
                self._flush()
            return
        self._flush()
        if len(data) <= _PIECE:
            self._submit(data)
            return
        for start in range(0, len(data), _PIECE):
            # A copy: a view would keep its whole tensor in memory until the disk has taken the last piece.
            self._submit(memoryview(bytes(data[start : start + _PIECE])))

    def _flush(self) -> None:
        """Hand on what was collected."""
        if self._small:
            self._submit(memoryview(self._small))
            self._small = bytearray()

    def _submit(self, piece: memoryview) -> None:
        self._waiting.append(self._writer.submit(self._write, piece))
        self._waiting.append(self._hasher.submit(self._digest.update, piece))
        while len(self._waiting) > 2 * _WAITING:
            self._waiting.popleft().result()

    @contextmanager
    def closed_at_the_end(self) -> Iterator[None]:
        """Both threads are gone afterwards, whatever happens; their errors are raised here."""
        try:
            yield
            self._flush()
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            for pool in (self._writer, self._hasher):
                pool.shutdown(cancel_futures=True)

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _write(self, piece: memoryview) -> None:
        write_all(self._file, piece, self._path)
