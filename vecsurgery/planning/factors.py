"""Whether an adapter can be written without a rank to cut it off at: which deltas are factors behind the steps."""

from collections.abc import Mapping

from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.editing.merging import reaches
from vecsurgery.editing.numbers import number_for
from vecsurgery.editing.touches import Touch
from vecsurgery.errors import UnsupportedError
from vecsurgery.planning.costs import PlannedTensor
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.outputs import holds, merged, silenced

Factors = dict[str, tuple[int | None, str]]
"""Delta of one tensor → rank of its factors (None where it may be dense), and what made it dense."""


def require_factors(inputs: Inputs, tensors: Mapping[str, PlannedTensor]) -> None:
    """Refuse an adapter without a rank where a delta that is added to a matrix may be no product of two small factors.

    Errors: UnsupportedError naming tensor, delta, and the step that made it dense.
    """
    output, layout = inputs.recipe.output, inputs.into.layout
    if output.format != "adapter" or output.rank is not None:
        return
    for name, item in tensors.items():
        info = layout.tensors[name]
        if not item.deltas or not holds(info, layout):
            continue
        for delta, (rank, why) in _behind_the_steps(inputs, info, item).items():
            if rank is None and number_for(inputs.recipe.weights.get(delta, 1.0), info, layout) != 0.0:
                raise UnsupportedError(
                    f"output: an adapter without a rank holds products of two small factors alone, and the change of "
                    f"{name!r} by {delta!r} may be none: {why}. Give the rank to cut it off at: "
                    "`output: {format: adapter, rank: 16}`"
                )


def _behind_the_steps(inputs: Inputs, info: TensorInfo, item: PlannedTensor) -> Factors:
    live: Factors = {
        name: (inputs.deltas[name].rank(info.parameter), f"deltas.{name} is a difference of whole matrices there")
        for name in item.deltas
    }
    for touch in inputs.touches[info.name]:
        _carry_out(inputs, info, touch, live)
    return live


def _carry_out(inputs: Inputs, info: TensorInfo, touch: Touch, live: Factors) -> None:
    """What a step leaves of the live deltas of a tensor."""
    step = touch.step
    names = [name for name in step.selection.deltas if name in live]
    if touch.effect == "merge":
        ranks = [live.pop(name)[0] for name in names]
        merge = inputs.merges[step.method]
        if reaches(merge, step, info, names) and merged(inputs, step, info, names):
            assert step.result is not None  # the grammar: a merge has a result
            factored = [rank for rank in ranks if rank is not None]
            stays = merge.factors and len(factored) == len(ranks) > 0
            live[step.result] = sum(factored) if stays else None, _made(step.id, step.method)
    elif touch.effect == "drop" or silenced(touch, info, inputs.into.layout):
        for name in names:
            del live[name]
    elif touch.effect == "edit" and names:
        _project(inputs, info, touch, names, live)


def _project(inputs: Inputs, info: TensorInfo, touch: Touch, names: list[str], live: Factors) -> None:
    projector = inputs.projectors[touch.step.method]
    rows, columns = reversed(info.shape) if info.matrix is not None and info.matrix.transposed else info.shape
    if touch.rows is not None:
        rows = sum(stop - start for start, stop in touch.rows)
    for group in [names] if projector.joint else [[name] for name in names]:
        ranks = [live[name][0] for name in group]
        asked = projector.factors
        found = asked((rows, columns), ranks, touch.step.options) if asked else [False] * len(group)
        for name, rank, stays in zip(group, ranks, found, strict=True):
            # some rows of a dense delta stay dense, whatever is made of the others
            if not stays or (touch.rows is not None and rank is None):
                live[name] = None, live[name][1] if rank is None else _made(touch.step.id, touch.step.method)
            else:
                live[name] = min(rows, columns) if rank is None else rank, ""


def _made(step: str, method: str) -> str:
    what = f"step {step!r}" if step == method else f"step {step!r} ({method})"
    return f"{what} makes a whole matrix of it"
