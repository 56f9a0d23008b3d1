"""Variants of an edit that a fit, a curve or an evaluation compares: read together, each on demand."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from vecsurgery.checkpoint.types import Layout
from vecsurgery.delta import Delta
from vecsurgery.editing.edited import Edited, Terms
from vecsurgery.editing.multipliers import multiplied, rows_of, scaled_rows
from vecsurgery.editing.sums import summed
from vecsurgery.editing.touches import Rows
from vecsurgery.fits import Multiplier
from vecsurgery.forward import Versions

Kind = Literal["into", "raw", "edited"]


@dataclass(frozen=True)
class Variant:
    """One of them.

    into: the model that is edited, as it is. raw: the delta as loaded, all its tensors, times `factor`. edited: the
    delta as the steps left it, its fitted tensors times `factor` and what `table` has for them. In raw and edited the
    other deltas stand as the steps left them. All at the weights of the recipe.
    """

    kind: Kind
    factor: float = 1.0
    table: Mapping[str, Multiplier] | None = None


@dataclass(frozen=True)
class Candidates:
    """Variants of an edit: into, raw and edited, with numbers of their own.

    `delta`: the one that the numbers multiply; None takes all deltas as one. `tensors`: stored names whose edited delta
    is multiplied, with the rows where not all are; None for every tensor. Every tensor of every checkpoint is read
    once for all of them, and projected once; each result is rounded to the output type, as it would be written.
    """

    edited: Edited
    wanted: Sequence[Variant]
    delta: str | None = None
    tensors: Mapping[str, Rows | None] | None = None
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Multiplied tensor → squared norms of its delta as loaded and as the steps left it, noted as it is read."""

    def asked(self, wanted: Sequence[Variant]) -> "Candidates":
        """Other variants of the same edit."""
        return replace(self, wanted=tuple(wanted))

    def norm_ratio(self) -> float:
        """‖D′‖/‖D‖ over the multiplied tensors that were read; 1 where the delta is zero."""
        loaded, live = (math.fsum(pair[place] for pair in self.norms.values()) for place in (0, 1))
        return math.sqrt(live / loaded) if loaded > 0.0 else 1.0

    @property
    def layout(self) -> Layout:
        return self.edited.layout

    @property
    def config(self) -> Any:
        return self.edited.config

    @property
    def count(self) -> int:
        return len(self.wanted)

    def read(self, tensor: str, rows: "slice | Tensor | None" = None) -> Versions:
        """One tensor of all variants; a Tensor where no delta reaches it."""
        info = self.layout.tensors[tensor]
        whole = rows is not None and info.matrix is not None
        terms = self.edited.terms(tensor, None if whole else rows)
        base = self.edited.into.read(tensor, None if whole else rows)
        if not terms.loaded and not terms.live:
            unchanged = self.edited.stored(base, base, tensor)
            return unchanged[rows] if whole else unchanged
        self._note_norms(terms, tensor)

        def make(variant: int) -> Tensor:
            parts = list(self._parts(self.wanted[variant], terms, tensor))
            made = self.edited.with_delta(base, summed(parts), tensor) if parts else self._plain(base, tensor)
            return made[rows] if whole else made

        return make

    def _note_norms(self, terms: Terms, tensor: str) -> None:
        if self.delta is None or self.tensors is None or tensor not in self.tensors:
            return
        rows = self.tensors[tensor]
        pair = [part.get(self.delta) for part in (terms.loaded, terms.live)]
        loaded, live = (0.0 if delta is None else rows_of(delta, rows).squared_norm() for delta in pair)
        self.norms[tensor] = loaded, live

    def _plain(self, base: Tensor, tensor: str) -> Tensor:
        return self.edited.stored(base, base, tensor)

    def _parts(self, wanted: Variant, terms: Terms, tensor: str) -> Iterator[Delta]:
        """The deltas that this variant adds to `into`."""
        if wanted.kind == "into":
            return
        for name in dict.fromkeys([*terms.loaded, *terms.live]):
            own = self.delta is None or name == self.delta
            delta = (terms.loaded if own and wanted.kind == "raw" else terms.live).get(name)
            if delta is None:
                continue
            if own and wanted.kind == "raw":
                delta = delta.scaled(wanted.factor)
            elif own and (self.tensors is None or tensor in self.tensors):
                rows = self.tensors[tensor] if self.tensors else None
                delta = scaled_rows(delta, rows, wanted.factor)
                if wanted.table is not None and tensor in wanted.table:
                    delta, _ = multiplied(delta, wanted.table[tensor], self.layout.tensors[tensor].matrix, rows)
            yield delta
