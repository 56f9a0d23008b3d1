"""A delta is tuned − base for one tensor, dense or factored. It is not a weight: separate types.

Matrices are seen as (out, in) whatever the orientation on disk. Values are float32 or float64.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vecsurgery import linalg

_ROWS = 64
"""Rows that are multiplied at a time in float64, so that no third matrix is held."""
_SQUARES = (1e-24, 1e30)
"""Sums of squares between these have no term that matters outside of float32's range."""


@dataclass(frozen=True)
class Dense:
    """D itself; (out, in) for a matrix, the stored shape for any other tensor."""

    values: Float[Tensor, "..."]
    noise: float = 0.0
    """Standard deviation of what rounding to the storage type added to an entry; 0 where it is not known."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def times(self, vectors: Float[Tensor, "inputs k"]) -> Float[Tensor, "outputs k"]:
        """D X for column vectors X."""
        return self.values @ vectors.to(self.values.dtype)

    def filtered(
        self, directions: Float[Tensor, "inputs rank"], factors: Float[Tensor, " rank"], tail: float = 1.0
    ) -> "Dense":
        """D P with P = V diag(f) Vᵀ + tail·(I − V Vᵀ): every direction of the input scaled by its own factor."""
        return Dense(linalg.spectral_filter(self.values, directions, factors, tail=tail), self.noise)

    def scaled(self, factor: float) -> "Dense":
        return self if factor == 1.0 else Dense(self.values * factor, self.noise * abs(factor))

    def scaled_each(self, rows: Float[Tensor, " outputs"] | None, columns: Float[Tensor, " inputs"] | None) -> "Dense":
        """diag(rows) D diag(columns); None stands for ones."""
        values = self.values
        if rows is not None:
            values = values * rows.to(values.dtype)[:, None]
        return Dense(values if columns is None else values * columns.to(values.dtype))

    def squared_norm(self) -> float:
        """‖D‖²_F: rows in the values' own type, their sum in float64."""
        if self.values.ndim:
            # twenty times faster than float64 throughout, and 1e-8 off where no square leaves the range of float32
            rows = torch.linalg.vector_norm(self.values, dim=-1)
            squared = float(rows.double().square().sum())
            if _SQUARES[0] < squared < _SQUARES[1]:
                return squared
        return float(torch.linalg.vector_norm(self.values, dtype=torch.float64)) ** 2

    def select_rows(self, rows: slice | Tensor) -> "Dense":
        """The delta of these output rows alone (a run of them, or indices)."""
        return Dense(self.values[rows], self.noise)

    def dense(self) -> Float[Tensor, "..."]:
        return self.values


@dataclass(frozen=True)
class Factored:
    """D = B A, as an adapter gives it: never formed where it need not be."""

    left: Float[Tensor, "outputs rank"]
    """B, with the adapter's scale in it."""
    right: Float[Tensor, "rank inputs"]
    """A."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.right.shape[1])

    def times(self, vectors: Float[Tensor, "inputs k"]) -> Float[Tensor, "outputs k"]:
        """D X = B (A X)."""
        return self.left @ (self.right @ vectors.to(self.right.dtype))

    def filtered(
        self, directions: Float[Tensor, "inputs rank"], factors: Float[Tensor, " rank"], tail: float = 1.0
    ) -> "Factored":
        """D P = B (A P): the adapter keeps its rank and stays an adapter."""
        return Factored(self.left, linalg.spectral_filter(self.right, directions, factors, tail=tail))

    def scaled(self, factor: float) -> "Factored":
        return self if factor == 1.0 else Factored(self.left * factor, self.right)

    def scaled_each(
        self, rows: Float[Tensor, " outputs"] | None, columns: Float[Tensor, " inputs"] | None
    ) -> "Factored":
        """diag(rows) B A diag(columns); None stands for ones."""
        left = self.left if rows is None else self.left * rows.to(self.left.dtype)[:, None]
        return Factored(left, self.right if columns is None else self.right * columns.to(self.right.dtype))

    def squared_norm(self) -> float:
        """‖B A‖²_F = tr((BᵀB)(A Aᵀ)), in float64."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0.0))

    def select_rows(self, rows: slice | Tensor) -> "Factored":
        return Factored(self.left[rows], self.right)

    def dense(self) -> Float[Tensor, "outputs inputs"]:
        return self.left @ self.right


Delta = Dense | Factored


def inner(first: Delta, second: Delta) -> float:
    """⟨D, E⟩ = tr(DᵀE) of two deltas of one matrix, in float64 throughout; factored ones are never formed."""
    if isinstance(first, Factored) and isinstance(second, Factored):
        outputs = first.left.double().T @ second.left.double()
        return float((outputs * (first.right.double() @ second.right.double().T)).sum())
    if isinstance(second, Factored):
        first, second = second, first
    assert isinstance(second, Dense)
    values = second.values
    if isinstance(first, Factored):
        left, right = first.left.double(), first.right.double().T
        return sum(float(((values[rows].double() @ right) * left[rows]).sum()) for rows in _panels(values))
    other = first.values
    return sum(float((values[rows].double() * other[rows].double()).sum()) for rows in _panels(values))


def cosine(first: Delta, second: Delta) -> float:
    """⟨D, E⟩/(‖D‖ ‖E‖) of two deltas of one matrix, 1 exactly for equal ones; 0 where one of them is zero."""
    mine, theirs = inner(first, first), inner(second, second)
    return inner(first, second) / mine * math.sqrt(mine / theirs) if mine > 0.0 and theirs > 0.0 else 0.0


def _panels(values: Tensor) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, values.shape[0], _ROWS)]


@dataclass(frozen=True)
class Edit:
    """What a projector gives back for one matrix."""

    deltas: "dict[str, Delta]"
    """The edited deltas, by delta name."""
    facts: dict[str, float]
    """Figures of this matrix for the report (λ, rank, RAB …), by name."""
    warnings: tuple[str, ...] = ()
    own: "dict[str, dict[str, float]]" = field(default_factory=dict)
    """Figures of single deltas, by delta name, from projectors that take several."""
