"""The weight files of one folder: which tensors they hold, and reading them one at a time.

safetensors is read through its memory map; torch's `.bin` through `torch.load(weights_only=True, mmap=True)`, which
runs no code. mergekit's index says which shard holds a tensor; each stays open once, whatever the order of reads.
"""

from __future__ import annotations

import json
import pickle
import struct
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vecsurgery.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_LENGTH = 8
"""A safetensors file starts with the length of its JSON header: 8 bytes, little-endian."""
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


@dataclass(frozen=True)
class Header:
    """What is known of a stored tensor without reading it."""

    dtype: str
    """torch's name without the prefix: float32, bfloat16, …"""
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    start: int | None = None
    """Where its bytes begin in the file; None where a library knows it."""


class _Shard(Protocol):
    def get(self, name: str) -> Tensor: ...

    def data(self, name: str) -> memoryview: ...


class Files:
    """The tensors of a folder. Reads are thread-safe and return views of the memory map: never change them."""

    def __init__(self, folder: Path) -> None:
        """Read the index and the headers of every shard, no tensor.

        Raises:
            InputError: no weights, a missing, truncated or corrupt shard, an index that does not describe its shards.
            UnsupportedError: weights in a format that is not read (GGUF), or a tensor of an unknown type.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._shards: dict[Path, _Shard] = {}
        self._seen: dict[Path, tuple[int, ...]] = {}
        """What told a file from others of its name when its header was read."""
        single = _single_file(folder)
        headers = self._indexed(folder) if single is None else self._headers_of(single)
        self.headers: Mapping[str, Header] = dict(sorted(headers.items()))
        """Every tensor's header by name, in name order."""

    def read(self, name: str, rows: slice | Tensor | None = None) -> Tensor:
        """The tensor, or these rows of it (a slice gives a view; an index tensor copies those rows alone)."""
        tensor = self._shard_of(name).get(name)
        return tensor if rows is None else tensor[rows]

    def data(self, name: str) -> memoryview:
        """The tensor's bytes in row-major order, a view of the memory map where that holds them so."""
        return self._shard_of(name).data(name)

    def _indexed(self, folder: Path) -> dict[str, Header]:
        found: dict[Path, Mapping[str, Header]] = {}
        headers: dict[str, Header] = {}
        for name, written in _weight_map(folder).items():
            file = _shard_path(folder, written, name)
            if file not in found:
                found[file] = self._headers_of(file)
            if name not in found[file]:
                raise InputError(
                    f"reading the index of {folder}: tensor {name!r} should be in {file.name}, which does not hold it. "
                    "The folder mixes files of different downloads; fetch it again."
                )
            headers[name] = found[file][name]
        for inside in found.values():
            # transformers loads everything in a shard, whether the index names it or not: no tensor is dropped.
            for name, header in inside.items():
                headers.setdefault(name, header)
        return headers

    def _shard_of(self, name: str) -> _Shard:
        header = self.headers.get(name)
        if header is None:
            raise KeyError(f"{self._folder} holds no tensor {name!r}")
        return self._shard(header.file)

    def _shard(self, file: Path) -> _Shard:
        known = self._shards.get(file)
        if known is not None:
            return known
        with self._lock:
            if file not in self._shards:
                self._shards[file] = self._opened(file)
            return self._shards[file]

    def _opened(self, file: Path) -> _Shard:
        if file.suffix != ".safetensors":
            return _TorchFile(file)
        opened = _Safetensors(file, {name: header for name, header in self.headers.items() if header.file == file})
        if _identity(file) != self._seen[file]:
            raise InputError(
                f"opening {file}: it is not the file whose header was read when the folder was opened; another program "
                "has replaced it meanwhile, start again when it is done"
            )
        return opened

    def _headers_of(self, file: Path) -> Mapping[str, Header]:
        if file.suffix == ".safetensors":
            if file.exists():
                self._seen[file] = _identity(file)
            return safetensors_headers(file)
        shard = self._shard(file)
        assert isinstance(shard, _TorchFile)
        return shard.headers()


class _Safetensors:
    """One file, verified by safetensors; tensors are views of one map of it, cheaper than its own."""

    def __init__(self, file: Path, headers: Mapping[str, Header]) -> None:
        import safetensors
        import torch

        try:
            # Opening compares every place in the header with the shapes and the size of the file.
            self._open: Any = safetensors.safe_open(file, framework="pt", device="cpu")
            mapped: Any = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=file.stat().st_size)
        except (safetensors.SafetensorError, OSError, RuntimeError) as fault:
            raise InputError(f"opening {file}: {fault}. The file is damaged; fetch it again.") from fault
        self._data: memoryview = torch.empty(0, dtype=torch.uint8).set_(mapped).numpy().data
        self._headers = headers
        whole: dict[torch.dtype, Tensor] = {}
        """The map as numbers of one type."""
        self._places: dict[str, tuple[Tensor, tuple[int, ...], tuple[int, ...], int]] = {}
        """Tensor → the map in its type, shape, strides, place of its first number."""
        for name, header in headers.items():
            dtype: torch.dtype = getattr(torch, header.dtype)
            if header.start is None or header.start % dtype.itemsize:
                continue  # not aligned, as the format allows
            if dtype not in whole:
                count = mapped.nbytes() // dtype.itemsize
                whole[dtype] = torch.empty(0, dtype=dtype).set_(mapped, 0, (count,), (1,))
            self._places[name] = (whole[dtype], header.shape, _strides(header.shape), header.start // dtype.itemsize)

    def get(self, name: str) -> Tensor:
        place = self._places.get(name)
        if place is None:
            tensor: Tensor = self._open.get_tensor(name)
            return tensor
        whole, shape, strides, start = place
        return whole.as_strided(shape, strides, start)

    def data(self, name: str) -> memoryview:
        header = self._headers[name]
        assert header.start is not None  # safetensors tells where each tensor begins
        return self._data[header.start : header.start + header.nbytes]


def _identity(file: Path) -> tuple[int, ...]:
    """Another one for a file that was replaced or written to."""
    facts = file.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of numbers in row-major order."""
    steps = accumulate((max(1, size) for size in reversed(shape[1:])), mul, initial=1)
    return tuple(steps)[::-1] if shape else ()


class _TorchFile:
    def __init__(self, file: Path) -> None:
        import torch

        self._file = file
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError) as fault:
            raise InputError(
                f"opening {file}: {str(fault).splitlines()[0]}. Expected a state dict of tensors that torch.load reads "
                "with weights_only=True and mmap=True; convert the checkpoint to safetensors."
            ) from fault
        content = content.get("state_dict", content) if isinstance(content, dict) else content
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise InputError(f"opening {file}: expected a state dict of tensors alone. Is this a file of weights?")
        self._tensors: dict[str, Tensor] = content

    def get(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def data(self, name: str) -> memoryview:
        from .hashes import tensor_bytes  # which imports torch

        return tensor_bytes(self._tensors[name])

    def headers(self) -> Mapping[str, Header]:
        return {
            name: Header(str(value.dtype).removeprefix("torch."), tuple(value.shape), value.nbytes, self._file)
            for name, value in self._tensors.items()
        }


def safetensors_headers(file: Path) -> dict[str, Header]:
    """Headers of one safetensors file; its size is checked against them.

    Raises:
        InputError: the file cannot be opened, is truncated, or its header is damaged.
        UnsupportedError: a tensor of a type that torch does not have.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(_LENGTH)
            length = struct.unpack("<Q", first)[0] if len(first) == _LENGTH else -1
            if not 0 < length <= size - _LENGTH:
                raise InputError(f"reading {file}: its header is cut off or damaged ({size} bytes); fetch it again.")
            described: Any = json.loads(stream.read(length))
            entries = {name: entry for name, entry in described.items() if name != "__metadata__"}
            ends = {name: entry["data_offsets"][1] for name, entry in entries.items()}
            expected = _LENGTH + length + max(ends.values(), default=0)
            if size != expected:
                raise InputError(
                    f"reading {file}: the file has {size} bytes, its header describes {expected}. It is truncated or "
                    "damaged; fetch it again."
                )
            return {name: _header(file, name, entry, _LENGTH + length) for name, entry in entries.items()}
    except OSError as fault:
        raise InputError(f"reading {file}: {fault.strerror or fault}.") from fault
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as fault:
        raise InputError(f"reading {file}: its header is not that of a safetensors file ({fault!r}).") from fault


def _header(file: Path, name: str, entry: Mapping[str, Any], data: int) -> Header:
    """`data`: where the tensors' bytes begin in the file."""
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise UnsupportedError(
            f"reading {file}: tensor {name!r} has type {entry['dtype']!r}; packed types are not supported."
        )
    start, end = entry["data_offsets"]
    return Header(dtype, tuple(entry["shape"]), end - start, file, data + start)


def _single_file(folder: Path) -> Path | None:
    """The file that holds all weights, or None where an index spreads them over shards."""
    for name in _SINGLE:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.exists() and index.exists():
            raise InputError(
                f"reading {folder}: it holds both {name} and {index.name}, and programs disagree which of them "
                "counts. Remove the one that is left over."
            )
        if single.exists():
            return single
        if index.exists():
            return None
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf:
        raise UnsupportedError(f"reading {folder}: {gguf[0]} is GGUF, which is not supported. Use safetensors.")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"reading {folder}: this is an adapter, not a model. Write `base+adapter` or `adapter: …`.")
    raise InputError(f"reading {folder}: no weights (expected model.safetensors or model.safetensors.index.json).")


def _weight_map(folder: Path) -> Mapping[str, str]:
    """Tensor → file name, from mergekit's index of the shards."""
    with warnings.catch_warnings():
        # mergekit names a module that numpy has renamed; nothing for our users to act on.
        warnings.filterwarnings("ignore", message="numpy.core", category=DeprecationWarning)
        from mergekit.io import ShardedTensorIndex
    index = next(name for name in (f"{file}.index.json" for file in _SINGLE) if (folder / name).exists())
    try:
        paths: Any = ShardedTensorIndex.from_disk(str(folder)).tensor_paths
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise InputError(f"reading {folder / index}: {fault!r}. Expected 'weight_map' in a JSON object.") from fault
    if not isinstance(paths, dict) or not all(isinstance(path, str) for path in paths.values()):
        raise InputError(f"reading {folder / index}: 'weight_map' should map tensor names to file names.")
    return paths


def _shard_path(folder: Path, written: str, tensor: str) -> Path:
    """Where a shard lies. Only a bare file name is taken: an index cannot point out of its folder.

    A hub cache keeps symbolic links there (snapshots → blobs): the name must be inside, the link may lead elsewhere.
    """
    if not written or Path(written).name != written or written in {".", ".."} or "\\" in written:
        raise InputError(
            f"reading the index of {folder}: tensor {tensor!r} is said to be in {written!r}; expected the bare name of "
            "a file in the same folder."
        )
    file = folder / written
    if not file.is_file():
        raise InputError(
            f"reading the index of {folder}: shard {written} (tensor {tensor!r}) is missing; fetch it again."
        )
    return file
