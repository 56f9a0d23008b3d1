"""The write pass: a walk over the edited weights, shard by shard, with a journal of what is finished."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vecsurgery.checkpoint import Partial, ShardPlan, write_shard
from vecsurgery.checkpoint.types import TensorInfo, Weights
from vecsurgery.delta import Applied, Delta, FromFile
from vecsurgery.delta.reading import label, row_chunks
from vecsurgery.editing.audit import Audited
from vecsurgery.editing.edited import Edited, TensorChange, TensorEdit
from vecsurgery.editing.figures import figures
from vecsurgery.editing.together import edit_together, runs
from vecsurgery.errors import InputError
from vecsurgery.planning.costs import ROW_CHUNK
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.plans import Plan
from vecsurgery.planning.sizes import item_size
from vecsurgery.progress import Progress, silent
from vecsurgery.report.record import MatrixRecord, StepRecord
from vecsurgery.surgery.assembly import Rewired, rewired
from vecsurgery.surgery.process import room_for_helpers


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
    sizes = {planned.name: planned.nbytes for planned in shard.tensors}
    for names in runs(edited, tuple(sizes), ROW_CHUNK):
        if len(names) == 1:
            yield names[0], _pieces(edited, edited.layout.tensors[names[0]], facts)
        else:
            yield from zip(names, _together(edited, names, facts), strict=True)
        count.add(sum(sizes[name] for name in names))


def _together(edited: Edited, names: Sequence[str], facts: ShardFacts) -> Iterator[Tensor]:
    try:
        with room_for_helpers():
            results: Iterable[TensorEdit] = edit_together(edited, names)
    except InputError:
        results = map(edited.edit, names)  # which says which of them it is
    for name, result in zip(names, results, strict=True):
        note_matrix(edited, edited.layout.tensors[name], result, facts)
        yield result.tensor


def _pieces(edited: Edited, info: TensorInfo, facts: ShardFacts) -> Iterator[Tensor]:
    alone = edited.by_rows(info.name)
    for rows in _slices(info, alone=alone):
        yield _piece(edited, info, rows, facts, whole=not alone)


def _piece(edited: Edited, info: TensorInfo, rows: slice | None, facts: ShardFacts, *, whole: bool) -> Tensor:
    """The edited rows alone: their deltas are gone when the next ones are computed."""
    with room_for_helpers(not whole):
        result = edited.edit(info.name, rows=rows, figures=whole)
    note_matrix(edited, info, result, facts)
    return result.tensor


def note_matrix(edited: Edited, info: TensorInfo, result: TensorEdit, facts: ShardFacts) -> None:
    """Keep the record of a block matrix that steps met; one that comes in pieces has one record, that of the first."""
    noted = facts.matrices and facts.matrices[-1]["tensor"] == info.name
    if info.matrix is not None and result.facts and not noted:
        facts.matrices.append(matrix_record(edited, info, result))


def row_slices(weights: Weights, info: TensorInfo) -> Iterator[slice | None]:
    """How a tensor is walked over: in pieces of rows of at most `ROW_CHUNK` bytes, or whole (None) where what is done
    to it needs all of it.
    """
    alone = weights.by_rows(info.name) if isinstance(weights, Edited | Applied) else info.matrix is None
    return _slices(info, alone=alone)


def _slices(info: TensorInfo, *, alone: bool) -> Iterator[slice | None]:
    return row_chunks(info.shape, item_size(info.dtype), ROW_CHUNK) if alone else iter([None])


def row_pieces(weights: Weights, info: TensorInfo) -> Iterator[Tensor]:
    """A tensor, walked over as `row_slices` says."""
    for rows in row_slices(weights, info):
        yield weights.read(info.name, rows)


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
