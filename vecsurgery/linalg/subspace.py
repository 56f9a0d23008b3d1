"""Subspace: directions with energies, the common currency of geometry and projectors."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Subspace:
    """The spectral form of a second moment C = Xᵀ X / n, as far as it was kept.

    C ≈ V diag(s) Vᵀ + (rest / (in − r)) (I − V Vᵀ), with V orthonormal and s descending.
    """

    directions: Float[Tensor, "inputs rank"]
    """V: one direction a column."""
    energies: Float[Tensor, " rank"]
    """s: mean squared activation along each direction, descending, ≥ 0, float64."""
    rest: float
    """Energy outside the directions (trace C − Σ s), taken as isotropic; 0 where everything was kept."""
    count: int
    """n: token positions that were measured."""

    @property
    def width(self) -> int:
        """`in`: the dimension of the input space."""
        return self.directions.shape[0]

    @property
    def rank(self) -> int:
        """r: the number of stored directions."""
        return self.directions.shape[1]

    @property
    def total(self) -> float:
        """trace C: the mean squared norm of an input."""
        return float(self.energies.sum()) + self.rest

    @property
    def tail(self) -> float:
        """s_t: the mean energy of a direction that was not stored; 0 where there is none."""
        outside = self.width - self.rank
        return self.rest / outside if outside else 0.0
