"""mergekit's merge methods, each under its own name with its own parameters and defaults, called as a library.

Methods of deltas get the deltas over a base of zeros, methods of weights W and W + D; both in float32 and in stored
orientation, as `mergekit-yaml` with `dtype: float32` gives them.
"""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from vecsurgery.errors import InputError
from vecsurgery.recipe.grammar import Number, Numbers
from vecsurgery.recipe.numbers import each_value

from ._mergekit_methods import (
    BY_ROWS,
    DETERMINISTIC,
    MEANINGS,
    OF_DELTAS,
    SHARES,
    TABLE,
    VERSION,
    Described,
    Parameter,
)
from ._registry import Merge, Merged, MergedTensor

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.delta import Delta

_CONFIG = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)
_TYPES: Mapping[str, Any] = {"whole": int, "flag": bool, "other": Any}
_REGISTRY = "mergekit.merge_methods"
_GENERATOR = threading.Lock()
"""Held while mergekit draws from torch's global generator."""


def installed(name: str) -> Merge | None:
    """The merge of this name in the installed mergekit; None where it has none.

    Imports mergekit, and with it torch, only where the table may not say it: another version is installed, or
    something has registered methods of its own in this process.
    """
    if version("mergekit") == VERSION and _REGISTRY not in sys.modules:
        return None
    from mergekit.merge_methods import registered_methods

    specs = {method.spec.name: method.spec for method in registered_methods()}
    return merge_of(described(specs[name])) if name in specs else None


def complete() -> bool:
    """Whether the table says everything of the methods that it names: it is of the version that is installed."""
    return version("mergekit") == VERSION


def described(spec: Any) -> Described:
    """What a method's `MergeMethodSpec` declares."""
    contract, base = spec.contract, spec.contract.base.value
    beside = 1 if base == "required" else 0
    least, most = contract.min_inputs - beside, contract.max_inputs
    most = most - beside if most is not None else None
    if base == "optional":
        least = contract.min_non_base or least
        most = contract.max_non_base if contract.max_non_base is not None else most
    parameters = tuple(_parameter(each) for each in spec.parameters if each.name != "weight")
    weighted = any(each.name == "weight" and each.scope.value != "shared" for each in spec.parameters)
    title = spec.pretty_name or spec.name
    kind: Any = base if base in ("required", "optional") else "ignored"
    return Described(spec.name, title, spec.reference_url, kind, weighted, max(least, 0), most, parameters)


def _parameter(spec: Any) -> Parameter:
    kind = spec.value_type
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    plain = next((each for each in get_args(kind) if each is not type(None)), kind)
    name = {float: "number", int: "whole", bool: "flag"}.get(plain, "other")
    default = None if spec.required else spec.default
    return Parameter(spec.name, name, default, spec.required, spec.scope.value != "shared")  # type: ignore[arg-type]


def merge_of(method: Described) -> Merge:
    """The merge that hands a method of mergekit its tensors and parameters."""
    of_deltas = method.name in OF_DELTAS
    return Merge(
        name=method.name,
        options=_options(method),
        function=partial(_merged, method),
        least=max(1, method.least),
        most=method.most,
        weighted=method.weighted,
        of_weights=not of_deltas,
        unchanged=None if method.base == "required" else partial(_without_base, method),
        by_rows=method.name in BY_ROWS,
    )


def _options(method: Described) -> type[BaseModel]:
    """The options of a method, made from its parameters."""
    fields: dict[str, Any] = {each.name: _field(method, each) for each in method.parameters}
    if method.base == "optional":
        described = "Whether into is the method's base model: it then merges deltas, else whole weights."
        fields["base_model"] = (bool, Field(default=True, description=described))
    if method.name not in DETERMINISTIC:
        described = "Seed of the method's random numbers; every step and every tensor draws for itself."
        fields["seed"] = (int, Field(default=0, ge=0, description=described, json_schema_extra={"seed": True}))
    source = f" ({method.source})" if method.source else ""
    name = "".join(part.capitalize() for part in method.name.split("_"))
    return create_model(name, __doc__=f"{method.title}, by mergekit{source}.", __config__=_CONFIG, **fields)


def _field(method: Described, parameter: Parameter) -> tuple[Any, Any]:
    kind: Any = _TYPES.get(parameter.kind)
    if parameter.kind == "number":
        kind = Numbers if parameter.each else Number
    if parameter.name in SHARES:
        kind = Annotated[kind, AfterValidator(_share)]
    name = parameter.name
    unknown = f"Parameter {name} of mergekit's {method.name}."
    description = MEANINGS.get(f"{method.name}.{name}") or MEANINGS.get(name, unknown)
    return kind, Field(default=... if parameter.required else parameter.default, description=description)


def _share(numbers: Any) -> Any:
    """The numbers, where all of them are shares. Raises ValueError."""
    for value in each_value(numbers):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"expected a number from 0 to 1; got {value:g}")
    return numbers


def _merged(
    method: Described,
    deltas: "Mapping[str, Delta]",
    weights: Mapping[str, float],
    *,
    options: Any,
    tensor: MergedTensor,
) -> Merged:
    """Run a method on one tensor. Errors: InputError with what mergekit says of the numbers."""
    from mergekit.merge_methods import TensorGroup, get

    from vecsurgery.delta import Dense

    base = _base(method, deltas, tensor)
    inputs = [_input(delta, tensor, of_weights=method.name not in OF_DELTAS) for delta in deltas.values()]
    ids: list[Any] = list(deltas)
    stands = not _without_base(method, options)
    if stands:
        ids, inputs = [_BASE, *ids], [base, *inputs]
    group = TensorGroup.from_tensors(inputs, ids=ids, base_index=0 if stands else None, name=tensor.name)
    del inputs
    seed = getattr(options, "seed", None)
    drawing: Any = nullcontext() if seed is None else _seeded(seed)
    try:
        with drawing:
            (result,) = get(method.name)((group,), parameters=_parameters(method, weights, options))
    except (TypeError, ValueError) as error:
        raise InputError(f"mergekit's {method.name}: {error}") from error
    if method.name not in OF_DELTAS:
        # W + (R − W) is R only in float64
        result = result.double() - base.double()
    return Merged(Dense(result.T if tensor.transposed else result))


def _without_base(method: Described, options: Any) -> bool:
    """Whether a method sees models alone, of which none is `into`: of equal ones too it may make something else."""
    return method.base == "ignored" or (method.base == "optional" and not options.base_model)


_BASE = ("into",)
"""Id of the base among the inputs: no delta's name."""


def _base(method: Described, deltas: "Mapping[str, Delta]", tensor: MergedTensor) -> "Tensor":
    """W in float32 as it is stored; zeros that take no memory for methods of deltas."""
    import torch

    if method.name not in OF_DELTAS:
        assert tensor.base is not None  # `of_weights` asks for it
        return (tensor.base.T if tensor.transposed else tensor.base).float()
    shape = next(iter(deltas.values())).shape
    return torch.zeros(()).expand(tuple(reversed(shape)) if tensor.transposed else shape)


def _input(delta: "Delta", tensor: MergedTensor, *, of_weights: bool) -> "Tensor":
    """D, or W + D added in float64, in float32 and as it is stored."""
    values = delta.dense()
    if of_weights:
        assert tensor.base is not None  # `of_weights` asks for it
        values = tensor.base.double() + values
    return (values.T if tensor.transposed else values).float()


def _parameters(method: Described, weights: Mapping[str, float], options: Any) -> dict[str, Any]:
    """The parameters under mergekit's names; values of each delta under its name."""
    found: dict[str, Any] = {"weight": dict(weights)} if method.weighted else {}
    for parameter in method.parameters:
        value = getattr(options, parameter.name)
        found[parameter.name] = value if value is not None else parameter.default
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's global generator, which mergekit draws from, seeded for one tensor of one step, then put back.

    One thread at a time; what other code draws meanwhile in another thread would come from the same numbers.
    """
    import torch

    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


MERGES = tuple(merge_of(method) for method in TABLE)
"""The merges of the table."""
