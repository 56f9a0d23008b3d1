"""iso_c: the sum of the deltas, with all its singular values made equal (isotropic merging)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from vecsurgery import delta, linalg

from ._registry import Merge, Merged, MergedTensor

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.delta import Delta


class IsoC(BaseModel):
    """Options of `merge: iso_c`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    rtol: float = Field(
        default=1e-6,
        gt=0.0,
        lt=1.0,
        description="Singular values of the sum below this share of its largest count as none; they stay zero.",
    )
    others: Literal["mean", "sum"] = Field(
        default="mean",
        description="What a tensor that is no block matrix becomes: the mean of its deltas, or their sum.",
    )


def iso_c(
    deltas: "Mapping[str, Delta]", weights: Mapping[str, float], *, options: IsoC, tensor: MergedTensor
) -> Merged:
    """D′ = (‖M‖_*/r) · polar(M) with M = Σ w_t D_t: the directions of the sum, each as strong as their mean.

    r is the number of singular values of M above rtol·σ_max, ‖M‖_* their sum. A task that is weak in M, because others
    drown it, is as strong as they are in D′; ‖D′‖_* = ‖M‖_*.

    deltas: (out, in) of one tensor; weights: w_t. A tensor that is no block matrix becomes M
    divided by the number of deltas, or M itself.
    Facts of a block matrix: `rank` (r), `cut` (share of min(out, in) directions that count as none).
    Cost: an eigendecomposition of the smaller side in float64, which takes a minute at 4096.
    Source: No Task Left Behind, arXiv 2502.04959; the cut is ours.
    """
    total = _sum(deltas, weights)
    if not tensor.matrix:
        return Merged(delta.Dense(total / len(deltas) if options.others == "mean" else total))
    polar = linalg.polar_factor(total, rtol=options.rtol)
    if not polar.rank:
        return Merged(delta.Dense(total), {"rank": 0.0, "cut": polar.cut})
    strength = float(polar.values[: polar.rank].sum()) / polar.rank
    return Merged(delta.Dense(polar.factor * strength), {"rank": float(polar.rank), "cut": polar.cut})


def _sum(deltas: "Mapping[str, Delta]", weights: Mapping[str, float]) -> "Tensor":
    """Σ w_t D_t in float32 or wider."""
    import torch

    wide = torch.float32
    for each in deltas.values():
        wide = torch.promote_types(wide, each.values.dtype if isinstance(each, delta.Dense) else each.left.dtype)
    total = torch.zeros(next(iter(deltas.values())).shape, dtype=wide)
    for name, each in deltas.items():
        total.add_(each.dense().to(wide), alpha=weights[name])
    return total


def _cost(shape: tuple[int, int], ranks: Sequence[int | None], options: IsoC) -> "linalg.Cost":  # noqa: ARG001
    """The sum, the factors multiplied out, and its polar factor with the step that restores small singular values."""
    smaller, larger = min(shape), max(shape)
    added = sum(2 * smaller * larger * (1 if rank is None else 1 + rank) for rank in ranks)
    polar = 4 * smaller**2 * larger + (linalg.EIGH_FLOPS + 2) * smaller**3
    again = 4 * smaller**2 * larger
    return linalg.Cost(added + polar + again, 24 * smaller**2)


MERGE = Merge(name="iso_c", options=IsoC, function=iso_c, by_rows=True, cost=_cost)
