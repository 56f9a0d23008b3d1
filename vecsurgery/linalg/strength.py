"""The soft filter's strength: factors 1/(1 + λw), the activation energy they leave, and the λ of a wanted share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .subspace import Subspace

_SINGLE = 2.0**-23
_LARGEST = 1e12
"""λw from which a factor counts as zero: it is then below 1e-12, its share of the energy below 1e-24."""
_BISECTIONS = 200


@dataclass(frozen=True)
class Filter:
    """P = V_r diag(f) V_rᵀ + tail·(I − V_r V_rᵀ) as it stands before a strength is chosen.

    Directions beyond `rank` and energy outside the stored ones are shrunk together by the tail (`tail_weight` above
    zero), or left alone (`tail_weight` zero).
    """

    rank: int
    """r: how many leading directions are shrunk, each by its own factor."""
    weights: Float[Tensor, " rank"]
    """w_i = s_i / mean(s over the in directions), float64."""
    tail_weight: float
    """w_t of the isotropic tail; 0 where there is none."""

    @classmethod
    def of(cls, subspace: Subspace, energy: float = 1.0) -> "Filter":
        """The directions that hold the share `energy` ∈ (0, 1] of the subspace's energy, the fewest that do.

        energy = 1 takes every stored s_i > in·2⁻²³·s_1 (a cumulative sum may never reach 1), and where the geometry
        left energy outside, the tail as well. Where the stored directions hold less than a smaller share, all of
        them are taken.
        """
        energies, total = subspace.energies.double(), subspace.total
        if not subspace.rank or total <= 0.0:
            return cls(0, energies[:0], 0.0)
        if energy < 1.0:
            reached = energies.cumsum(0) >= energy * total
            rank = int(reached.int().argmax()) + 1 if bool(reached.any()) else subspace.rank
        else:
            rank = int((energies > subspace.width * _SINGLE * energies[0]).sum())
        mean = total / subspace.width
        outside, beyond = subspace.width - rank, subspace.rest + float(energies[rank:].sum())
        shrinks_tail = energy >= 1.0 and subspace.rest > 0.0 and outside > 0
        return cls(rank, energies[:rank] / mean, beyond / outside / mean if shrinks_tail else 0.0)

    def factors(self, strength: float) -> Float[Tensor, " rank"]:
        """f_i = 1/(1 + λ w_i), float64."""
        return 1.0 / (1.0 + strength * self.weights)

    def tail(self, strength: float) -> float:
        """f_t = 1/(1 + λ w_t); 1 where there is no tail."""
        return 1.0 / (1.0 + strength * self.tail_weight)


@dataclass(frozen=True)
class Bias:
    """The retention activation bias of one delta, split as a filter sees it: Σ_{i≤r} s_i c_i, tail, the untouched rest.

    RAB after a filter = Σ direct_i f_i² + tail·f_t² + untouched.
    """

    direct: Float[Tensor, " rank"]
    """s_i c_i of the directions that the filter shrinks one by one, c_i = ‖D v_i‖²; float64."""
    tail: float
    """Energy that the filter's tail shrinks; 0 where it has none."""
    untouched: float
    """Energy in directions that the filter leaves alone."""

    @property
    def total(self) -> float:
        """RAB = tr(D C Dᵀ) before the filter."""
        return float(self.direct.sum()) + self.tail + self.untouched

    @property
    def floor(self) -> float:
        """The share of RAB that no strength can reach below; 0 where there is no energy at all."""
        return self.untouched / self.total if self.total > 0.0 else 0.0

    def after(self, factors: Float[Tensor, " rank"], tail: float = 1.0) -> float:
        """RAB that is left when the directions are multiplied by `factors` and the tail by `tail`."""
        return float((self.direct * factors.double().square()).sum()) + self.tail * tail**2 + self.untouched

    @classmethod
    def of(cls, squares: Float[Tensor, " stored"], squared_norm: float, subspace: Subspace, kind: Filter) -> "Bias":
        """The split for a delta with c_i = `squares` over the stored directions and ‖D‖²_F = `squared_norm`."""
        squares, energies, rank = squares.double(), subspace.energies.double(), kind.rank
        products = squares * energies
        if kind.tail_weight > 0.0:
            mean = (subspace.rest + float(energies[rank:].sum())) / (subspace.width - rank)
            return cls(products[:rank], mean * max(0.0, squared_norm - float(squares[:rank].sum())), 0.0)
        outside = subspace.tail * max(0.0, squared_norm - float(squares.sum()))
        return cls(products[:rank], 0.0, float(products[rank:].sum()) + outside)


def column_squares(times: Float[Tensor, "outputs rank"]) -> Float[Tensor, " rank"]:
    """c_i = ‖D v_i‖² of the columns of D V, float64."""
    lengths: Tensor = torch.linalg.vector_norm(times, dim=0, dtype=torch.float64)
    return lengths.square()


def retention_bias(
    times: Float[Tensor, "outputs rank"], energies: Float[Tensor, " rank"], squared_norm: float, tail: float
) -> float:
    """Retention activation bias RAB = (1/n) Σ‖D x‖² = tr(D C Dᵀ) = Σ s_i ‖D v_i‖² + s_t (‖D‖² − Σ ‖D v_i‖²).

    times: D V for all stored directions. energies: s. squared_norm: ‖D‖²_F. tail: s_t, the mean energy of a
    direction outside V. Mean squared output per token, in the square of the activations' unit.
    Source: SAGE, arXiv 2606.18309.
    """
    squares = column_squares(times)
    outside = max(0.0, squared_norm - float(squares.sum()))
    return float((squares * energies.to(squares)).sum()) + tail * outside


def solve_strength(kind: Filter, bias: Bias, keep: float) -> float:
    """The λ at which the filter leaves the share `keep` ∈ (0, 1) of the retention activation bias.

    RAB′(λ) = Σ direct_i/(1 + λw_i)² + tail/(1 + λw_t)² + untouched falls monotonically, so λ is found by bisection.
    Below the floor the target cannot be met: the result is then a λ at which every factor is zero to 1e-12.
    No bias at all gives λ = 0.
    """
    if bias.total <= 0.0:
        return 0.0
    target = keep * bias.total
    positive = [float(kind.weights.min())] if kind.rank else []
    positive += [kind.tail_weight] if kind.tail_weight > 0.0 else []
    if not positive:
        return 0.0
    largest = _LARGEST / min(positive)
    if bias.after(kind.factors(largest), kind.tail(largest)) >= target:
        return largest
    low, high = 0.0, 1.0
    while high < largest and bias.after(kind.factors(high), kind.tail(high)) > target:
        low, high = high, 2.0 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if not low < middle < high:
            break
        if bias.after(kind.factors(middle), kind.tail(middle)) > target:
            low = middle
        else:
            high = middle
    return high
