"""A safetensors file that grows layer by layer and survives a crash at any moment.

Room for the header is left at the start (safetensors headers may end in spaces), data are appended and synced per
layer, and a journal beside the file says what is safely there. Nothing is written twice; a resumed file has the bytes
of one that was written in one go.
"""

import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vecsurgery.checkpoint.atomic import sync_folder, write_bytes
from vecsurgery.checkpoint.disk import write_errors
from vecsurgery.checkpoint.hashes import tensor_bytes
from vecsurgery.errors import InputError, RunError

_CODES = {torch.float32: "F32", torch.float64: "F64"}
_LENGTH = 8
"""Bytes of the header's length, which comes first in a safetensors file."""
_LARGEST_OFFSET = 10**15


@dataclass(frozen=True)
class LayerRecord:
    """What the journal says of one finished layer."""

    layer: int
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]]
    """name → (safetensors type, shape, first byte, byte after the last), counted from the start of the data."""
    facts: dict[str, Any]
    sha256: str

    @property
    def start(self) -> int:
        return min((entry[2] for entry in self.tensors.values()), default=0)

    @property
    def stop(self) -> int:
        return max((entry[3] for entry in self.tensors.values()), default=0)


def partial_of(path: Path) -> Path:
    """Where the file stands until it is complete."""
    return path.with_name(path.name + ".partial")


def journal_of(path: Path) -> Path:
    """The journal of the partial file."""
    return path.with_name(path.name + ".journal")


def clear_journal(path: Path) -> None:
    """Remove the journal of a file that has its name: a crash behind the renaming leaves it."""
    journal_of(path).unlink(missing_ok=True)


class LayeredFile:
    """The file while it is written; made by `open_layered`."""

    def __init__(self, path: Path, file: BufferedRandom, room: int, records: list[LayerRecord]) -> None:
        self.path = path
        self._file = file
        self._room = room
        self._end = records[-1].stop if records else 0
        self.records = records
        """Finished layers in the order they were written."""

    @property
    def finished(self) -> frozenset[int]:
        """Numbers of the layers that are safely on disk."""
        return frozenset(record.layer for record in self.records)

    def append(self, layer: int, tensors: Mapping[str, Float[Tensor, "..."]], facts: Mapping[str, Any]) -> None:
        """Add the tensors of a layer (float32 or float64) and make them safe; `facts` are kept beside them."""
        entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        digest, position = hashlib.sha256(), self._end
        with write_errors(self.path):
            self._file.seek(_LENGTH + self._room + position)
            for name, tensor in tensors.items():
                data = tensor_bytes(tensor)
                self._file.write(data)
                digest.update(data)
                stop = position + len(data)
                entries[name] = (_CODES[tensor.dtype], tuple(tensor.shape), position, stop)
                position = stop
            self._sync()
            record = LayerRecord(layer, entries, dict(facts), digest.hexdigest())
            _add_line(journal_of(self.path), vars(record))
        self._end = max(position, self._end)
        self.records.append(record)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header into its room and give the file its name."""
        tensors = {
            name: (code, shape, start, stop)
            for record in self.records
            for name, (code, shape, start, stop) in record.tensors.items()
        }
        header = _header(metadata, tensors)
        if len(header) > self._room:
            raise RunError(f"writing {self.path}: the header needs {len(header)} bytes, {self._room} were reserved.")
        with write_errors(self.path):
            self._file.seek(0)
            self._file.write(struct.pack("<Q", self._room) + header.ljust(self._room))
            self._sync()
            partial_of(self.path).replace(self.path)
            sync_folder(self.path.parent)
            clear_journal(self.path)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def open_layered(
    path: Path,
    *,
    identity: Mapping[str, Any],
    metadata: Mapping[str, str],
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> Iterator[LayeredFile]:
    """Start a file, or go on with an interrupted one.

    Args:
        path: its final name.
        identity: JSON values that say what is written; an interrupted file of another identity is refused.
        metadata: metadata at least as long as those that `finish` will get.
        tensors: every tensor that can come, with its largest shape: for the size of the header.

    Raises:
        InputError: the interrupted file belongs to something else, or another process is writing it.
        RunError: the disk is full.
    """
    largest = {
        name: (_CODES[dtype], shape, _LARGEST_OFFSET, _LARGEST_OFFSET) for name, (dtype, shape) in tensors.items()
    }
    room = -(-len(_header(metadata, largest)) // 8) * 8
    start = json.loads(json.dumps({"identity": identity, "room": room}))
    partial = partial_of(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    with partial.open("r+b") as file:
        _lock(path, file)
        records = _resume(path, file, start)
        with write_errors(path):
            if records is None:
                file.truncate(0)
                journal_of(path).unlink(missing_ok=True)
                _add_line(journal_of(path), start)
            stop = records[-1].stop if records else 0
            file.truncate(_LENGTH + room + stop)
        yield LayeredFile(path, file, room, records or [])


def _lock(path: Path, file: BufferedRandom) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as held:
        raise InputError(f"writing {path}: another process is writing it. Wait for it, or stop it.") from held


def _resume(path: Path, file: BufferedRandom, start: Mapping[str, Any]) -> list[LayerRecord] | None:
    """Layers that the journal promises and the file holds; None where there is nothing to go on with."""
    lines = _lines(journal_of(path))
    if not lines or file.seek(0, os.SEEK_END) == 0:
        return None
    if lines[0] != start:
        raise InputError(
            f"writing {path}: {partial_of(path).name} was begun for something else (another model, other data or "
            f"options). Finish that first, or delete it together with {journal_of(path).name}."
        )
    records = []
    for line in lines[1:]:
        entries = {
            name: (code, tuple(shape), first, last) for name, (code, shape, first, last) in line["tensors"].items()
        }
        record = LayerRecord(line["layer"], entries, line["facts"], line["sha256"])
        if _sha256(file, _LENGTH + start["room"] + record.start, record.stop - record.start) != record.sha256:
            break
        records.append(record)
    kept = lines[: len(records) + 1]
    write_bytes(journal_of(path), b"".join(json.dumps(line).encode() + b"\n" for line in kept))
    return records


def _sha256(file: BufferedRandom, start: int, length: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while length > 0:
        data = file.read(min(length, 1 << 24))
        if not data:
            break
        digest.update(data)
        length -= len(data)
    return digest.hexdigest()


def _lines(journal: Path) -> list[dict[str, Any]]:
    """The complete lines of a journal; a line that a crash cut short does not count."""
    if not journal.exists():
        return []
    whole, _, _ = journal.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def _add_line(journal: Path, values: Mapping[str, Any]) -> None:
    with journal.open("ab") as file:
        file.write(json.dumps(values).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _header(metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, (code, shape, start, stop) in tensors.items():
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, stop]}
    return json.dumps(entries, separators=(",", ":")).encode()
