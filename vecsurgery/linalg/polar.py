"""The polar factor X (XᵀX)^{-1/2}: the orthonormal columns nearest to X, with a rank that is cut and told."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EIGH_FLOPS = 9
"""Flops of a full eigendecomposition over the cube of its size, about."""
_POOR = 1e-4
"""σ/σ_max below which one more step restores what squaring the singular values has cost."""


@dataclass(frozen=True)
class Polar:
    """A polar factor and what was cut on the way to it."""

    factor: Float[Tensor, "rows columns"]
    """U* = Σ p_i q_iᵀ over the singular pairs that were kept; of the type of X."""
    values: Float[Tensor, " smaller"]
    """All singular values of X, descending, float64; those below about 1e-8 σ_max are rounding."""
    rank: int
    """r: how many of them were kept."""

    @property
    def cut(self) -> float:
        """The share of the singular directions that was cut; 0 where there is none."""
        return 1.0 - self.rank / len(self.values) if len(self.values) else 0.0


def polar_factor(
    matrix: Float[Tensor, "rows columns"], *, rtol: float, gram: Float[Tensor, "smaller smaller"] | None = None
) -> Polar:
    """Solve min_E ‖E − X‖_F over the E with orthonormal columns (rows, where X is wide): E = X (XᵀX)^{-1/2}.

    With X = P diag(σ) Qᵀ this is P Qᵀ, summed over the pairs with σ > rtol·σ_max. Where nothing is cut the columns are
    orthonormal to the rounding of the type of X, for an rtol of 1e-6 or more; else EᵀE is the orthogonal projector of
    the reported rank. A zero matrix has rank 0 and a zero factor.

    matrix: X, float32 or float64. rtol: in (0, 1), relative to the largest singular value.
    gram: the float64 Gram matrix of the smaller side (XᵀX, or X Xᵀ for a wide X), where the caller has it already.

    Method: eigendecomposition of that Gram matrix in float64, in which the products are taken too; one step of
    Newton–Schulz where a kept σ lies below 1e-4 σ_max. Cost: two products of 2·rows·columns·min(rows, columns) flops.
    Example: `polar_factor(torch.diag(torch.tensor([3.0, 1e-9])), rtol=1e-6).factor` is diag(1, 0).
    """
    rows, columns = matrix.shape
    if rows < columns:
        wide = polar_factor(matrix.T, rtol=rtol, gram=gram)
        return Polar(wide.factor.T, wide.values, wide.rank)
    tall = matrix.double()
    squares, vectors = torch.linalg.eigh(tall.T @ tall if gram is None else gram)
    values = squares.flip(0).clamp(min=0.0).sqrt()
    largest = float(values[0]) if columns else 0.0
    rank = int((values > rtol * largest).sum())
    kept, basis = values[:rank], vectors.flip(1)[:, :rank]
    factor = tall @ ((basis / kept) @ basis.T)
    if rank and float(kept[-1]) < _POOR * largest:
        factor = 1.5 * factor - 0.5 * (factor @ (factor.T @ factor))
    return Polar(factor.to(matrix.dtype), values, rank)
