"""The configuration of a merge, as mergekit reads it, with what our methods refuse said before anything is opened."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.common import dtype_from_name
from mergekit.config import (
    ConfigReader,
    InputSliceDefinition,
    MergeConfiguration,
    OutputSliceDefinition,
)
from mergekit.parameter_resolver import resolve_parameters
from pydantic import ValidationError

from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.plugin.content import content_of, require_method, validated
from vecsurgery.plugin.job import Values
from vecsurgery.plugin.methods import CONSTANTS, SCALE, names_geometry, projectors, spec, values_by_model
from vecsurgery.plugin.parameters import check_parameters
from vecsurgery.plugin.wording import told
from vecsurgery.projectors import Projector
from vecsurgery.recipe.problems import unknown

_REFUSED = {
    "slices": "the layers of the result would be others than those that the geometry was measured at; use `models:`",
    "modules": "use `models:`",
    "tokenizer": "the rows of the result are those of base_model; leave it out",
    "tokenizer_source": "the rows of the result are those of base_model; leave it out",
}


@dataclass(frozen=True)
class Configuration:
    """A configuration with one of our methods. `path`: its file. `projector`: None for the method that only scales."""

    path: Path
    merge: Any
    """mergekit's MergeConfiguration."""
    projector: Projector | None

    @property
    def base(self) -> Any:
        """mergekit's reference to the base model."""
        return self.merge.base_model

    @property
    def tuned(self) -> list[Any]:
        """References to the other models, in order."""
        return [each.model for each in self.merge.models if each.model != self.base]

    def constant(self, model: Any, key: str) -> str | None:
        """A parameter that is the same for all tensors: the model's own, else that of the whole configuration.

        Errors: InputError where it is not text.
        """
        own = next((each.parameters or {} for each in self.merge.models if each.model == model), {})
        value = own.get(key, (self.merge.parameters or {}).get(key))
        if value is not None and not isinstance(value, str):
            raise InputError(f"{self.path}: {key} of {model}: expected one text for the whole model; got {value!r}")
        return value

    def files(self, model: Any) -> dict[str, str]:
        """Options of the projector that name a geometry → the path of its file."""
        fields = {} if self.projector is None else self.projector.options.model_fields
        named = {key: self.constant(model, key) for key, field in fields.items() if names_geometry(field)}
        return {key: value for key, value in named.items() if value is not None}

    def values(self, tensors: Iterable[str], blocks: int) -> Iterator[Mapping[Any, Values]]:
        """The parameters of all models for each of these tensors, taken as of the first and as of the last block.

        mergekit's own rules decide: gradients, substrings as filters. Errors: InputError for a value of another type.
        """
        method = spec(self.merge.merge_method, self.projector)
        given = {each.model: each.parameters for each in self.merge.models}
        sources = [
            InputSliceDefinition(model=model, layer_range=(0, blocks), parameters=given.get(model))
            for model in [*self.tuned, self.base]
        ]
        whole = OutputSliceDefinition(sources=sources)
        for tensor in tensors:
            for position in (0.0, 1.0):
                reader = ConfigReader(config=self.merge, t=position, slice_out=whole)
                try:
                    shared, single = resolve_parameters(
                        method,
                        tensor_name=tensor,
                        inputs={source.model: tensor for source in sources},
                        sources=reader.parameter_sources,
                        base_model=self.base,
                        t=position,
                    )
                except ValidationError as error:
                    raise InputError(f"{self.path}: parameters for {tensor!r}: {told(error, 'value')}") from error
                except (RuntimeError, ValueError) as error:
                    raise InputError(f"{self.path}: parameters for {tensor!r}: {error}") from error
                keys = [parameter.name for parameter in method.input_parameters]
                by_key = {key: {model: single[model][key] for model in self.tuned} for key in keys}
                yield values_by_model({**shared, **by_key}, self.tuned)

    @property
    def dtype(self) -> str:
        """The type that the result is stored in, `stored` for that of the base."""
        named = self.merge.out_dtype or self.merge.dtype
        return str(named).removeprefix("torch.") if named else "stored"

    def require_dtype(self, model: str, stored: Iterable[str]) -> None:
        """Refuse a type of computation that a model's stored numbers would be rounded to before they are subtracted."""
        wide = dtype_from_name(self.merge.dtype)
        for name in () if wide is None else stored:
            own = getattr(torch, name)
            if own.is_floating_point and torch.promote_types(own, wide) != wide:
                raise InputError(
                    f"{self.path}: dtype: {self.merge.dtype} would round {model}, which is stored in {name}, before "
                    f"anything is computed; leave dtype out (the computation is float32 or wider) and write "
                    f"out_dtype: {self.merge.dtype}"
                )


def read(path: Path, warn: Callable[[str], None]) -> Configuration | None:
    """The configuration in a file; None where its method is mergekit's own.

    `warn` is told of what mergekit's own methods ignore. Errors: InputError for a file that mergekit cannot read, an
    unknown method, keys and parameters that do not exist; UnsupportedError for what our methods do not do.
    """
    content = content_of(path)
    known: dict[str, Projector | None] = {**projectors(), SCALE: None}
    method = require_method(path, content, known)
    if method not in known:
        check_parameters(path, content, warn)
        return None
    _check_keys(path, content, MergeConfiguration.model_fields)
    for key, reason in _REFUSED.items():
        if content.get(key):
            raise UnsupportedError(f"{path}: {key} does not go with {method}: {reason}")
    found = Configuration(path, validated(path, content), known[method])
    _check_models(found)
    names = _parameter_names(found)
    for where, given in [("parameters", found.merge.parameters)] + [
        (f"parameters of {each.model}", each.parameters) for each in found.merge.models
    ]:
        for key in given or {}:
            if key not in names:
                raise InputError(f"{path}: {where}: {unknown('parameter', key, names)}")
    return found


def _check_keys(path: Path, content: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in content:
        if key not in known:
            raise InputError(f"{path}: {unknown('key', str(key), known)}")


def _check_models(found: Configuration) -> None:
    if found.base is None:
        raise InputError(f"{found.path}: base_model is required: the deltas are the models minus this one")
    if not found.tuned:
        raise InputError(f"{found.path}: models: expected at least one model beside base_model")
    for model in [found.base, *found.tuned]:
        if model.lora is not None:
            raise UnsupportedError(
                f"{found.path}: {model}: mergekit rounds an adapter to the type of its model, which spoils the delta; "
                "use a recipe, deltas: {NAME: {adapter: …}}"
            )


def _parameter_names(found: Configuration) -> list[str]:
    options = [] if found.projector is None else list(found.projector.options.model_fields)
    return ["weight", *CONSTANTS, *options]


def text_of(model: Any) -> str:
    """A model as the recipe language names it."""
    return str(model.model)
