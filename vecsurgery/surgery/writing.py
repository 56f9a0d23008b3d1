"""The write pass: a walk over the edited weights, shard by shard, with a journal of what is finished."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

from vecsurgery.checkpoint import Partial, ShardPlan, write_shard
from vecsurgery.checkpoint.types import TensorInfo, Weights
from vecsurgery.delta import Delta, FromFile
from vecsurgery.delta.reading import label
from vecsurgery.editing.audit import Audited
from vecsurgery.editing.edited import Edited, TensorChange
from vecsurgery.editing.figures import figures
from vecsurgery.errors import InputError
from vecsurgery.planning.costs import ROW_CHUNK
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.plans import Plan
from vecsurgery.planning.sizes import item_size
from vecsurgery.progress import Progress, silent
from vecsurgery.report.record import MatrixRecord, StepRecord
from vecsurgery.surgery.assembly import Rewired, rewired


@dataclass
class ShardFacts:
    """What writing one shard found out; kept in the journal, so that a resumed run reports it too."""

    matrices: list[MatrixRecord] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"matrices": self.matrices, "inputs": self.inputs}


@dataclass(frozen=True)
class AuditedInputs(Rewired[Audited]):
    """The models of a run, each read once a tensor and hashed as it is read."""

    @classmethod
    def of(cls, inputs: Inputs) -> "AuditedInputs":
        """Wrap every open checkpoint and make the deltas' sources anew over the wrapped ones."""
        read = rewired(inputs, Audited)
        return cls(read.into, read.deltas, read.models)

    def take_hashes(self) -> dict[str, str]:
        """SHA-256 of every tensor that was read since the last call.

        Errors: InputError for a tensor of `into` that a delta folder, made from it, records with another hash.
        """
        hashes: dict[str, str] = {}
        for reader in self.models:
            hashes |= reader.take_hashes()
        for source in self.deltas.values():
            if isinstance(source, FromFile) and source.base is self.into:
                self._require_base(source, hashes)
        return hashes

    def _require_base(self, source: FromFile, hashes: Mapping[str, str]) -> None:
        for name in self.into.whole:
            entry = source.folder.description.tensors[self.into.layout.tensors[name].parameter]
            if hashes[f"into: {name}"] != entry.before:
                raise InputError(
                    f"reading {name!r} of {label(self.into)}: its bytes are not those that {source.folder.path} "
                    "records of the model that it was made from; one of the two is damaged, fetch it again"
                )

    def close(self) -> None:
        for reader in self.models:
            reader.close()


def write_checkpoint(
    plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, progress: Progress = silent
) -> None:
    """Write every shard that the journal does not know yet. Errors: RunError, with what is finished kept."""
    finished = partial.journal.finished()
    total = sum(shard.nbytes for shard in plan.shards)
    done = 0
    for shard in plan.shards:
        if shard.file not in finished:
            facts = ShardFacts()
            count = _Counting(progress, done, total)
            written = write_shard(partial.path, shard, _tensors(edited, shard, facts, count))
            facts.inputs = audited.take_hashes()
            partial.journal.record(written, facts.to_dict())
        done += shard.nbytes
        progress("writing", done, total, "bytes")


@dataclass
class _Counting:
    progress: Progress
    done: int
    total: int

    def add(self, count: int) -> None:
        self.done += count
        self.progress("writing", self.done, self.total, "bytes")


def _tensors(
    edited: Edited, shard: ShardPlan, facts: ShardFacts, count: _Counting
) -> Iterator[tuple[str, Tensor | Iterator[Tensor]]]:
    for planned in shard.tensors:
        info = edited.layout.tensors[planned.name]
        if info.matrix is None:
            yield planned.name, row_pieces(edited, info)
        else:
            yield planned.name, _matrix(edited, info, facts)
        count.add(planned.nbytes)


def _matrix(edited: Edited, info: TensorInfo, facts: ShardFacts) -> Tensor:
    """The edited matrix alone: its deltas are gone when the next one is computed."""
    result = edited.edit(info.name, figures=True)
    if result.facts:
        facts.matrices.append(matrix_record(edited, info, result))
    return result.tensor


def row_pieces(weights: Weights, info: TensorInfo) -> Iterator[Tensor]:
    """A tensor that works row by row, in pieces of at most `ROW_CHUNK` bytes."""
    for rows in _row_slices(info):
        yield weights.read(info.name, rows)


def row_slices(info: TensorInfo) -> Iterator[slice | None]:
    """How a tensor is walked over: a block matrix whole, since its steps need all of it, others in pieces of rows."""
    return iter([None]) if info.matrix is not None else _row_slices(info)


def _row_slices(info: TensorInfo) -> Iterator[slice | None]:
    """Slices of at most `ROW_CHUNK` bytes; None, which stands for all, where there is one alone."""
    size = prod(info.shape) * item_size(info.dtype)
    if len(info.shape) < 2 or size <= ROW_CHUNK:
        yield None
        return
    step = max(1, ROW_CHUNK * info.shape[0] // size)
    for start in range(0, info.shape[0], step):
        yield slice(start, min(start + step, info.shape[0]))


def matrix_record(
    edited: Edited, info: TensorInfo, result: TensorChange, *, stored: Delta | None = None
) -> MatrixRecord:
    """What the steps did to a block matrix, with figures of the tensor as it was written, or of the change `stored`.

    `result`: a `TensorEdit` where `stored` is not given.
    """
    assert info.matrix is not None
    steps = [
        StepRecord(
            step=fact.step,
            method=fact.method,
            delta=fact.delta,
            geometry=fact.geometry,
            facts=dict(fact.facts),
            warnings=list(fact.warnings),
        )
        for fact in result.facts
    ]
    used = any(fact.geometry is not None for fact in result.facts)
    measured = (
        figures(result, edited.into.read(info.name), info.matrix, edited.subspaces, written=stored) if used else {}
    )
    shape = tuple(reversed(info.shape)) if info.matrix.transposed else info.shape
    return MatrixRecord(
        tensor=info.name,
        layer=info.matrix.layer,
        site=info.matrix.site,
        roles=list(dict.fromkeys(part.role for part in info.matrix.parts)),
        shape=list(shape),
        steps=steps,
        stored=measured,
    )
