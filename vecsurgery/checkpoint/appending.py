"""A safetensors file whose tensors are known only as they come: room for the header is kept, data are appended.

For what cannot be planned: factors of a rank that a step decides, rows that turn out to be zero, patches. The header
stands in front and may end in spaces, so it is written into its room when everything is there.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from torch import Tensor

from vecsurgery.checkpoint.atomic import replacing, write_all
from vecsurgery.checkpoint.disk import write_errors
from vecsurgery.checkpoint.hashes import file_sha256, tensor_bytes
from vecsurgery.checkpoint.shards import ShardPlan, TensorPlan
from vecsurgery.checkpoint.writer import WrittenFile
from vecsurgery.errors import RunError

_ALIGNMENT = 8
FILLER = "filler."
"""Start of the names of tensors that only keep what follows them aligned, which readers in place need."""
_ENTRY = 160
"""Bytes of a header's entry beside the tensor's name, at most: type, shape and places in full."""


class Appending:
    """The file while it is written; made by `appending`."""

    def __init__(self, path: Path, file: FileIO, room: int) -> None:
        self.path = path
        self.tensors: list[TensorPlan] = []
        """What was added, in order, fillers included."""
        self._file, self._room, self._size = file, room, 0
        with write_errors(path):
            file.seek(room)

    def add(self, name: str, pieces: Iterable[Tensor]) -> TensorPlan | None:
        """Append a tensor that comes as consecutive pieces along its first dimension, all of one type.

        Returns what was written; None, and no tensor of that name, where no piece has an entry.
        """
        self._fill()
        start, rows, first = self._size, 0, None
        for piece in pieces:
            if not piece.numel():
                continue
            first = piece if first is None else first[:0]
            if piece.dtype != first.dtype:
                raise RunError(f"writing tensor {name!r}: a piece of type {piece.dtype} came behind {first.dtype}")
            rows += piece.shape[0] if piece.ndim else 1
            self._write(tensor_bytes(piece))
        if first is None:
            return None
        shape = (rows, *first.shape[1:]) if first.ndim else ()
        plan = TensorPlan(name, str(first.dtype).removeprefix("torch."), tuple(shape))
        if self._size - start != plan.nbytes:
            raise RunError(f"writing tensor {name!r}: {self._size - start} bytes came, expected {plan.nbytes}")
        self.tensors.append(plan)
        return plan

    def header(self) -> bytes:
        """The file's first bytes, as long as the room that was kept. Errors: RunError where it is too small."""
        text = ShardPlan(self.path.name, tuple(self.tensors)).header()[8:]
        if len(text) > self._room - 8:
            raise RunError(f"writing {self.path}: the header needs {len(text)} bytes, {self._room - 8} were kept free")
        return (self._room - 8).to_bytes(8, "little") + text.ljust(self._room - 8)

    def _fill(self) -> None:
        missing = -self._size % _ALIGNMENT
        if missing:
            self.tensors.append(TensorPlan(f"{FILLER}{len(self.tensors)}", "uint8", (missing,)))
            self._write(memoryview(bytes(missing)))

    def _write(self, data: memoryview) -> None:
        self._size += len(data)
        write_all(self._file, data, self.path)


@contextmanager
def appending(folder: Path, name: str, names: Iterable[str]) -> Iterator[Appending]:
    """Write `name` in `folder`: to `NAME.part` while it is open, synced and renamed at the end.

    `names`: every tensor that may come, for the size of the header. What is raised meanwhile leaves no file.
    Errors: RunError where the disk is full or pieces do not fit together.
    """
    # A filler may stand before each tensor: its name is shorter than the entry is reckoned.
    room = -(-(64 + sum(len(each.encode()) + 2 * _ENTRY for each in names)) // _ALIGNMENT) * _ALIGNMENT
    path = folder / name
    with replacing(path) as file:
        target = Appending(path, file, room + 8)
        yield target
        with write_errors(path):
            file.seek(0)
        write_all(file, memoryview(target.header()), path)


def written(path: Path) -> WrittenFile:
    """Size and SHA-256 of a file that is complete."""
    return WrittenFile(path.name, path.stat().st_size, file_sha256(path))
