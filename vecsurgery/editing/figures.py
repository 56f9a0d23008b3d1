"""What the surgery did to one matrix, measured on the stored weights, after rounding.

Intended and stored figures stand side by side: where the change is smaller than the spacing of the storage type,
rounding puts back what a projector removed, and nobody would see it in the intended numbers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.checkpoint.types import Matrix
from vecsurgery.delta import Delta, Dense
from vecsurgery.editing.edited import StepFacts, Subspaces, TensorChange, TensorEdit
from vecsurgery.linalg import Subspace
from vecsurgery.report.record import StoredRecord

_NEEDED = {"norm", "norm_ratio", "rab", "rab_after", "leak"}


def figures(
    edit: TensorChange, base: Tensor, matrix: Matrix, subspaces: Subspaces, *, written: Delta | None = None
) -> dict[str, StoredRecord]:
    """Measure the raw, the intended and the stored change of one matrix against every geometry of its steps.

    `base`: the tensor of `into` as stored. `written`: the change where the output holds it by itself; by default, what
    the tensor of a `TensorEdit` is away from `base`. Returns a record per geometry.
    """
    used = _used(edit.facts)
    if not used or edit.raw is None or edit.total is None:
        return {}
    weight = base.to(torch.promote_types(base.dtype, torch.float32))
    change = written or _stored_change(edit, weight, matrix)
    weight = _seen(weight, matrix)
    known = _known(edit)
    records = {}
    for geometry, rank in used.items():
        subspace = subspaces(geometry, matrix.tensor)
        raw, total = known or (_Bias.of(edit.raw, subspace, rank), _Bias.of(edit.total, subspace, rank))
        stored = _Bias.of(change, subspace, rank)
        records[geometry] = _record(raw, total, stored, _Bias.of(Dense(weight), subspace, 0))
    return records


def _stored_change(edit: TensorChange, weight: Tensor, matrix: Matrix) -> Dense:
    """What the edited tensor is away from W."""
    assert isinstance(edit, TensorEdit)  # the caller has it, or gives the change itself
    return Dense(_seen(edit.tensor.to(weight.dtype, copy=True).sub_(weight), matrix))


def _seen(values: Tensor, matrix: Matrix) -> Tensor:
    """As (out, in)."""
    return values.T if matrix.transposed else values


@dataclass(frozen=True)
class _Bias:
    """RAB, ‖D‖ and the share ‖D V_r‖/‖D‖ of one change."""

    rab: float
    norm: float
    leak: float

    @classmethod
    def of(cls, delta: Delta, subspace: Subspace, rank: int) -> "_Bias":
        """Measured by one product with the directions."""
        times = delta.times(subspace.directions)
        squared = delta.squared_norm()
        inside = float(torch.linalg.vector_norm(times[:, :rank], dtype=torch.float64)) if rank else 0.0
        norm = squared**0.5
        rab = linalg.retention_bias(times, subspace.energies, squared, subspace.tail)
        return cls(rab, norm, inside / norm if norm > 0.0 else 0.0)


def _known(edit: TensorChange) -> tuple[_Bias, _Bias] | None:
    """The raw and the intended change where one projector on one delta, and numbers behind it, are all there was: its
    facts, at the delta's weight.

    Spares two of four products with the directions. None where the facts do not say it.
    """
    if not edit.lone or edit.raw is None or not edit.facts[0].facts.keys() >= _NEEDED:
        return None
    if any(fact.facts.keys() != {"factor"} for fact in edit.facts[1:]):
        return None
    facts = edit.facts[0].facts
    gain = math.prod(fact.facts["factor"] for fact in edit.facts[1:])
    norm = edit.raw.squared_norm() ** 0.5
    weight = norm / facts["norm"] if facts["norm"] > 0.0 else 0.0
    before = _Bias(weight**2 * facts["rab"], norm, 0.0)
    after = (gain * weight) ** 2 * facts["rab_after"]
    return before, _Bias(after, norm * facts["norm_ratio"] * abs(gain), facts["leak"])


def _used(facts: tuple[StepFacts, ...]) -> dict[str, int]:
    """Geometry → number of directions that the last step with it used."""
    return {fact.geometry: int(fact.facts.get("rank", 0)) for fact in facts if fact.geometry is not None}


def _record(raw: _Bias, total: _Bias, stored: _Bias, weight: _Bias) -> StoredRecord:
    record = StoredRecord(
        rab_before=raw.rab,
        rab_after_intended=total.rab,
        rab_after_stored=stored.rab,
        norm_before=raw.norm,
        leak=stored.leak,
        leak_intended=total.leak,
    )
    if raw.norm > 0.0:
        record["norm_ratio_intended"] = total.norm / raw.norm
        record["norm_ratio_stored"] = stored.norm / raw.norm
    if weight.rab > 0.0:
        record["rab_relative_before"] = (raw.rab / weight.rab) ** 0.5
        record["rab_relative_after"] = (stored.rab / weight.rab) ** 0.5
    return record
