"""Which files a run writes: the shards of a checkpoint, the files of a delta, the parts of an adapter."""

from collections.abc import Collection, Mapping

from vecsurgery.checkpoint import ShardPlan, plan_groups, plan_shards
from vecsurgery.checkpoint.types import Layout, TensorInfo
from vecsurgery.editing.numbers import number_for
from vecsurgery.editing.touches import Touch
from vecsurgery.errors import UnsupportedError
from vecsurgery.planning.costs import PlannedTensor
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.sizes import output_type
from vecsurgery.recipe.types import Step

_NAMED = 3
_PART_SIZE = 1 << 26
"""Bytes of an adapter's parts: what an interrupted run has to decompose again at most."""


def planned_files(inputs: Inputs, tensors: Mapping[str, PlannedTensor]) -> tuple[ShardPlan, ...]:
    """The files of the output, each with the tensors that are read for it, in walking order.

    Those of an adapter are parts, which become one file at the end.
    """
    output, layout = inputs.recipe.output, inputs.into.layout
    if output.format == "checkpoint":
        named = [(info.name, output_type(info, output.dtype), info.shape) for info in layout.tensors.values()]
        return tuple(plan_shards(named, output.shard_size))
    named = [(info.name, info.dtype, info.shape) for info in layout.tensors.values()]
    sizes = [tensors[name].writes for name, _, _ in named]
    size, stem = (output.shard_size, "delta") if output.format == "delta" else (_PART_SIZE, "adapter-part")
    return tuple(plan_groups(named, sizes, size, stem))


def require_held(inputs: Inputs, tensors: Mapping[str, PlannedTensor]) -> None:
    """Refuse an adapter of a delta that changes what no adapter holds. Errors: UnsupportedError naming the tensors."""
    output = inputs.recipe.output
    if output.format != "adapter" or output.others == "drop":
        return
    layout = inputs.into.layout
    lost = [name for name, item in tensors.items() if not holds(layout.tensors[name], layout) and _live(inputs, item)]
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise UnsupportedError(
            f"output: an adapter cannot hold the change of {', '.join(lost[:_NAMED])}{more}: it has factors of the "
            "blocks' linear maps and of an untied head. Leave such tensors out (`output: {others: drop}`, "
            "`--others drop`), or write `format: delta`"
        )


def holds(info: TensorInfo, layout: Layout) -> bool:
    """Whether an adapter has a place for the change of a tensor: weights of linear maps that nothing is tied to."""
    tied = info.parameter in layout.tied or info.parameter in layout.tied.values()
    linear = info.matrix is not None or (info.kind == "head" and len(info.shape) == 2 and not tied)
    return linear and info.parameter.endswith(".weight")


def _live(inputs: Inputs, item: PlannedTensor) -> bool:
    """Whether a delta is left of a tensor behind steps and weights, as far as the recipe alone says it.

    A merge of weights may also change what none of its deltas does (by weights that do not sum to 1): that is known
    when the numbers are.
    """
    info, layout = inputs.into.layout.tensors[item.tensor], inputs.into.layout
    live = set(item.deltas)
    for touch in inputs.touches[item.tensor]:
        concerned = live & set(touch.step.selection.deltas)
        if touch.effect == "merge":
            live -= concerned
            if merged(inputs, touch.step, info, concerned):
                assert touch.step.result is not None  # the grammar: a merge has a result
                live.add(touch.step.result)
        elif touch.effect == "drop" or silenced(touch, info, layout):
            live -= concerned
    return any(number_for(inputs.recipe.weights.get(delta, 1.0), info, layout) != 0.0 for delta in live)


def merged(inputs: Inputs, step: Step, info: TensorInfo, deltas: Collection[str]) -> bool:
    """Whether a merge makes something of the deltas that are there: one of deltas alone needs a weight besides 0."""
    numbers = (number_for(step.weights.get(delta, 1.0), info, inputs.into.layout) for delta in deltas)
    return any(number != 0.0 for number in numbers) or (bool(deltas) and inputs.merges[step.method].of_weights)


def silenced(touch: Touch, info: TensorInfo, layout: Layout) -> bool:
    """Whether a step multiplies the whole tensor by 0."""
    return touch.effect == "scale" and touch.rows is None and number_for(touch.step.number, info, layout) == 0.0
