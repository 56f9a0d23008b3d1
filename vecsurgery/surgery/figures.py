"""What the surgery did to one matrix, measured on the stored weights, after rounding.

Intended and stored figures stand side by side: where the change is smaller than the spacing of the storage type,
rounding puts back what a projector removed, and nobody would see it in the intended numbers.
"""

import torch
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.checkpoint.types import Matrix
from vecsurgery.delta import Delta, Dense
from vecsurgery.linalg import Subspace
from vecsurgery.report.record import StoredRecord
from vecsurgery.surgery.edited import StepFacts, Subspaces, TensorEdit


def figures(edit: TensorEdit, base: Tensor, matrix: Matrix, subspaces: Subspaces) -> dict[str, StoredRecord]:
    """Measure the raw, the intended and the stored change of one matrix against every geometry of its steps.

    `base`: the tensor of `into` as stored. Returns a record per geometry.
    """
    if edit.raw is None or edit.total is None:
        return {}
    weight = base.to(torch.promote_types(base.dtype, torch.float32))
    change = edit.tensor.to(weight.dtype) - weight
    if matrix.transposed:
        weight, change = weight.T, change.T
    stored, before = Dense(change), Dense(weight)
    return {
        geometry: _record(edit.raw, edit.total, stored, before, subspaces(geometry, matrix.tensor), rank)
        for geometry, rank in _used(edit.facts).items()
    }


def _used(facts: tuple[StepFacts, ...]) -> dict[str, int]:
    """Geometry → number of directions that the last step with it used."""
    return {fact.geometry: int(fact.facts.get("rank", 0)) for fact in facts if fact.geometry is not None}


def _record(raw: Delta, total: Delta, stored: Delta, weight: Delta, subspace: Subspace, rank: int) -> StoredRecord:
    raw_bias, raw_norm, _ = _bias(raw, subspace, rank)
    total_bias, total_norm, total_leak = _bias(total, subspace, rank)
    stored_bias, stored_norm, stored_leak = _bias(stored, subspace, rank)
    weight_bias, _, _ = _bias(weight, subspace, rank)
    record = StoredRecord(
        rab_before=raw_bias,
        rab_after_intended=total_bias,
        rab_after_stored=stored_bias,
        norm_before=raw_norm,
        leak=stored_leak,
        leak_intended=total_leak,
    )
    if raw_norm > 0.0:
        record["norm_ratio_intended"] = total_norm / raw_norm
        record["norm_ratio_stored"] = stored_norm / raw_norm
    if weight_bias > 0.0:
        record["rab_relative_before"] = (raw_bias / weight_bias) ** 0.5
        record["rab_relative_after"] = (stored_bias / weight_bias) ** 0.5
    return record


def _bias(delta: Delta, subspace: Subspace, rank: int) -> tuple[float, float, float]:
    """RAB, ‖D‖ and ‖D V_r‖/‖D‖ of one change."""
    times = delta.times(subspace.directions)
    squared = delta.squared_norm()
    bias = linalg.retention_bias(times, subspace.energies, squared, subspace.tail)
    inside = float(torch.linalg.vector_norm(times[:, :rank], dtype=torch.float64)) if rank else 0.0
    norm = squared**0.5
    return bias, norm, inside / norm if norm > 0.0 else 0.0
