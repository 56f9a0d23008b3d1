"""spectral: make the deltas of several models orthogonal to each other (SIFT, task singular vectors)."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vecsurgery import delta, linalg
from vecsurgery.errors import InputError

from ._facts import leading
from ._registry import Projector

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.delta import Delta, Edit
    from vecsurgery.linalg import Singular, Stacks, Subspace

_RTOL = {"sift": 0.3, "tsv_m": 1e-6}
_MUCH_CUT = 0.5
"""Share of stacked directions above which so much was cut that the deltas are hardly told apart."""
_SVD = 21
"""Flops of a full singular value decomposition over the cube of its size, about."""


class Spectral(BaseModel):
    """Options of `project: spectral`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    preset: Literal["sift", "tsv_m"] = Field(
        default="sift",
        description="What rtol is by default: 0.3 (sift) cuts directions that the deltas share, 1e-6 (tsv_m) keeps all "
        "but exact repetitions.",
    )
    rank: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto",
        description="Singular directions of each delta that are kept, at most; auto is ⌊min(out, in)/T⌋ for the T "
        "deltas that reach a matrix, and a number for which a matrix has no room is refused before anything is "
        "written. Directions below the rounding noise of the storage type never count.",
    )
    rtol: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Directions of the stacked deltas whose singular value is below this share of the largest are cut; "
        "by default as the preset says.",
    )
    spectrum: Literal["own", "mean", "one"] = Field(
        default="own",
        description="Singular values of a delta afterwards: its own, their mean, or 1 for all.",
    )
    conflict_below: float | None = Field(
        default=None,
        ge=-1.0,
        le=1.0,
        description="Only where two deltas of a matrix have a cosine below this are its deltas made orthogonal; "
        "elsewhere they pass as they are. Without it, everywhere.",
    )
    others: Literal["source", "mean", "drop"] = Field(
        default="mean",
        description="What becomes of the deltas' tensors that are no block matrix, which are not made orthogonal: "
        "divided by the number of deltas that change the tensor (mean), kept as they are (source), or left out (drop).",
    )

    @property
    def cut(self) -> float:
        """rtol, given or the preset's."""
        return _RTOL[self.preset] if self.rtol is None else self.rtol


def spectral(
    deltas: "Mapping[str, Delta]",
    geometry: "Mapping[str, Subspace]",  # noqa: ARG001 - every projector is given it
    *,
    options: Spectral,
) -> "Edit":
    """Make T deltas mutually orthogonal in their outputs and in their inputs, each changed as little as possible.

    With D_t ≈ U_t S_t V_tᵀ of rank K_t, and the stacks Û = [U_1 … U_T] and V̂ = [V_1 … V_T], solve

        U* = argmin_E ‖E − Û‖_F subject to EᵀE = I,        V* likewise,        D′_t = U*_t S_t V*_tᵀ

    so U* = Û (ÛᵀÛ)^{-1/2}, where directions of the stack with σ ≤ rtol·σ_max are cut: deltas that share a direction
    share what is left of it. K_t is at most `rank`, and counts singular values above the noise floor
    (√out + √in)·noise of a dense delta alone. A lone delta comes back as D_K; where nothing limits it, as it is.

    deltas: one or more (out, in), by name; the same names come back, factored where that takes less memory.
    geometry: not used.
    Facts of each delta: `norm`, `norm_ratio`, `rank` (K_t), `kept_energy` (share of ‖D_t‖² in those directions),
    `noise_floor` (singular values below it do not count; 0 where it is not known). Facts of the matrix: `deltas` (T),
    `orthogonalised` (1 or 0), `cosine_largest` of what two of them keep, `least_cosine` (with `conflict_below`),
    `interference` and `interference_after` (STI), `cut_outputs` and `cut_inputs` (share of the directions of Û and V̂
    that was cut).
    Raises InputError where Σ K_t > min(out, in): there are not so many orthogonal directions.
    Source: SIFT, arXiv 2604.04231; Task Singular Vectors, arXiv 2412.00081. The cut at 0.3, the noise floor and the
    localisation by cosine are this project's.
    """
    cosines = _cosines(deltas) if options.conflict_below is not None else []
    least = min(cosines, default=None)
    common = {"deltas": float(len(deltas))}
    common |= {"least_cosine": min(cosines), "cosine_largest": max(cosines)} if cosines else {}
    (shape,) = {each.shape for each in deltas.values()}
    limit = _limit(options, shape, len(deltas))
    unlimited = len(deltas) == 1 and limit >= min(shape) and options.spectrum == "own"
    peaceful = options.conflict_below is not None and (least is None or least >= options.conflict_below)
    if unlimited or peaceful:
        own = {name: {"norm": each.squared_norm() ** 0.5, "norm_ratio": 1.0} for name, each in deltas.items()}
        return delta.Edit(dict(deltas), common | {"orthogonalised": 0.0}, own=own)
    parts = {name: leading(each, limit).above(_noise_floor(each)) for name, each in deltas.items()}
    _require_room({name: part.rank for name, part in parts.items()}, shape, options)
    stacks = linalg.Stacks.of(parts, options.cut, options.spectrum)
    edited = {name: _slot(*stacks.slot(name), each) for name, each in deltas.items()}
    own = {name: _facts(each, parts[name], stacks.squared_norm(name)) for name, each in deltas.items()}
    facts = stacks.facts() | common | {"orthogonalised": 1.0}
    return delta.Edit(edited, facts, tuple(_warnings(stacks, parts)), own=own)


def _limit(options: Spectral, shape: tuple[int, ...], count: int) -> int:
    """K: how many directions each delta may keep."""
    if options.rank != "auto":
        return options.rank
    if count > min(shape):
        raise InputError(
            f"{count} deltas reach a matrix of shape {shape}, which has fewer orthogonal directions; leave the matrix "
            "out of the step (modules, where, except), or give fewer deltas"
        )
    return min(shape) // count


def _noise_floor(each: "Delta") -> float:
    """Singular values below it are no larger than those of the storage type's rounding errors."""
    return 0.0 if isinstance(each, delta.Factored) else linalg.largest_of_noise(each.shape, each.noise)


def _require_room(ranks: Mapping[str, int], shape: tuple[int, ...], options: Spectral) -> None:
    total = sum(ranks.values())
    if total > min(shape):
        listed = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        raise InputError(
            f"the deltas keep {total} singular directions together ({listed}), and a matrix of shape {shape} has room "
            f"for {min(shape)} orthogonal ones; give rank: {min(shape) // len(ranks)} or less in place of "
            f"{options.rank}, or rank: auto"
        )


def _require(shape: tuple[int, int], ranks: Mapping[str, int | None], options: Spectral) -> None:
    """Refuse a rank for which the matrix has no room, and more deltas than it has directions, by its shape.

    A dense delta counts as one of full rank. With `conflict_below` the numbers decide whether there has to be room.
    """
    limit = min(_limit(options, shape, len(ranks)), *shape)
    if options.conflict_below is None:
        wanted = {name: limit if rank is None else min(limit, rank) for name, rank in ranks.items()}
        _require_room(wanted, shape, options)


def _slot(left: "Tensor", right: "Tensor", raw: "Delta") -> "Delta":
    """U*_t S_t and V*_tᵀ, of the raw type; of a dense delta multiplied where the factors take more memory than that."""
    dtype = raw.left.dtype if isinstance(raw, delta.Factored) else raw.values.dtype
    slot = delta.Factored(left.to(dtype), right.to(dtype))
    (outputs, inputs), rank = slot.shape, right.shape[0]
    small = isinstance(raw, delta.Factored) or rank * (outputs + inputs) <= outputs * inputs
    return slot if small else delta.Dense(slot.dense())


def _facts(each: "Delta", found: "Singular", squared_norm: float) -> dict[str, float]:
    """The figures of one delta."""
    squared = each.squared_norm()
    return {
        "norm": squared**0.5,
        "norm_ratio": (squared_norm / squared) ** 0.5 if squared > 0.0 else 1.0,
        "rank": float(found.rank),
        "kept_energy": float(found.values.square().sum()) / squared if squared > 0.0 else 1.0,
        "noise_floor": _noise_floor(each),
    }


def _cosines(deltas: "Mapping[str, Delta]") -> list[float]:
    """Those of every two deltas; one of zeros is orthogonal to all others."""
    return [delta.cosine(deltas[first], deltas[second]) for first, second in combinations(deltas, 2)]


def _warnings(stacks: "Stacks", parts: "Mapping[str, Singular]") -> list[str]:
    warnings = [
        f"no singular value of {name} stands above the rounding noise of its storage type: nothing of it is left"
        for name, part in parts.items()
        if not part.rank
    ]
    share = max(stacks.outputs.cut, stacks.inputs.cut)
    if share > _MUCH_CUT:
        warnings.append(
            f"{share:.0%} of the stacked directions were cut: the deltas are nearly the same there (a smaller rtol "
            "keeps more of them)"
        )
    return warnings


def _cost(shape: tuple[int, int], ranks: Sequence[int | None], options: Spectral) -> linalg.Cost:
    """Decomposing each delta, dense or by its factors, then two polar factors of the stacked directions."""
    smaller, larger = min(shape), max(shape)
    wanted = min(smaller // max(len(ranks), 1) if options.rank == "auto" else options.rank, smaller)
    if len(ranks) == 1 and wanted == smaller and options.spectrum == "own":
        return linalg.Cost(0, 0)
    stacked = min(sum(wanted if rank is None else min(wanted, rank) for rank in ranks), smaller)
    each = [_dense_cost(smaller, larger, wanted) if rank is None else _factored_cost(shape, rank) for rank in ranks]
    joined = 2 * (linalg.EIGH_FLOPS * stacked**3) + 6 * (smaller + larger) * stacked**2
    held = max((cost.memory for cost in each), default=0)
    pairs = combinations(ranks, 2) if options.conflict_below is not None else ()
    compared = sum(_cosine_flops(shape, *pair) for pair in pairs)
    return linalg.Cost(
        sum(cost.flops for cost in each) + joined + compared, max(held, 24 * (smaller + larger) * stacked)
    )


def _cosine_flops(shape: tuple[int, int], first: int | None, second: int | None) -> int:
    """Three inner products, of factors by their small products."""
    if first is None and second is None:
        return 6 * shape[0] * shape[1]
    if first is None or second is None:
        return 6 * shape[0] * shape[1] * (first or second or 0)
    return 6 * sum(shape) * max(first, second) ** 2


def _dense_cost(smaller: int, larger: int, wanted: int) -> linalg.Cost:
    """The leading triplets of a dense delta."""
    space = linalg.search_space(smaller, larger, wanted)
    if space:
        sides = smaller + larger
        searching = 4 * smaller * larger * space + 2 * sides * space**2 + 2 * linalg.EIGH_FLOPS * space**3
        return linalg.Cost(searching + 2 * sides * space * wanted, 8 * sides * (space + 2 * wanted) + 32 * space**2)
    return linalg.Cost(
        4 * smaller**2 * larger + linalg.EIGH_FLOPS * smaller**3, 16 * smaller * larger + 24 * smaller**2
    )


def _factored_cost(shape: tuple[int, int], rank: int) -> linalg.Cost:
    """Those of factors: two QR decompositions, the SVD of the core, a product with each basis; float64."""
    sides = sum(shape)
    return linalg.Cost(6 * sides * rank**2 + (2 + _SVD) * rank**3, 24 * sides * rank + 40 * rank**2)


def _factors(shape: tuple[int, int], ranks: Sequence[int | None], options: Spectral) -> Sequence[bool]:
    """Those of factored deltas; those of dense ones where they are made for certain and take less memory."""
    limit = min(shape) // max(len(ranks), 1) if options.rank == "auto" else options.rank
    made = options.conflict_below is None and limit * sum(shape) <= shape[0] * shape[1]
    return [made or rank is not None for rank in ranks]


PROJECTOR = Projector(
    name="spectral",
    options=Spectral,
    function=spectral,
    joint=True,
    needs_noise=True,
    cost=_cost,
    factors=_factors,
    require=_require,
)
