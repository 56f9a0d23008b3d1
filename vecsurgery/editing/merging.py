"""One merge of one tensor: the recipe's numbers for it, deltas that are absent, the call, what the report says."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from vecsurgery.checkpoint.types import Layout, TensorInfo
from vecsurgery.delta import Delta, Dense, Factored, inner
from vecsurgery.editing.numbers import number_for
from vecsurgery.editing.seeds import with_own_seeds
from vecsurgery.editing.touches import Touch
from vecsurgery.errors import InputError
from vecsurgery.merges import Merge, Merged, MergedTensor
from vecsurgery.recipe.grammar import number_kind
from vecsurgery.recipe.types import Step


def reaches(merge: Merge, step: Step, info: TensorInfo, present: Sequence[str]) -> bool:
    """Whether a step's merge does something with a tensor. `present`: those of its deltas that change it."""
    if present or merge.unchanged is None:
        return bool(present)
    return bool(getattr(torch, info.dtype).is_floating_point) and merge.unchanged(step.options)


def merged_whole(touched: Iterable[Touch], merges: Mapping[str, Merge], info: TensorInfo) -> bool:
    """Whether a tensor that is no block matrix is merged by a method that needs all its rows at once."""
    return info.matrix is None and any(
        touch.effect == "merge" and not merges[touch.step.method].by_rows for touch in touched
    )


def merged(
    step: Step, merge: Merge, deltas: Mapping[str, Delta], base: Tensor | None, info: TensorInfo, layout: Layout
) -> Merged:
    """The one delta that a step makes of its deltas.

    `deltas`: those that are there, seen as (out, in); absent ones count as zeros. `base`: W as stored, of the same
    rows; it may be None where there are deltas and the merge is of them alone.
    Errors: InputError naming step and tensor where the method refuses its numbers, or gives NaN or infinity.
    """
    transposed = info.matrix is not None and info.matrix.transposed
    seen = base.T if base is not None and transposed else base
    names = step.selection.deltas
    zeros = Dense(torch.zeros(()).expand(next(iter(deltas.values())).shape if seen is None else seen.shape))
    given = {name: deltas.get(name, zeros) for name in names}
    weights = {name: number_for(step.weights.get(name, 1.0), info, layout) for name in names}
    tensor = MergedTensor(info.name, info.matrix is not None, transposed, seen if merge.of_weights else None)
    what = f"step {step.id!r}, tensor {info.name!r}"
    try:
        result = merge.function(given, weights, options=_options(step, info, layout), tensor=tensor)
    except InputError as error:
        raise type(error)(f"{what}: {error}") from error
    if not _finite(result.delta):
        raise InputError(
            f"{what}: {step.method} gives NaN or infinity; change its numbers (weights that sum to 0 cannot be "
            "normalised), or check the inputs with `vecsurgery check --weights`"
        )
    return result


def figures(result: Merged, deltas: Mapping[str, Delta]) -> dict[str, float]:
    """What the report says of a merge: its own facts, the norm of the result, and how alike the deltas were.

    `merged_norm`: ‖D′‖. `merged`: how many deltas changed the tensor. `cosine_least`, `cosine_largest`: of two of them.
    """
    facts = {**result.facts, "merged": float(len(deltas)), "merged_norm": result.delta.squared_norm() ** 0.5}
    cosines = []
    for first, second in combinations(deltas.values(), 2):
        norms = (first.squared_norm() * second.squared_norm()) ** 0.5
        if norms > 0.0:
            cosines.append(inner(first, second) / norms)
    if cosines:
        facts |= {"cosine_least": min(cosines), "cosine_largest": max(cosines)}
    return facts


def in_float32(delta: Delta) -> Delta:
    """The delta for products with a geometry: what a merge of weights gives is float64."""
    if isinstance(delta, Factored):
        return Factored(delta.left.float(), delta.right.float())
    return Dense(delta.values.float()) if delta.values.dtype == torch.float64 else delta


def _finite(delta: Delta) -> bool:
    parts = (delta.left, delta.right) if isinstance(delta, Factored) else (delta.values,)
    # A sum is finite unless an entry is not, or it overflows: the dear test only where the cheap one fails
    return all(bool(each.sum().isfinite()) or bool(each.isfinite().all()) for each in parts)


def _options(step: Step, info: TensorInfo, layout: Layout) -> Any:
    """The step's options with the numbers and the seeds of this tensor."""
    options = with_own_seeds(step, step.selection.deltas, info.parameter)
    if options is None:
        return None
    found: dict[str, Any] = {}
    for name, field in type(options).model_fields.items():
        kind, value = number_kind(field), getattr(options, name)
        if kind is None or value is None:
            continue
        if kind == "one":
            found[name] = number_for(value, info, layout)
            continue
        each = value if isinstance(value, Mapping) else dict.fromkeys(step.selection.deltas, value)
        numbers = {delta: each.get(delta, field.default) for delta in step.selection.deltas}
        found[name] = {
            delta: None if number is None else number_for(number, info, layout) for delta, number in numbers.items()
        }
    return options.model_copy(update=found)
