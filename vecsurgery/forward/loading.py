"""From stored tensors to a module's parameters: which make which, and reading those of one block."""

from __future__ import annotations

import copy
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vecsurgery.checkpoint import skeleton
from vecsurgery.checkpoint.types import Layout, Weights
from vecsurgery.errors import InputError, UnsupportedError

from .variants import Single, Variants, Versions, version

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


def compute_dtype(weights: Weights | Variants, compute: Compute) -> torch.dtype:
    """The floating-point type in which a forward over these weights computes."""
    if compute == "float32":
        return torch.float32
    configured = getattr(torch, str(getattr(weights.config, "dtype", None)).removeprefix("torch."), None)
    if isinstance(configured, torch.dtype):
        return configured
    floating = (getattr(torch, info.dtype) for info in weights.layout.tensors.values() if info.kind == "matrix")
    return next((dtype for dtype in floating if dtype.is_floating_point), torch.float32)


class Parts:
    """Parameters whose stored tensors were read; those that differ between variants are made for one at a time."""

    def __init__(
        self,
        loader: Loader,
        names: Sequence[str],
        shared: Mapping[str, Tensor],
        varied: Sequence[tuple[_Recipe, Mapping[str, Versions]]],
    ) -> None:
        self._loader, self._names, self._shared, self._varied = loader, names, shared, varied
        self._held: list[dict[str, Tensor]] = []
        self.varied = bool(varied)
        """Whether any of the parameters differs between variants."""

    def hold(self, count: int) -> Parts:
        """The same, with the parameters of each of the `count` variants made once and kept."""
        self._held = [self.of(variant) for variant in range(count)]
        self._shared, self._varied = {}, ()
        return self

    def of(self, variant: int) -> dict[str, Tensor]:
        """The parameters of one variant by name."""
        if self._held:
            return self._held[variant]
        made = dict(self._shared)
        for recipe, stored in self._varied:
            tensors = {name: version(tensor, variant) for name, tensor in stored.items()}
            made.update(self._loader.make(recipe, tensors))
        return {name: made[self._loader.source(name)] for name in self._names}


class Loader:
    """Reads parameters of a meta-device module, in the type the module computes in.

    Raises UnsupportedError at once where a parameter has no stored tensor and no tying explains it.
    """

    def __init__(self, variants: Variants, model: nn.Module) -> None:
        self._variants = variants
        self._model = model
        state = model.state_dict()
        self._dtypes = _parameter_dtypes(model, state)
        self._shapes = {name: tuple(value.shape) for name, value in state.items()}
        self._recipes = _recipes(model, state, variants.layout)
        self._aliases = _aliases(model, variants.layout, self._recipes)
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

    def read(self, names: Iterable[str]) -> Parts:
        """These parameters; every stored tensor behind them is read once."""
        wanted = list(names)
        shared: dict[str, Tensor] = {}
        varied: list[tuple[_Recipe, Mapping[str, Versions]]] = []
        done: set[str] = set()
        for name in wanted:
            recipe = self._recipes[self.source(name)]
            if self.source(name) in done:
                continue
            done.update(recipe.parameters)
            stored = {tensor: self._variants.read(tensor) for tensor in recipe.stored}
            tensors = {tensor: read for tensor, read in stored.items() if isinstance(read, Tensor)}
            if len(tensors) == len(stored):
                shared.update(self.make(recipe, tensors))
            else:
                varied.append((recipe, stored))
        return Parts(self, wanted, shared, varied)

    def rows(self, name: str, rows: slice | Tensor) -> Versions | None:
        """Rows of a parameter that is stored as one tensor; None where it is not."""
        if not self.is_plain(name):
            return None
        recipe = self._recipes[self.source(name)]
        read = self._variants.read(recipe.stored[0], rows)
        if isinstance(read, Tensor):
            return self._cast(name, read)
        return lambda variant: self._cast(name, read(variant))

    def is_plain(self, name: str) -> bool:
        """Whether the parameter is stored as one tensor, so that `rows` can read it."""
        return self._recipes[self.source(name)].converter is None

    def length(self, name: str) -> int:
        """Rows of a parameter."""
        return int(self._shapes[name][0])

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of a parameter in the type it is computed in."""
        return int(math.prod(self._shapes[name][1:])) * self._dtypes[name].itemsize

    def float32_bytes(self) -> int:
        """Bytes of all parameters and stored buffers in float32, tied ones counted once."""
        return 4 * sum(int(math.prod(self._shapes[name])) for name in self._recipes if name in self._shapes)

    def source(self, name: str) -> str:
        """The parameter whose stored tensor this one is made from: another one where they are tied."""
        return self._aliases.get(name, name)

    def make(self, recipe: _Recipe, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of a recipe from its stored tensors."""
        target = recipe.parameters[0]
        if recipe.converter is None:
            made = {target: self._cast(target, tensors[recipe.stored[0]])}
        else:
            converter = copy.deepcopy(recipe.converter)
            for stored, pattern in zip(recipe.stored, recipe.patterns, strict=True):
                converter.add_tensor(target, stored, pattern, self._cast(target, tensors[stored]))
            converted = converter.convert(target, model=self._model, config=getattr(self._model, "config", None))
            made = {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}
        for name, tensor in made.items():
            self._check(name, tensor, recipe)
        return made

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtypes[name]) if tensor.is_floating_point() else tensor

    def _check(self, name: str, tensor: Tensor, recipe: _Recipe) -> None:
        stored = ", ".join(recipe.stored)
        if name in self._shapes and tuple(tensor.shape) != self._shapes[name]:
            raise InputError(
                f"loading parameter {name!r}: the stored tensor {stored} gives shape {tuple(tensor.shape)}, the "
                f"configuration says {self._shapes[name]}. config.json does not belong to these weights."
            )
        # A sum is finite unless an entry is not, or the sum overflows: the dear test only where the cheap one fails.
        if tensor.is_floating_point() and not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            raise InputError(
                f"loading {stored}: it holds NaN or infinity, expected finite weights; repair or replace the "
                "checkpoint (`vecsurgery check --weights` names every such tensor)"
            )


def require_loadable(weights: Weights) -> None:
    """Refuse weights that do not fill their module, before any of them is read.

    Raises UnsupportedError naming a parameter that no stored tensor provides.
    """
    Loader(Single(weights), skeleton.build(weights.config))


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
