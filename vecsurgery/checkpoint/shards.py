"""Which tensor goes to which output file: decided from names, types and shapes, before anything is read."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vecsurgery.errors import InputError, UnsupportedError

_TYPES = {
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
    "int8": ("I8", 1),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    "int16": ("I16", 2),
    "uint16": ("U16", 2),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int32": ("I32", 4),
    "uint32": ("U32", 4),
    "float32": ("F32", 4),
    "int64": ("I64", 8),
    "uint64": ("U64", 8),
    "float64": ("F64", 8),
    "complex64": ("C64", 8),
}
"""torch's name → (name in safetensors headers, bytes per element)."""

_ALIGNMENT = 8
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written. `dtype`: torch's name without the prefix."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def itemsize(self) -> int:
        return _TYPES[self.dtype][1]


@dataclass(frozen=True)
class ShardPlan:
    """One output file with its tensors in the order in which their bytes stand in it."""

    file: str
    tensors: tuple[TensorPlan, ...]
    head: bytes | None = None
    """The first bytes, where they are to be those of another file with the same tensors in the same places."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def header(self) -> bytes:
        """The first bytes of the file: length, JSON, padded with spaces so that the data start at a multiple of 8."""
        if self.head is not None:
            return self.head
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in self.tensors:
            entries[tensor.name] = {
                "dtype": _TYPES[tensor.dtype][0],
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + tensor.nbytes],
            }
            offset += tensor.nbytes
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def plan_groups(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], sizes: Sequence[int], shard_size: int, stem: str
) -> list[ShardPlan]:
    """Cut tensors in the given order into groups of which each is written as one file `stem-…`.

    `sizes`: bytes that each tensor is expected to take there (0: it is only read); none is cut off for such alone.
    The plan of a group names the tensors that are read for it, not what its file holds.
    """
    groups: list[list[TensorPlan]] = [[]]
    filled = 0
    for tensor, size in zip(tensors, sizes, strict=True):
        if filled and size and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(plan_tensor(*tensor))
        filled += size
    return [ShardPlan(_file_name(number, len(groups), stem), tuple(group)) for number, group in enumerate(groups, 1)]


def plan_shards(tensors: Sequence[tuple[str, str, tuple[int, ...]]], shard_size: int) -> list[ShardPlan]:
    """Cut (name, dtype, shape) in the given order into files of at most `shard_size` bytes.

    A tensor larger than that gets a file of its own. Inside a file, tensors whose bytes are no multiple of 8 stand
    last, wide types first: the format allows no gaps, and readers view the data in place, which needs alignment.
    Errors: InputError for a repeated name or a size below 1, UnsupportedError for a type that the format lacks.
    """
    if shard_size < 1:
        raise InputError(f"cutting the output into files: shard_size is {shard_size}, expected at least 1 byte")
    plans = [plan_tensor(*tensor) for tensor in tensors]
    _refuse_repeats(plans)
    groups: list[list[TensorPlan]] = [[]]
    filled = 0
    for plan in plans:
        if groups[-1] and filled + plan.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(plan)
        filled += plan.nbytes
    groups = [group for group in groups if group]
    return [ShardPlan(_file_name(number, len(groups)), _aligned(group)) for number, group in enumerate(groups, 1)]


def index_text(shards: Sequence[ShardPlan]) -> str | None:
    """The index file's text (weight_map, total_size); None for a single file, which needs none."""
    if len(shards) < 2:
        return None
    places = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    size = sum(shard.nbytes for shard in shards)
    return json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2, sort_keys=True) + "\n"


def plan_tensor(name: str, dtype: str, shape: tuple[int, ...]) -> TensorPlan:
    """A tensor to be written. Errors: UnsupportedError for a type that safetensors lacks."""
    if dtype not in _TYPES:
        raise UnsupportedError(
            f"planning the output: tensor {name!r} has type {dtype!r}, which safetensors cannot hold; "
            f"expected one of {', '.join(_TYPES)}"
        )
    return TensorPlan(name, dtype, tuple(shape))


def _refuse_repeats(plans: Sequence[TensorPlan]) -> None:
    seen: set[str] = set()
    for plan in plans:
        if plan.name in seen:
            raise InputError(f"planning the output: tensor {plan.name!r} comes twice, expected each name once")
        seen.add(plan.name)


def _file_name(number: int, count: int, stem: str = "model") -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def _aligned(group: Sequence[TensorPlan]) -> tuple[TensorPlan, ...]:
    even = [plan for plan in group if plan.nbytes % _ALIGNMENT == 0]
    odd = [plan for plan in group if plan.nbytes % _ALIGNMENT]
    return (*even, *sorted(odd, key=lambda plan: -plan.itemsize))
