"""delta.json: what a delta folder says of itself, read strictly."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vecsurgery.errors import InputError

DESCRIPTION_FILE = "delta.json"
FORMAT: Literal["vecsurgery delta"] = "vecsurgery delta"
VERSION: Literal[1] = 1
_LISTED = 5
Type = Literal[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "complex64",
]
"""Types of tensors that a model may have; only those of the first four change."""
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(_Keys):
    """A checkpoint that the delta was made from."""

    reference: str
    revision: str | None
    """Commit of a hub snapshot; None for a local folder."""
    fingerprint: str


class Entry(_Keys):
    """One tensor of the base, with what changes it."""

    name: str
    """Its name in the base's files."""
    shape: tuple[Annotated[int, Field(ge=0)], ...] = Field(strict=False)
    """As the base stores it."""
    dtype: Type
    before: Hash
    """SHA-256 of the base's bytes."""
    after: Hash
    """SHA-256 of the bytes with the delta applied; that of `before` where nothing changes."""
    kind: Literal["dense", "rows", "factored", "bits"] | None = None
    """dense: D whole; rows: the rows of D that are not zero; factored: B and A; bits: no numbers, only bits that differ
    (the sign of a zero); None: unchanged."""
    transposed: bool = False
    """True where the base stores (in, out); values here are (out, in) all the same."""
    file: str | None = None
    """The file of this folder that holds it."""
    rounding: float = 0.0
    """‖D − D as stored here‖/‖D‖."""
    apply: int = 0
    """Entries whose bits W + D misses, and which the patch sets right."""
    undo: int = 0
    """The same of W′ − D."""


class Described(_Keys):
    """Size and SHA-256 of a file."""

    size: int
    sha256: Hash


class Description(_Keys):
    """Everything in delta.json."""

    format: Literal["vecsurgery delta"] = FORMAT
    version: Literal[1] = VERSION
    architecture: str
    base: Model
    """The model that the delta is added to: `into` of the run that made it."""
    sources: dict[str, str]
    """Delta of the recipe → what it was, in words."""
    dtype: str
    """The type of values that was asked for."""
    patch_bytes: int
    """Bytes of all patches together."""
    tensors: dict[str, Entry]
    """By the name of the parameter in the transformers module, in walking order."""
    files: dict[str, Described]

    def dumps(self) -> bytes:
        """The bytes of delta.json."""
        content = self.model_dump(mode="json", exclude_defaults=True) | {"format": FORMAT, "version": VERSION}
        head = {key: content.pop(key) for key in ("format", "version")}
        content = {**head, **content}
        return (json.dumps({**content, "sha256": _digest(content)}, indent=1, ensure_ascii=False) + "\n").encode()


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a description without its own `sha256`, keys sorted."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def described(folder: Path, content: bytes | None = None) -> Description:
    """The description of a delta folder; `content`: its bytes, where the file is not there yet.

    Errors: InputError where the folder is no delta, of another version, or its description does not hold together.
    """
    path = folder / DESCRIPTION_FILE
    parsed = _parsed(path, content)
    if parsed.get("format") != FORMAT or parsed.get("version") != VERSION:
        raise InputError(
            f"reading {path}: format {parsed.get('format')!r}, version {parsed.get('version')!r}; expected {FORMAT!r}, "
            f"version {VERSION}: read it with the release that wrote it"
        )
    recorded = parsed.pop("sha256", None)
    try:
        found = Description.model_validate(parsed)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise InputError(f"reading {path}: {'; '.join(problems[:_LISTED])}{more}; make the delta again") from error
    _require_files(path, found)
    for parameter, entry in found.tensors.items():
        if entry.kind is None and entry.before != entry.after:
            raise InputError(
                f"reading {path}: tensor {parameter!r} is said to be unchanged, but `after` is not `before`; make the "
                "delta again"
            )
    if recorded != _digest(parsed):
        raise InputError(
            f"reading {path}: it has not the SHA-256 that it states of itself; it was altered or damaged since it was "
            "written, make or fetch the delta again"
        )
    return found


def _parsed(path: Path, content: bytes | None) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_bytes() if content is None else content)
    except FileNotFoundError as error:
        raise InputError(
            f"reading the delta {path.parent}: there is no {path.name}; expected a folder that `vecsurgery extract`, "
            "or a run with `output: {format: delta}`, has made"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"reading {path}: it cannot be read as JSON: {error}; make the delta again") from error
    if not isinstance(parsed, dict):
        raise InputError(f"reading {path}: it holds a {type(parsed).__name__}, expected a JSON object")
    return parsed


def _require_files(path: Path, found: Description) -> None:
    """Only bare names of listed files: a description cannot point out of its folder."""
    for name in found.files:
        if not name or Path(name).name != name or name in {".", ".."} or "\\" in name:
            raise InputError(f"reading {path}: it names the file {name!r}; expected bare names of files beside it")
    for parameter, entry in found.tensors.items():
        if (entry.kind is None) != (entry.file is None) or (entry.file is not None and entry.file not in found.files):
            raise InputError(f"reading {path}: tensor {parameter!r} is said to be in {entry.file!r}, not listed")
