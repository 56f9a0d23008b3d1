"""drop_rescale: drop entries of a delta by chance and enlarge the rest (DARE)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from vecsurgery import delta

from ._facts import norm_facts, the_one
from ._registry import Projector, factors_stay

if TYPE_CHECKING:
    from vecsurgery.delta import Delta, Edit
    from vecsurgery.linalg import Subspace


class DropRescale(BaseModel):
    """Options of `project: drop_rescale`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    density: float = Field(gt=0.0, le=1.0, description="Probability with which an entry is kept; 1 keeps all.")
    rescale: Literal["density", "l1", "none"] = Field(
        default="density",
        description="How the kept entries are enlarged: by 1/density, so that each keeps its expected value (density), "
        "until the matrix has the sum of magnitudes that it had, as mergekit does (l1), or not at all (none).",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the draw; every matrix and every delta draws for itself.",
        json_schema_extra={"seed": True},
    )
    others: Literal["source", "drop"] = Field(
        default="source",
        description="What becomes of the delta's tensors that are no block matrix: kept as they are (source) or left "
        "out (drop).",
    )


def drop_rescale(
    deltas: "Mapping[str, Delta]",
    geometry: "Mapping[str, Subspace]",  # noqa: ARG001
    *,
    options: DropRescale,
) -> "Edit":
    """D′ = (M ∘ D)/density, M_ij = 1 with probability `density`, else 0, each by itself: E[D′] = D.

    deltas: one delta (out, in); the result is dense, also of a factored one. `options.seed`: of this matrix; the mask
    depends on it and on the shape alone, not on values, threads or other draws of the process.
    Facts: those of every projector without a geometry, and `kept`, the share of entries that stay.
    Source: DARE, arXiv 2311.03099; mask and rescaling as `mergekit.sparsify.bernoulli` has them.
    """
    name, raw = the_one(deltas)
    if options.density == 1.0:
        return delta.Edit({name: raw}, {**norm_facts(raw, raw), "kept": 1.0})
    import torch
    from mergekit.sparsify import RescaleNorm, rescaled_masked_tensor

    values = raw.dense()
    # mergekit's own draw takes the generator of the whole process, which other threads share: the same draw from ours
    generator = torch.Generator().manual_seed(options.seed)
    mask = torch.bernoulli(torch.full(values.shape, options.density), generator=generator)
    norm = RescaleNorm.l1 if options.rescale == "l1" else None
    kept = rescaled_masked_tensor(values, mask.to(values.device, values.dtype), norm)
    edited = delta.Dense(kept / options.density if options.rescale == "density" else kept)
    facts = {**norm_facts(raw, edited), "kept": float(mask.mean(dtype=torch.float64))}
    return delta.Edit({name: edited}, facts)


def _factors(shape: tuple[int, int], ranks: Sequence[int | None], options: DropRescale) -> Sequence[bool]:
    """Those of the delta itself where nothing is dropped."""
    return factors_stay(shape, ranks, options) if options.density == 1.0 else [False] * len(ranks)


PROJECTOR = Projector(name="drop_rescale", options=DropRescale, function=drop_rescale, factors=_factors)
