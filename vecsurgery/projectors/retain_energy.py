"""retain_energy: shrink a delta where retained text is active, in proportion to how active it is (SAGE-style)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vecsurgery import delta, linalg

from ._anchored import AnchoredDelta
from ._facts import Probe, common_facts, figures, probe
from ._registry import Projector, factors_stay

if TYPE_CHECKING:
    from vecsurgery.delta import Delta, Edit
    from vecsurgery.linalg import Bias, Filter, Subspace


_ENLARGED = 3.0
"""‖D′‖/‖D‖ above which the form with `forget` says how large the change has become; 1 to 2 is usual there."""


class RetainEnergy(BaseModel):
    """Options of `project: retain_energy`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

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
    forget: str | None = Field(
        default=None,
        min_length=1,
        description="Name of a geometry measured on forgotten text: closeness to the delta is then judged by its "
        "effect there, which keeps more of the forgetting.",
        json_schema_extra={"reference": "geometry"},
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

    @model_validator(mode="after")
    def _forget_goes_with_all_energy(self) -> "RetainEnergy":
        if self.forget is not None and self.energy < 1.0:
            raise ValueError(
                f"`energy` {self.energy:g} cannot be combined with `forget`, which edits every direction: leave it at 1"
            )
        if self.forget == self.geometry:
            raise ValueError(
                f"`forget` and `geometry` both name {self.forget!r}: the edit would multiply the delta by one number; "
                "name a geometry measured on forgotten text"
            )
        return self


def retain_energy(
    deltas: "Mapping[str, Delta]", geometry: "Mapping[str, Subspace]", *, options: RetainEnergy
) -> "Edit":
    """Solve min_E ‖E − D‖²_F + λ Σ_{i≤r} w_i ‖E v_i‖² with w_i = s_i / mean(s over the in directions).

    Closed form: D′ = D − D V_r diag(λw_i/(1 + λw_i)) V_rᵀ. Where the geometry stores fewer directions than the input
    has and `energy` is 1, the rest is shrunk as an isotropic tail. With `keep`, λ is found so that the retention
    activation bias falls to that share; where directions outside make that impossible, the floor is used, with a
    warning. λ = 0, and a geometry without energy, give D bit for bit.

    With `forget`, a geometry of forgotten text, solve instead

        min_E tr[(E − D) F (E − D)ᵀ] + λ tr[E C Eᵀ],    D′ = D F (F + λC)⁻¹

    with F and C the second moments of forget and retain text, each divided by its mean eigenvalue, and F += 1e-6·I:
    what D does to forgotten text is kept, what it does elsewhere may change. It may enlarge ‖D‖.

    deltas: one delta (out, in). geometry: holds `options.geometry`, the site's subspace, and `options.forget`.
    Facts: those of every projector, `strength` (λ), `floor` (share of RAB that cannot be reached), and with `forget`
    `forget_kept` (tr[D′ F D′ᵀ]/tr[D F Dᵀ]).
    Source: SAGE-style, after arXiv 2606.18309; weights, `keep`, the tail and the `forget` form are this project's.
    """
    subspace = geometry[options.geometry]
    name, before = probe(deltas, subspace)
    kind = linalg.Filter.of(subspace, options.energy)
    bias = before.bias(kind)
    forget = None if options.forget is None else geometry[options.forget]
    warnings = _warnings(before, kind, bias, options)
    if forget is not None and forget.total <= 0.0:
        warnings.append("the forget geometry carries no energy here: the form without `forget` was used")
    if forget is None or forget.total <= 0.0:
        edited, facts = _alone(before, kind, bias, options)
    else:
        edited, facts = _anchored(before, forget, kind, bias, options)
    if facts["norm_ratio"] > _ENLARGED:
        warnings.append(
            f"the edited delta is larger than the raw one: {facts['norm_ratio']:.3g} times its norm "
            "(a smaller keep, or no forget, changes the weights less)"
        )
    return delta.Edit({name: edited}, facts, tuple(warnings))


def _alone(before: Probe, kind: "Filter", bias: "Bias", options: RetainEnergy) -> "tuple[Delta, dict[str, float]]":
    """The edit that stays close in ‖E − D‖, and its facts."""
    strength = _strength(kind, bias, options)
    factors, tail = kind.factors(strength), kind.tail(strength)
    edited = before.filtered(factors, tail) if bias.total > 0.0 else before.raw
    facts = common_facts(before, edited, bias, bias.after(factors, tail), factors)
    return edited, facts | {"strength": strength, "floor": bias.floor}


def _anchored(
    before: Probe, forget: "Subspace", kind: "Filter", bias: "Bias", options: RetainEnergy
) -> "tuple[Delta, dict[str, float]]":
    """The edit that stays close in its effect on forgotten text, and its facts."""
    if bias.total <= 0.0 or options.strength == 0.0:
        edited, facts = _alone(before, kind, bias, options)
        return edited, facts | {"forget_kept": 1.0}
    subspace = before.subspace
    anchored = AnchoredDelta.of(before, forget)
    strength = _strength(anchored.joint.kind, anchored.bias, options)
    edited = anchored.filtered(strength)
    times = edited.times(subspace.directions)
    rab_after = linalg.retention_bias(times, subspace.energies, edited.squared_norm(), subspace.tail)
    inside = float(linalg.column_squares(times).sum())
    facts = figures(before, edited, bias.total, rab_after, subspace.rank, inside)
    return edited, facts | {"strength": strength, "floor": 0.0, "forget_kept": anchored.kept(strength)}


def _strength(kind: "Filter", bias: "Bias", options: RetainEnergy) -> float:
    if options.strength is not None:
        return options.strength
    return 0.0 if options.keep is None else linalg.solve_strength(kind, bias, options.keep)


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


PROJECTOR = Projector(name="retain_energy", options=RetainEnergy, function=retain_energy, factors=factors_stay)
