"""From the name of a tensor in the files to the name of its parameter in the transformers module."""

from __future__ import annotations

import re
from typing import Any

from .tracing import Trace


class Names:
    """Matches stored names with the parameters of a traced module.

    A stored name is first renamed as transformers does for the architecture, then the base model's prefix is added or
    removed. A tensor that transformers converts rather than renames (fused experts) has no parameter of its own.
    """

    def __init__(self, facts: Trace) -> None:
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._facts = facts
        self._renamings: list[Any] = [item for item in facts.transforms if isinstance(item, WeightRenaming)]
        self._converters: list[Any] = [item for item in facts.transforms if isinstance(item, WeightConverter)]
        self._in_block = re.compile(rf"{re.escape(facts.blocks)}\.(\d+)\.")
        self._cache: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def parameter(self, stored: str) -> str:
        """The parameter that this tensor fills, or the stored name itself where there is none."""
        if stored not in self._cache:
            self._cache[stored] = self._parameter(stored)
        return self._cache[stored]

    def layer(self, stored: str) -> int | None:
        """Number of the block that the tensor belongs to, if it belongs to one."""
        for candidate in (self.parameter(stored), *self._variants(stored), *self._variants(self._renamed(stored))):
            match = self._in_block.match(candidate)
            if match and int(match[1]) < self._facts.count:
                return int(match[1])
        return None

    def _parameter(self, stored: str) -> str:
        renamed = self._renamed(stored)
        if any(converter.rename_source_key(renamed)[1] is not None for converter in self._converters):
            return stored
        for candidate in (*self._variants(renamed), *self._variants(stored)):
            if candidate in self._facts.parameters:
                return candidate
        return stored

    def _renamed(self, stored: str) -> str:
        if stored not in self._known:
            name = stored
            for renaming in self._renamings:
                name, _ = renaming.rename_source_key(name)
            self._known[stored] = name
        return self._known[stored]

    def _variants(self, name: str) -> tuple[str, str, str]:
        """The name, and the name with the base model's prefix added and removed."""
        prefix = f"{self._facts.prefix}."
        return name, prefix + name, name.removeprefix(prefix)
