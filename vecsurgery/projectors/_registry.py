"""How a projector is made known: one object a file, found by its name in a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

from vecsurgery.linalg import CostFunction

if TYPE_CHECKING:
    from vecsurgery.delta import Delta, Edit
    from vecsurgery.linalg import Subspace


class ProjectFunction(Protocol):
    """The shape of every projector's function."""

    def __call__(
        self, deltas: "Mapping[str, Delta]", geometry: "Mapping[str, Subspace]", *, options: Any
    ) -> "Edit": ...


class FactorsFunction(Protocol):
    """Tells the plan which of these deltas of a matrix (out, in) come back as factors; `ranks` as of `CostFunction`."""

    def __call__(self, shape: tuple[int, int], ranks: Sequence[int | None], options: Any, /) -> Sequence[bool]: ...


class RequireFunction(Protocol):
    """Raises InputError where the function would refuse its options for these deltas of a matrix (out, in), whatever
    numbers they hold. `ranks`: delta → as of `CostFunction`. The caller says which step and tensor it is.
    """

    def __call__(self, shape: tuple[int, int], ranks: Mapping[str, int | None], options: Any, /) -> None: ...


def factors_stay(
    shape: tuple[int, int],  # noqa: ARG001
    ranks: Sequence[int | None],
    options: Any,  # noqa: ARG001
) -> Sequence[bool]:
    """Of a projector that gives back factors where it is given factors."""
    return [rank is not None for rank in ranks]


@dataclass(frozen=True)
class Projector:
    """A projector and its options.

    `function(deltas, geometry, *, options)` is pure: `deltas` maps delta names to the deltas of one matrix, `geometry`
    maps geometry names to the subspaces of its site, `options` is an instance of `options`.
    A field of `options` that names a geometry carries `json_schema_extra={"reference": "geometry"}`; the field
    `others` ("source", "drop", or "mean": divided by the number of the step's deltas that change the tensor) says what
    becomes of tensors that are no block matrix. A whole number that carries
    `json_schema_extra={"seed": True}` is a seed: the function finds there a number of its own for each matrix and
    delta, drawn from what the user wrote and from their names, so that chance differs between them and never between
    two runs.
    `joint`: the function wants all deltas of the step at once; otherwise it is called once per delta.
    """

    verb: ClassVar[Literal["project"]] = "project"

    name: str
    options: type[BaseModel]
    function: ProjectFunction
    joint: bool = False
    unprotected_warning: bool = False
    """True where a matrix that the selection leaves out deserves a warning, because it is added unprotected."""
    needs_noise: bool = False
    """True where the function looks at `Dense.noise`, which is then filled in from the stored types."""
    cost: CostFunction | None = None
    """What the plan counts beside products with a geometry; None for nothing worth counting."""
    factors: FactorsFunction | None = None
    """Which deltas come back as factors for certain; None for none of them: an adapter of them then takes a rank."""
    require: RequireFunction | None = None
    """What shapes alone refuse, told before anything is measured or written; None for nothing."""
