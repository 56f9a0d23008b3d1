"""The recipe's numbers for one tensor."""

from typing import Any, Literal

from vecsurgery.checkpoint.types import Layout, TensorInfo
from vecsurgery.recipe.numbers import value_at


def number_for(number: Any, info: TensorInfo, layout: Layout) -> float:
    """The recipe's number for one tensor: scalar, gradient over the blocks, or the first filter that matches."""
    return value_at(number, info.name, info.layer, layout.blocks, _position(info, layout))


def _position(info: TensorInfo, layout: Layout) -> Literal["before", "block", "after"]:
    """Where a tensor stands to the blocks in walking order: position embeddings come before, the final norm after."""
    if info.layer is not None:
        return "block"
    for name, other in layout.tensors.items():
        if name == info.name:
            return "before"
        if other.layer is not None:
            break
    return "after"
