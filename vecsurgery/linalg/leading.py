"""The leading singular triplets of a matrix, by a range finder where few are wanted, exactly otherwise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .eigen import lower_gram, orthonormalise_from

EXACT_SIZE = 512
"""Up to this smaller dimension the exact decomposition costs next to nothing."""

_ROUNDS, _ITERATIONS = 3, 2
"""Power iterations between two looks at the residual, and how often they are repeated before the exact way is taken."""
_RESIDUAL = 0.05
"""‖D V − U S‖/‖S‖ above which the triplets are not good enough: about 1 % of their energy is missed then."""
_PROBES = 16
_SHIFT = 1e-5
_BENIGN = 2.0**-20
_RESOLVED = {torch.float32: 2.0**-20, torch.float64: 2.0**-46}
"""σ/σ_max below which a singular value is rounding of the type that the matrix is given in."""


@dataclass(frozen=True)
class Singular:
    """The leading part of D ≈ U diag(σ) Vᵀ. Fewer triplets than were wanted where the rank is smaller."""

    left: Float[Tensor, "rows k"]
    """U, orthonormal columns, of the type of D."""
    values: Float[Tensor, " k"]
    """σ, descending, > 0, float64."""
    right: Float[Tensor, "columns k"]
    """V, orthonormal columns, of the type of D."""

    @property
    def rank(self) -> int:
        return len(self.values)

    def above(self, floor: float) -> "Singular":
        """The triplets with σ > floor."""
        rank = int((self.values > floor).sum())
        return self if rank == self.rank else Singular(self.left[:, :rank], self.values[:rank], self.right[:, :rank])


def search_space(rows: int, columns: int, wanted: int) -> int:
    """How many dimensions the range finder searches for `wanted` triplets; 0 where the decomposition is exact.

    It pays while that is at most half of the smaller dimension and this is above 512: a rule of shape alone.
    """
    smaller, space = min(rows, columns), wanted + wanted // 4 + 16
    return space if smaller > EXACT_SIZE and 2 * space <= smaller else 0


def leading_svd(matrix: Float[Tensor, "rows columns"], wanted: int) -> Singular:
    """The `wanted` largest singular triplets of D: min ‖D − E‖_F over the E of that rank.

    matrix: D, float32 or float64. Values below 2⁻²⁰ σ_max (float32; 2⁻⁴⁶ for float64) are rounding and left out.

    Few triplets of a large matrix: a randomised range finder with a quarter more dimensions than wanted, the start
    always the same; two power iterations, then the residual ‖D V − U S‖ is estimated from 16 random combinations of
    the triplets. Above 5 % of ‖S‖ two more iterations follow, at most six in all. Then, and for all other shapes, the
    decomposition is exact: float32 by the eigenvectors of the smaller Gram matrix in float64, float64 by LAPACK.
    The range finder costs 6 products with D of 2·rows·columns·search_space flops, 4 more for each further look.
    Source: Halko, Martinsson and Tropp, arXiv 0909.4061; the basis between two products is only well conditioned, by a
    shifted Cholesky factor (Fukaya et al., arXiv 1809.11085), and orthonormal at the end.
    """
    rows, columns = matrix.shape
    wanted = min(wanted, rows, columns)
    space = search_space(rows, columns, wanted)
    if space:
        found = _range_finder(matrix, wanted, space)
        if found is not None:
            return found
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
    values = values[:wanted].double()
    rank = int((values > _RESOLVED[dtype] * values[:1]).sum())
    return Singular(left[:, :rank].to(dtype), values[:rank], right[:, :rank].to(dtype))


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
    orthonormalise_from(directions, int((values.square() >= _BENIGN * values[:1].square()).sum()))
    return Singular(vectors.to(matrix.dtype), values, directions.T.to(matrix.dtype))


def _range_finder(matrix: Float[Tensor, "rows columns"], wanted: int, space: int) -> Singular | None:
    """The leading triplets inside the range of (D Dᵀ)^q D Ω; None where the residual stays too large."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], space, generator=generator, dtype=torch.float64)
    image = matrix @ start.to(matrix)
    for _ in range(_ROUNDS):
        for _ in range(_ITERATIONS):
            image = matrix @ _well_conditioned(matrix.T @ _well_conditioned(image))
        basis = _orthonormal(_well_conditioned(image)).to(matrix.dtype)
        inside = _by_gram(basis.T @ matrix, wanted)
        found = Singular(basis @ inside.left, inside.values, inside.right)
        if _residual(matrix, found) <= _RESIDUAL:
            return found
    return None


def _residual(matrix: Float[Tensor, "rows columns"], found: Singular) -> float:
    """‖D V − U S‖_F/‖S‖ estimated from random combinations of the triplets, which costs 16 columns of a product."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(found.rank, _PROBES, generator=generator, dtype=torch.float64).to(found.values)
    missed = matrix @ (found.right @ mixing.to(matrix)) - found.left @ (found.values[:, None] * mixing).to(matrix)
    norm = float(torch.linalg.vector_norm(found.values))
    return float(torch.linalg.vector_norm(missed.double())) / (norm * _PROBES**0.5) if norm > 0.0 else 0.0


def _well_conditioned(block: Float[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
    """Another basis of the same space, in the block's own type, whose columns are not yet orthonormal."""
    overlap = block.T @ block
    overlap.diagonal().add_(_SHIFT * float(overlap.trace()))
    factor, failed = torch.linalg.cholesky_ex(overlap)
    if int(failed):  # a block of zeros
        return block
    return _divided(block, factor)


def _orthonormal(block: Float[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
    """An orthonormal basis, float64: by a Cholesky factor, or Householder where columns depend on each other."""
    columns = block.double()
    factor, failed = torch.linalg.cholesky_ex(columns.T @ columns)
    scales = factor.diagonal()
    if int(failed) or float(scales.min()) < 1e-6 * float(scales.max()):
        basis: Tensor = torch.linalg.qr(columns)[0]
        return basis
    return _divided(columns, factor)


def _divided(block: Float[Tensor, "rows k"], factor: Float[Tensor, "k k"]) -> Float[Tensor, "rows k"]:
    """Y L⁻ᵀ by the inverse of the small L: a product is several times as fast as solving for all rows of Y."""
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return block @ inverse.T
