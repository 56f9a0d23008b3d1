"""The figures of one tensor of every change, and of every two changes of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vecsurgery import linalg
from vecsurgery.delta import Dense, Factored, inner, reading
from vecsurgery.report.inspection import Change, Conflict, Pair, Spectrum, Within
from vecsurgery.studies.comparing import role_of

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.checkpoint.types import TensorInfo
    from vecsurgery.delta import Delta
    from vecsurgery.linalg import Singular, Subspace
    from vecsurgery.studies.subjects import Subject


@dataclass(frozen=True)
class Looking:
    """How a matrix is looked at."""

    top: int
    """Singular values and directions."""
    energy: float
    """Share of a geometry's energy in the directions that count."""
    exact: bool
    """Whether large matrices are decomposed whole."""


@dataclass(frozen=True)
class Seen:
    """One change of one matrix, with what is needed to set it against others."""

    change: Change
    delta: Delta | None
    singular: Singular | None
    """The leading directions, of a dense change those above the noise floor; None where there is none."""


@dataclass
class _Entries:
    """What is added up over pieces of rows."""

    squared: float = 0.0
    base: float = 0.0
    changed: int = 0
    factored: bool = False


def plain_changes(subjects: Sequence[Subject], info: TensorInfo) -> tuple[list[Change], list[Pair]]:
    """The norms of a tensor that is no matrix of a block (embedding, norm, bias, fused experts), and the products of
    every two changes of it; read in pieces.
    """
    sums = [_Entries() for _ in subjects]
    products = dict.fromkeys(itertools.combinations(range(len(subjects)), 2), 0.0)
    for rows in reading.row_chunks(reading.seen_shape(info), 4):
        deltas = []
        for subject, each in zip(subjects, sums, strict=True):
            delta = subject.read(info, rows)
            # The base was read with the change, and is handed out again.
            weight = subject.weight(info, rows) if subject.source is not None else None
            _add(each, delta, weight, subject, info)
            deltas.append(delta)
        for first, second in products:
            one, other = deltas[first], deltas[second]
            products[first, second] += inner(one, other) if one is not None and other is not None else 0.0
    changes = [_change(subject, info, each) for subject, each in zip(subjects, sums, strict=True)]
    found = [(changes[first], changes[second], product) for (first, second), product in products.items()]
    return changes, [_product(*each) for each in found if each[0].squared_norm and each[1].squared_norm]


def matrix_change(subject: Subject, info: TensorInfo, geometry: Mapping[str, Subspace], looking: Looking) -> Seen:
    """A matrix of a block: norms, spectrum, and what lies in each geometry's directions."""
    delta = subject.read(info)
    # The base was read with the change, and is handed out again.
    weight = subject.weight(info) if subject.source is not None else None
    sums = _Entries()
    _add(sums, delta, weight, subject, info)
    if delta is None:
        return Seen(_change(subject, info, sums), None, None)
    squared_weight = sums.base if weight is not None else sums.squared
    decomposed = _decomposed(delta, looking)
    spectrum = _spectrum(decomposed, delta, squared_weight, subject.dtype(info), looking.top)
    # The factors of an adapter were never rounded: its weak directions are as certain as its strong ones.
    singular = decomposed.leading.above(0.0 if isinstance(delta, Factored) else spectrum.floor)
    within = {name: _within(delta, weight, subspace, looking.energy) for name, subspace in geometry.items()}
    change = _change(subject, info, sums, spectrum, within)
    return Seen(change, delta, singular if singular.rank else None)


def pairs(seen: Sequence[Seen]) -> list[Pair]:
    """Every two changes of one matrix set against each other."""
    live = [each for each in seen if each.delta is not None]
    return [_pair(first, second) for first, second in itertools.combinations(live, 2)]


def conflict(seen: Sequence[Seen]) -> Conflict | None:
    """The interference of all changes of one matrix; None where fewer than two have a direction."""
    parts = [each.singular for each in seen if each.singular is not None]
    if len(parts) < 2:
        return None
    change = seen[0].change
    return Conflict(change.tensor, change.role, change.layer, linalg.interference_between(parts))


def _add(sums: _Entries, delta: Delta | None, weight: Tensor | None, subject: Subject, info: TensorInfo) -> None:
    if weight is not None:
        sums.base += Dense(weight.to(reading.wide_type(weight.dtype))).squared_norm()
    if delta is None:
        return
    sums.squared += delta.squared_norm()
    sums.factored = sums.factored or isinstance(delta, Factored)
    if weight is not None and not subject.rounded(info):
        sums.changed += _rounded_changes(delta, weight, getattr(torch, subject.dtype(info)))
    elif isinstance(delta, Dense):
        sums.changed += int(torch.count_nonzero(delta.values))


def _rounded_changes(delta: Delta, weight: Tensor, dtype: torch.dtype) -> int:
    """Entries of the stored weight that adding D changes; a product B A is formed a piece of rows at a time."""
    count = 0
    for rows in reading.row_chunks(delta.shape, 4):
        piece = weight if rows is None else weight[rows]
        values = (delta if rows is None else delta.select_rows(rows)).dense()
        wide = piece.to(values.dtype)
        count += int(torch.count_nonzero((wide + values).to(dtype) != wide.to(dtype)))
    return count


def _change(
    subject: Subject,
    info: TensorInfo,
    sums: _Entries,
    spectrum: Spectrum | None = None,
    within: Mapping[str, Within] | None = None,
) -> Change:
    changing = subject.source is not None
    return Change(
        delta=subject.name,
        tensor=info.name,
        role=role_of(info),
        layer=info.layer,
        shape=reading.seen_shape(info),
        dtype=subject.dtype(info),
        factored=sums.factored,
        squared_norm=sums.squared,
        squared_base=sums.base if changing else None,
        changed=sums.changed if changing else None,
        spectrum=spectrum,
        within=within or {},
    )


def _decomposed(delta: Delta, looking: Looking) -> linalg.Spectrum:
    if isinstance(delta, Factored):
        return linalg.factored_spectrum(delta.left, delta.right, looking.top)
    return linalg.dense_spectrum(delta.values, looking.top, whole=looking.exact)


def _spectrum(found: linalg.Spectrum, delta: Delta, squared_weight: float, dtype: str, top: int) -> Spectrum:
    shape = (delta.shape[0], delta.shape[1])
    rms = math.sqrt(squared_weight / math.prod(shape))
    floor = linalg.noise_floor(shape, rms, getattr(torch, dtype))
    rank = int((found.values > floor).sum())
    return Spectrum(
        values=tuple(found.values[:top].tolist()),
        full=min(shape),
        effective_rank=linalg.effective_rank(found.values) if found.complete else None,
        rank=rank,
        rank_known=found.complete or rank < len(found.values),
        floor=floor,
        energy_above=float(found.values[:rank].square().sum()),
    )


def _within(delta: Delta, weight: Tensor | None, subspace: Subspace, energy: float) -> Within:
    times = delta.times(subspace.directions)
    squared = delta.squared_norm()
    directions = linalg.Filter.of(subspace, energy).rank
    inside = float(linalg.column_squares(times[:, :directions]).sum())
    weight_bias = None
    if weight is not None:
        wide = Dense(weight.to(reading.wide_type(weight.dtype)))
        products = wide.times(subspace.directions)
        weight_bias = linalg.retention_bias(products, subspace.energies, wide.squared_norm(), subspace.tail)
    return Within(
        share=min(1.0, inside / squared),
        directions=directions,
        width=subspace.width,
        bias=linalg.retention_bias(times, subspace.energies, squared, subspace.tail),
        weight_bias=weight_bias,
    )


def _product(first: Change, second: Change, product: float) -> Pair:
    """Two changes of one tensor without their directions."""
    squared = (first.squared_norm, second.squared_norm)
    return Pair((first.delta, second.delta), first.tensor, first.role, first.layer, product, squared)


def _pair(first: Seen, second: Seen) -> Pair:
    assert first.delta is not None  # `pairs` left the others out
    assert second.delta is not None
    one, other = first.singular, second.singular
    told = _product(first.change, second.change, inner(first.delta, second.delta))
    if one is None or other is None:
        return told
    larger = max(len(one.values), len(other.values))
    return replace(
        told,
        output_angles=tuple(linalg.principal_angles(one.left, other.left).tolist()),
        input_angles=tuple(linalg.principal_angles(one.right, other.right).tolist()),
        chance=(larger / first.change.shape[0], larger / first.change.shape[1]),
    )
