"""The run: plan, measure, write, report, and the one rename that makes the result exist."""

import hashlib
import importlib.metadata
import math
import platform
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import vecsurgery
from vecsurgery import report
from vecsurgery.checkpoint import (
    CardSource,
    Partial,
    Stored,
    check_output,
    file_sha256,
    model_card,
    open_partial,
    publish,
    write_bytes,
)
from vecsurgery.checkpoint.types import Weights
from vecsurgery.errors import GateError
from vecsurgery.fits import Coefficients
from vecsurgery.forward import Compute
from vecsurgery.geometry import Geometry
from vecsurgery.planning.checking import check_inputs, require_disk, verify_deltas
from vecsurgery.planning.inputs import Inputs, label
from vecsurgery.planning.plans import Plan, make_plan
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.numbers import plain_number
from vecsurgery.recipe.types import DataSpec, Reference, Step
from vecsurgery.report.record import (
    VERSION,
    CurvePointRecord,
    DeltaRecord,
    FitRecord,
    GeometryRecord,
    LeftOutRecord,
    MatrixRecord,
    MergeRecord,
    ModelRecord,
    OthersRecord,
    Record,
)
from vecsurgery.surgery.assembly import assembled
from vecsurgery.surgery.fitting import coefficient_file, fitted
from vecsurgery.surgery.formats import format_of, write_all
from vecsurgery.surgery.geometries import FOLDER, measured, rule_text
from vecsurgery.surgery.judging import Judgement, judged
from vecsurgery.surgery.writing import AuditedInputs

_PACKAGES = ("torch", "transformers", "safetensors", "mergekit", "tokenizers", "numpy")
RECORD_FILE = "surgery.json"


def execute(inputs: Inputs, out: Path, *, compute: Compute = "float32", progress: Progress = silent) -> Record:
    """Run an opened recipe into the folder `out`, which exists afterwards only if everything succeeded.

    Errors: InputError for what cannot be used (nothing is left behind that was not there), RunError for faults while
    writing (OUT.partial stays and the next run goes on in it).
    """
    check_output(out, inputs.folders)
    clock = _Clock()
    with clock.phase("check"):
        found = check_inputs(inputs)
        verify_deltas(inputs, progress)
    with clock.phase("plan"):
        plan = make_plan(inputs, compute=compute, progress=progress)
        require_disk(plan, out)
    with open_partial(out, plan.hash, inputs=inputs.folders) as partial:
        if partial.resumed:
            finished = len(partial.journal.finished())
            progress(f"going on in {partial.path.name}", finished, len(plan.shards), "weight files")
        form = format_of(plan)
        with clock.phase("measure"):
            geometries = measured(plan, partial.path / FOLDER, progress)
        with clock.phase("fit"):
            coefficients = fitted(plan, geometries, partial.path / FOLDER, progress)
        with clock.phase("write"):
            _write(plan, geometries, coefficients, partial, progress)
        with clock.phase("evaluate"):
            raw = assembled(inputs, geometries, coefficients, steps=inputs.recipe.merges)
            last = form.content(plan, partial)
            judgement = judged(inputs, raw, lambda: form.opened(plan, partial, last), compute, progress)
        record = _record(plan, geometries, partial, found.warnings, clock.seconds, out.name)
        record["fits"] = [_fit_record(plan, each, partial) for each in coefficients.values()]
        record["merges"] = [_merge_record(plan, step, record["matrices"]) for step in inputs.recipe.merges]
        record["evaluation"], record["gates"] = judgement.evaluation, judgement.gates
        _note_output(plan, record, partial)
        record["files"][form.last] = hashlib.sha256(last).hexdigest()
        _finish(plan, record, partial)
        folder = publish(partial, last, failed=bool(judgement.failed), name=form.last)
    if judgement.failed:
        raise GateError(_failure(judgement, folder))
    return record


def _failure(judgement: Judgement, folder: Path) -> str:
    reasons = "".join(f"\n  {gate['reason']}" for gate in judgement.failed)
    count = len(judgement.failed)
    by_itself = any(gate["measure"] == "smoke" for gate in judgement.failed)
    told = " (the gate smoke stands in every recipe that names no gates; `gates: []` turns it off)" if by_itself else ""
    return (
        f"the result does not pass {count} of {len(judgement.gates)} gates, so it was kept as {folder} "
        f"with its report (`vecsurgery report {folder.name}`):{reasons}\n"
        f"change the recipe, or its gates, and run it again{told}"
    )


def _fit_record(plan: Plan, found: Coefficients, partial: Partial) -> FitRecord:
    inputs = plan.inputs
    step = next(step for step in inputs.recipe.steps if step.id == found.step)
    file = f"{FOLDER}/{coefficient_file(step)}"
    assert step.data is not None  # the grammar: a fit has data
    return FitRecord(
        step=found.step,
        method=found.method,
        delta=found.delta,
        tensors=sum(inputs.into.layout.tensors[name].parameter in plan.changed[found.delta] for name in found.tensors),
        rows=len(inputs.fit_samples[step.id].samples),
        facts=dict(found.facts),
        curve=[
            CurvePointRecord(factor=point.factor, capped=point.capped, nll=point.nll, probability=point.probability)
            for point in found.curve
        ],
        warnings=list(found.warnings),
        file=file,
        sha256=file_sha256(partial.path / file),
        data={str(path): file_sha256(path) for path in step.data.data},
    )


def _merge_record(plan: Plan, step: Step, matrices: Sequence[MatrixRecord]) -> MergeRecord:
    found = [each["facts"] for matrix in matrices for each in matrix["steps"] if each["step"] == step.id]
    facts = {"merged_norm": math.hypot(*(each["merged_norm"] for each in found))}
    for name, chosen in (("cosine_least", min), ("cosine_largest", max)):
        cosines = [each[name] for each in found if name in each]
        facts |= {name: chosen(cosines)} if cosines else {}
    assert step.result is not None  # the grammar: a merge has a result
    record = MergeRecord(
        step=step.id,
        method=step.method,
        deltas=list(step.selection.deltas),
        delta=step.result,
        tensors=sum((step.id, "merge") in item.steps for item in plan.tensors.values()),
        facts=facts,
    )
    if step.weights:
        record["weights"] = {name: plain_number(number) for name, number in step.weights.items()}
    return record


class _Clock:
    """Seconds per phase, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def _write(
    plan: Plan,
    geometries: dict[str, Geometry],
    coefficients: dict[str, Coefficients],
    partial: Partial,
    progress: Progress,
) -> None:
    inputs = plan.inputs
    audited = AuditedInputs.of(inputs)
    try:
        edited = assembled(inputs, geometries, coefficients, read=audited)
        write_all(plan, edited, audited, partial, progress)
    finally:
        audited.close()


def _note_output(plan: Plan, record: Record, partial: Partial) -> None:
    """What the format tells of its files, and those that stand beside the weights."""
    form = format_of(plan)
    described = form.described(plan, partial)
    if described is not None:
        record["written"] = described
    record["files"] |= form.finish(plan, partial)


def _record(
    plan: Plan,
    geometries: dict[str, Geometry],
    partial: Partial,
    warnings: tuple[str, ...],
    seconds: dict[str, float],
    output: str,
) -> Record:
    """The record of the run, from the plan, the geometry files and the journal of the shards."""
    inputs = plan.inputs
    entries = partial.journal.finished()
    record = Record(
        version=VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        output=output,
        recipe=inputs.recipe.text,
        source=str(inputs.recipe.source) if inputs.recipe.source else None,
        plan=plan.hash,
        seed=max((data.seed for data in inputs.recipe.data), default=0),
        compute=plan.compute,
        versions=_versions(),
        seconds=dict(seconds),
        into=_model_record(inputs.recipe.into, inputs.into),
        deltas={name: _delta_record(plan, name) for name in inputs.deltas},
        geometry={name: _geometry_record(plan, name, opened, partial) for name, opened in geometries.items()},
        matrices=[row for shard in plan.shards for row in entries[shard.file].facts["matrices"]],
        left_out=_left_out(plan),
        others=[
            OthersRecord(delta=delta, step=step, treatment=treatment, tensors=names)
            for (delta, step, treatment), names in plan.others().items()
        ],
        inputs={key: value for shard in plan.shards for key, value in entries[shard.file].facts["inputs"].items()}
        | {
            f"deltas.{name}: {file}": sha256
            for name, pair in inputs.pairs.items()
            if pair.file is not None
            for file, sha256 in pair.file.hashes.items()
        },
        files={},
        warnings=list(warnings),
    )
    order = {name: number for number, name in enumerate(inputs.into.layout.order)}
    record["matrices"].sort(key=lambda row: order[row["tensor"]])
    return record


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "vecsurgery": vecsurgery.__version__, **found}


def _model_record(reference: Reference, model: Weights) -> ModelRecord:
    from vecsurgery.checkpoint import revision_of

    folder = getattr(model, "folder", None)
    return ModelRecord(
        reference=reference.text,
        revision=revision_of(folder) if folder is not None else None,
        fingerprint=model.fingerprint,
        architecture=model.layout.architecture,
    )


def _delta_record(plan: Plan, name: str) -> DeltaRecord:
    inputs = plan.inputs
    spec, pair = inputs.recipe.deltas[name], inputs.pairs[name]
    changed = len(plan.changed[name])
    record = DeltaRecord(
        tuned=_model_record(spec.tuned, pair.tuned) if spec.tuned and pair.tuned else None,
        base=_model_record(spec.base or inputs.recipe.into, pair.base) if pair.base else None,
        changed=changed,
        unchanged=len(inputs.into.layout.tensors) - changed,
    )
    if spec.adapter is not None:
        record["adapter"] = ModelRecord(
            reference=spec.adapter.text, revision=None, fingerprint=inputs.deltas[name].fingerprint
        )
    if pair.file is not None:
        made = ModelRecord(reference=str(pair.file.path), revision=None, fingerprint=pair.file.fingerprint)
        record["file"] = made
    weight = inputs.recipe.weights.get(name)
    if isinstance(weight, float | int | list):
        record["weight"] = weight
    elif weight is not None:
        record["weight"] = [{"filter": entry.filter, "value": entry.value} for entry in weight]
    return record


def _geometry_record(plan: Plan, name: str, geometry: Geometry, partial: Partial) -> GeometryRecord:
    inputs = plan.inputs
    spec = inputs.recipe.geometry[name]
    samples = inputs.samples.get(name)
    path = partial.path / FOLDER / f"{name}.safetensors"
    return GeometryRecord(
        model=_model_record(spec.model or inputs.recipe.into, inputs.models[name]),
        rule=rule_text(spec.tokens),
        tokens=geometry.info.counts["positions"],
        counts=dict(samples.counts) if samples else {},
        sites=len(geometry.sites),
        file=f"{FOLDER}/{name}.safetensors",
        sha256=file_sha256(path),
        data={str(file): file_sha256(file) for file in (spec.data.data if spec.data else ())},
        warnings=list(samples.warnings) if samples else [],
    )


def _left_out(plan: Plan) -> list[LeftOutRecord]:
    guarded = {
        step.id
        for step in plan.inputs.recipe.steps
        if step.verb == "project" and plan.inputs.projectors[step.method].unprotected_warning
    }

    def unprotected(tensor: str, step: str, delta: str) -> bool:
        """A step protects, but neither it nor another one edits all rows of this tensor."""
        return step in guarded and not _edited_whole(plan.inputs, tensor, delta, guarded)

    return [
        LeftOutRecord(tensor=tensor, step=step, delta=delta, unprotected=unprotected(tensor, step, delta))
        for tensor, step, delta in plan.left_out()
    ]


def _edited_whole(inputs: Inputs, tensor: str, delta: str, steps: Collection[str]) -> bool:
    """Whether these steps together edit every output row of a block matrix."""
    matrix = inputs.into.layout.tensors[tensor].matrix
    assert matrix is not None  # selections leave out block matrices only
    edits = [
        touch
        for touch in inputs.touches[tensor]
        if touch.effect == "edit" and touch.step.id in steps and delta in touch.step.selection.deltas
    ]
    if any(touch.rows is None for touch in edits):
        return True
    edited = {row for touch in edits for start, stop in touch.rows or () for row in range(start, stop)}
    return edited.issuperset(row for part in matrix.parts for start, stop in part.rows for row in range(start, stop))


def _finish(plan: Plan, record: Record, partial: Partial) -> None:
    """Card, recipe, record and report; the file that makes the folder a result comes last, from `publish`."""
    inputs = plan.inputs
    files: dict[str, str] = record["files"]
    title = f"{label(inputs.recipe.into)}, edited with vecsurgery"
    sources = _sources(inputs)
    recipe = _without_places(inputs)
    form = inputs.recipe.output.format
    record["notes"] = list(model_card(title, sources, recipe, form=form).notes)
    record["verdict"] = report.verdict(record)
    card = model_card(title, sources, recipe, record["verdict"], form)
    for name, text in {"README.md": card.text, "recipe.yaml": inputs.recipe.text}.items():
        write_bytes(partial.path / name, text.encode())
        files[name] = file_sha256(partial.path / name)
    files |= {entry["file"]: entry["sha256"] for entry in record.get("fits", [])}
    forgotten: list[str] = []
    if inputs.recipe.output.keep_geometry:
        files |= {entry["file"]: entry["sha256"] for entry in record["geometry"].values()}
    else:
        forgotten = [entry.pop("file") for entry in record["geometry"].values()]
    write_bytes(partial.path / "report.html", report.html(record).encode())
    write_bytes(partial.path / RECORD_FILE, report.dumps(record).encode())
    _forget_geometry(forgotten, partial)
    format_of(plan).clean(plan, partial)


def _without_places(inputs: Inputs) -> str:
    """The recipe's text for the model card, which is published: local files and folders by their names alone."""
    recipe = inputs.recipe
    files = [spec.file for spec in recipe.geometry.values() if spec.file is not None]
    paths = {*inputs.folders, *files, *(path for data in recipe.data for path in _files(data))}
    text = recipe.text
    for path in sorted(paths, key=lambda path: len(str(path)), reverse=True):
        text = text.replace(str(path), path.name)
    return text


def _files(spec: DataSpec) -> list[Path]:
    """The data files, and the template where that is a file, too."""
    return [*spec.data, *([] if spec.template in ("auto", "none") else [Path(spec.template)])]


def _forget_geometry(files: Sequence[str], partial: Partial) -> None:
    """Last of all: a run that is cut off behind this measures once more (to the same bytes), one before it does not."""
    for name in files:
        (partial.path / name).unlink(missing_ok=True)
    folder = partial.path / FOLDER
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _sources(inputs: Inputs) -> list[CardSource]:
    named: list[tuple[Reference, Weights | None, Path | None]] = [(inputs.recipe.into, inputs.into, None)]
    for name, spec in inputs.recipe.deltas.items():
        pair = inputs.pairs[name]
        named += [(spec.tuned, pair.tuned, None)] if spec.tuned else []
        named += [(spec.base, pair.base, None)] if spec.base else []
        named += [(spec.adapter, None, pair.adapter)] if spec.adapter else []
        folder = pair.file.path if pair.file else None
        named += [(Reference(str(folder), folder, str(folder)), None, folder)] if folder else []
    sources = []
    for reference, model, adapter in named:
        folder = model.folder if isinstance(model, Stored) else adapter
        if folder is not None:
            sources.append(CardSource(label(reference), folder, None if reference.path else reference.model))
    return sources
