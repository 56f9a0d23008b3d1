"""Several models of one layout that are read together: what an edit makes of `into` under different numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from vecsurgery.checkpoint.types import Layout, Weights

Versions = Tensor | Callable[[int], Tensor]
"""A tensor that all variants share, or the function from a variant's number to its tensor."""


class Variants(Protocol):
    """Models that differ in the values of some tensors. A pass over all of them reads what they have in common once."""

    @property
    def layout(self) -> Layout: ...

    @property
    def config(self) -> Any:
        """The transformers configuration of all of them."""

    @property
    def count(self) -> int:
        """How many they are."""

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Versions:
        """One stored tensor of all variants, in its stored type and orientation; `rows`: only these."""


@dataclass(frozen=True)
class Single:
    """One model as variants."""

    weights: Weights

    @property
    def layout(self) -> Layout:
        return self.weights.layout

    @property
    def config(self) -> Any:
        return self.weights.config

    @property
    def count(self) -> int:
        return 1

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Versions:
        return self.weights.read(tensor, rows)


@dataclass(frozen=True)
class Several:
    """Models of one layout as variants."""

    models: Sequence[Weights]

    @property
    def layout(self) -> Layout:
        return self.models[0].layout

    @property
    def config(self) -> Any:
        return self.models[0].config

    @property
    def count(self) -> int:
        return len(self.models)

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Versions:
        tensors = [model.read(tensor, rows) for model in self.models]
        return tensors.__getitem__


@dataclass(frozen=True)
class Some:
    """Some of the variants, by number."""

    variants: Variants
    numbers: Sequence[int]

    @property
    def layout(self) -> Layout:
        return self.variants.layout

    @property
    def config(self) -> Any:
        return self.variants.config

    @property
    def count(self) -> int:
        return len(self.numbers)

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Versions:
        found = self.variants.read(tensor, rows)
        return found if isinstance(found, Tensor) else lambda variant: found(self.numbers[variant])


def version(versions: Versions, variant: int) -> Tensor:
    """The tensor of one variant."""
    return versions if isinstance(versions, Tensor) else versions(variant)


def held(versions: Versions, count: int) -> Versions:
    """The same, with the version of each of the `count` variants made once and kept."""
    if isinstance(versions, Tensor):
        return versions
    return [versions(variant) for variant in range(count)].__getitem__
