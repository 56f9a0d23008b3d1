"""Which deltas a step may name: those that are declared, less those that steps above have merged into others."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .problems import unknown

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""What a delta, a geometry or a step may be called: names become parts of addresses and of file names."""


@dataclass(frozen=True)
class Live:
    """The names of deltas at one place of a recipe.

    `gone`: a name that was merged away → the delta that it is in now, and the path of the step that did it.
    """

    names: tuple[str, ...]
    gone: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def missing(self, name: str) -> str:
        """What to say of a name that is not live."""
        if name not in self.gone:
            return unknown("delta", name, self.names)
        result, path = self.gone[name]
        return f"the delta '{name}' is merged into '{result}' by {path}; name that"

    def taken(self, name: str) -> bool:
        """Whether a delta has or had this name."""
        return name in self.names or name in self.gone

    def merged(self, deltas: Iterable[str], result: str, path: str) -> "Live":
        """The names below a merge of `deltas` into `result`."""
        deltas = set(deltas)
        names = tuple(name for name in self.names if name not in deltas)
        return Live((*names, result), {**self.gone, **dict.fromkeys(deltas, (result, path))})
