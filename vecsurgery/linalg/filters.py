"""The spectral filter: every direction of the input scaled by its own factor. The one kernel of both projectors."""

import torch
from jaxtyping import Float
from torch import Tensor


def spectral_filter(
    matrix: Float[Tensor, "rows inputs"],
    directions: Float[Tensor, "inputs rank"],
    factors: Float[Tensor, " rank"],
    *,
    tail: float = 1.0,
    product: Float[Tensor, "rows rank"] | None = None,
) -> Float[Tensor, "rows inputs"]:
    """M P with P = V diag(f) Vᵀ + tail·(I − V Vᵀ), computed as tail·M − (M V) diag(tail − f) Vᵀ.

    Costs 4·rows·inputs·r multiply-adds' worth of flops and never forms the (inputs, inputs) filter.

    matrix: M, float32 or float64; the arithmetic and the result are of its type, and it is not changed.
    directions: V with orthonormal columns, any floating type.
    factors: f, one number a column of V; 1 leaves a direction as it is, 0 removes it.
    tail: the factor of everything orthogonal to V.
    product: M V, where the caller has it already (the first half of the work).

    Directions whose factor equals `tail` are left out of the products. Where none remains and `tail` is 1 the matrix
    itself is returned, so an edit that changes nothing changes no bit.

    Raises TypeError for half precision: a rounding of 2⁻⁸ would put back what the filter removes.
    """
    if matrix.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"spectral_filter works in float32 or float64, it was given {matrix.dtype}: convert the matrix")
    active = factors != tail
    if not bool(active.any()):
        return matrix if tail == 1.0 else matrix * tail
    basis = directions.to(matrix)
    removed = (tail - factors.double()).to(matrix)
    coefficients = None if product is None else product.to(matrix)
    if not bool(active.all()):
        kept = active.nonzero().squeeze(1)
        basis, removed = basis.index_select(1, kept.to(basis.device)), removed[kept.to(removed.device)]
        coefficients = None if coefficients is None else coefficients.index_select(1, kept.to(coefficients.device))
    if coefficients is None:
        coefficients = matrix @ basis
    return torch.addmm(matrix, coefficients * removed, basis.T, beta=tail, alpha=-1.0)
