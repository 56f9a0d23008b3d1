"""What projectors do around their own work: take the one delta, apply factors, state the figures of the matrix."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecsurgery import delta, linalg

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.delta import Delta
    from vecsurgery.linalg import Bias, Filter, Singular, Subspace


@dataclass(frozen=True)
class Probe:
    """One delta against one geometry, before anything is done to it."""

    raw: "Delta"
    subspace: "Subspace"
    times: "Tensor"
    """D V over all stored directions: the first half of the filter's work, and all that RAB needs."""
    squared_norm: float

    def bias(self, kind: "Filter") -> "Bias":
        """RAB of the raw delta, split as a filter of this kind sees it."""
        return linalg.Bias.of(linalg.column_squares(self.times), self.squared_norm, self.subspace, kind)

    def filtered(self, factors: "Tensor", tail: float = 1.0) -> "Delta":
        """The delta with its leading directions multiplied by `factors` and the space outside them by `tail`."""
        rank = len(factors)
        directions = self.subspace.directions[:, :rank]
        if isinstance(self.raw, delta.Dense):
            product = self.times[:, :rank]
            values = linalg.spectral_filter(self.raw.values, directions, factors, tail=tail, product=product)
            return delta.Dense(values, self.raw.noise)
        return self.raw.filtered(directions, factors, tail)


def the_one(deltas: "Mapping[str, Delta]") -> tuple[str, "Delta"]:
    """The name of the one delta, and the delta. Raises ValueError for more than one: the projector is not joint."""
    if len(deltas) != 1:
        raise ValueError(f"this projector takes one delta at a time, it was given {len(deltas)}: {sorted(deltas)}")
    ((name, raw),) = deltas.items()
    return name, raw


def leading(raw: "Delta", wanted: int) -> "Singular":
    """The leading singular triplets of a delta; of factors from the factors alone."""
    if isinstance(raw, delta.Factored):
        return linalg.factored_svd(raw.left, raw.right, wanted)
    return linalg.leading_svd(raw.values, wanted)


def norm_facts(raw: "Delta", edited: "Delta", squared_norm: float | None = None) -> dict[str, float]:
    """norm ‖D‖_F, norm_ratio ‖D′‖/‖D‖ (1 for a zero delta), energy_removed 1 − norm_ratio². `squared_norm`: ‖D‖²."""
    squared = raw.squared_norm() if squared_norm is None else squared_norm
    ratio = math.sqrt(edited.squared_norm() / squared) if squared > 0.0 and edited is not raw else 1.0
    return {"norm": math.sqrt(squared), "norm_ratio": ratio, "energy_removed": 1.0 - ratio**2}


def probe(deltas: "Mapping[str, Delta]", subspace: "Subspace") -> tuple[str, Probe]:
    """The name of the one delta and its products with the geometry.

    Raises ValueError for more than one delta, and for one of another width than its geometry.
    """
    name, raw = the_one(deltas)
    if raw.shape[-1] != subspace.width:
        raise ValueError(f"the delta {name!r} is {raw.shape}, its geometry is {subspace.width} wide")
    return name, Probe(raw, subspace, raw.times(subspace.directions), raw.squared_norm())


def common_facts(before: Probe, edited: "Delta", bias: "Bias", rab_after: float, factors: "Tensor") -> dict[str, float]:
    """The figures of an edit that multiplies the leading stored directions by `factors`, by the names of `figures`."""
    rank = len(factors)
    inside = float((linalg.column_squares(before.times[:, :rank]) * factors**2).sum()) if rank else 0.0
    return figures(before, edited, bias.total, rab_after, rank, inside)


def figures(before: Probe, edited: "Delta", rab: float, rab_after: float, rank: int, inside: float) -> dict[str, float]:
    """The figures that every projector with a geometry states, by the names that reports use.

    norm: ‖D‖_F. norm_ratio: ‖D′‖/‖D‖ (1 for a zero delta). energy_removed: 1 − norm_ratio². rab, rab_after: retention
    activation bias before, and as intended after the edit. rank: r, the number of leading directions that were edited.
    energy: share of the geometry's energy in the r directions. leak: ‖D′ V_r‖/‖D′‖, from `inside` = ‖D′ V_r‖².
    """
    norms = norm_facts(before.raw, edited, before.squared_norm)
    total = before.subspace.total
    norm = norms["norm"] * norms["norm_ratio"]
    return {
        **norms,
        "rab": rab,
        "rab_after": rab_after,
        "rank": float(rank),
        "energy": float(before.subspace.energies[:rank].sum()) / total if total > 0.0 else 0.0,
        "leak": math.sqrt(inside) / norm if norm > 0.0 else 0.0,
    }
