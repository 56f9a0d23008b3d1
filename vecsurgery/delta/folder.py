"""A delta on disk: delta.json and the safetensors files that it lists, read tensor by tensor."""

import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vecsurgery.checkpoint.files import Header, safetensors_headers
from vecsurgery.checkpoint.fingerprints import fingerprint, tensor_facts
from vecsurgery.checkpoint.hashes import file_sha256
from vecsurgery.delta import reading
from vecsurgery.delta.bits import INTEGERS, product
from vecsurgery.delta.description import DESCRIPTION_FILE, Description, Entry, described
from vecsurgery.delta.reading import Rows
from vecsurgery.delta.types import Delta, Dense, Factored
from vecsurgery.errors import InputError

Way = Literal["apply", "undo"]
_FLOATS = ("bfloat16", "float16", "float32", "float64")
_TYPES = {
    "values": _FLOATS,
    "left": _FLOATS,
    "right": _FLOATS,
    "rows": ("int64",),
    "at": ("int32", "int64"),
}
"""Last part of a stored tensor's name → types that it may have."""
_FILLER = re.compile(r"filler\.\d+")


def value_names(parameter: str) -> tuple[str, ...]:
    """Every tensor that a file may hold for one parameter."""
    patches = [f"{parameter}.{way}.{part}" for way in ("apply", "undo") for part in ("at", "bits")]
    return (*(f"{parameter}.{part}" for part in ("values", "rows", "left", "right")), *patches)


@dataclass(frozen=True)
class DeltaFolder:
    """A delta folder, opened: its description and the headers of its files are checked, no values are read.

    `content`: the bytes of delta.json, where it is not written yet. Errors: InputError naming file and tensor.
    """

    path: Path
    content: bytes | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _verifying: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _open: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _known: set[str] = field(default_factory=set, repr=False, compare=False)
    """Files whose SHA-256 was found right, and tensors of places that were found valid."""

    def __post_init__(self) -> None:
        for parameter, entry in self.entries.items():
            self._require_whole(parameter, entry)
        places = {name: entry.file for parameter, entry in self.entries.items() for name in value_names(parameter)}
        for name, header in self._headers.items():
            if places.get(name) != header.file.name and not _FILLER.fullmatch(name):
                raise InputError(
                    f"reading the delta {self.path}: {header.file.name} holds {name!r}, which no tensor of the "
                    "description has there; make the delta again"
                )

    @cached_property
    def description(self) -> Description:
        return described(self.path, self.content)

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """What changes, by parameter."""
        return {name: entry for name, entry in self.description.tensors.items() if entry.kind is not None}

    @cached_property
    def fingerprint(self) -> str:
        """Of the description, and of the edges of every tensor of its files."""
        description = self.description.model_dump(mode="json")
        return fingerprint(description, self._headers, lambda name: tensor_facts(self._get(name)))

    @property
    def hashes(self) -> dict[str, str]:
        """File → SHA-256 as the description records it, which `verify` compares; that of delta.json itself first."""
        own = {DESCRIPTION_FILE: file_sha256(self.path / DESCRIPTION_FILE)}
        return own | {name: facts.sha256 for name, facts in self.description.files.items()}

    def verify(self, file: str) -> None:
        """Compare the SHA-256 of a file with the recorded one; what was found right is not hashed again.

        Errors: InputError naming the file that is not the one that was written.
        """
        with self._verifying:
            if file not in self._known and file_sha256(self.path / file) != self.description.files[file].sha256:
                raise InputError(
                    f"reading the delta {self.path}: {file} has not the SHA-256 that {DESCRIPTION_FILE} records, so "
                    "that values in it are damaged or altered; make or fetch the delta again"
                )
            self._known.add(file)

    def seen_shape(self, parameter: str) -> tuple[int, ...]:
        """Shape of the delta: (out, in) for a matrix."""
        entry = self.entries[parameter]
        return entry.shape[::-1] if entry.transposed else entry.shape

    def nbytes(self, parameter: str) -> int:
        """Bytes of the values that `delta` reads."""
        names = (f"{parameter}.{part}" for part in ("values", "rows", "left", "right"))
        return sum(self._headers[name].nbytes for name in names if name in self._headers)

    def rank(self, parameter: str) -> int | None:
        """Columns of the left factor; None where the delta is not stored as factors."""
        left = self._shape(f"{parameter}.left")
        return None if left is None else left[1]

    def delta(self, parameter: str, rows: Rows = None) -> Delta | None:
        """The numbers as stored, in float32 or wider; None where only bits differ. Errors: InputError for NaN."""
        entry = self.entries[parameter]
        if entry.kind == "bits":
            return None
        if entry.kind == "factored":
            left, right = (self._wide(f"{parameter}.{side}") for side in ("left", "right"))
            return Factored(left if rows is None else left[rows], right)
        return Dense(self._rows(parameter, rows) if entry.kind == "rows" else self._wide(f"{parameter}.values", rows))

    def dense(self, parameter: str, rows: Rows = None) -> Tensor | None:
        """The numbers as `apply` adds them: (out, in), a product of factors summed in its fixed order."""
        delta = self.delta(parameter, rows)
        if delta is None:
            return None
        return product(delta.left, delta.right) if isinstance(delta, Factored) else delta.values

    def patch(self, parameter: str, way: Way) -> tuple[Tensor | None, Tensor] | None:
        """(flat places, bits) of a patch; places None where the bits of every entry are given; None without a patch."""
        name = f"{parameter}.{way}"
        if f"{name}.bits" not in self._headers:
            return None
        places = None
        if f"{name}.at" in self._headers:
            places = self._places(f"{name}.at", math.prod(self.entries[parameter].shape))
        return places, self._get(f"{name}.bits")

    def _rows(self, parameter: str, rows: Rows) -> Tensor:
        """The stored rows among zeros."""
        count = self.seen_shape(parameter)[0]
        wanted = reading.row_indices(rows, count)
        values, stored = f"{parameter}.values", self._places(f"{parameter}.rows", count)
        place = torch.full((count,), -1, dtype=torch.int64)
        place[stored] = torch.arange(len(stored))
        found = place[wanted]
        known = self._wide(values, found[found >= 0])
        result = known.new_zeros((len(wanted), *known.shape[1:]))
        result[found >= 0] = known
        return result

    def _places(self, name: str, count: int) -> Tensor:
        """Stored places, verified once to lie within `count`, ascending; they stay in the file's memory map."""
        places = self._get(name)
        if name not in self._known:
            self._require_ascending(name, places, count)
            self._known.add(name)
        return places

    def _require_ascending(self, name: str, places: Tensor, count: int) -> None:
        if len(places) and (int(places[0]) < 0 or int(places[-1]) >= count or bool((places[1:] <= places[:-1]).any())):
            raise InputError(
                f"reading the delta {self.path}: {name!r} should hold ascending places below {count}; make it again"
            )

    def _wide(self, name: str, rows: Rows = None) -> Tensor:
        values = self._get(name)
        values = values if rows is None else values[rows]
        wide = values.to(reading.wide_type(values.dtype), copy=True)
        reading.require_finite(wide, name, str(self.path))
        return wide

    def _get(self, name: str) -> Tensor:
        file = self._headers[name].file
        with self._lock:
            if file.name not in self._open:
                self._open[file.name] = self._opened(file)
            tensor: Tensor = self._open[file.name].get_tensor(name)
        return tensor

    def _opened(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise InputError(f"opening {file}: {error}. The file is damaged; make the delta again.") from error

    @cached_property
    def _headers(self) -> Mapping[str, Header]:
        headers: dict[str, Header] = {}
        for name, facts in self.description.files.items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != facts.size:
                came = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
                raise InputError(f"reading the delta {self.path}: {name} should have {facts.size} bytes, found {came}")
            headers |= safetensors_headers(file)
        return headers

    def _require_whole(self, parameter: str, entry: Entry) -> None:
        """Refuse an entry whose tensors are missing or of another shape than it says."""
        shape = self.seen_shape(parameter)
        found = {name.removeprefix(f"{parameter}."): self._shape(name) for name in value_names(parameter)}
        values, rows, left, right = (found[part] for part in ("values", "rows", "left", "right"))
        fits = {
            "bits": values is None,
            "dense": values == shape,
            "rows": values is not None and rows == values[:1] and values[1:] == shape[1:],
            "factored": left is not None
            and right is not None
            and len(left) == len(right) == 2
            and (left[0], right[1]) == shape
            and left[1] == right[0],
        }
        for part in found:
            self._require_type(f"{parameter}.{part}", part)
        patches = all(self._patch_fits(parameter, entry, way, count) for way, count in _patches(entry))
        if not fits[str(entry.kind)] or not patches:
            raise InputError(
                f"reading the delta {self.path}: what {entry.file} holds for {parameter!r} is not the {entry.kind} "
                f"delta of shape {shape} that its description says; make the delta again"
            )

    def _require_type(self, name: str, part: str) -> None:
        """Values and factors are floating numbers, places integers; the type of a patch's bits follows the tensor's."""
        known = _TYPES.get(part.rpartition(".")[2])
        header = self._headers.get(name)
        if header is not None and known is not None and header.dtype not in known:
            raise InputError(
                f"reading the delta {self.path}: {name!r} is {header.dtype}, expected {' or '.join(known)}; make the "
                "delta again"
            )

    def _patch_fits(self, parameter: str, entry: Entry, way: Way, count: int) -> bool:
        header = self._headers.get(f"{parameter}.{way}.bits")
        if header is None:
            return count == 0
        places, size = self._shape(f"{parameter}.{way}.at"), math.prod(entry.shape)
        width = getattr(torch, entry.dtype).itemsize
        same_width = header.dtype == str(INTEGERS[width]).removeprefix("torch.")
        return same_width and header.shape == ((size,) if places is None else places) and (places in (None, (count,)))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        header = self._headers.get(name)
        return header.shape if header is not None else None


def _patches(entry: Entry) -> tuple[tuple[Way, int], ...]:
    return ("apply", entry.apply), ("undo", entry.undo)
