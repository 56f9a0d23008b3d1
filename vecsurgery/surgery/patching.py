"""Deltas as files: made from two checkpoints, applied to the one they were made from, and taken away again."""

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vecsurgery import methods
from vecsurgery.checkpoint import (
    CardSource,
    Partial,
    ShardPlan,
    Stored,
    check_output,
    config_bytes,
    copy_side_files,
    left_over,
    mirrored_files,
    model_card,
    open_partial,
    plan_side_files,
    publish,
    readable,
    require_space,
    tensor_bytes,
    write_bytes,
    write_shard,
)
from vecsurgery.checkpoint.shards import INDEX_FILE
from vecsurgery.delta import Applied, DeltaFolder
from vecsurgery.delta.description import DESCRIPTION_FILE
from vecsurgery.delta.folder import Way
from vecsurgery.delta.from_file import require_base, require_entries
from vecsurgery.delta.reading import label as label_of
from vecsurgery.errors import InputError
from vecsurgery.planning.inputs import label, open_inputs
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe import from_mapping, with_references
from vecsurgery.recipe.types import Reference
from vecsurgery.report.record import Record
from vecsurgery.surgery.arguments import parsed, require_arguments, resolved
from vecsurgery.surgery.running import execute
from vecsurgery.surgery.writing import row_slices

_CARD = 2**20
"""Bytes set aside for the model card and the journal."""
Dtype = Literal["stored", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Patched:
    """What `apply` or `undo` wrote."""

    way: Way
    out: str
    tensors: int
    """Of the checkpoint."""
    changed: int
    """Of these, those that the delta changes."""
    patched: int
    """Entries whose bits the sum alone would have missed."""
    patch_bytes: int
    """Bytes of the delta's patches, both ways together."""
    files: dict[str, str]
    """Weight file → SHA-256."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Two lines for people."""
        done = "applied to" if self.way == "apply" else "taken out of"
        return (
            f"The delta was {done} {self.changed} of {self.tensors} tensors; all have the SHA-256 that it records.\n"
            f"Its patch ({readable(self.patch_bytes)}, both ways together) set {self.patched} entries.\n"
        )


def extract(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    others: Literal["refuse", "drop"] = "refuse",
    dtype: Dtype = "stored",
    shard_size: int = 5_000_000_000,
    progress: Progress = silent,
) -> Record:
    """Write tuned − base as a delta folder `out`, or with a `rank` as a LoRA adapter for PEFT.

    It is the run of a recipe whose `into` is `base`, with `tuned` as its only delta, no steps and no gates; it resumes
    as a run does.

    Args:
        base, tuned: folders or hub ids.
        out: folder to make.
        rank: of every matrix of an adapter; what is cut off is told for each matrix. Without it the whole difference.
        others: adapter: what becomes of changed tensors that it cannot hold: an error ("refuse"), or left out ("drop").
        dtype: type of the values; "stored" is each tensor's type in `base`, float32 for an adapter. The delta applies
            and undoes exactly whatever it is: a coarser one has a larger patch.
        shard_size: most bytes of a file of a delta.

    Returns: the record, as `surgery.json` holds it; `record["written"]` tells of the patch or the errors of the ranks.

    Raises: InputError for models that cannot be used, before anything is written; RunError for faults while writing.

    Example: `vecsurgery.extract("original", "tuned", "tuned.delta")["written"]["patch_bytes"]`
    """
    size = {"shard_size": shard_size} if rank is None else {"rank": rank, "others": others}
    output = {"format": "delta" if rank is None else "adapter", "dtype": dtype, **size}
    content = {"into": str(base), "deltas": {"delta": {"tuned": str(tuned)}}, "gates": [], "output": output}
    available = methods.available()
    recipe = with_references(from_mapping(content, available, folder=Path.cwd()), _from_command_line)
    inputs = open_inputs(recipe, available)
    return execute(inputs, Path(out), progress=progress)


def apply(into: str | Path, delta: str | Path, out: str | Path, *, progress: Progress = silent) -> Patched:
    """Write the checkpoint `out` that is `into` with a delta folder added: the bytes that the delta's maker had.

    Args:
        into: the model that the delta was made from, a folder or hub id; any other is refused.
        delta: a folder that `extract`, or a run with `output: {format: delta}`, has made.
        out: folder to make. Its weight files have the names and headers of those of `into`; side files are copies.
            Beside them stands a model card, but no record and no report.

    Every tensor's SHA-256 is compared with what the delta records, before and after.

    Raises: InputError where `into` or the delta cannot be used (nothing is left behind); RunError for faults while
    writing (the same call goes on where it stopped).
    """
    return _patched(into, delta, Path(out), "apply", progress)


def undo(edited: str | Path, delta: str | Path, out: str | Path, *, progress: Progress = silent) -> Patched:
    """Write the checkpoint `out` from which `apply` made `edited`: the original bytes of every tensor and side file.

    `edited`: what `apply` made with this delta, or the checkpoint that a run with `format: checkpoint` gave in its
    place; anything else is refused by the first tensor that differs. Otherwise as `apply`.
    """
    return _patched(edited, delta, Path(out), "undo", progress)


def _from_command_line(reference: Reference) -> Reference:
    """The model as an argument names it: messages about it have no place of a recipe."""
    adapter = replace(reference.adapter, place="") if reference.adapter is not None else None
    return replace(reference, adapter=adapter, place="")


def _patched(model: str | Path, delta: str | Path, out: Path, way: Way, progress: Progress) -> Patched:
    reference = parsed(str(model), way)
    require_arguments(reference, Path(delta), way)
    folder, source = _opened(Path(delta)), Stored(resolved(reference, way), reference=reference)
    _require_fit(folder, source, way)
    inputs = [source.folder, folder.path]
    check_output(out, inputs)
    shards, index = mirrored_files(source)
    total, done = sum(shard.nbytes for shard in shards), 0
    needed = _needed(source, shards, index)
    require_space(out, max(0, needed - left_over(out)), f"the checkpoint ({readable(total)} of tensors)")
    weights = Applied(source, folder, way)
    with open_partial(out, f"{way} {weights.fingerprint}", inputs=inputs) as partial:
        finished = partial.journal.finished()
        for shard in shards:
            if shard.file not in finished:
                partial.journal.record(_write(partial, shard, weights), {})
            done += shard.nbytes
            progress("writing", done, total, "bytes")
        files = {name: entry.written.sha256 for name, entry in partial.journal.finished().items()}
        if index is not None:
            write_bytes(partial.path / INDEX_FILE, index)
        copy_side_files(source.folder, partial.path, plan_side_files(source.folder).copied)
        if way == "apply":
            _write_card(partial, reference, source, folder)
        publish(partial, config_bytes(source.folder))
    entries = folder.entries.values()
    count = sum(entry.apply if way == "apply" else entry.undo for entry in entries)
    size = folder.description.patch_bytes
    return Patched(way, str(out), len(source.layout.tensors), len(entries), count, size, files)


def _needed(source: Stored, shards: Sequence[ShardPlan], index: bytes | None) -> int:
    """Bytes of the output: weight files, side files, and a little for the card and the journal."""
    weights = sum(shard.nbytes + len(shard.header()) for shard in shards) + len(index or b"")
    files = [source.folder / name for name in plan_side_files(source.folder).copied]
    beside = sum(file.stat().st_size for file in files if file.is_file()) + len(config_bytes(source.folder))
    return weights + beside + _CARD


def _opened(path: Path) -> DeltaFolder:
    return DeltaFolder(path.parent if path.name == DESCRIPTION_FILE and path.is_file() else path)


def _require_fit(folder: DeltaFolder, source: Stored, way: Way) -> None:
    """Refuse a model whose tensors are not those that the delta lists, by name, type and shape; and another base."""
    doing = "applying the delta" if way == "apply" else "undoing the delta"
    if way == "apply":
        _refuse_applied(folder, source)
        advice = "a recipe with `deltas: {NAME: {file: …, base: …}}` adds it to other models"
        require_base(doing, folder, source, advice)
    require_entries(doing, folder, source)


def _refuse_applied(folder: DeltaFolder, source: Stored) -> None:
    """Refuse a model that holds the delta already, told by the smallest tensor that the delta changes."""
    if source.fingerprint == folder.description.base.fingerprint or not folder.entries:
        return
    entry = min(folder.entries.values(), key=lambda each: math.prod(each.shape))
    if entry.name not in source.layout.tensors:
        return
    found = hashlib.sha256(tensor_bytes(source.read(entry.name))).hexdigest()
    if found == entry.after != entry.before:
        raise InputError(f"applying the delta: tensor {entry.name!r} of {label_of(source)} {_already('apply', folder)}")


def _already(way: Way, folder: DeltaFolder) -> str:
    """What is wrong with a tensor that has the bytes which `way` would give it."""
    if way == "apply":
        return (
            f"has the bytes that {folder.path} records of the result, so the delta seems to be applied already; "
            "`vecsurgery undo` takes it out again"
        )
    return (
        f"has the bytes that {folder.path} records of the model that it was made from, so the delta is not applied "
        "there, or was taken out already; expected what `apply` made with it"
    )


def _write(partial: Partial, shard: ShardPlan, weights: Applied) -> Any:
    """One file; where a tensor is not the one that it should be, nothing is left of the output."""
    try:
        return write_shard(partial.path, shard, _tensors(shard, weights))
    except InputError:
        shutil.rmtree(partial.path)
        raise


def _tensors(shard: ShardPlan, weights: Applied) -> Iterator[tuple[str, Iterator[Tensor]]]:
    for planned in shard.tensors:
        yield planned.name, _verified(planned.name, weights)


def _verified(name: str, applied: Applied) -> Iterator[Tensor]:
    """The pieces of one tensor; at its end, what was read and what was made must be what the delta records."""
    source, info = applied.weights, applied.layout.tensors[name]
    entry = applied.folder.description.tensors[info.parameter]
    read, made = hashlib.sha256(), hashlib.sha256()
    for rows in row_slices(applied, info):
        values = source.read(name, rows)
        read.update(tensor_bytes(values))
        changed = values if entry.kind is None else applied.changed(info, entry, values, rows)
        made.update(tensor_bytes(changed))
        yield changed
    before, after = (entry.before, entry.after)[:: 1 if applied.way == "apply" else -1]
    if read.hexdigest() == after != before:
        doing = "applying the delta" if applied.way == "apply" else "undoing the delta"
        raise InputError(f"{doing}: tensor {name!r} {_already(applied.way, applied.folder)}")
    if read.hexdigest() != before:
        expected = "the model that it was made from" if applied.way == "apply" else "what `apply` made with it"
        raise InputError(
            f"reading {name!r}: its bytes are not those that {applied.folder.path} records (SHA-256 {before[:12]}…, "
            f"found {read.hexdigest()[:12]}…); expected {expected}"
        )
    if made.hexdigest() != after:
        raise InputError(
            f"{'applying the delta to' if applied.way == 'apply' else 'undoing the delta of'} {name!r}: the result has "
            f"not the SHA-256 that {applied.folder.path} records; the delta is damaged, make or fetch it again"
        )


def _write_card(partial: Partial, reference: Reference, source: Stored, folder: DeltaFolder) -> None:
    """A model card that says what was applied to what."""
    hub = None if reference.path else reference.model
    sources = [CardSource(label(reference), source.folder, hub), CardSource(folder.path.name, folder.path)]
    recipe = f"into: {label(reference)}\ndeltas:\n  delta:\n    file: {folder.path.name}\n"
    card = model_card(f"{label(reference)} with {folder.path.name}", sources, recipe, form="patched")
    write_bytes(partial.path / "README.md", card.text.encode())
