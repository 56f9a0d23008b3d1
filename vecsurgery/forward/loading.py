"""From stored tensors to a module's parameters: which make which, and reading those of one block."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vecsurgery.checkpoint import skeleton
from vecsurgery.checkpoint.types import Layout, Weights
from vecsurgery.errors import InputError, UnsupportedError

Compute = Literal["float32", "stored"]
"""Arithmetic of a forward: float32 whatever the storage type, or the type of the configuration."""


@dataclass(frozen=True)
class _Recipe:
    """How some parameters are made: one stored tensor as it is, or several through a transformers converter.

    transformers 5 keeps the experts of a mixture in one parameter where files hold a tensor for each.
    """

    stored: tuple[str, ...]
    parameters: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    converter: Any = None


def compute_dtype(weights: Weights, compute: Compute) -> torch.dtype:
    """The floating-point type in which a forward over these weights computes."""
    if compute == "float32":
        return torch.float32
    configured = getattr(torch, str(getattr(weights.config, "dtype", None)).removeprefix("torch."), None)
    if isinstance(configured, torch.dtype):
        return configured
    floating = (getattr(torch, info.dtype) for info in weights.layout.tensors.values() if info.kind == "matrix")
    return next((dtype for dtype in floating if dtype.is_floating_point), torch.float32)


class Loader:
    """Reads parameters of a meta-device module from Weights, in the type the module computes in.

    Raises UnsupportedError at once where a parameter has no stored tensor and no tying explains it.
    """

    def __init__(self, weights: Weights, model: nn.Module) -> None:
        self._weights = weights
        self._model = model
        state = model.state_dict()
        self._dtypes = _parameter_dtypes(model, state)
        self._shapes = {name: tuple(value.shape) for name, value in state.items()}
        self._recipes = _recipes(model, state, weights.layout)
        self._aliases = _aliases(model, weights.layout, self._recipes)
        for name, value in state.items():
            if value.is_meta and name not in self._recipes and name not in self._aliases:
                raise UnsupportedError(
                    f"building {type(model).__name__} from its stored tensors: no tensor provides the parameter "
                    f"{name!r} {tuple(value.shape)}, and it is not tied to another. The checkpoint is incomplete, or "
                    "its tensors have a layout that is not supported."
                )

    def names(self, prefix: str = "") -> list[str]:
        """Parameters and stored buffers whose name begins with `prefix`."""
        return [
            name
            for name in self._shapes
            if name.startswith(prefix) and (name in self._recipes or name in self._aliases)
        ]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These parameters; every stored tensor behind them is read once."""
        wanted = list(names)
        made: dict[str, Tensor] = {}
        for name in wanted:
            source = self._aliases.get(name, name)
            if source not in made:
                made.update(self._make(self._recipes[source]))
        return {name: self._checked(name, made[self._aliases.get(name, name)]) for name in wanted}

    def rows(self, name: str, rows: Tensor) -> Tensor | None:
        """Rows of a parameter that is stored as one tensor; None where it is not."""
        recipe = self._recipes[self._aliases.get(name, name)]
        if recipe.converter is not None:
            return None
        return self._cast(name, self._weights.read(recipe.stored[0], rows))

    def _make(self, recipe: _Recipe) -> dict[str, Tensor]:
        target = recipe.parameters[0]
        if recipe.converter is None:
            return {target: self._cast(target, self._weights.read(recipe.stored[0]))}
        converter = copy.deepcopy(recipe.converter)
        for stored, pattern in zip(recipe.stored, recipe.patterns, strict=True):
            converter.add_tensor(target, stored, pattern, self._cast(target, self._weights.read(stored)))
        converted = converter.convert(target, model=self._model, config=getattr(self._model, "config", None))
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtypes[name]) if tensor.is_floating_point() else tensor

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) != self._shapes[name]:
            stored = ", ".join(self._recipes[self._aliases.get(name, name)].stored)
            raise InputError(
                f"loading parameter {name!r}: the stored tensor {stored} gives shape {tuple(tensor.shape)}, the "
                f"configuration says {self._shapes[name]}. config.json does not belong to these weights."
            )
        # A sum is finite unless an entry is not, or the sum overflows: the dear test only where the cheap one fails.
        if tensor.is_floating_point() and not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            stored = ", ".join(self._recipes[self._aliases.get(name, name)].stored)
            raise InputError(
                f"loading {stored}: it holds NaN or infinity, expected finite weights; repair or replace the "
                "checkpoint (`vecsurgery check --weights` names every such tensor)"
            )
        return tensor


def require_loadable(weights: Weights) -> None:
    """Refuse weights that do not fill their module, before any of them is read.

    Raises UnsupportedError naming a parameter that no stored tensor provides.
    """
    Loader(weights, skeleton.build(weights.config))


def _parameter_dtypes(model: Any, state: dict[str, Tensor]) -> dict[str, torch.dtype]:
    """The type of each parameter; some architectures keep named modules in float32 whatever the model computes in."""
    plan = model._get_dtype_plan(model.dtype) if hasattr(model, "_get_dtype_plan") else {}

    def dtype_of(name: str, value: Tensor) -> torch.dtype:
        kept = (dtype for glob, dtype in plan.items() if re.search(glob.replace("*", ".*"), name))
        return next(kept, value.dtype)

    return {name: dtype_of(name, value) for name, value in state.items()}


def _recipes(model: nn.Module, state: dict[str, Tensor], layout: Layout) -> dict[str, _Recipe]:
    """Recipes by parameter: tensors that the layout maps to a parameter first, converters for the rest."""
    recipes = {
        info.parameter: _Recipe((info.name,), (info.parameter,))
        for info in layout.tensors.values()
        if info.parameter in state
    }
    unmatched = [info.name for info in layout.tensors.values() if info.parameter not in state]
    if unmatched and any(value.is_meta and name not in recipes for name, value in state.items()):
        for recipe in _conversions(model, state, unmatched):
            recipes.update((name, recipe) for name in recipe.parameters if name in state and name not in recipes)
    return recipes


def _conversions(model: Any, state: dict[str, Tensor], stored: list[str]) -> list[_Recipe]:
    """transformers' own converters that turn these stored tensors into parameters of the module."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    groups: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target in state:
            groups[target].append((name, pattern))
    recipes = []
    for target, members in groups.items():
        names, patterns = zip(*members, strict=True)
        if patterns[0] is None:
            recipes.append(_Recipe((names[0],), (target,)))
            continue
        converter = by_pattern[patterns[0]]
        targets = tuple(target.replace(converter.target_patterns[0], other) for other in converter.target_patterns)
        recipes.append(_Recipe(names, targets, patterns, converter))
    return recipes


def _aliases(model: nn.Module, layout: Layout, recipes: dict[str, _Recipe]) -> dict[str, str]:
    """Tied parameter → the parameter that is read in its place."""
    tied = {**getattr(model, "all_tied_weights_keys", {}), **layout.tied}
    aliases = {}
    for name, source in tied.items():
        if source in recipes and (name not in recipes or name in layout.tied):
            aliases[name] = source
        elif name in recipes and source not in recipes:
            aliases[source] = name
    return aliases
