"""`output: {format: delta}`: the edited delta as files, each tensor with the bits that adding it would miss."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from vecsurgery.checkpoint import Partial, ShardPlan, tensor_bytes
from vecsurgery.checkpoint.appending import Appending, appending, written
from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.delta import Delta, Difference, Factored, reading
from vecsurgery.delta.bits import INTEGERS, added, differing, product, removed
from vecsurgery.delta.description import Entry
from vecsurgery.delta.folder import value_names
from vecsurgery.editing.edited import Edited, TensorEdit
from vecsurgery.editing.sums import summed
from vecsurgery.errors import InputError
from vecsurgery.planning.plans import Plan
from vecsurgery.planning.sizes import output_type
from vecsurgery.progress import Progress, silent
from vecsurgery.surgery.writing import AuditedInputs, ShardFacts, note_matrix, row_slices

_PATCH_BLOCK = 1 << 24
"""Bytes of a tensor that are compared bit by bit at a time."""


def write_delta(
    plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, progress: Progress = silent
) -> None:
    """Write every file of the delta that the journal does not know yet, with the entries of its tensors as facts.

    Errors: InputError where values do not fit the type that was asked for; RunError, with what is finished kept.
    """
    finished = partial.journal.finished()
    total, done = sum(shard.nbytes for shard in plan.shards), 0
    for shard in plan.shards:
        if shard.file not in finished:
            facts: dict[str, Any] = _write_file(plan, edited, audited, partial, shard)
            partial.journal.record(written(partial.path / shard.file), facts)
        done += shard.nbytes
        progress("writing", done, total, "bytes")


def _write_file(
    plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, shard: ShardPlan
) -> dict[str, Any]:
    facts, entries = ShardFacts(), {}
    infos = [edited.layout.tensors[tensor.name] for tensor in shard.tensors]
    names = [name for info in infos for name in value_names(info.parameter)]
    with appending(partial.path, shard.file, names) as target:
        for info in infos:
            writer = _TensorWriter(plan, edited, audited, info, target, partial.path)
            entries[info.parameter] = writer.write(facts)
        size = sum(each.nbytes for each in target.tensors if _is_patch(each.name))
    facts.inputs = audited.take_hashes()
    for info in infos:
        before = facts.inputs[f"into: {info.name}"]
        entry = entries[info.parameter]
        entries[info.parameter] = {**entry, "before": before, "after": entry.get("after", before)}
    return {**facts.to_dict(), "entries": entries, "patch_bytes": size}


def _is_patch(name: str) -> bool:
    return name.endswith((".apply.at", ".apply.bits", ".undo.at", ".undo.bits"))


@dataclass
class _TensorWriter:
    """Writes what one tensor changes by, piece by piece, and what has to be known of it."""

    plan: Plan
    edited: Edited
    audited: AuditedInputs
    info: TensorInfo
    target: Appending
    folder: Path
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """‖D‖² and ‖D − D as stored‖²."""
    rows: list[Tensor] = field(default_factory=list)
    """Stored rows of D, piece by piece; all others are zero."""

    def write(self, facts: ShardFacts) -> dict[str, Any]:
        """Append the tensor's values and patches; returns its entry in delta.json, but for what is hashed elsewhere."""
        info = self.info
        entry: dict[str, Any] = {"name": info.name, "shape": list(info.shape), "dtype": info.dtype}
        if self.plan.tensors[info.name].action == "copy":
            for rows in row_slices(self.edited, info):
                self.edited.into.read(info.name, rows)  # its hash is taken as it is read
            return entry
        digest, apply, undo = hashlib.sha256(), _Patch(info, self.folder), _Patch(info, self.folder)
        with apply, undo:
            kind = self._values(digest, apply, undo, facts)
            counts = {}
            for way, patch in (("apply", apply), ("undo", undo)):
                for part, pieces in patch.tensors():
                    self.target.add(f"{info.parameter}.{way}.{part}", pieces)
                counts[way] = patch.count
        if kind is None and not any(counts.values()):
            return entry
        transposed = {"transposed": True} if reading.is_transposed(info) else {}
        rounding = (self.squares[1] / self.squares[0]) ** 0.5 if self.squares[0] > 0.0 else 0.0
        found = {"kind": kind or "bits", "after": digest.hexdigest(), "rounding": rounding, **transposed, **counts}
        return {**entry, **found, "file": self.target.path.name}

    def _values(self, digest: Any, apply: "_Patch", undo: "_Patch", facts: ShardFacts) -> str | None:
        """Append D; returns its kind, None where D is zero."""
        name = f"{self.info.parameter}.values"
        factors: list[Factored] = []
        whole = self._whole_factors()

        def pieces() -> Iterator[Tensor]:
            for rows in row_slices(self.edited, self.info):
                edit = self.edited.edit(self.info.name, rows=rows, figures=True)
                base = self.edited.into.read(self.info.name, rows)
                wanted = self._wanted(edit, rows)
                digest.update(tensor_bytes(wanted))
                factored = edit.total if rows is None else whole
                if not factors and self._pays(factored):
                    factors.append(self._rounded(factored))
                values = self._stored(edit.total, factors, rows)
                self._compare(base, wanted, values, apply, undo, rows)
                self._note_matrix(edit, facts)
                if values is not None and not factors:
                    yield self._rows_of(values, rows)

        plan = self.target.add(name, pieces())
        if factors:
            for side in ("left", "right"):
                self.target.add(f"{self.info.parameter}.{side}", [getattr(factors[0], side)])
            return "factored"
        if plan is None:
            return None
        kept = torch.cat(self.rows) if self.rows else None
        if kept is None or len(kept) == reading.seen_shape(self.info)[0]:
            return "dense"
        self.target.add(f"{self.info.parameter}.rows", [kept])
        return "rows"

    def _wanted(self, edit: TensorEdit, rows: slice | None) -> Tensor:
        """The bits that applying the delta has to give: those of the edited checkpoint, or of the tuned tensor itself
        where the whole difference to it is added (W + (T − W) has another sign where T is a negative zero).
        """
        edited, info = self.edited, self.info
        if edited.steps or len(edited.deltas) != 1 or any(number != 1.0 for number in edited.weights.values()):
            return edit.tensor
        (source,) = edited.deltas.values()
        stored = source.stored(info.parameter)
        if not isinstance(source, Difference) or info.parameter in source.row_masks or len(stored) != 2:
            return edit.tensor
        (tuned, name), (base, other) = stored
        theirs = tuned.layout.tensors[name]
        alike = (theirs.dtype, theirs.shape, reading.is_transposed(theirs)) == (
            info.dtype,
            info.shape,
            reading.is_transposed(info),
        )
        return tuned.read(name, rows) if alike and base is edited.into and other == info.name else edit.tensor

    def _whole_factors(self) -> Delta | None:
        """D of a tensor that is walked over by rows, where it comes as factors: those of some rows are others."""
        name, sources = self.info.name, self.plan.inputs.deltas
        walked = next(row_slices(self.edited, self.info)) is not None
        merged = any(touch.effect == "merge" for touch in self.edited.touches[name])
        ranks = [sources[delta].rank(self.info.parameter) for delta in self.plan.tensors[name].deltas]
        if not walked or merged or None in ranks:
            return None
        terms = self.edited.terms(name, raw=False).live.values()
        return summed(terms) if terms else None

    def _pays(self, delta: Delta | None) -> TypeGuard[Factored]:
        """Whether it has fewer numbers as factors."""
        return isinstance(delta, Factored) and sum(delta.shape) * delta.left.shape[1] < prod(delta.shape)

    def _rounded(self, delta: Factored) -> Factored:
        """The factors in the type of the file."""
        asked = self.plan.inputs.recipe.output.dtype
        dtype = torch.float32 if asked == "stored" else getattr(torch, asked)
        return Factored(self._fitting(delta.left, dtype), self._fitting(delta.right, dtype))

    def _stored(self, delta: Delta | None, factors: Sequence[Factored], rows: slice | None) -> Tensor | None:
        """Rows of D in the type of the file, as (out, in): their product where it is stored as factors."""
        if factors:
            left, right = factors[0].left, factors[0].right
            values = product(left if rows is None else left[rows], right)
            exact = left.dtype == torch.float32 and isinstance(delta, Factored) and delta.left.dtype == left.dtype
            self._note_rounding(values if exact or delta is None else delta.dense(), values)
            return values
        if delta is None:
            return None
        dense = delta.dense()
        values = self._fitting(dense, getattr(torch, output_type(self.info, self.plan.inputs.recipe.output.dtype)))
        self._note_rounding(dense, values)
        return values

    def _fitting(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        stored = values.to(dtype)
        if not bool(torch.isfinite(stored).all()):
            raise InputError(
                f"writing the delta of {self.info.name!r}: values up to {reading.peak(values):.3g} do not fit "
                f"{str(dtype).removeprefix('torch.')}; choose float32 "
                "(`output: {dtype: float32}`, or `--dtype float32` of `extract`)"
            )
        return stored

    def _note_rounding(self, exact: Tensor, stored: Tensor) -> None:
        self.squares[0] += float(torch.linalg.vector_norm(exact, dtype=torch.float64)) ** 2
        lost = exact - stored.to(exact.dtype)
        self.squares[1] += float(torch.linalg.vector_norm(lost, dtype=torch.float64)) ** 2

    def _compare(
        self, base: Tensor, wanted: Tensor, values: Tensor | None, apply: "_Patch", undo: "_Patch", rows: slice | None
    ) -> None:
        """Note the bits that W + D and W′ − D miss, block by block."""
        if values is not None and reading.is_transposed(self.info):
            values = values.T
        width = prod(base.shape[1:])
        start = (0 if rows is None else rows.start) * width
        if not base.ndim:
            base, wanted, values = base[None], wanted[None], None if values is None else values[None]
        step = max(1, _PATCH_BLOCK // max(1, width * base.itemsize))
        for row in range(0, len(base), step):
            part = slice(row, row + step)
            own = None if values is None else values[part]
            apply.add(start + row * width, added(base[part], own), wanted[part])
            undo.add(start + row * width, removed(wanted[part], own), base[part])

    def _rows_of(self, values: Tensor, rows: slice | None) -> Tensor:
        """The rows that are not zero, noting which these are; of a vector all entries."""
        if values.ndim < 2:
            return values
        kept = values.reshape(len(values), -1).any(dim=1).nonzero().reshape(-1)
        self.rows.append(kept + (0 if rows is None else rows.start))
        return values if len(kept) == len(values) else values[kept]

    def _note_matrix(self, edit: TensorEdit, facts: ShardFacts) -> None:
        note_matrix(self.edited, self.info, edit, facts)


class _Patch:
    """Bits of one tensor that a sum misses: noted in temporary files, since nobody knows how many they will be."""

    def __init__(self, info: TensorInfo, folder: Path) -> None:
        self.count = 0
        self._size = prod(info.shape)
        self._places = torch.int32 if self._size < 2**31 else torch.int64
        self._bits = INTEGERS[getattr(torch, info.dtype).itemsize]
        self._folder, self._files, self._held = folder, list[IO[bytes]](), ExitStack()

    def __enter__(self) -> "_Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def add(self, start: int, got: Tensor, wanted: Tensor) -> None:
        """Note where `got` differs from `wanted`; `start`: the flat place of their first entry."""
        places, change = differing(got, wanted)
        if not len(places):
            return
        if not self._files:
            files = (tempfile.TemporaryFile(dir=self._folder) for _ in range(2))  # noqa: SIM115 - the stack closes them
            self._files = [self._held.enter_context(file) for file in files]
        for file, values in zip(self._files, ((places + start).to(self._places), change), strict=True):
            file.write(tensor_bytes(values))
        self.count += len(places)

    def tensors(self) -> Iterator[tuple[str, Iterator[Tensor]]]:
        """(part of the name, pieces): places and bits, or the bits of all entries where that takes less."""
        if not self.count:
            return
        places, change = (
            self._mapped(file, dtype) for file, dtype in zip(self._files, (self._places, self._bits), strict=True)
        )
        if self.count * (self._places.itemsize + self._bits.itemsize) > self._size * self._bits.itemsize:
            yield "bits", self._all(places, change)
        else:
            yield "at", iter([places])
            yield "bits", iter([change])

    def _mapped(self, file: IO[bytes], dtype: torch.dtype) -> Tensor:
        file.flush()
        known = np.memmap(file, dtype=str(dtype).removeprefix("torch."), mode="r+")
        return torch.from_numpy(known)

    def _all(self, places: Tensor, change: Tensor) -> Iterator[Tensor]:
        step = _PATCH_BLOCK // self._bits.itemsize
        for start in range(0, self._size, step):
            stop = min(start + step, self._size)
            first, last = (int(each) for each in torch.searchsorted(places, torch.tensor([start, stop])))
            block = torch.zeros(stop - start, dtype=self._bits)
            block[places[first:last].to(torch.int64) - start] = change[first:last]
            yield block


def entries_of(plan: Plan, partial: Partial) -> dict[str, Entry]:
    """The entries of every tensor, from the journal, in walking order."""
    finished = partial.journal.finished()
    return {
        parameter: Entry.model_validate(entry)
        for shard in plan.shards
        for parameter, entry in finished[shard.file].facts["entries"].items()
    }
