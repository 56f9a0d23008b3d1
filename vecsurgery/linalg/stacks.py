"""The leading singular directions of several deltas side by side, made orthonormal, and how much they interfere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .eigen import lower_gram
from .leading import Singular
from .polar import Polar, polar_factor

Spectrum = Literal["own", "mean", "one"]


@dataclass(frozen=True)
class Stacks:
    """Û = [U_1 … U_T] and V̂ = [V_1 … V_T] of T deltas, and their polar factors U*, V*."""

    places: Mapping[str, slice]
    """The columns of each delta."""
    spectrum: Float[Tensor, " k"]
    """S of the slots, float64."""
    outputs: Polar
    """U*."""
    inputs: Polar
    """V*."""
    overlaps: tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]]
    """U*ᵀU* and V*ᵀV*, of the factors as they are, float64."""
    interference: float
    """STI of the deltas as they came."""
    likeness: float | None
    """The largest cosine of two deltas, of what their triplets hold; None where there are not two with any."""

    @classmethod
    def of(cls, parts: Mapping[str, Singular], rtol: float, spectrum: Spectrum) -> "Stacks":
        """Stack the triplets and orthonormalise both sides, cutting singular values of a stack below rtol·σ_max."""
        stops = accumulate((part.rank for part in parts.values()), initial=0)
        places = {name: slice(*pair) for name, pair in zip(parts, pairwise(stops), strict=True)}
        sides = (
            torch.cat([part.left for part in parts.values()], 1),
            torch.cat([part.right for part in parts.values()], 1),
        )
        grams = [_gram(side) for side in sides]
        outputs, inputs = (polar_factor(side, rtol=rtol, gram=gram) for side, gram in zip(sides, grams, strict=True))
        values = torch.cat([part.values for part in parts.values()])
        return cls(
            places,
            torch.cat([_spectrum(part.values, spectrum) for part in parts.values()]),
            outputs,
            inputs,
            ((outputs.factor.T @ outputs.factor).double(), (inputs.factor.T @ inputs.factor).double()),
            interference(grams[0], values, grams[1]),
            _likeness(grams[0] * grams[1], values, [place for place in places.values() if place.start < place.stop]),
        )

    def slot(self, name: str) -> tuple[Float[Tensor, "outputs k"], Float[Tensor, "k inputs"]]:
        """D′_t = (U*_t S_t) V*_tᵀ as its two factors."""
        place = self.places[name]
        left = self.outputs.factor[:, place]
        return left * self.spectrum[place].to(left), self.inputs.factor[:, place].T

    def squared_norm(self, name: str) -> float:
        """‖D′_t‖²_F = tr(S_t U*_tᵀU*_t S_t V*_tᵀV*_t)."""
        place = self.places[name]
        outputs, inputs = (overlap[place, place] for overlap in self.overlaps)
        weights = self.spectrum[place]
        return max(0.0, float(weights @ (outputs * inputs) @ weights))

    def facts(self) -> dict[str, float]:
        """What the report says of the matrix."""
        alike = {} if self.likeness is None else {"cosine_largest": self.likeness}
        return alike | {
            "interference": self.interference,
            "interference_after": interference(self.overlaps[0], self.spectrum, self.overlaps[1]),
            "cut_outputs": self.outputs.cut,
            "cut_inputs": self.inputs.cut,
        }


def interference(outputs: Float[Tensor, "k k"], values: Float[Tensor, " k"], inputs: Float[Tensor, "k k"]) -> float:
    """STI = ‖(ÛᵀÛ − I) S (V̂ᵀV̂ − I)‖₁, entrywise, over k(k − 1); 0 for fewer than two directions.

    outputs, inputs: the overlaps ÛᵀÛ and V̂ᵀV̂. Source: Task Singular Vectors, arXiv 2412.00081; the normaliser is ours.
    """
    count = len(values)
    if count < 2:
        return 0.0
    identity = torch.eye(count, dtype=outputs.dtype, device=outputs.device)
    product = ((outputs - identity) * values) @ (inputs - identity)
    return float(product.abs().sum()) / (count * (count - 1))


def _likeness(overlaps: Float[Tensor, "k k"], values: Float[Tensor, " k"], places: Sequence[slice]) -> float | None:
    """Largest ⟨D_s, D_t⟩/(‖D_s‖ ‖D_t‖); `overlaps`: the products (u_iᵀu_j)(v_iᵀv_j) of all triplets."""
    found = [
        float(values[one] @ overlaps[one, other] @ values[other]) / float(values[one].norm() * values[other].norm())
        for one, other in combinations(places, 2)
        if float(values[one].norm() * values[other].norm()) > 0.0
    ]
    return max(found, default=None)


def _gram(side: Float[Tensor, "rows k"]) -> Float[Tensor, "k k"]:
    """XᵀX in float64, of which only one triangle is computed."""
    lower = lower_gram(side.double().T)
    return lower.tril() + lower.tril(-1).T


def _spectrum(values: Float[Tensor, " k"], kind: Spectrum) -> Float[Tensor, " k"]:
    if kind == "own" or not len(values):
        return values
    return torch.full_like(values, float(values.mean()) if kind == "mean" else 1.0)
