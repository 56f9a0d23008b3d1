"""Comparing two checkpoints, tensor by tensor: the call behind `vecsurgery compare`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from vecsurgery.checkpoint import Stored, resolve
from vecsurgery.delta import reading
from vecsurgery.delta.reading import Finder
from vecsurgery.errors import InputError
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe import parse_reference
from vecsurgery.report.comparison import Along, Comparison, TensorComparison
from vecsurgery.report.record import Record, read
from vecsurgery.surgery.calls import weights_of

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.checkpoint.types import TensorInfo, Weights
    from vecsurgery.surgery.calls import Model

_CHUNK = 1 << 22
"""Entries that are compared at a time: 32 MB in float64."""
_SHOWN = 4
"""Tensors of different shape that an error names."""


def compare(a: Model, b: Model, *, into: Model | None = None, progress: Progress = silent) -> Comparison:
    """Compare two checkpoints of one layout: weights tensor by tensor, and the records of the runs that made them.

    Tensors are matched by the parameters of the module, through tying, and read a piece at a time; never is a whole
    model in memory. For each: ‖A − B‖/‖B‖ in float64, the share of entries whose values differ, whether the bytes are
    the same, and the cosine of A − into and B − into. Embedding and head may differ in their number of rows; the rows
    that both have are compared by number.

    Args:
        a, b: a folder (an output of `run`, or any checkpoint), a hub id, a module, a state dict or weights.
        into: the model from which both came; by default the one that the records name, if they name one and it is on
            this machine.
        progress: called as work proceeds.

    Raises: InputError where one cannot be opened, where they share no tensor of a block, or where a tensor that is no
        embedding or head has different shapes.

    Example:
        found = vecsurgery.compare("cleaned", "cleaned-softer")
        print(found.text())
        found.by_layer()[0].relative
    """
    first, second = weights_of(a), weights_of(b)
    warnings: list[str] = []
    records = (_record(first, warnings), _record(second, warnings))
    origin = _origin(into, records, warnings)
    found = _matched(first, second, origin.weights if origin else None)
    tensors = []
    for done, pair in enumerate(found.pairs):
        progress("comparing", done, len(found.pairs), "tensors")
        tensors.append(_compared(pair, warnings))
    progress("comparing", len(found.pairs), len(found.pairs), "tensors")
    return Comparison(
        _name(a, first),
        _name(b, second),
        tuple(tensors),
        found.only_a,
        found.only_b,
        origin.name if origin else None,
        records,
        tuple(warnings),
    )


@dataclass(frozen=True)
class _Origin:
    weights: Weights
    name: str


@dataclass(frozen=True)
class _Held:
    """A tensor where it is stored."""

    weights: Weights
    info: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        return reading.seen_shape(self.info)

    def rows(self) -> Callable[[slice], Tensor]:
        """Reads rows of it, as (out, in); only these where its rows are tokens."""
        if reading.has_vocabulary_rows(self.info):
            return lambda rows: self.weights.read(self.info.name, rows)
        whole = self.weights.read(self.info.name)
        seen = whole.T if reading.is_transposed(self.info) else whole.reshape(1) if whole.ndim == 0 else whole
        return lambda rows: seen[rows]


@dataclass(frozen=True)
class _Pair:
    """One parameter in both, and in the model from which they came where that has it."""

    a: _Held
    b: _Held
    into: _Held | None

    @property
    def shared(self) -> tuple[int, ...]:
        """Shape of what both have."""
        return (min(self.a.shape[0], self.b.shape[0]), *self.a.shape[1:]) if self.a.shape else ()


@dataclass(frozen=True)
class _Matched:
    pairs: tuple[_Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def _name(given: Model, weights: Weights) -> str:
    return str(given) if isinstance(given, str | Path) else reading.label(weights)


def _record(weights: Weights, warnings: list[str]) -> Record | None:
    """The record beside the weights; one that cannot be read is a warning."""
    if not isinstance(weights, Stored) or not (weights.folder / "surgery.json").is_file():
        return None
    try:
        return read(weights.folder)
    except InputError as error:
        warnings.append(f"the record is left out: {error}")
        return None


def _origin(into: Model | None, records: tuple[Record | None, ...], warnings: list[str]) -> _Origin | None:
    """The model whose changes are compared: the caller's, or that of the records where it is here."""
    if into is not None:
        weights = weights_of(into)
        return _Origin(weights, _name(into, weights))
    known = [record for record in records if record is not None]
    if not known:
        return None
    if len({record["into"]["fingerprint"] for record in known}) > 1:
        warnings.append("no cosines: the two were made from different models (`into` of their records)")
        return None
    try:
        weights = _opened(known[0])
    except InputError as error:
        warnings.append(f"no cosines: `into` of the record, {known[0]['into']['reference']}: {error}")
        return None
    return _Origin(weights, known[0]["into"]["reference"])


def _opened(record: Record) -> Stored:
    """`into` of a record, if it is on this machine and still what it was. Raises InputError."""
    try:
        recipe = yaml.safe_load(record["recipe"])
        text = recipe["into"] if isinstance(recipe, Mapping) else None
        reference = parse_reference(str(text), Path.cwd())
    except (ValueError, KeyError, yaml.YAMLError) as error:
        raise InputError(str(error)) from error
    stored = Stored(resolve(reference, offline=True))
    if stored.fingerprint != record["into"]["fingerprint"]:
        raise InputError(f"{stored.folder} is not the model that was used: its fingerprint differs")
    return stored


def _matched(a: Weights, b: Weights, into: Weights | None) -> _Matched:
    """Tensors by parameter, in A's walking order, then those that only B stores. Raises InputError."""
    finders = Finder(a.layout), Finder(b.layout)
    origin = Finder(into.layout) if into is not None else None
    pairs, only_a, only_b = [], [], []
    stored = [info for weights in (a, b) for info in weights.layout.tensors.values()]
    for parameter in dict.fromkeys(info.parameter for info in stored):
        one, other = (finder.find(parameter) for finder in finders)
        if one is not None and other is not None:
            third = origin.find(parameter) if origin is not None else None
            held = _Held(into, third) if into is not None and third is not None else None
            pairs.append(_Pair(_Held(a, one), _Held(b, other), held))
        elif one is not None:
            only_a.append(one.name)
        elif other is not None:
            only_b.append(other.name)
    _require_comparable(pairs, a, b)
    return _Matched(tuple(pairs), tuple(only_a), tuple(only_b))


def _require_comparable(pairs: list[_Pair], a: Weights, b: Weights) -> None:
    names = f"comparing {reading.label(a)} with {reading.label(b)}"
    if all(pair.a.info.layer is None for pair in pairs):
        raise InputError(
            f"{names}: they share no tensor of a block (architectures {a.layout.architecture!r} and "
            f"{b.layout.architecture!r}); expected two checkpoints of one layout"
        )
    different = [pair for pair in pairs if not _comparable(pair)]
    if different:
        shown = "; ".join(f"{pair.a.info.name}: {pair.a.shape} and {pair.b.shape}" for pair in different[:_SHOWN])
        more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise InputError(
            f"{names}: {len(different)} of the tensors that both have differ in shape: {shown}{more}; expected two "
            "checkpoints of one layout: only embedding and head may differ, in their number of rows"
        )


def _comparable(pair: _Pair) -> bool:
    if reading.has_vocabulary_rows(pair.a.info) and reading.has_vocabulary_rows(pair.b.info):
        return pair.a.shape[1:] == pair.b.shape[1:]
    return pair.a.shape == pair.b.shape


@dataclass
class _Sums:
    """What is added up over the pieces of one tensor, in float64."""

    same: bool = True
    changed: int = 0
    difference: float = 0.0
    norm: float = 0.0
    product: float = 0.0
    squared_a: float = 0.0
    squared_b: float = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        if a.dtype == b.dtype and reading.same_bytes(a, b):
            self.norm += _squared(b.to(torch.float64))
            return
        self.same = False
        first, second = a.to(torch.float64), b.to(torch.float64)
        self.norm += _squared(second)
        difference = first - second
        self.changed += int(torch.count_nonzero(difference))
        self.difference += _squared(difference)

    def add_changes(self, a: Tensor, b: Tensor, into: Tensor) -> None:
        origin = into.to(torch.float64)
        first, second = a.to(torch.float64) - origin, b.to(torch.float64) - origin
        self.product += float((first * second).sum())
        self.squared_a += _squared(first)
        self.squared_b += _squared(second)


def _squared(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2


def _compared(pair: _Pair, warnings: list[str]) -> TensorComparison:
    """Read one tensor in pieces and add up what differs."""
    shape = pair.shared
    readers = pair.a.rows(), pair.b.rows()
    origin = pair.into if pair.into is not None and pair.into.shape[1:] == shape[1:] else None
    third = origin.rows() if origin is not None and _reaches(origin, pair) else None
    known = origin.shape[0] if origin is not None and origin.shape else 1
    sums = _Sums()
    for rows in _pieces(shape):
        a, b = (read(rows) for read in readers)
        sums.add(a, b)
        inside = slice(rows.start, min(rows.stop, known))
        if third is not None and inside.start < inside.stop:
            count = inside.stop - inside.start
            sums.add_changes(a[:count], b[:count], third(inside))
    return _told(pair, sums, third is not None, warnings)


def _reaches(origin: _Held, pair: _Pair) -> bool:
    """Whether the common model's tensor has the shape, but for rows that are tokens."""
    tokens = reading.has_vocabulary_rows(origin.info) and reading.has_vocabulary_rows(pair.a.info)
    return tokens or origin.shape == pair.a.shape


def _pieces(shape: tuple[int, ...]) -> list[slice]:
    """Runs of rows of about `_CHUNK` entries."""
    count = shape[0] if shape else 1
    step = max(1, _CHUNK // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _told(pair: _Pair, sums: _Sums, along: bool, warnings: list[str]) -> TensorComparison:
    a, b, shape = pair.a.info, pair.b.info, pair.shared
    finite = math.isfinite(sums.norm) and math.isfinite(sums.difference)
    if not finite:
        warnings.append(f"{a.name} holds NaN or infinity: its figures, and those of totals with it, are left out")
    if pair.a.shape != pair.b.shape:
        rows = (pair.a.shape[0], pair.b.shape[0])
        warnings.append(
            f"{a.name} has {rows[0]:,} rows in A and {rows[1]:,} in B: the first {shape[0]:,} are compared; rows of "
            "one number are one token only if the tokenizers agree"
        )
    changes = Along(sums.product, sums.squared_a, sums.squared_b)
    known = along and all(map(math.isfinite, (changes.product, changes.squared_a, changes.squared_b)))
    return TensorComparison(
        a.name,
        role_of(a),
        a.layer,
        shape,
        (a.dtype, b.dtype),
        sums.same and pair.a.shape == pair.b.shape,
        sums.changed,
        sums.difference if finite else None,
        sums.norm if finite else None,
        changes if known else None,
    )


def role_of(info: TensorInfo) -> str:
    """What a table calls a tensor: the roles of its rows (`q+k+v` where they are fused), or what it is."""
    if info.matrix is not None:
        roles = dict.fromkeys(part.role for part in info.matrix.parts)
        return "+".join(role for role in roles if role != "other") or "other matrices"
    if info.kind in ("embedding", "head"):
        return info.kind
    return "vectors" if len(info.shape) < 2 else "other matrices"
