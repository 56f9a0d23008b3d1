"""Merge methods for mergekit: one for each projector, with its options as parameters, and one for coefficients."""

from collections.abc import Mapping
from typing import Any

from mergekit.merge_methods import (
    BasePolicy,
    InputContract,
    MergeMethodSpec,
    OptionalTensorPolicy,
    ParameterScope,
    TensorGroup,
    register,
    registered_methods,
)
from mergekit.merge_methods.base import FunctionalGroupMergeMethod, ParameterSpec
from pydantic.fields import FieldInfo
from torch import Tensor

from vecsurgery import methods
from vecsurgery.plugin.job import Job
from vecsurgery.projectors import Projector

PREFIX = "vecsurgery_"
SCALE = f"{PREFIX}scale"
"""The method without a projector: deltas times weights and coefficients."""
CONSTANTS = ("name", "base", "coefficients")
"""Parameters of a model that hold for all its tensors; mergekit does not see them."""

_running: list[Job] = []
"""The job that the methods work for. mergekit keeps methods in one table for the whole process and takes none out."""


def projectors() -> dict[str, Projector]:
    """Every projector, built in or of another distribution, by the name of its merge method."""
    found = methods.available().values()
    return {f"{PREFIX}{each.name}": each for each in found if isinstance(each, Projector)}


def register_all() -> None:
    """Make every method known to mergekit, once."""
    known = {method.spec.name for method in registered_methods()}
    for name, projector in {**projectors(), SCALE: None}.items():
        if name not in known:
            register(FunctionalGroupMergeMethod(spec(name, projector), _merged))


def start(job: Job) -> None:
    """From now on the methods work for this job."""
    _running[:] = [job]


def stop() -> None:
    """The job is done."""
    _running.clear()


def spec(name: str, projector: Projector | None) -> Any:
    """What mergekit is told of a method.

    Its parameters are `weight`, one number a model, and the projector's options: for each model, or the same for all
    where the projector is joint. Left out are those that name files or models; they cannot differ between tensors.
    """
    scope = ParameterScope.SHARED if projector is not None and projector.joint else ParameterScope.NON_BASE
    options = {} if projector is None else projector.options.model_fields
    parameters = [ParameterSpec("weight", float, ParameterScope.NON_BASE, default=1.0)]
    parameters += [
        ParameterSpec(key, field.annotation | None, scope, default=None)  # type: ignore[operator]
        for key, field in options.items()
        if not names_geometry(field)
    ]
    return MergeMethodSpec(
        name=name,
        parameters=tuple(parameters),
        contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2),
        pretty_name=name.removeprefix(PREFIX).replace("_", " ") + " of vecsurgery",
        optional_tensor_policy=OptionalTensorPolicy.BASE_OR_SKIP,
        uses_accelerator=False,
    )


def names_geometry(field: FieldInfo) -> bool:
    """Whether an option names a geometry; in a configuration of mergekit it is the path of a geometry file."""
    return isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("reference") == "geometry"


def _merged(group: TensorGroup, **parameters: Any) -> Tensor:
    (job,) = _running
    tensors = {entry.id: entry.tensor for entry in group.entries}
    return job.merged(group.metadata.name, tensors, values_by_model(parameters, [each.id for each in group.non_base]))


def values_by_model(parameters: Mapping[str, Any], models: list[Any]) -> dict[Any, dict[str, Any]]:
    """model → parameter → its value for one tensor, those that are not given left out."""
    found: dict[Any, dict[str, Any]] = {model: {} for model in models}
    for key, value in parameters.items():
        for model in models:
            own = value[model] if isinstance(value, Mapping) else value
            if own is not None:
                found[model][key] = own
    return found
