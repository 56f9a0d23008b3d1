"""trim: keep the largest entries of a delta and drop the rest (the first step of TIES)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from vecsurgery import delta

from ._facts import norm_facts, the_one
from ._registry import Projector, factors_stay

if TYPE_CHECKING:
    from vecsurgery.delta import Delta, Edit
    from vecsurgery.linalg import Subspace


class Trim(BaseModel):
    """Options of `project: trim`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    density: float = Field(gt=0.0, le=1.0, description="Share of entries that is kept, the largest by magnitude.")
    others: Literal["source", "drop"] = Field(
        default="source",
        description="What becomes of the delta's tensors that are no block matrix: kept as they are (source) or left "
        "out (drop).",
    )


def trim(
    deltas: "Mapping[str, Delta]",
    geometry: "Mapping[str, Subspace]",  # noqa: ARG001
    *,
    options: Trim,
) -> "Edit":
    """min_E ‖E − D‖²_F subject to E having k = ⌊density·out·in⌋ entries that are not 0 (at least one).

    deltas: one delta (out, in); the result is dense, also of a factored one. Magnitudes are compared in float32; of
    equal ones at the border some are kept, so that the count is exact.
    Facts: those of every projector without a geometry, and `kept`, the share of entries that stay.
    Source: TIES-Merging, arXiv 2306.01708; `mergekit.sparsify.magnitude`.
    """
    name, raw = the_one(deltas)
    entries = raw.shape[0] * raw.shape[1]
    if options.density == 1.0 or not entries:
        return delta.Edit({name: raw}, {**norm_facts(raw, raw), "kept": 1.0})
    from mergekit.sparsify import magnitude

    edited = delta.Dense(magnitude(raw.dense(), options.density))
    facts = {**norm_facts(raw, edited), "kept": max(1, int(options.density * entries)) / entries}
    return delta.Edit({name: edited}, facts)


def _factors(shape: tuple[int, int], ranks: Sequence[int | None], options: Trim) -> Sequence[bool]:
    """Those of the delta itself where nothing is dropped."""
    return factors_stay(shape, ranks, options) if options.density == 1.0 else [False] * len(ranks)


PROJECTOR = Projector(name="trim", options=Trim, function=trim, factors=_factors)
