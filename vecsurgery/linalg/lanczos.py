"""Leading singular triplets of a large matrix by block Lanczos bidiagonalisation, judged by what their space misses."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .eigen import orthonormalise_poor

_LEAST_BLOCK, _MOST_BLOCK = 16, 64
"""Smaller blocks take fewer products, larger ones run faster: 64 columns reach the speed of a large product."""
_GROWTH = 1.25
"""By how much the space grows between two looks at the triplets."""
_ACCURACY = 1e-5
"""Estimated angle (radians, root mean square over the triplets) between what was found and the leading space."""
_CLOSE = 1e-4
"""(σ_i − σ_{K+1})/σ_K below which the two count as one cluster: rounding to float32 turns its directions by 1e-3."""
_PROBES, _PROBE_ROUNDS = 16, 2
_OUTSIDE = 1.01
"""Nothing outside of the space may be this much larger than the least value that is wanted."""
_DEPENDENT = 1e-6
_LEFT = 0.1
"""Share of a direction that must be left outside of the space, else chance takes its place."""


@dataclass
class _Spaces:
    """Orthonormal bases of the inputs and outputs seen so far, one direction a row, and D between them; float64."""

    matrix: Float[Tensor, "rows columns"]
    right: Float[Tensor, "most columns"]
    left: Float[Tensor, "limit rows"]
    inside: Float[Tensor, "limit most"]
    """B = U D Vᵀ for the rows of U and V."""
    size: int = 0
    """How many rows of U are filled; V has a block more."""

    @classmethod
    def start(cls, matrix: Float[Tensor, "rows columns"], limit: int, block: int) -> "_Spaces":
        rows, columns = matrix.shape
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(block, columns, generator=generator, dtype=torch.float64).to(matrix.device)
        right = first.new_empty(limit + block, columns)
        right[:block] = _orthonormal(first)
        return cls(matrix, right, first.new_empty(limit, rows), first.new_zeros(limit, limit + block))

    def grow(self, block: int) -> Float[Tensor, "block block"]:
        """One block more on both sides; returns what D couples it to the next block of V with."""
        begin, end, after = self.size, self.size + block, self.size + 2 * block
        last = max(0, begin - block)
        # D maps a block of inputs into the outputs of this block and of the one before it
        self.left[begin:end], known, own = _next_block(self.images(self.right[begin:end]), self.left[:begin], last)
        self.inside[last:begin, begin:end], self.inside[begin:end, begin:end] = known.T, own.T
        back = self.origins(self.left[begin:end])
        self.right[end:after], _, coupling = _next_block(back, self.right[:end], begin)
        self.inside[begin:end, end:after] = coupling
        self.size = end
        return coupling

    def images(self, inputs: Float[Tensor, "k columns"]) -> Float[Tensor, "k rows"]:
        """D v for every row v; the product is taken in the type of D."""
        return (self.matrix @ inputs.T.to(self.matrix)).T.double()

    def origins(self, outputs: Float[Tensor, "k rows"]) -> Float[Tensor, "k columns"]:
        """Dᵀu for every row u."""
        return (self.matrix.T @ outputs.T.to(self.matrix)).T.double()

    def decomposed(self) -> tuple[Float[Tensor, "k k"], Float[Tensor, " k"], Float[Tensor, "k given"]]:
        """P, σ, Q of the square part of B = P diag(σ) Qᵀ; without Q for float32, where eigenvectors of B Bᵀ do."""
        core = self.inside[: self.size, : self.size]
        if self.matrix.dtype == torch.float64:
            outer, values, inner = torch.linalg.svd(core)
            return outer, values, inner.T
        squares, vectors = torch.linalg.eigh(core @ core.T)
        return vectors.flip(1), squares.flip(0).clamp(min=0.0).sqrt(), core.new_empty(self.size, 0)

    def largest_outside(self) -> float:
        """‖D‖₂ on what is orthogonal to both spaces, nearly, by power iteration from 16 random directions."""
        left, right = self.left[: self.size], self.right[: self.size]
        generator = torch.Generator().manual_seed(1)
        start = torch.randn(_PROBES, right.shape[1], generator=generator, dtype=torch.float64).to(right)
        probes = _orthonormal(_without(start, right))
        for _ in range(_PROBE_ROUNDS):
            images = _orthonormal(_without(self.images(probes), left))
            probes = _orthonormal(_without(self.origins(images), right))
        return float(torch.linalg.matrix_norm(_without(self.images(probes), left), 2))


def block_size(wanted: int) -> int:
    """How many directions the space grows by."""
    return min(max(wanted // 4, _LEAST_BLOCK), _MOST_BLOCK)


def lanczos_triplets(
    matrix: Float[Tensor, "rows columns"], wanted: int, limit: int, resolved: float
) -> tuple[Float[Tensor, "k rows"], Float[Tensor, " k"], Float[Tensor, "k columns"]] | None:
    """U, σ, V of the `wanted` leading triplets, one direction a row, float64; None where `limit` dimensions do not do.

    D is known between two growing spaces, in which its triplets are computed exactly; D v_i = σ_i u_i then, and
    r_i = ‖Dᵀu_i − σ_i v_i‖ is what couples u_i to the next block. The space of the K triplets is off by an angle of
    about r_i/(σ_i − σ_{K+1}) for each; done when the root mean square of these is 1e-5. Measured, the true angle is
    a thirtieth or less. Where σ_{K+1} comes closer to σ_i than 1e-4 σ_K, the two are one cluster: which of its
    directions are taken is a matter of rounding of D itself, and r_i ≤ 1e-9 σ_K suffices.

    Copies of one singular value beyond the size of a block hide from such a space; so at the end 16 random directions
    outside of it must show nothing larger than σ_K. resolved: σ/σ_max that counts as rounding.
    Source: Golub, Luk and Overton, ACM TOMS 7 (1981); the angle: Wedin, BIT 12 (1972); when to stop is ours.
    """
    block = block_size(wanted)
    spaces = _Spaces.start(matrix, limit, block)
    look = 2 * (wanted + block)
    while spaces.size + block <= limit:
        coupling = spaces.grow(block)
        if spaces.size < look and spaces.size + block <= limit:
            continue
        outer, values, inner = spaces.decomposed()
        kept = int((values[:wanted] > resolved * values[:1]).sum())
        if _angle(coupling.T @ outer[-block:, :kept], values, kept) <= _ACCURACY:
            floor = values[kept - 1] if kept == wanted else resolved * values[0]
            if spaces.largest_outside() <= _OUTSIDE * float(floor):
                return _triplets(spaces, outer[:, :kept], values[:kept], inner[:, :kept])
        look = int(_GROWTH * spaces.size)
    return None


def _angle(residuals: Float[Tensor, "block kept"], values: Float[Tensor, " k"], kept: int) -> float:
    """The estimated angle between the found and the true leading space, root mean square over its directions."""
    if not kept:
        return 0.0
    gaps = (values[:kept] - values[kept]).clamp(min=_CLOSE * float(values[kept - 1]))
    return float((torch.linalg.vector_norm(residuals, dim=0) / gaps).square().mean().sqrt())


def _triplets(
    spaces: _Spaces, outer: Float[Tensor, "size kept"], values: Float[Tensor, " kept"], inner: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From the spaces back to rows and columns."""
    size = spaces.size
    if not inner.numel():  # by the eigenvectors of B Bᵀ: the other side follows
        directions = (outer / values).T @ spaces.inside[:size, :size]
        orthonormalise_poor(directions, values.square())
        inner = directions.T
    return outer.T @ spaces.left[:size], values, inner.T @ spaces.right[:size]


def _next_block(
    images: Float[Tensor, "block n"], space: Float[Tensor, "k n"], last: int
) -> tuple[Float[Tensor, "block n"], Float[Tensor, "block known"], Float[Tensor, "block block"]]:
    """An orthonormal basis of what images hold outside of a space, and their parts in space[last:] and in that basis.

    Only the rows from `last` on are expected to matter; cleaning by all of them keeps the basis orthogonal in spite of
    rounding.
    """
    known = images @ space[last:].T
    rest = images - known @ space[last:]
    # first scaled to length one, then cleaned: what rounding left of the space would otherwise be magnified
    basis = _outside(_orthonormal(rest), space)
    return basis, known, rest @ basis.T


def _outside(vectors: Float[Tensor, "k n"], space: Float[Tensor, "m n"]) -> Float[Tensor, "k n"]:
    """Orthonormal rows orthogonal to the space: those of the vectors, or of chance where the space holds a vector."""
    cleaned = _without(vectors, space)
    factor, failed = torch.linalg.cholesky_ex(cleaned @ cleaned.T)
    if not int(failed) and float(factor.diagonal().min()) > _LEFT:
        basis: Tensor = torch.linalg.solve_triangular(factor, cleaned, upper=False)
        return basis
    columns, factor = torch.linalg.qr(cleaned.T)
    generator = torch.Generator().manual_seed(len(space))
    chance = torch.randn(vectors.shape, generator=generator, dtype=vectors.dtype).to(vectors)
    scarce = factor.diagonal().abs() <= _LEFT
    mixed = torch.where(scarce[:, None], torch.nn.functional.normalize(chance), columns.T)
    return _orthonormal(_without(_orthonormal(_without(mixed, space)), space))


def _without(vectors: Float[Tensor, "k n"], space: Float[Tensor, "m n"]) -> Float[Tensor, "k n"]:
    return vectors - (vectors @ space.T) @ space


def _orthonormal(vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    """Orthonormal rows of the same span: by a Cholesky factor, by Householder where they depend on each other."""
    factor, failed = torch.linalg.cholesky_ex(vectors @ vectors.T)
    scales = factor.diagonal()
    if int(failed) or float(scales.min()) < _DEPENDENT * float(scales.max()):
        basis: Tensor = torch.linalg.qr(vectors.T)[0].T
        return basis
    basis = torch.linalg.solve_triangular(factor, vectors, upper=False)
    return basis
