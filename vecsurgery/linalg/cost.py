"""What a computation on one matrix takes, told from shapes alone: a method says it, a plan adds it up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Cost:
    """What a method takes for one matrix at most, beside reading its deltas and holding them before and after."""

    flops: int
    memory: int
    """Bytes."""


class CostFunction(Protocol):
    """Tells the plan what a matrix (out, in) will cost that these deltas reach: one with factors by their rank, a dense
    one as None.
    """

    def __call__(self, shape: tuple[int, int], ranks: Sequence[int | None], options: Any, /) -> Cost: ...
