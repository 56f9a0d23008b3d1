"""low_rank: keep the leading singular values of a delta."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vecsurgery import delta

from ._facts import leading, norm_facts, the_one
from ._registry import Projector

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.delta import Delta, Edit
    from vecsurgery.linalg import Subspace


class LowRank(BaseModel):
    """Options of `project: low_rank`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    rank: int | None = Field(default=None, ge=1, description="Most singular values that are kept; give this or energy.")
    energy: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Share of ‖D‖² that is kept, by the fewest singular values that hold it; give this or rank.",
    )
    others: Literal["source", "drop"] = Field(
        default="source",
        description="What becomes of the delta's tensors that are no block matrix: kept as they are (source) or left "
        "out (drop).",
    )

    @model_validator(mode="after")
    def _one_of_rank_and_energy(self) -> Self:
        if (self.rank is None) == (self.energy is None):
            came = "neither" if self.rank is None else "both"
            raise ValueError(f"give one of rank and energy; got {came}")
        return self


def low_rank(
    deltas: "Mapping[str, Delta]",
    geometry: "Mapping[str, Subspace]",  # noqa: ARG001
    *,
    options: LowRank,
) -> "Edit":
    """min_E ‖E − D‖_F subject to rank(E) ≤ r: D′ = U_r S_r V_rᵀ, the first r terms of the singular value decomposition.

    deltas: one delta (out, in). The result is factored, U_r S_r^½ by S_r^½ V_rᵀ; of a factored delta it is computed
    from the factors, never from their product. A delta that has no more than r singular values comes back as it is.
    A small rank of a large matrix is found without decomposing it whole, to the accuracy of `linalg.leading_svd`.
    Facts: those of every projector without a geometry, and `rank`, r.
    Source: Eckart and Young, "The approximation of one matrix by another of lower rank" (1936).
    """
    name, raw = the_one(deltas)
    most = min(*raw.shape, *((raw.right.shape[0],) if isinstance(raw, delta.Factored) else ()))
    squared = raw.squared_norm()
    if squared == 0.0 or options.energy == 1.0 or (options.rank is not None and options.rank >= most):
        return delta.Edit({name: raw}, {**norm_facts(raw, raw, squared), "rank": float(most)})
    found = leading(raw, most if options.rank is None else options.rank)
    rank = found.rank if options.rank is not None else _holding(found.values, squared, options.energy or 1.0)
    roots = found.values[:rank].sqrt()
    dtype = raw.left.dtype if isinstance(raw, delta.Factored) else raw.values.dtype
    left, right = found.left[:, :rank] * roots, roots[:, None] * found.right[:, :rank].T
    edited = delta.Factored(left.to(dtype), right.to(dtype))
    return delta.Edit({name: edited}, {**norm_facts(raw, edited, squared), "rank": float(rank)})


def _holding(values: "Tensor", squared: float, energy: float) -> int:
    """The fewest leading singular values whose squares sum to this share of ‖D‖²."""
    squares = values.square().cumsum(0)
    return min(int((squares < energy * squared).sum()) + 1, len(values))


def _factors(shape: tuple[int, int], ranks: Sequence[int | None], options: LowRank) -> Sequence[bool]:
    """All, but for a dense delta of which nothing is cut off."""
    cuts = options.energy != 1.0 if options.rank is None else options.rank < min(shape)
    return [cuts or rank is not None for rank in ranks]


PROJECTOR = Projector(name="low_rank", options=LowRank, function=low_rank, factors=_factors)
