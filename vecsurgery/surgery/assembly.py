"""From opened inputs, geometry files and coefficient files to the edited weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from vecsurgery.checkpoint.types import Weights
from vecsurgery.delta import DeltaSource, WithAdapter
from vecsurgery.editing.audit import Remembered
from vecsurgery.editing.edited import Edited
from vecsurgery.editing.sites import SiteReader
from vecsurgery.fits import Coefficients
from vecsurgery.geometry import Geometry
from vecsurgery.planning.inputs import Inputs, delta_source
from vecsurgery.recipe.types import Step

Reader = TypeVar("Reader", bound=Weights)


@dataclass(frozen=True)
class Rewired(Generic[Reader]):
    """The models of a recipe behind readers, and the deltas' sources over them."""

    into: Reader
    deltas: Mapping[str, DeltaSource]
    models: tuple[Reader, ...]


def rewired(inputs: Inputs, wrap: Callable[[Weights, str], Reader]) -> Rewired[Reader]:
    """Every open checkpoint as `wrap(model, its role in the recipe)`, and the deltas made anew over these."""
    wrapped = {id(model): wrap(model, inputs.roles[id(model)]) for model in inputs.stored.values()}
    into = wrapped[id(inputs.into)]
    deltas: dict[str, DeltaSource] = {}
    for name, pair in inputs.pairs.items():
        read = replace(pair, tuned=_wrapped(pair.tuned, wrapped), base=_wrapped(pair.base, wrapped))
        deltas[name] = delta_source(name, read, into, inputs.alignments.get(name))
    return Rewired(into, deltas, tuple(wrapped.values()))


def _wrapped(model: Weights | None, wrapped: Mapping[int, Weights]) -> Weights | None:
    if model is None:
        return None
    if isinstance(model, WithAdapter):
        return WithAdapter(wrapped[id(model.weights)], model.adapter_folder)
    return wrapped[id(model)]


def assembled(
    inputs: Inputs,
    geometries: Mapping[str, Geometry],
    coefficients: Mapping[str, Coefficients],
    *,
    steps: Sequence[Step] | None = None,
    read: "Rewired[Any] | None" = None,
) -> Edited:
    """The edited weights of a run. `steps`: those that count, all of the recipe by default; `read`: readers of the
    models; by default, such that hand out twice what is asked for twice in a row, and read it once.
    """
    read = rewired(inputs, Remembered) if read is None else read
    return Edited(
        into=read.into,
        deltas=read.deltas,
        steps=inputs.recipe.steps if steps is None else steps,
        projectors=inputs.projectors,
        subspaces=SiteReader(geometries, inputs.into.layout),
        weights=inputs.recipe.weights,
        dtype=inputs.recipe.output.weights_dtype,
        coefficients={name: found.tensors for name, found in coefficients.items()},
        merges=inputs.merges,
        changes=inputs.changes,
        touched=inputs.touches if steps is None else None,
    )
