"""The record of a run: what `surgery.json` holds and every rendering starts from.

The types below are its schema. A record is plain JSON: numbers are finite (a ratio that is undefined, because a delta
is zero, is left out), keys that the schema does not name are refused, and the version says which schema it follows.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NotRequired, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from vecsurgery.errors import InputError

VERSION = 1
"""Of the schema; a reader refuses any other."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@with_config(_STRICT)
class ModelRecord(TypedDict):
    """One checkpoint that was read."""

    reference: str
    """As the recipe wrote it."""
    revision: str | None
    """Commit of a hub snapshot; None for a local folder."""
    fingerprint: str
    architecture: NotRequired[str]


@with_config(_STRICT)
class DeltaRecord(TypedDict):
    """One delta; an adapter has no `tuned` and no `base`, a delta folder no `tuned`."""

    tuned: ModelRecord | None
    base: ModelRecord | None
    adapter: NotRequired[ModelRecord | None]
    file: NotRequired[ModelRecord]
    """The delta folder that stands for `tuned`."""
    weight: NotRequired[float | list[float] | list[dict[str, Any]]]
    """The recipe's number; 1 where absent."""
    changed: NotRequired[int]
    """How many tensors differ between tuned and base."""
    unchanged: NotRequired[int]


@with_config(_STRICT)
class GeometryRecord(TypedDict):
    """One geometry as it was used."""

    model: ModelRecord
    rule: str
    """The token rule in words."""
    tokens: int
    """Positions that were measured at each site."""
    counts: dict[str, int]
    """Rows read, used, repeated, truncated, dropped …"""
    sites: int
    file: NotRequired[str]
    sha256: NotRequired[str]
    data: NotRequired[dict[str, str]]
    """Data file → SHA-256."""
    warnings: list[str]


@with_config(_STRICT)
class StepRecord(TypedDict):
    """What one step did to one delta of one matrix.

    Facts with a common meaning: `norm` ‖D‖ before the step; `norm_ratio` ‖D′‖/‖D‖; `rab` and `rab_after` retention
    activation bias before and as intended after; `rank` directions used, or singular values kept; `energy` the
    directions' share of the geometry's energy; `energy_removed` 1 − norm_ratio²; `strength` λ; `floor` share of the
    bias that is out of reach; `rtol_leak` share of the bias left; `kept` share of the entries that stay; `factor` the
    number of a scale; of a merge `merged_norm` ‖D′‖, `merged` deltas that changed the matrix, `cosine_least`
    of two of them; of a step with several deltas `cosine_largest` of two. Others are shown under their own names.
    """

    step: str
    """Its id."""
    method: str
    delta: str
    geometry: NotRequired[str | None]
    facts: dict[str, float]
    warnings: list[str]


@with_config(_STRICT)
class StoredRecord(TypedDict):
    """One matrix measured on the stored weights, after rounding, against one geometry.

    The raw change is Σ weight·delta as loaded (and merged, where the recipe merges), the intended one Σ weight·delta as
    the steps left it, the stored one the difference between the written tensor and `into`. The bias is that of the
    whole change.
    """

    rab_before: float
    """Bias of the raw change."""
    rab_after_intended: float
    rab_after_stored: float
    norm_before: float
    """‖raw change‖."""
    norm_ratio_intended: NotRequired[float]
    norm_ratio_stored: NotRequired[float]
    """‖stored change‖ / ‖raw change‖."""
    rab_relative_before: NotRequired[float]
    """‖D Xᵀ‖/‖W Xᵀ‖ of the raw change, W of `into`."""
    rab_relative_after: NotRequired[float]
    """The same of the stored change."""
    leak: NotRequired[float]
    """‖D V_r‖/‖D‖ of the stored change: its share inside the protected directions."""
    leak_intended: NotRequired[float]


@with_config(_STRICT)
class MatrixRecord(TypedDict):
    """One matrix that a step touched."""

    tensor: str
    layer: int
    site: str
    roles: list[str]
    shape: list[int]
    """(out, in)."""
    steps: list[StepRecord]
    """In the order in which they ran."""
    stored: dict[str, StoredRecord]
    """Geometry name → measurement; empty where no step of the matrix has a geometry."""


@with_config(_STRICT)
class LeftOutRecord(TypedDict):
    """A changed matrix that the recipe's own selection left out of a step: it passes unchanged."""

    tensor: str
    step: str
    delta: str
    unprotected: bool
    """True where it is added without the protection that the step gives the others."""


@with_config(_STRICT)
class OthersRecord(TypedDict):
    """What became of a delta's tensors that are no block matrix with a site."""

    delta: str
    step: str
    treatment: Literal["source", "drop", "mean"]
    tensors: list[str]


@with_config(_STRICT)
class CurvePointRecord(TypedDict):
    """Answer losses (nats) and token probability of the edited model at one factor."""

    factor: float
    capped: float
    nll: float
    probability: float


@with_config(_STRICT)
class FitRecord(TypedDict):
    """What one fit found.

    Facts of `amplify`: `factor`; `target`, `into`, `raw`, `reached` in the target's unit; `share` of the raw
    forgetting that is kept; `asks` passes; `norm_growth` factor·‖D′‖/‖D‖. Facts of `attention_scale`: `mean`, `least`,
    `largest` coefficient of a head; `zero`, share of heads at 0; `related`, `unrelated` attention; `nll_unscaled`,
    `nll_scaled`, `nll_permuted`, answer NLL without the coefficients, with them, with them permuted.
    """

    step: str
    method: str
    delta: str
    tensors: int
    """How many matrices it multiplies."""
    rows: int
    """Rows it measured on."""
    facts: dict[str, float]
    curve: list[CurvePointRecord]
    warnings: list[str]
    file: str
    """The coefficients, relative to the output folder."""
    sha256: str
    data: dict[str, str]
    """Data file → SHA-256."""


@with_config(_STRICT)
class MergeRecord(TypedDict):
    """One merge. `facts`, over the block matrices: `merged_norm` of the result, `cosine_least`, `cosine_largest`."""

    step: str
    method: str
    deltas: list[str]
    delta: str
    """The name of the result."""
    weights: NotRequired[dict[str, float | list[float] | list[dict[str, Any]]]]
    """Where the method takes them."""
    tensors: int
    facts: dict[str, float]


@with_config(_STRICT)
class EvaluationRecord(TypedDict):
    """One data source of `evaluate`, measured on three models."""

    rows: int
    tokens: int
    """That were scored."""
    data: dict[str, str]
    """Data file → SHA-256."""
    figures: dict[str, dict[str, float]]
    """into, raw (`into` plus the deltas as loaded, merged where the recipe merges) and edited → figure (names as in
    docs/evaluation.md) → value.
    """
    warnings: list[str]


@with_config(_STRICT)
class GateRecord(TypedDict):
    """One condition and whether the result meets it."""

    measure: str
    min: float | None
    max: float | None
    value: float | None
    """None where the measure is no number: `smoke`, or a measure that is undefined."""
    passed: bool
    reason: str
    """What was found, in words."""
    data: NotRequired[dict[str, str]]
    """Data file → SHA-256, of a gate with rows of its own."""


@with_config(_STRICT)
class AdapterMatrixRecord(TypedDict):
    """One matrix of an adapter that was written."""

    tensor: str
    rank: int
    error: float
    """‖D − B A‖/‖D‖ of the edited delta D: 0 where the factors are its own."""


@with_config(_STRICT)
class WrittenRecord(TypedDict):
    """What an output holds that is no checkpoint."""

    format: Literal["delta", "adapter"]
    tensors: int
    """Changed tensors that it holds."""
    bytes: int
    """Of its weight files, the patch included."""
    kinds: dict[str, int]
    """delta: dense, rows, factored or bits → number of tensors."""
    rounding: float
    """Largest ‖D − D as written‖/‖D‖ of a tensor."""
    patch_bytes: NotRequired[int]
    """delta: bytes of what makes apply and undo exact."""
    patched: NotRequired[dict[str, int]]
    """delta: apply, undo → entries whose bits the sum alone would miss."""
    matrices: NotRequired[list[AdapterMatrixRecord]]
    """adapter: in walking order."""
    dropped: NotRequired[list[str]]
    """adapter: changed tensors that it cannot hold, left out as the recipe says."""
    warnings: list[str]


@with_config(_STRICT)
class Record(TypedDict):
    """Everything that a report says."""

    version: int
    created: str
    """ISO 8601, UTC."""
    output: str
    """Name of the output folder."""
    recipe: str
    """The resolved recipe, canonical YAML; running it again is `vecsurgery reproduce`."""
    source: NotRequired[str | None]
    """File the recipe came from."""
    plan: NotRequired[str]
    """Hash of the plan."""
    seed: int
    compute: NotRequired[Literal["float32", "stored"]]
    versions: dict[str, str]
    """Package → version, python and vecsurgery included."""
    seconds: dict[str, float]
    """Phase → seconds, in order."""
    into: ModelRecord
    deltas: dict[str, DeltaRecord]
    geometry: dict[str, GeometryRecord]
    fits: NotRequired[list[FitRecord]]
    merges: NotRequired[list[MergeRecord]]
    evaluation: NotRequired[dict[str, EvaluationRecord]]
    gates: NotRequired[list[GateRecord]]
    written: NotRequired[WrittenRecord]
    """What was written in place of a checkpoint; absent where that was one."""
    matrices: list[MatrixRecord]
    """In walking order."""
    left_out: list[LeftOutRecord]
    others: list[OthersRecord]
    inputs: NotRequired[dict[str, str]]
    """What was read (tensor or file, with its checkpoint) → SHA-256."""
    files: dict[str, str]
    """What was written, relative to the output folder → SHA-256."""
    warnings: list[str]
    """Of the run as a whole, those of `check` included; not those of geometries and matrices."""
    notes: NotRequired[list[str]]
    """What is to be settled before the result is published, as its licence: nothing about the surgery."""
    verdict: NotRequired[str]
    """One line; `vecsurgery.report.verdict(record)` writes it."""


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def validated(record: Mapping[str, Any], *, source: str = "the record of the run") -> Record:
    """Return `record` unchanged after checking it against the schema.

    Errors: InputError that names every key that is missing, unknown or of a wrong type, and `source`.
    """
    version = record.get("version")
    if version != VERSION:
        raise InputError(
            f"{source}: the record has version {version!r}, this vecsurgery reads version {VERSION}; "
            "read it with the release that wrote it"
        )
    try:
        _adapter().validate_python(record, strict=True)
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
        )
        raise InputError(f"{source}: not a record of a run:\n{problems}") from error
    return cast(Record, record)


def read(path: Path) -> Record:
    """Read `surgery.json`, given itself or the output folder that holds it.

    Errors: InputError where the file is absent, is no JSON, or does not follow the schema.
    """
    file = path / "surgery.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{file}: no such file; give the output folder of a finished run, or its surgery.json"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a JSON {type(content).__name__}, expected the record of a run (an object)")
    return validated(content, source=str(file))


def dumps(record: Mapping[str, Any]) -> str:
    """The record as the text of `surgery.json`: indented, keys in the order given, finite numbers only."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
