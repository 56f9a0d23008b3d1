"""Orthogonal deltas written out in float64 with singular value decompositions, without the package's kernels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.blackbox.reference import ulp


def orthonormal(stack: Tensor, rtol: float) -> tuple[Tensor, int]:
    """The nearest matrix with orthonormal columns, P Qᵀ over the singular pairs above rtol·σ_max, and their number."""
    left, values, right = torch.linalg.svd(stack, full_matrices=False)
    kept = values > rtol * values.max()
    return left[:, kept] @ right[kept], int(kept.sum())


def spectral(
    deltas: Mapping[str, Tensor],
    *,
    rank: int | None = None,
    rtol: float,
    floors: Sequence[float] = (),
    spectrum: str = "own",
) -> dict[str, Tensor]:
    """U*_t S_t V*_tᵀ for every delta; `floors`: singular values at or below are left out."""
    count = len(deltas)
    limit = min(next(iter(deltas.values())).shape) // count if rank is None else rank
    parts = []
    for number, matrix in enumerate(deltas.values()):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        floor = floors[number] if floors else 0.0
        kept = int((values[:limit] > max(floor, 2e-6 * float(values[0]))).sum())
        parts.append((left[:, :kept], values[:kept], right[:kept].T))
    outputs, _ = orthonormal(torch.cat([part[0] for part in parts], dim=1), rtol)
    inputs, _ = orthonormal(torch.cat([part[2] for part in parts], dim=1), rtol)
    slots, start = {}, 0
    for name, (_, values, _) in zip(deltas, parts, strict=True):
        place = slice(start, start + len(values))
        start += len(values)
        used = {"own": values, "mean": values.mean().expand(len(values)), "one": torch.ones_like(values)}[spectrum]
        slots[name] = (outputs[:, place] * used) @ inputs[:, place].T
    return slots


def noise_floor(weight: Tensor) -> float:
    """(√out + √in)·ulp(rms W)/√12 of the type that the weight is stored in."""
    mean = weight.double().square().mean().sqrt()
    rows, columns = weight.shape
    return float((rows**0.5 + columns**0.5) * ulp(mean, weight.dtype) / 12**0.5)


def interference(deltas: Mapping[str, Tensor], rank: int) -> float:
    """‖(ÛᵀÛ − I) S (V̂ᵀV̂ − I)‖₁/(k(k − 1)) of the leading parts."""
    parts = [torch.linalg.svd(matrix.double(), full_matrices=False) for matrix in deltas.values()]
    outputs = torch.cat([left[:, :rank] for left, _, _ in parts], dim=1)
    inputs = torch.cat([right[:rank].T for _, _, right in parts], dim=1)
    values = torch.cat([values[:rank] for _, values, _ in parts])
    count = len(values)
    identity = torch.eye(count, dtype=torch.float64)
    product = (outputs.T @ outputs - identity) @ values.diag() @ (inputs.T @ inputs - identity)
    return float(product.abs().sum()) / (count * (count - 1))
