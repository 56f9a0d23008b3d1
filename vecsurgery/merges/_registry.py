"""How a merge is made known: one object a file, found by its name in a recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

from vecsurgery.linalg import CostFunction

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.delta import Delta


@dataclass(frozen=True)
class MergedTensor:
    """What a merge is told of the tensor whose deltas it gets."""

    name: str
    """As it is stored in `into`."""
    matrix: bool
    """Whether it is a block matrix: the weight of a linear map inside a block."""
    transposed: bool = False
    """Whether it is stored as the transpose of what is seen here."""
    base: "Tensor | None" = None
    """W of `into`, in its stored type and seen as the deltas are; None where the merge does not ask for it."""


@dataclass(frozen=True)
class Merged:
    """What a merge gives back for one tensor."""

    delta: "Delta"
    facts: Mapping[str, float] = field(default_factory=dict)
    """Figures of this tensor for the report, by name."""
    warnings: tuple[str, ...] = ()


class MergeFunction(Protocol):
    """The shape of every merge's function."""

    def __call__(
        self, deltas: "Mapping[str, Delta]", weights: Mapping[str, float], *, options: Any, tensor: MergedTensor
    ) -> Merged: ...


@dataclass(frozen=True)
class Merge:
    """A merge and its options.

    `function(deltas, weights, *, options, tensor)` is pure. `deltas` maps every delta of the step to its change of one
    tensor, in the step's order; one that does not change the tensor is there as zeros. `weights` has the recipe's
    number of each for this tensor. `options` is an instance of `options` in which the numbers of the recipe language
    (fields of the types `Number` and `Numbers` of `vecsurgery.recipe.grammar`) are those of this tensor: a float, or a
    map from deltas to floats. A whole number that carries `json_schema_extra={"seed": True}` is a seed, and means what
    it means to a projector: the function finds there a number of its own for each step and tensor.
    """

    verb: ClassVar[Literal["merge"]] = "merge"

    name: str
    options: type[BaseModel]
    function: MergeFunction
    least: int = 1
    """Fewest deltas that it merges."""
    most: int | None = None
    """Most deltas that it merges; None for any number."""
    weighted: bool = True
    """False where it takes no weights."""
    of_weights: bool = False
    """True where it merges W + D and needs W, `tensor.base`; else it is given deltas alone."""
    unchanged: Callable[[Any], bool] | None = None
    """Of options: whether a tensor that no delta changes is merged too, since the result may differ. None: never."""
    by_rows: bool = False
    """True where rows of a tensor that is no block matrix can be merged apart, so that not all must be in memory."""
    factors: bool = False
    """True where it gives back factors wherever all deltas that change a matrix are factors."""
    cost: CostFunction | None = None
    """What the plan counts for a block matrix beside the copies that every merge holds; None for nothing worth it."""
