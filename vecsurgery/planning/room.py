"""Room on disk: what the files of an output may take beside the values that the plan counts, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.delta.reading import seen_shape
from vecsurgery.planning.costs import PlannedTensor
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.sizes import item_size, number_size

_WAYS = 2
"""A patch to apply a delta, and one to undo it."""
_PLACE, _FAR_PLACE, _NEAR = 4, 8, 2**31
"""Bytes of the place of an entry that a patch names, in tensors of fewer entries than `_NEAR` and in others."""
_ROW = 8
"""Bytes of the number of a row."""


@dataclass(frozen=True)
class Room:
    """Upper bounds in bytes.

    `patches`: of all patches of a delta, as if every entry needed one: where rounding loses little they take a few
    percent of it. `forms`: of ways to store a tensor of a delta that take more than its values as they are (numbers of
    rows, factors of a wider type). `passing`: of what is gone when the output is finished: the notes on the tensor that
    is compared bit by bit, the parts of an adapter.
    """

    patches: int = 0
    forms: int = 0
    passing: int = 0

    @property
    def total(self) -> int:
        return self.patches + self.forms + self.passing


def output_room(inputs: Inputs, tensors: Mapping[str, PlannedTensor]) -> Room:
    """What an output may take beside `PlannedTensor.writes`."""
    output, layout = inputs.recipe.output, inputs.into.layout
    if output.format == "checkpoint":
        return Room()
    if output.format == "adapter":
        return Room(passing=sum(item.writes for item in tensors.values()))
    changed = [(layout.tensors[name], item) for name, item in tensors.items() if item.action != "copy"]
    return Room(
        patches=sum(_patch(info) for info, _ in changed),
        forms=sum(_form(inputs, info, item) for info, item in changed),
        passing=max((_notes(info) for info, _ in changed), default=0),
    )


def _patch(info: TensorInfo) -> int:
    """The bits of every entry, both ways: places and bits are stored only where they take less."""
    return _WAYS * prod(info.shape) * item_size(info.dtype)


def _notes(info: TensorInfo) -> int:
    """Places and bits of every entry, both ways, before it is known which of the two forms is smaller."""
    numbers = prod(info.shape)
    return _WAYS * numbers * ((_PLACE if numbers < _NEAR else _FAR_PLACE) + item_size(info.dtype))


def _form(inputs: Inputs, info: TensorInfo, item: PlannedTensor) -> int:
    """What rows with their numbers, or factors, may take more than the whole tensor."""
    if len(info.shape) < 2:
        return 0
    rows = seen_shape(info)[0] * _ROW
    if not _may_be_factored(inputs, info, item):
        return rows
    # Factors are stored only where they are fewer numbers than the tensor has.
    return max(rows, prod(info.shape) * number_size(inputs.recipe.output.dtype) - item.writes)


def _may_be_factored(inputs: Inputs, info: TensorInfo, item: PlannedTensor) -> bool:
    """Whether its delta may come as factors: a sum of adapters, or what a projector or a merge makes."""
    if any(touch.effect in ("edit", "merge") for touch in inputs.touches[info.name]):
        return True
    return all(inputs.deltas[name].rank(info.parameter) is not None for name in item.deltas)
