"""What a run does differently for each `output.format`: writing, reading back what was written, the last file."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vecsurgery.checkpoint import (
    Partial,
    config_bytes,
    copy_side_files,
    file_sha256,
    index_text,
    plan_side_files,
    preview,
    revision_of,
    write_bytes,
)
from vecsurgery.checkpoint.partial import CONFIG_FILE
from vecsurgery.checkpoint.types import Weights
from vecsurgery.delta import Applied, DeltaFolder, WithAdapter
from vecsurgery.delta.description import DESCRIPTION_FILE, Described, Description, Model
from vecsurgery.editing.edited import Edited
from vecsurgery.planning.inputs import label
from vecsurgery.planning.plans import Plan
from vecsurgery.progress import Progress
from vecsurgery.recipe.types import DeltaSpec
from vecsurgery.report.record import AdapterMatrixRecord, WrittenRecord
from vecsurgery.surgery.adapter_output import (
    ADAPTER_CONFIG,
    WEIGHTS_FILE,
    adapter_config,
    dropped_of,
    modules_of,
    write_adapter,
)
from vecsurgery.surgery.delta_output import entries_of, write_delta
from vecsurgery.surgery.writing import AuditedInputs, write_checkpoint

_INDEX_FILE = "model.safetensors.index.json"
_COARSE = 0.01
"""Share of a delta's norm that rounding its values may take before it is worth a warning."""


class Format(Protocol):
    """One output format. Between `write` and `finish` everything it tells comes from the journal and the files."""

    last: str
    """The file that is written last: without it the folder is nothing."""

    def write(self, plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, progress: Progress) -> None:
        """Write every weight file that is not finished."""

    def content(self, plan: Plan, partial: Partial) -> bytes:
        """The bytes of the last file."""

    def opened(self, plan: Plan, partial: Partial, content: bytes) -> Any:
        """Context manager: the edited model as the written files give it, a `Weights`."""

    def described(self, plan: Plan, partial: Partial) -> WrittenRecord | None:
        """What was written, for the record."""

    def finish(self, plan: Plan, partial: Partial) -> dict[str, str]:
        """Write what stands beside the weight files; every file of the format but the last → SHA-256."""

    def clean(self, plan: Plan, partial: Partial) -> None:
        """Remove what only a resumed run needs, as the last thing before the folder gets its name."""


class _Checkpoint:
    last = CONFIG_FILE

    def write(self, plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, progress: Progress) -> None:
        write_checkpoint(plan, edited, audited, partial, progress)

    def content(self, plan: Plan, partial: Partial) -> bytes:  # noqa: ARG002
        return config_bytes(plan.inputs.into.folder, plan.inputs.recipe.output.dtype)

    def opened(self, plan: Plan, partial: Partial, content: bytes) -> Any:
        return preview(partial, content, index_text(plan.shards), plan.inputs.into.folder)

    def described(self, plan: Plan, partial: Partial) -> None:
        """The matrices of the record say it all."""

    def finish(self, plan: Plan, partial: Partial) -> dict[str, str]:
        folder = plan.inputs.into.folder
        copied = copy_side_files(folder, partial.path, plan_side_files(folder).copied)
        files = {name: entry.written.sha256 for name, entry in partial.journal.finished().items()}
        files |= {name: each.sha256 for name, each in copied.items()}
        index = index_text(plan.shards)
        if index is not None:
            write_bytes(partial.path / _INDEX_FILE, index.encode())
            files[_INDEX_FILE] = file_sha256(partial.path / _INDEX_FILE)
        return files

    def clean(self, plan: Plan, partial: Partial) -> None:
        """Nothing is left over."""


def _source_text(spec: DeltaSpec) -> str:
    """Where a delta came from, by names without their places: the description may be published."""
    if spec.adapter is not None:
        return f"adapter {label(spec.adapter)}"
    base = label(spec.base) if spec.base else "into"
    if spec.file is not None:
        return f"delta {spec.file.name} of {base}"
    return f"{label(spec.tuned) if spec.tuned else ''} − {base}"


class _Delta:
    last = DESCRIPTION_FILE

    def write(self, plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, progress: Progress) -> None:
        write_delta(plan, edited, audited, partial, progress)

    def content(self, plan: Plan, partial: Partial) -> bytes:
        inputs, finished = plan.inputs, partial.journal.finished()
        into = inputs.into
        return Description(
            architecture=into.layout.architecture,
            base=Model(
                reference=label(inputs.recipe.into), revision=revision_of(into.folder), fingerprint=into.fingerprint
            ),
            sources={name: _source_text(spec) for name, spec in inputs.recipe.deltas.items()},
            dtype=inputs.recipe.output.dtype,
            patch_bytes=sum(entry.facts["patch_bytes"] for entry in finished.values()),
            tensors=entries_of(plan, partial),
            files={
                name: Described(size=entry.written.size, sha256=entry.written.sha256)
                for name, entry in finished.items()
            },
        ).dumps()

    @contextmanager
    def opened(self, plan: Plan, partial: Partial, content: bytes) -> Iterator[Weights]:
        yield Applied(plan.inputs.into, DeltaFolder(partial.path, content))

    def described(self, plan: Plan, partial: Partial) -> WrittenRecord:
        entries = {name: entry for name, entry in entries_of(plan, partial).items() if entry.kind is not None}
        finished = partial.journal.finished().values()
        coarse = [entry for entry in entries.values() if entry.rounding > _COARSE]
        record = WrittenRecord(
            format="delta",
            tensors=len(entries),
            bytes=sum(entry.written.size for entry in finished),
            kinds=dict(Counter(str(entry.kind) for entry in entries.values())),
            rounding=max((entry.rounding for entry in entries.values()), default=0.0),
            patch_bytes=sum(entry.facts["patch_bytes"] for entry in finished),
            patched={
                "apply": sum(entry.apply for entry in entries.values()),
                "undo": sum(entry.undo for entry in entries.values()),
            },
            warnings=[],
        )
        if coarse:
            worst = max(coarse, key=lambda entry: entry.rounding)
            record["warnings"].append(
                f"rounding its values took {100 * worst.rounding:.2g} % of the norm of the delta of {worst.name} (and "
                f"more than {100 * _COARSE:g} % in {len(coarse)} tensors); float32 keeps them "
                "(`output: {dtype: float32}`, or `--dtype float32` of `extract`)"
            )
        return record

    def finish(self, plan: Plan, partial: Partial) -> dict[str, str]:  # noqa: ARG002
        return {name: entry.written.sha256 for name, entry in partial.journal.finished().items()}

    def clean(self, plan: Plan, partial: Partial) -> None:
        """Nothing is left over."""


class _Adapter:
    last = ADAPTER_CONFIG

    def write(self, plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, progress: Progress) -> None:
        write_adapter(plan, edited, audited, partial, progress)

    def content(self, plan: Plan, partial: Partial) -> bytes:
        return adapter_config(plan, partial)

    @contextmanager
    def opened(self, plan: Plan, partial: Partial, content: bytes) -> Iterator[Weights]:
        with tempfile.TemporaryDirectory(prefix="vecsurgery-") as place:
            folder = Path(place)
            (folder / ADAPTER_CONFIG).write_bytes(content)
            (folder / WEIGHTS_FILE).symlink_to((partial.path / WEIGHTS_FILE).resolve())
            yield WithAdapter(plan.inputs.into, folder)

    def described(self, plan: Plan, partial: Partial) -> WrittenRecord:
        modules = modules_of(plan, partial)
        return WrittenRecord(
            format="adapter",
            tensors=len(modules),
            bytes=partial.journal.finished()[WEIGHTS_FILE].written.size,
            kinds={},
            rounding=max((module["error"] for module in modules), default=0.0),
            matrices=[
                AdapterMatrixRecord(tensor=module["tensor"], rank=module["rank"], error=module["error"])
                for module in modules
            ],
            dropped=dropped_of(plan, partial),
            warnings=[],
        )

    def finish(self, plan: Plan, partial: Partial) -> dict[str, str]:  # noqa: ARG002
        return {WEIGHTS_FILE: partial.journal.finished()[WEIGHTS_FILE].written.sha256}

    def clean(self, plan: Plan, partial: Partial) -> None:
        for shard in plan.shards:
            (partial.path / shard.file).unlink(missing_ok=True)


_FORMATS: Mapping[str, Format] = {"checkpoint": _Checkpoint(), "delta": _Delta(), "adapter": _Adapter()}


def format_of(plan: Plan) -> Format:
    """The output format of a plan."""
    return _FORMATS[plan.inputs.recipe.output.format]


def write_all(plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, progress: Progress) -> None:
    """Write every weight file that the journal does not know yet, in the format of the plan."""
    format_of(plan).write(plan, edited, audited, partial, progress)
