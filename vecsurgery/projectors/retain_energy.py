"""retain_energy: shrink a delta where retained text is active, in proportion to how active it is (SAGE-style)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vecsurgery import delta, linalg

from ._facts import Probe, common_facts, probe
from ._registry import Projector

if TYPE_CHECKING:
    from vecsurgery.delta import Delta, Edit
    from vecsurgery.linalg import Bias, Filter, Subspace


class RetainEnergy(BaseModel):
    """Options of `project: retain_energy`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    geometry: str = Field(
        min_length=1,
        description="Name of the geometry measured on text whose behaviour should be retained.",
        json_schema_extra={"reference": "geometry"},
    )
    keep: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Share of the delta's effect on the retained text that is left in each matrix; "
        "the strength is solved for it. Give this or strength.",
    )
    strength: float | None = Field(
        default=None,
        ge=0.0,
        description="Strength λ of the penalty, the same in every matrix; 0 changes nothing. Give this or keep.",
    )
    energy: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Share of the geometry's energy whose directions are shrunk; 1 takes all of them.",
    )
    others: Literal["source", "drop"] = Field(
        default="source",
        description="What becomes of the delta's tensors that are no block matrix: kept as they are (source) or "
        "left out (drop).",
    )

    @model_validator(mode="after")
    def _one_of_keep_and_strength(self) -> "RetainEnergy":
        if (self.keep is None) == (self.strength is None):
            came = "neither was" if self.keep is None else "both were"
            raise ValueError(f"exactly one of `keep` and `strength` is needed, {came} given")
        return self


def retain_energy(
    deltas: "Mapping[str, Delta]", geometry: "Mapping[str, Subspace]", *, options: RetainEnergy
) -> "Edit":
    """Solve min_E ‖E − D‖²_F + λ Σ_{i≤r} w_i ‖E v_i‖² with w_i = s_i / mean(s over the in directions).

    Closed form: D′ = D − D V_r diag(λw_i/(1 + λw_i)) V_rᵀ. Where the geometry stores fewer directions than the input
    has and `energy` is 1, the rest is shrunk as an isotropic tail. With `keep`, λ is found so that the retention
    activation bias falls to that share; where directions outside make that impossible, the floor is used, with a
    warning. λ = 0, and a geometry without energy, give D bit for bit.

    deltas: one delta (out, in). geometry: holds `options.geometry`, the site's subspace.
    Facts: those of every projector, `strength` (λ) and `floor` (share of RAB that cannot be reached).
    Source: SAGE-style, after arXiv 2606.18309; weights, `keep` and the tail are this project's.
    """
    subspace = geometry[options.geometry]
    name, before = probe(deltas, subspace)
    kind = linalg.Filter.of(subspace, options.energy)
    bias = before.bias(kind)
    strength = options.strength
    if strength is None:
        strength = 0.0 if options.keep is None else linalg.solve_strength(kind, bias, options.keep)
    factors, tail = kind.factors(strength), kind.tail(strength)
    edited = before.filtered(factors, tail) if bias.total > 0.0 else before.raw
    facts = common_facts(before, edited, bias, bias.after(factors, tail), factors)
    facts |= {"strength": strength, "floor": bias.floor}
    return delta.Edit({name: edited}, facts, tuple(_warnings(before, kind, bias, options)))


def _warnings(before: Probe, kind: "Filter", bias: "Bias", options: RetainEnergy) -> list[str]:
    subspace, warnings = before.subspace, []
    if options.keep is not None and options.keep < bias.floor:
        warnings.append(
            f"keep {options.keep:g} cannot be reached: {bias.floor:.2g} of the retained activation energy lies outside "
            f"the {kind.rank} directions that are shrunk; this floor was used (raise energy or max_directions)"
        )
    if subspace.rank and float(subspace.energies[0]) > 0.9 * subspace.total:
        share = float(subspace.energies[0]) / subspace.total
        warnings.append(
            f"one direction holds {share:.1%} of the geometry's energy, as an attention sink does: check skip_first"
        )
    if subspace.count < subspace.width:
        warnings.append(
            f"the geometry was measured on {subspace.count} positions, fewer than the input's {subspace.width} "
            f"dimensions: directions that the data lack are not protected (aim at {4 * subspace.width})"
        )
    stored = float(subspace.energies.sum())
    if options.energy < 1.0 and stored < options.energy * subspace.total:
        warnings.append(
            f"the geometry's {subspace.rank} directions hold {stored / subspace.total:.3f} of its energy, less than "
            f"energy {options.energy:g}: all of them were used (raise max_directions)"
        )
    return warnings


PROJECTOR = Projector(name="retain_energy", options=RetainEnergy, function=retain_energy)
