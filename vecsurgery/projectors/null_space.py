"""null_space: remove from a delta whatever acts on protected positions (the projection of RAIN-Merging)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from vecsurgery import delta, linalg
from vecsurgery.errors import InputError

from ._facts import common_facts, probe
from ._registry import Projector, factors_stay

if TYPE_CHECKING:
    from vecsurgery.delta import Delta, Edit
    from vecsurgery.linalg import Subspace

_LITTLE_LEFT = 0.3
"""‖D⊥‖/‖D‖ below which the skill is likely to be gone with the interference."""
_SINGLE = 2.0**-23


class NullSpace(BaseModel):
    """Options of `project: null_space`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    geometry: str = Field(
        min_length=1,
        description="Name of the geometry measured at the positions that must not change.",
        json_schema_extra={"reference": "geometry"},
    )
    rtol: float = Field(
        default=0.1,
        gt=0.0,
        lt=1.0,
        description="Directions whose singular value exceeds this share of the largest are removed; smaller protects "
        "more and leaves less of the delta.",
    )
    ridge: float = Field(
        default=0.0,
        ge=0.0,
        description="Softens the removal: a direction loses the share σ²/(σ² + ridge·σ_max²); 0 removes it whole.",
    )
    others: Literal["source", "drop"] = Field(
        default="drop",
        description="What becomes of the delta's tensors that are no block matrix: left out (drop) or kept as they "
        "are, unprotected (source).",
    )


def null_space(deltas: "Mapping[str, Delta]", geometry: "Mapping[str, Subspace]", *, options: NullSpace) -> "Edit":
    """Solve min_E ‖E − D‖²_F subject to E V_r = 0: D⊥ = D − (D V_r) V_rᵀ.

    V_r are the right singular vectors of the protected inputs H (n, in) with σ > rtol·σ_max; with a ridge each is
    multiplied by ridge·σ_max²/(σ² + ridge·σ_max²) instead of 0. Without positions (n = 0) the result is D itself.

    deltas: one delta (out, in). geometry: holds `options.geometry`, the site's subspace.
    Facts: those of every projector, and `rtol_leak`, the share of RAB that is left in the directions below rtol.
    Raises InputError where the stored directions end above rtol, so that protected ones are missing.
    Source: RAIN-Merging, arXiv 2602.22538; the relative cut and the ridge are this project's.
    """
    subspace = geometry[options.geometry]
    rank = _protected_rank(subspace, options.rtol)
    name, before = probe(deltas, subspace)
    energies = subspace.energies[:rank].double()
    bias = before.bias(linalg.Filter(rank, energies, 0.0))
    floor = options.ridge * float(energies[0]) if rank else 0.0
    factors = floor / (energies + floor)
    edited = before.filtered(factors)
    rab_after = bias.after(factors)
    facts = common_facts(before, edited, bias, rab_after, factors)
    facts["rtol_leak"] = rab_after / bias.total if bias.total > 0.0 else 0.0
    return delta.Edit({name: edited}, facts, tuple(_warnings(subspace, rank, facts["norm_ratio"], options)))


def _protected_rank(subspace: "Subspace", rtol: float) -> int:
    """r: how many directions have σ > rtol·σ_max; σ² is n times the energy."""
    if not subspace.rank:
        return 0
    cut = rtol**2 * float(subspace.energies[0])
    if subspace.rest > 0.0 and float(subspace.energies[-1]) >= cut:
        ratio = (float(subspace.energies[-1]) / float(subspace.energies[0])) ** 0.5
        raise InputError(
            f"the geometry stores {subspace.rank} of {subspace.width} directions and the last has a singular value of "
            f"{ratio:.2g} of the largest, not below rtol {rtol:g}: directions to be protected are missing; raise "
            f"max_directions of the geometry and measure it again, or raise rtol"
        )
    return int((subspace.energies > cut).sum())


def _warnings(subspace: "Subspace", rank: int, norm_ratio: float, options: NullSpace) -> list[str]:
    warnings = []
    if not subspace.count:
        warnings.append("no position was measured: the delta passes unprotected")
    if norm_ratio < _LITTLE_LEFT:
        spanned = f": the {rank} protected directions span the whole input" if rank == subspace.width else ""
        warnings.append(
            f"only {norm_ratio:.2g} of the delta's norm is left{spanned}; raise rtol, or use fewer positions"
        )
    summed = subspace.count > min(subspace.width, linalg.ROWS_LIMIT)
    if summed and options.rtol**2 < subspace.width * _SINGLE:
        warnings.append(
            f"rtol {options.rtol:g} lies below the rounding of a moment summed over {subspace.count} positions: some "
            f"protected directions may be noise (use a larger rtol, or at most {linalg.ROWS_LIMIT} positions)"
        )
    return warnings


PROJECTOR = Projector(
    name="null_space", options=NullSpace, function=null_space, factors=factors_stay, unprotected_warning=True
)
