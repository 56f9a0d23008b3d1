"""The delta tuned − base of two checkpoints, read tensor by tensor and computed in float32 or wider."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vecsurgery.checkpoint.hashes import tensor_bytes
from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.delta import reading
from vecsurgery.delta.adapter import Adapter
from vecsurgery.delta.reading import Finder, Rows, Weights
from vecsurgery.delta.types import Delta, Dense, Factored
from vecsurgery.delta.with_adapter import WithAdapter
from vecsurgery.errors import InputError

_SHOWN = 2


@dataclass(frozen=True)
class _Pair:
    """The three stored tensors of one parameter."""

    into: TensorInfo
    tuned: TensorInfo
    base: TensorInfo

    @property
    def common(self) -> int:
        """Rows that all three have."""
        return min(info.shape[0] for info in (self.into, self.tuned, self.base))


@dataclass(frozen=True)
class Difference:
    """D = tuned − base, to be added to `into`.

    Tensors are matched by the names of the module's parameters, through tying where one checkpoint ties what another
    keeps apart. `row_masks`: for a tensor whose rows are tokens, True for the rows of `into` that mean the same token
    in all three; the other rows, and rows that tuned or base lack, get a zero delta. Where `tuned` is `base` with an
    adapter, the delta is the adapter's, factored.

    Errors: InputError where shapes differ in more than the rows of embedding or head; on reading, where a tensor holds
    NaN or infinity, or is of an integer type and differs.
    """

    name: str
    tuned: Weights
    base: Weights
    into: Weights
    row_masks: Mapping[str, Bool[Tensor, " rows"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mismatched = [pair for pair in self._pairs.values() if _mismatched(pair)]
        if mismatched:
            raise InputError(f"delta {self.name!r}: {self._differences(mismatched)}")
        for parameter, mask in self.row_masks.items():
            pair = self._pairs.get(parameter)
            if pair is not None and len(mask) != pair.into.shape[0]:
                raise InputError(
                    f"delta {self.name!r}: the row mask of {parameter!r} has {len(mask)} entries, expected one for "
                    f"each of the {pair.into.shape[0]} rows of `into`"
                )

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self._pairs)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for weights in (self.tuned, self.base, self.into):
            digest.update(weights.fingerprint.encode())
        for parameter, mask in sorted(self.row_masks.items()):
            digest.update(parameter.encode())
            digest.update(tensor_bytes(mask))
        return digest.hexdigest()

    def read(self, parameter: str, rows: Rows = None, *, precise: bool = False) -> Delta | None:
        target = self._target(parameter)
        pair = self._pairs.get(target)
        return None if pair is None else self._read(target, pair, rows, precise=precise)

    def untied(self, parameter: str, rows: Rows = None) -> Delta | None:
        pair = self._pair(parameter)
        return None if pair is None else self._read(parameter, pair, rows)

    def changed(self, parameter: str) -> bool:
        target = self._target(parameter)
        pair = self._pairs.get(target)
        if pair is None:
            return False
        if self._adapter is not None:
            return self._adapter.changed(target) and self.read(target) is not None
        return not self._same(target, pair)

    def reads(self, parameter: str) -> int:
        pair = self._pairs.get(self._target(parameter))
        if pair is None:
            return 0
        if self._adapter is not None:
            return self._adapter.reads(pair.base.parameter)
        return reading.nbytes(pair.tuned) + reading.nbytes(pair.base)

    def rank(self, parameter: str) -> int | None:
        pair = self._pairs.get(self._target(parameter))
        return self._adapter.rank(pair.base.parameter) if pair is not None and self._adapter is not None else None

    def stored(self, parameter: str) -> list[tuple[Weights, str]]:
        pair = self._pairs.get(self._target(parameter))
        if pair is None:
            return []
        if self._adapter is not None:
            return self._adapter.stored(pair.base.parameter)
        return [(self.tuned, pair.tuned.name), (self.base, pair.base.name)]

    def ties(self, alias: str, owner: str) -> bool:
        if self._adapter is not None:
            return self._adapter.ties(alias, owner)
        _, *pair = self._finders
        return all(finder.find(alias) == finder.find(owner) for finder in pair)

    def unmatched(self) -> dict[str, str]:
        """Changes that cannot be added to `into`, by parameter, each with its reason; reads no others' data.

        A tensor that only one of tuned and base holds, or that both hold with different bytes and `into` lacks.
        """
        found = {}
        into, *pair = self._finders
        parameters = {info.parameter: None for finder in pair for info in finder.layout.tensors.values()}
        for parameter in parameters:
            tuned, base = (finder.find(parameter) for finder in pair)
            if tuned is None or base is None:
                found[parameter] = f"the {'tuned' if tuned is None else 'base'} model has no such tensor"
            elif into.find(parameter) is None and not reading.same_tensor((self.tuned, tuned), (self.base, base)):
                found[parameter] = "it changed, but `into` has no such tensor"
        return found

    @cached_property
    def _finders(self) -> tuple[Finder, Finder, Finder]:
        return Finder(self.into.layout), Finder(self.tuned.layout), Finder(self.base.layout)

    @cached_property
    def _pairs(self) -> dict[str, _Pair]:
        parameters = (info.parameter for info in self.into.layout.tensors.values())
        return {parameter: pair for parameter in parameters if (pair := self._pair(parameter))}

    @cached_property
    def _adapter(self) -> Adapter | None:
        """The adapter where it is all that lies between base and tuned."""
        if not isinstance(self.tuned, WithAdapter):
            return None
        plain = self.tuned.weights
        same = plain is self.base or plain.fingerprint == self.base.fingerprint
        return self.tuned.adapter if same else None

    def _pair(self, parameter: str) -> _Pair | None:
        into, tuned, base = (finder.find(parameter) for finder in self._finders)
        return _Pair(into, tuned, base) if into and tuned and base else None

    def _target(self, parameter: str) -> str:
        """The parameter whose delta counts: a tied one follows its owner, even where a file repeats it."""
        owner = self.into.layout.tied.get(parameter, parameter)
        return owner if owner in self._pairs else parameter

    def _read(self, parameter: str, pair: _Pair, rows: Rows, *, precise: bool = False) -> Delta | None:
        if not (reading.is_float(pair.tuned) and reading.is_float(pair.base)):
            self._require_same(parameter, pair)
            return None
        if self._adapter is not None:
            return self._from_adapter(self._adapter, parameter, pair, rows)
        if reading.has_vocabulary_rows(pair.into):
            values = self._token_rows(parameter, pair, rows, precise=precise)
        else:
            values = self._subtract(pair, rows, precise=precise)
        highest = reading.peak(values)
        if not isfinite(highest):
            self._refuse_numbers(pair)
        return Dense(values) if highest else None

    def _subtract(self, pair: _Pair, rows: Rows, *, precise: bool) -> Float[Tensor, "..."]:
        """tuned − base without a rounding of either, seen as (out, in); `rows` of the result. No zero is negative:
        where nothing changes, the bits do not depend on what is read together."""
        transposed = reading.is_transposed(pair.tuned), reading.is_transposed(pair.base)
        whole = any(transposed)
        tuned = self.tuned.read(pair.tuned.name, None if whole else rows)
        base = self.base.read(pair.base.name, None if whole else rows)
        wide = reading.wide_type(tuned.dtype, base.dtype, precise=precise)
        # A copy always: what was read may be a view of the file.
        values = (tuned.T if transposed[0] else tuned).to(wide, copy=True)
        values.sub_(base.T if transposed[1] else base).add_(0.0)
        return values[rows] if whole and rows is not None else values

    def _token_rows(self, parameter: str, pair: _Pair, rows: Rows, *, precise: bool) -> Float[Tensor, "..."]:
        """As `_subtract`, with zeros in rows that are missing in one of the three, or masked."""
        wanted = reading.row_indices(rows, pair.into.shape[0])
        inside = wanted < pair.common
        values = self._subtract(pair, _restricted(rows, wanted[inside]), precise=precise)
        if not bool(inside.all()):
            known = values
            values = known.new_zeros((len(wanted), *known.shape[1:]))
            values[inside] = known
        mask = self.row_masks.get(parameter)
        if mask is not None:
            values[~mask[wanted]] = 0.0
        return values

    def _from_adapter(self, adapter: Adapter, parameter: str, pair: _Pair, rows: Rows) -> Delta | None:
        if not reading.has_vocabulary_rows(pair.into):
            return adapter.untied(parameter, rows)
        wanted = reading.row_indices(rows, pair.into.shape[0])
        known = adapter.untied(parameter, wanted.clamp(max=pair.common - 1))
        if known is None:
            return None
        keep = wanted < pair.common
        mask = self.row_masks.get(parameter)
        if mask is not None:
            keep = keep & mask[wanted]
        delta = _with_zero_rows(known, ~keep)
        return delta if delta.squared_norm() else None

    def _same(self, parameter: str, pair: _Pair) -> bool:
        mask = self.row_masks.get(parameter)
        if reading.has_vocabulary_rows(pair.into):
            mask = torch.ones(pair.common, dtype=torch.bool) if mask is None else mask[: pair.common]
        return reading.same_tensor((self.tuned, pair.tuned), (self.base, pair.base), mask)

    def _require_same(self, parameter: str, pair: _Pair) -> None:
        if not self._same(parameter, pair):
            raise InputError(
                f"delta {self.name!r}: tensor {parameter!r} is {pair.tuned.dtype} in {reading.label(self.tuned)} and "
                f"{pair.base.dtype} in {reading.label(self.base)}, and their values differ; only floating-point "
                "tensors can be subtracted"
            )

    def _differences(self, pairs: Sequence[_Pair]) -> str:
        """The message about tensors of different shape: which models, how many tensors, the first few."""
        models = {"tuned": self.tuned, "base": self.base, "into": self.into}
        if self.base is self.into:
            del models["base"]
        named = ", ".join(f"{role} ({reading.label(model)})" for role, model in models.items())
        count = f"{len(pairs)} tensor{'s' if len(pairs) > 1 else ''}"
        more = f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
        return (
            f"{named} differ in the shape of {count}: {'; '.join(_shapes(pair, models) for pair in pairs[:_SHOWN])}"
            f"{more}. Expected models of one architecture and size; only embedding and head may differ, in their "
            "number of rows"
        )

    def _refuse_numbers(self, pair: _Pair) -> None:
        """Say which of the two checkpoints holds a number that is none."""
        for weights, info in ((self.tuned, pair.tuned), (self.base, pair.base)):
            reading.require_finite(weights.read(info.name), info.name, reading.label(weights))
        raise InputError(
            f"delta {self.name!r}: tensor {pair.into.parameter!r}: the difference of tuned and base overflows float32"
        )


def _mismatched(pair: _Pair) -> bool:
    shapes = [reading.seen_shape(info) for info in (pair.into, pair.tuned, pair.base)]
    compared = [shape[1:] for shape in shapes] if reading.has_vocabulary_rows(pair.into) else shapes
    return not compared[0] == compared[1] == compared[2]


def _shapes(pair: _Pair, roles: Iterable[str]) -> str:
    """`q.weight is (4, 4) in tuned, (2, 2) in base and into`."""
    places: dict[tuple[int, ...], list[str]] = {}
    for role in roles:
        places.setdefault(tuple(reading.seen_shape(getattr(pair, role))), []).append(role)
    shown = ", ".join(f"{shape} in {' and '.join(where)}" for shape, where in places.items())
    return f"{pair.into.parameter} is {shown}"


def _restricted(rows: Rows, inside: Tensor) -> Rows:
    """`rows` without those that a shorter tensor lacks: a slice stays a slice, which is read in one piece."""
    if isinstance(rows, Tensor) or (isinstance(rows, slice) and rows.step not in (None, 1)):
        return inside
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)


def _with_zero_rows(delta: Delta, rows: Bool[Tensor, " rows"]) -> Delta:
    if isinstance(delta, Factored):
        return Factored(delta.left.masked_fill(rows[:, None], 0.0), delta.right)
    return Dense(delta.values.masked_fill(rows.reshape(-1, *[1] * (delta.values.ndim - 1)), 0.0))
