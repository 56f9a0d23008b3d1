"""The leading singular triplets of a matrix, by block Lanczos where few are wanted, else by the whole decomposition."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .eigen import lower_gram, orthonormalise_poor
from .lanczos import block_size, lanczos_triplets

EXACT_SIZE = 512
"""Up to this smaller dimension the exact decomposition costs next to nothing."""

_RANGE = (1e-20, 1e20)
"""Matrices whose largest entry lies in between are taken as they are: their products stay in the range of float32."""
_RESOLVED = {torch.float32: 2.0**-20, torch.float64: 2.0**-46}
"""σ/σ_max below which a singular value is rounding of the type that the matrix is given in."""


@dataclass(frozen=True)
class Singular:
    """The leading part of D ≈ U diag(σ) Vᵀ. Fewer triplets than were wanted where the rank is smaller."""

    left: Float[Tensor, "rows k"]
    """U, orthonormal columns, float64 whatever the type of D: a polar factor of several magnifies their rounding."""
    values: Float[Tensor, " k"]
    """σ, descending, > 0, float64."""
    right: Float[Tensor, "columns k"]
    """V, likewise."""

    @property
    def rank(self) -> int:
        return len(self.values)

    def above(self, floor: float) -> "Singular":
        """The triplets with σ > floor."""
        rank = int((self.values > floor).sum())
        return self if rank == self.rank else Singular(self.left[:, :rank], self.values[:rank], self.right[:, :rank])


def search_space(rows: int, columns: int, wanted: int) -> int:
    """How many dimensions the search for `wanted` triplets takes, about; 0 where the matrix is decomposed whole.

    Measured: 3 to 3.5 times as many as triplets for values that fall as i^-½. The search pays while that is at most
    half of the smaller dimension and this is above 512: a rule of shape alone.
    """
    smaller, space = min(rows, columns), 3 * wanted + 4 * block_size(wanted)
    return space if smaller > EXACT_SIZE and 2 * space <= smaller else 0


def leading_svd(matrix: Float[Tensor, "rows columns"], wanted: int) -> Singular:
    """The `wanted` largest singular triplets of D: min ‖D − E‖_F over the E of that rank.

    matrix: D, float32 or float64, finite. Values below 2⁻²⁰ σ_max (float32; 2⁻⁴⁶ for float64) are rounding and left
    out.

    Few triplets of a large matrix: block Lanczos (`lanczos_triplets`), the start always the same, until the angle
    between the found and the true leading space is 1e-5 by its estimate. Where half of the smaller dimension does not
    do, as with flat spectra, and for all other shapes, the whole matrix is decomposed: float32 by the eigenvectors of
    the smaller Gram matrix in float64, float64 by LAPACK. Where σ_K and σ_{K+1} are nearly the same no K-th triplet is
    the right one: among values closer than 1e-4 σ_K, which directions are taken is a matter of rounding.
    The search takes products with D of 4·rows·columns flops for each dimension, see `search_space`.
    """
    peak = float(matrix.abs().max()) if matrix.numel() else 0.0
    if math.isfinite(peak) and peak and not _RANGE[0] <= peak <= _RANGE[1]:
        scale = 2.0 ** max(-1000, min(1000, math.frexp(peak)[1]))
        found = leading_svd((matrix.double() / scale).to(matrix), wanted)
        return Singular(found.left, found.values * scale, found.right)
    rows, columns = matrix.shape
    wanted = min(wanted, rows, columns)
    if search_space(rows, columns, wanted):
        triplets = lanczos_triplets(matrix, wanted, min(rows, columns) // 2, _RESOLVED[matrix.dtype])
        if triplets is not None:
            left, values, right = triplets
            return Singular(left.T, values, right.T)
    if matrix.dtype == torch.float64:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return _resolved(left, values, right.T, wanted, matrix.dtype)
    return _by_gram(matrix, wanted)


def factored_svd(left: Float[Tensor, "rows k"], right: Float[Tensor, "k columns"], wanted: int) -> Singular:
    """The `wanted` largest singular triplets of D = B A, which is never formed: QR of B and of Aᵀ, SVD of the core.

    Float64 inside; results and the least singular value that counts as in `leading_svd`.
    """
    (outer, first), (inner, second) = (torch.linalg.qr(each.double()) for each in (left, right.T))
    ours, values, theirs = torch.linalg.svd(first @ second.T, full_matrices=False)
    return _resolved(outer @ ours, values, inner @ theirs.T, wanted, left.dtype)


def _resolved(left: Tensor, values: Tensor, right: Tensor, wanted: int, dtype: torch.dtype) -> Singular:
    """The first `wanted` triplets that stand above the rounding of the type."""
    values = values[:wanted]
    rank = int((values > _RESOLVED[dtype] * values[:1]).sum())
    return Singular(left[:, :rank], values[:rank], right[:, :rank])


def _by_gram(matrix: Float[Tensor, "rows columns"], wanted: int) -> Singular:
    """By the eigenvectors of D Dᵀ (DᵀD where that is smaller); the other side is divided by σ and made orthonormal."""
    rows, columns = matrix.shape
    if rows > columns:
        turned = _by_gram(matrix.T, wanted)
        return Singular(turned.right, turned.values, turned.left)
    wide = matrix.double()
    squares, vectors = torch.linalg.eigh(lower_gram(wide))
    values = squares.flip(0).clamp(min=0.0).sqrt()[:wanted]
    values = values[values > _RESOLVED[matrix.dtype] * values[:1]]
    vectors = vectors.flip(1)[:, : len(values)]
    directions = (vectors / values).T @ wide
    orthonormalise_poor(directions, values.square())
    return Singular(vectors, values, directions.T)
