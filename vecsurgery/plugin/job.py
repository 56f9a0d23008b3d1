"""One merge inside mergekit: what its configuration named, opened, and each tensor of the result.

The result is that of `vecsurgery.editing`, so that it has the bytes that `vecsurgery run` writes.
"""

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from vecsurgery.checkpoint import Stored
from vecsurgery.delta import Difference
from vecsurgery.editing.audit import Reader
from vecsurgery.editing.edited import Edited
from vecsurgery.editing.sites import SiteReader
from vecsurgery.errors import InputError
from vecsurgery.fits import Coefficients
from vecsurgery.geometry import Geometry
from vecsurgery.plugin.wording import told
from vecsurgery.projectors import Projector
from vecsurgery.recipe.types import Selection, Step
from vecsurgery.report import by_weight, of_matrices

Values = Mapping[str, Any]
"""What a model's parameters say for one tensor: `weight`, and options of the projector."""


class Handed(Reader):
    """A checkpoint whose current tensor is the one that mergekit has read; any other is read from its files."""

    def __init__(self, weights: Stored) -> None:
        super().__init__(weights)
        self._held: tuple[str, Tensor] | None = None

    def hand(self, tensor: str, values: Tensor) -> None:
        """Take what mergekit read for a tensor; it is brought back to its stored type, which loses nothing.

        Errors: InputError where its shape is not that of the file.
        """
        info = self.layout.tensors[tensor]
        if tuple(values.shape) != info.shape:
            raise InputError(
                f"merging {tensor!r}: mergekit hands over a tensor of shape {tuple(values.shape)}, the files of "
                f"{self.folder} hold {info.shape}; expected whole tensors, without options that cut vocabularies"
            )
        self._held = (tensor, values.to("cpu", getattr(torch, info.dtype)))

    def drop(self) -> None:
        """The tensor is done with."""
        self._held = None

    def read(self, tensor: str, rows: "slice | Tensor | None" = None) -> Tensor:
        """The tensor, or rows of it, in its stored type."""
        if self._held is None or self._held[0] != tensor:
            return self._weights.read(tensor, rows)
        return self._held[1] if rows is None else self._held[1][rows]


@dataclass(frozen=True)
class Model:
    """A model of the configuration that is no base.

    `fixed`: options that hold for all tensors (paths of geometry files). `coefficients`: what a fit found for it.
    """

    name: str
    """What its delta is called: in seeds and messages."""
    tuned: Handed
    delta: Difference
    fixed: Values
    coefficients: Coefficients | None = None


@dataclass
class Job:
    """Everything that the methods need. `models`: mergekit's id → model, in the order of the configuration.

    `stored`: mergekit's name of a tensor → its name in the files of the base. `dtype`: type of the result, `stored` for
    that of each tensor of the base.
    """

    base: Handed
    base_id: Hashable
    models: Mapping[Any, Model]
    projector: Projector | None
    geometries: Mapping[str, Geometry]
    stored: Mapping[str, str]
    dtype: str
    _warned: dict[str, list[tuple[str, str, str, str]]] = field(default_factory=dict)
    """Tensor → what projectors warned of: step, delta, tensor, text."""
    _made: dict[str, Edited] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def merged(self, tensor: str, tensors: Mapping[Any, Tensor], values: Mapping[Any, Values]) -> Tensor:
        """The tensor of the result. `tensors`: what mergekit read, by model; `values`: the models' parameters for it.

        Errors: InputError naming the tensor.
        """
        name = self.stored[tensor]
        with self._lock:
            try:
                self._hand(name, tensors)
                result = self.edited(values).edit(name)
            finally:
                for weights in [self.base, *(model.tuned for model in self.models.values())]:
                    weights.drop()
            self._warned[name] = [
                (fact.step, fact.delta, name, text) for fact in result.facts for text in fact.warnings
            ]
        return result.tensor

    def warnings(self) -> list[str]:
        """What projectors warned of in the tensors that are merged, told as the report of a run tells it."""
        in_order = [each for tensor in self.base.layout.tensors for each in self._warned.get(tensor, [])]
        return by_weight(of_matrices(in_order))

    def _hand(self, name: str, tensors: Mapping[Any, Tensor]) -> None:
        for key, values in tensors.items():
            weights = self.base if key == self.base_id else self.models[key].tuned
            if name in weights.layout.tensors:  # under another name: it is read from the files
                weights.hand(name, values)

    def edited(self, values: Mapping[Any, Values]) -> Edited:
        """The edited weights under these parameters; those of one tensor usually hold for many.

        Errors: InputError for options that the projector refuses, RecipeError's kin for selections that match nothing.
        """
        key = repr([(model, sorted(own.items())) for model, own in values.items()])
        if key not in self._made:
            self._made[key] = self._edited({model: values.get(model, {}) for model in self.models})
        return self._made[key]

    def _edited(self, values: Mapping[Any, Values]) -> Edited:
        named = {self.models[key].name: dict(own) for key, own in values.items()}
        weights = {name: own.pop("weight", 1.0) for name, own in named.items()}
        return Edited(
            into=self.base,
            deltas={model.name: model.delta for model in self.models.values()},
            steps=[*self._projections(named), *self._multiplications()],
            projectors={} if self.projector is None else {self.projector.name: self.projector},
            subspaces=SiteReader(self.geometries, self.base.layout),
            weights=weights,
            dtype=self.dtype,
            coefficients={
                _step_id(model): model.coefficients.tensors
                for model in self.models.values()
                if model.coefficients is not None
            },
        )

    def _projections(self, options: Mapping[str, Values]) -> list[Step]:
        """One step for each delta, or for all where the projector is joint."""
        if self.projector is None:
            return []
        models = list(self.models.values())
        groups = [models] if self.projector.joint else [[model] for model in models]
        return [
            Step(
                id=self.projector.name,
                verb="project",
                method=self.projector.name,
                selection=Selection(tuple(model.name for model in group)),
                options=_options(self.projector, {**options[group[0].name], **group[0].fixed}, group[0].name),
            )
            for group in groups
        ]

    def _multiplications(self) -> list[Step]:
        """The steps that multiply by coefficients; as a fit does it in a recipe."""
        return [
            Step(
                id=_step_id(model),
                verb="fit",
                method=model.coefficients.method,
                selection=Selection((model.name,), where=self._fitted(model.coefficients)),
            )
            for model in self.models.values()
            if model.coefficients is not None
        ]

    def _fitted(self, found: Coefficients) -> tuple[str, ...]:
        """The tensors of a coefficient file, where they are not all block matrices."""
        matrices = {name for name, info in self.base.layout.tensors.items() if info.matrix is not None}
        return () if matrices <= set(found.tensors) else tuple(found.tensors)


def _step_id(model: Model) -> str:
    return f"coefficients-{model.name}"


def _options(projector: Projector, values: Values, model: str) -> Any:
    try:
        return projector.options.model_validate(dict(values), strict=True)
    except ValidationError as error:
        raise InputError(f"parameters of {projector.name} for {model}: {told(error, projector.name)}") from error
