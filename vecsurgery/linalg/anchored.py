"""Two second moments brought to diagonal form together, and the filter that shrinks by one while holding to the other.

The retain-energy filter measures closeness to D by ‖E − D‖²; this one measures it by the effect on forgotten text.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from .strength import Bias, Filter
from .subspace import Subspace

RIDGE = 1e-6
"""Added to F, whose mean eigenvalue is 1: what the forgotten text never does still has a price."""
_DOUBLE = 2.0**-52


@dataclass(frozen=True)
class Anchored:
    """P = F (F + λC)⁻¹ as it stands before a strength is chosen: F of the forget text, C of the retain text.

    Both are divided by their mean eigenvalue over the in directions, and F += 1e-6·I. In an orthonormal basis N of
    [V_f V_r], F = A diag(1 − μ) Aᵀ and C = A diag(μ) Aᵀ with μ ∈ [0, 1], hence with B = A⁻ᵀ

        P = N A diag( 1/(1 + λ m) ) Bᵀ Nᵀ + f_t (I − N Nᵀ)        m = μ/(1 − μ)

    These are the eigenvectors of the usual form, F = L Lᵀ and L⁻¹ C L⁻ᵀ = Q diag(m) Qᵀ: A = L Q diag(1 − μ)^{-1/2}.
    Factoring F + C in place of F keeps small m accurate where F is nearly singular. Outside the basis both moments are
    a number times I (the isotropic tails of truncated geometries), and so is P.
    """

    basis: Float[Tensor, "inputs span"] | None
    """N; None where it is the whole input, as it stands."""
    forward: Float[Tensor, "span span"]
    """A, float64."""
    backward: Float[Tensor, "span span"]
    """B = A⁻ᵀ, float64."""
    shares: Float[Tensor, " span"]
    """μ: the retain text's part of each joint direction, descending, float64."""
    shrunk: int
    """How many leading directions C reaches: its rank, or all where it has a tail."""
    tails: tuple[float, float]
    """F and C outside the basis."""
    mean: float
    """The mean eigenvalue that C was divided by."""

    @classmethod
    def of(cls, forget: Subspace, retain: Subspace) -> "Anchored":
        """The joint form of the moments of one site; both subspaces carry energy and are of one width.

        Costs (r_f + r_r)³ and in·(r_f + r_r)², once for all matrices of the site. Every stored direction counts, weak
        ones too: with its energy left out of C a direction would be free to carry what is moved there from others.
        """
        anchor, penalty = (each.energies.double() * (each.width / each.total) for each in (forget, retain))
        tails = (forget.tail * forget.width / forget.total + RIDGE, retain.tail * retain.width / retain.total)
        columns = [forget.directions.double(), retain.directions.double()]
        basis = None
        if forget.rank + retain.rank < retain.width:
            # Householder: orthonormal whatever the overlap of the two; a spare direction sees both tails
            basis = torch.linalg.qr(torch.cat(columns, dim=1)).Q
            columns = [basis.T @ directions for directions in columns]
        roots = (_root(columns[0], anchor + RIDGE, tails[0]), _root(columns[1], penalty, tails[1]))
        # F + C = RᵀR from the roots: the sum of the squares would lose half of the digits of what is nearly singular
        upper = torch.linalg.qr(torch.cat(roots), mode="r").R
        part = torch.linalg.solve_triangular(upper, roots[1], upper=True, left=False)
        shares, vectors = torch.linalg.eigh(part.T @ part)
        shares, vectors = shares.flip(0), vectors.flip(1)
        stored = torch.promote_types(forget.directions.dtype, retain.directions.dtype)
        return cls(
            basis=None if basis is None else basis.to(stored),
            forward=upper.T @ vectors,
            backward=torch.linalg.solve_triangular(upper, vectors, upper=True),
            shares=shares.clamp(_DOUBLE, 1.0 - RIDGE / (RIDGE + retain.width)),
            shrunk=len(shares) if tails[1] > 0.0 else retain.rank,
            tails=tails,
            mean=retain.total / retain.width,
        )

    @cached_property
    def kind(self) -> Filter:
        """The filter in the joint directions: weights m_i of the shrunk ones, and m_t outside the basis."""
        shares = self.shares[: self.shrunk]
        outside = 0.0 if self.basis is None else self.tails[1] / self.tails[0]
        return Filter(self.shrunk, shares / (1.0 - shares), outside)

    def product(self, matrix: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows span"]:
        """M N, in the matrix's type."""
        return matrix if self.basis is None else matrix @ self.basis.to(matrix)

    def coordinates(self, product: Float[Tensor, "rows span"]) -> Float[Tensor, "rows span"]:
        """M N A from M N, in its type."""
        return product @ self.forward.to(product)

    def bias(self, squares: Float[Tensor, " span"], outside: float) -> Bias:
        """The retention activation bias Σ μ_i c_i of a delta, as `kind` sees it, in the units of the retain moment.

        squares: c_i = ‖D N a_i‖² of A's columns. outside: ‖D‖² − ‖D N‖².
        """
        direct = self.mean * self.shares[: self.shrunk] * squares[: self.shrunk]
        return Bias(direct, self.mean * self.tails[1] * outside, 0.0)

    def kept(self, squares: Float[Tensor, " span"], outside: float, strength: float) -> float:
        """tr(E F Eᵀ)/tr(D F Dᵀ) of E = D P: the share of the effect on the forget text that the filter leaves."""
        effect = (1.0 - self.shares) * squares
        before = float(effect.sum()) + self.tails[0] * outside
        after = float((effect * self._factors(strength).square()).sum())
        after += self.tails[0] * outside * self.kind.tail(strength) ** 2
        return after / before if before > 0.0 else 1.0

    def filtered(
        self, matrix: Float[Tensor, "rows inputs"], product: Float[Tensor, "rows span"], strength: float
    ) -> Float[Tensor, "rows inputs"]:
        """M P, from M N = `product`. P is formed in the basis in float64, the products are in the matrix's type."""
        inside = (self.forward * self._factors(strength)) @ self.backward.T
        if self.basis is None:
            return product @ inside.to(matrix)
        tail = self.kind.tail(strength)
        inside.diagonal().sub_(tail)
        return torch.addmm(matrix, product @ inside.to(matrix), self.basis.to(matrix).T, beta=tail)

    def _factors(self, strength: float) -> Float[Tensor, " span"]:
        factors = torch.ones_like(self.shares)
        factors[: self.shrunk] = self.kind.factors(strength)
        return factors


def _root(
    directions: Float[Tensor, "span rank"], weights: Float[Tensor, " rank"], tail: float
) -> Float[Tensor, "span span"]:
    """The square root of V diag(w) Vᵀ + tail·(I − V Vᵀ)."""
    root: Tensor = (directions * (weights.sqrt() - tail**0.5)) @ directions.T
    root.diagonal().add_(tail**0.5)
    return root
