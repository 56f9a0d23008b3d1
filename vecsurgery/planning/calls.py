"""What projectors and merges will be given of one tensor: shapes and ranks, before anything is read."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.editing.touches import Touch
from vecsurgery.errors import InputError
from vecsurgery.planning.inputs import Inputs
from vecsurgery.recipe.types import Step


@dataclass(frozen=True)
class Call:
    """One call of a method. `shape`: (out, in) of the rows that it gets; `ranks`: delta → rank of its factors, None
    where it may be dense. `as_loaded`: no step above has made any of these deltas anew.
    """

    step: Step
    shape: tuple[int, int]
    ranks: Mapping[str, int | None]
    as_loaded: bool


def calls(inputs: Inputs, info: TensorInfo, present: Collection[str]) -> Iterator[Call]:
    """The calls of projectors and merges for a block matrix, in order; none for another tensor. `present`: the deltas
    that change it.
    """
    if info.matrix is None:
        return
    ranks: dict[str, int | None] = {name: inputs.deltas[name].rank(info.parameter) for name in present}
    loaded = set(present)
    for touch in inputs.touches[info.name]:
        if touch.effect not in ("edit", "merge"):
            continue
        names = sources(inputs, touch.step.selection.deltas, ranks)
        joint = touch.effect == "merge" or inputs.projectors[touch.step.method].joint
        for group in [names] if joint else [[name] for name in names]:
            if group:
                found = {name: ranks.get(name) for name in group}
                yield Call(touch.step, _shape(inputs, info, touch), found, loaded.issuperset(group))
        ranks |= dict.fromkeys(ranks.keys() & set(touch.step.selection.deltas))  # what it gives back may be dense
        loaded -= set(touch.step.selection.deltas)


def require_possible(inputs: Inputs, changed: Mapping[str, Collection[str]]) -> None:
    """Refuse options that a projector cannot carry out on some matrix, by its shape. `changed`: delta → parameters.

    Deltas that a step above makes anew may have a lower rank than their shape tells: those are left to the projector.
    Errors: InputError naming step and tensor.
    """
    # the smallest first: what fits them fits the others
    for info in sorted(inputs.into.layout.tensors.values(), key=lambda info: min(info.shape, default=0)):
        for call in calls(inputs, info, [name for name in inputs.deltas if info.parameter in changed[name]]):
            require = inputs.projectors[call.step.method].require if call.step.verb == "project" else None
            if require is None or not call.as_loaded:
                continue
            try:
                require(call.shape, call.ranks, call.step.options)
            except InputError as error:
                raise InputError(f"step {call.step.id!r}, tensor {info.name!r}: {error}") from error


def sources(inputs: Inputs, deltas: Sequence[str], present: Collection[str]) -> list[str]:
    """Those of the deltas that change a tensor, merged ones where one of what they are made of does."""
    made = {step.result: step.selection.deltas for step in inputs.recipe.merges}
    return [name for name in deltas if name in present or sources(inputs, made.get(name, ()), present)]


def _shape(inputs: Inputs, info: TensorInfo, touch: Touch) -> tuple[int, int]:
    assert info.matrix is not None  # `calls` tells of block matrices
    rows = info.shape[1] if info.matrix.transposed else info.shape[0]
    if touch.rows is not None:
        rows = sum(stop - start for start, stop in touch.rows)
    return rows, inputs.into.layout.sites[info.matrix.site].width
