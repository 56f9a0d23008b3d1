"""The edited weights: `into` plus deltas through the steps, computed for one tensor at a time, on demand.

Whatever reads a model reads this too; the writer is a walk over it.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from vecsurgery.checkpoint.types import Layout, TensorInfo, Weights
from vecsurgery.delta import Delta, DeltaSource, Dense, Edit
from vecsurgery.editing.merging import figures, in_float32, merged, merged_whole, reaches
from vecsurgery.editing.multipliers import multiplied, rows_of, with_rows
from vecsurgery.editing.numbers import number_for
from vecsurgery.editing.rounding import stored_types, with_noise
from vecsurgery.editing.rows import by_rows, zeros
from vecsurgery.editing.seeds import with_own_seeds
from vecsurgery.editing.sums import added, summed
from vecsurgery.editing.touches import Touch, geometry_names, touches
from vecsurgery.errors import InputError
from vecsurgery.fits import Multiplier
from vecsurgery.linalg import Subspace
from vecsurgery.merges import Merge
from vecsurgery.projectors import Projector
from vecsurgery.recipe.types import Step, live_names

Subspaces = Callable[[str, str], Subspace]
"""(geometry name, stored tensor name of `into`) → the subspace of that tensor's site."""


@dataclass(frozen=True)
class StepFacts:
    """What one step did to one delta of one tensor."""

    step: str
    method: str
    delta: str
    geometry: str | None
    facts: Mapping[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """What the surgery adds to one tensor, and what led to it."""

    facts: tuple[StepFacts, ...] = ()
    raw: Delta | None = None
    """Σ weight·delta as loaded (through merges alone), seen as (out, in); None where figures were not asked for."""
    total: Delta | None = None
    """Σ weight·delta as the steps left it; factored where all of them are. None where none is left."""
    lone: bool = False
    """True where the facts are of one whole delta: no other delta is added, and no step took a part of the rows."""


@dataclass(frozen=True)
class TensorEdit(TensorChange):
    """One tensor after surgery, with what led to it."""

    tensor: Tensor
    """In the output type and stored orientation."""
    changed: bool
    """False where no delta reached the tensor: its bytes are those of `into`."""


@dataclass(frozen=True)
class Terms:
    """The deltas of one tensor at their weights, seen as (out, in)."""

    loaded: Mapping[str, Delta]
    """As they came; a merged one as the merge makes it of its deltas as they came. Empty where nobody needs them."""
    live: Mapping[str, Delta]
    """As the steps left them."""
    facts: tuple[StepFacts, ...]
    count: int
    """How many deltas reach the tensor, those of weight 0 among them."""

    def of_rows(self, rows: "slice | Tensor") -> "Terms":
        """Those of some rows of the tensor."""
        loaded, live = (
            {name: delta.select_rows(rows) for name, delta in deltas.items()} for deltas in (self.loaded, self.live)
        )
        return Terms(loaded, live, self.facts, self.count)


@dataclass(frozen=True)
class Edited:
    """Weights that answer `read` by doing the surgery.

    `subspaces(geometry, tensor)` hands out measured geometry; `weights` holds the recipe's numbers per delta;
    `coefficients` what the fits among the steps found, by step and tensor. Where somebody knows already: `changes`,
    whether a delta changes a parameter, and `touched`, the steps that concern each tensor.
    """

    into: Weights
    deltas: Mapping[str, DeltaSource]
    steps: Sequence[Step]
    projectors: Mapping[str, Projector]
    subspaces: Subspaces
    weights: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "stored"
    coefficients: Mapping[str, Mapping[str, Multiplier]] = field(default_factory=dict)
    merges: Mapping[str, Merge] = field(default_factory=dict)
    changes: Callable[[str, str], bool] | None = None
    touched: Mapping[str, tuple[Touch, ...]] | None = None
    _kept: dict[tuple[str, bool], Terms] = field(default_factory=dict, init=False, repr=False, compare=False)
    """A tensor that is merged whole, of which rows were asked for last; gone with the first question for another."""
    _changed: dict[tuple[str, str], bool] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Whether a delta changes a parameter anywhere, where some rows alone could not tell."""
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        """One line for a notebook: the model, the deltas with their numbers, the steps."""
        into, layout = getattr(self.into, "folder", None) or "a model in memory", self.layout
        numbers = {name: self.weights.get(name, 1.0) for name in live_names(self.deltas, self.steps)}
        deltas = " + ".join(name if number == 1.0 else f"{number}·{name}" for name, number in numbers.items())
        steps = ", ".join(step.id for step in self.steps) or "no steps"
        return f"Edited({into} ({layout.architecture}, {layout.blocks} blocks) + {deltas}; {steps})"

    @cached_property
    def layout(self) -> Layout:
        return self.into.layout

    @property
    def config(self) -> Any:
        return self.into.config

    @cached_property
    def fingerprint(self) -> str:
        """Of what determines the result: `into`, the deltas, the steps as written and the geometry they use."""
        parts = [self.into.fingerprint, repr(self.steps), repr(sorted(self.weights.items())), self.dtype]
        parts.append(repr(sorted((step, sorted(found.items())) for step, found in self.coefficients.items())))
        parts.append(getattr(self.subspaces, "fingerprint", ""))
        parts += [f"{name}={source.fingerprint}" for name, source in sorted(self.deltas.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def touches(self) -> Mapping[str, tuple[Touch, ...]]:
        return touches(self.steps, self.layout) if self.touched is None else self.touched

    def read(self, tensor: str, rows: "slice | Tensor | None" = None) -> Tensor:
        """The edited tensor; with `rows` only those rows are computed where the edit allows it (`by_rows`)."""
        if rows is not None and self.layout.tensors[tensor].matrix is not None and not self.by_rows(tensor):
            return self.edit(tensor).tensor[rows]
        return self.edit(tensor, rows=rows).tensor

    def by_rows(self, tensor: str) -> bool:
        """Whether rows of the edited tensor are made of the same rows of W and of the deltas, and of no others."""
        return by_rows(self.layout.tensors[tensor], self.touches[tensor], self.deltas, self.merges, self.multiplier)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by stored name, in memory at once: for models that fit."""
        return {name: self.read(name).clone() for name in self.layout.order}

    def edit(self, tensor: str, *, rows: "slice | Tensor | None" = None, figures: bool = False) -> TensorEdit:
        """Run the steps on one tensor, or on rows of it where these are made of the same rows of W and of the deltas.

        `figures` keeps the summed delta before and after for measurements. Errors: InputError naming step and tensor.
        """
        change = self._change(tensor, rows, raw=figures)
        base = self.into.read(tensor, rows)
        if change.total is None:
            return TensorEdit(self.stored(base, base, tensor), changed=False, facts=change.facts)
        return TensorEdit(
            self.with_delta(base, change.total, tensor),
            changed=True,
            facts=change.facts,
            raw=change.raw,
            total=change.total if figures else None,
            lone=change.lone,
        )

    def change(self, tensor: str, *, rows: "slice | Tensor | None" = None) -> TensorChange:
        """Run the steps on one tensor without adding the result to W, which is read only where a step needs it.

        Factors that no step multiplies out are never formed. Errors: as of `edit`.
        """
        return self._change(tensor, rows, raw=True)

    def _change(self, tensor: str, rows: "slice | Tensor | None", *, raw: bool) -> TensorChange:
        terms = self.terms(tensor, rows, raw=raw)
        if not terms.live:
            return TensorChange(facts=terms.facts)
        return TensorChange(
            facts=terms.facts,
            raw=summed(terms.loaded.values()) if raw else None,
            total=summed(terms.live.values()),
            lone=terms.count == 1 and all(touch.rows is None for touch in self.touches[tensor]),
        )

    def terms(self, tensor: str, rows: "slice | Tensor | None" = None, *, raw: bool = True) -> Terms:
        """The deltas of one tensor, loaded and through the steps; those of weight 0 are left out.

        `raw`: whether the loaded ones are needed; where deltas are merged, they are merged a second time then.
        """
        if rows is None or not merged_whole(self.touches[tensor], self.merges, self.layout.tensors[tensor]):
            self._kept.clear()
            return self._terms(tensor, rows, raw=raw)
        with self._lock:
            kept = self._kept.get((tensor, raw))
            if kept is None:
                self._kept.clear()  # gone before the next one comes
                kept = self._kept[tensor, raw] = self._terms(tensor, None, raw=raw)
        return kept.of_rows(rows)

    def _terms(self, tensor: str, rows: "slice | Tensor | None", *, raw: bool) -> Terms:
        info = self.layout.tensors[tensor]
        loaded = self._load(info, rows)
        live, unedited, facts = self._steps(info, loaded, rows, raw=raw)
        before = self._weighted(unedited, info) if raw else {}
        return Terms(before, self._weighted(live, info), tuple(facts), len(loaded))

    def with_delta(self, base: Tensor, delta: Delta, tensor: str) -> Tensor:
        """W + D in the wider of their types and in stored orientation, rounded to the output type once."""
        matrix = self.layout.tensors[tensor].matrix
        result = added(base, delta, transposed=matrix is not None and matrix.transposed)
        return self.stored(result, base, tensor)

    def _load(self, info: TensorInfo, rows: "slice | Tensor | None") -> dict[str, Delta]:
        # W + (T − W) is T only in float64; products with a geometry stay in float32, as the model computes, and so do
        # merges of deltas.
        touched = self.touches[info.name]
        precise = all(touch.effect != "edit" for touch in touched)
        rough = {
            name
            for touch in touched
            if touch.effect == "merge" and not self.merges[touch.step.method].of_weights
            for name in touch.step.selection.deltas
        }
        loaded = {}
        for name, source in self.deltas.items():
            delta = source.read(info.parameter, rows, precise=precise and name not in rough)
            if delta is None and self.changes_somewhere(name, info.parameter):
                delta = zeros(info, rows)  # steps count deltas that change the tensor, whichever rows are asked for
            if delta is not None:
                loaded[name] = delta
        noisy = info.matrix is not None and any(isinstance(delta, Dense) for delta in loaded.values())
        if not noisy or not any(self._needs_noise(touch) for touch in self.touches[info.name]):
            return loaded
        weight = self.into.read(info.name, rows)
        return {
            name: with_noise(delta, weight, stored_types(self.deltas[name], info.parameter))
            for name, delta in loaded.items()
        }

    def changes_somewhere(self, name: str, parameter: str) -> bool:
        """Whether a delta changes a parameter in some row."""
        if (name, parameter) not in self._changed:
            known = self.changes
            self._changed[name, parameter] = known(name, parameter) if known else self.deltas[name].changed(parameter)
        return self._changed[name, parameter]

    def _needs_noise(self, touch: Touch) -> bool:
        return touch.effect == "edit" and self.projectors[touch.step.method].needs_noise

    def _steps(
        self, info: TensorInfo, loaded: Mapping[str, Delta], rows: "slice | Tensor | None", *, raw: bool
    ) -> tuple[dict[str, Delta], dict[str, Delta], list[StepFacts]]:
        """The deltas through all steps, through the merges alone (where `raw`), and what the steps did."""
        live, unedited = dict(loaded), dict(loaded)
        facts: list[StepFacts] = []
        for touch in self.touches[info.name]:
            if touch.effect == "merge":
                facts += self._merge(touch, info, (live, unedited) if raw else (live,), rows)
                continue
            names = [name for name in touch.step.selection.deltas if name in live]
            if not names or touch.effect in ("left out", "source"):
                continue
            if touch.effect == "drop":
                for name in names:
                    del live[name]
            elif touch.effect == "mean":
                for name in names:
                    live[name] = live[name].scaled(1.0 / len(names))
            elif touch.effect in ("scale", "fit"):
                number = self.multiplier(touch, info)
                for name in names:
                    live[name], found = multiplied(live[name], number, info.matrix, touch.rows)
                    facts.append(StepFacts(touch.step.id, touch.step.method, name, None, found, ()))
            else:
                facts += self._project(touch, info, live, names)
        return live, unedited, facts

    def _merge(
        self,
        touch: Touch,
        info: TensorInfo,
        tables: Sequence[dict[str, Delta]],
        rows: "slice | Tensor | None",
    ) -> list[StepFacts]:
        """Replace the step's deltas by their merge in each table; what is the same in two of them is merged once."""
        step, merge = touch.step, self.merges[touch.step.method]
        assert step.result is not None  # the grammar: a merge has a result
        done: list[tuple[dict[str, Delta], Delta | None]] = []
        facts: list[StepFacts] = []
        for table in tables:
            present = {name: table.pop(name) for name in step.selection.deltas if name in table}
            known = next((delta for given, delta in done if _same(given, present)), None)
            if known is None and reaches(merge, step, info, tuple(present)):
                base = None if present and not merge.of_weights else self.into.read(info.name, rows)
                result = merged(step, merge, present, base, info, self.layout)
                edits = any(each.effect == "edit" for each in self.touches[info.name])
                known = in_float32(result.delta) if edits else result.delta
                if not done and info.matrix is not None:  # reports tell of block matrices
                    found = figures(result, present)
                    facts.append(StepFacts(step.id, step.method, step.result, None, found, result.warnings))
            done.append((present, known))
            if known is not None:
                table[step.result] = known
        return facts

    def multiplier(self, touch: Touch, info: TensorInfo) -> Multiplier:
        if touch.effect == "scale":
            return number_for(touch.step.number, info, self.layout)
        return self.coefficients[touch.step.id][info.name]

    def _project(self, touch: Touch, info: TensorInfo, live: dict[str, Delta], names: list[str]) -> list[StepFacts]:
        """Run a projector on the named deltas (each alone unless it is joint); `live` receives the results."""
        projector = self.projectors[touch.step.method]
        named = geometry_names(touch.step)
        geometry = {name: self.subspaces(name, info.name) for name in named}
        facts = []
        for group in [names] if projector.joint else [[name] for name in names]:
            before = {name: rows_of(live[name], touch.rows) for name in group}
            options = with_own_seeds(touch.step, group, info.parameter)
            try:
                edit: Edit = projector.function(before, geometry, options=options)
            except InputError as error:
                raise InputError(f"step {touch.step.id!r}, tensor {info.name!r}: {error}") from error
            for name in group:
                live[name] = with_rows(live[name], touch.rows, edit.deltas[name])
                found = edit.facts | edit.own.get(name, {})
                # a joint projector warns of the matrix, not of each of its deltas
                warnings = edit.warnings if name == group[0] else ()
                used = named[0] if named else None
                facts.append(StepFacts(touch.step.id, touch.step.method, name, used, found, warnings))
        return facts

    def _weighted(self, deltas: Mapping[str, Delta], info: TensorInfo) -> dict[str, Delta]:
        weighted = {}
        for name, delta in deltas.items():
            factor = self.weight(name, info)
            if factor != 0.0:
                weighted[name] = delta.scaled(factor)
        return weighted

    def weight(self, delta: str, info: TensorInfo) -> float:
        """What the recipe's `weights` multiply a delta by in one tensor."""
        return number_for(self.weights.get(delta, 1.0), info, self.layout)

    def _output_dtype(self, base: Tensor) -> torch.dtype:
        if self.dtype == "stored" or not base.is_floating_point():
            return base.dtype
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def stored(self, values: Tensor, base: Tensor, tensor: str) -> Tensor:
        """The values rounded to the output type, once. Errors: InputError where `into` or the result is not finite."""
        result = values.to(self._output_dtype(base))
        if result is base or not result.is_floating_point():
            return result
        # A sum is finite unless an entry is not, or the sum overflows: the dear test only where the cheap one fails.
        wide = torch.promote_types(result.dtype, torch.float32)
        if not isfinite(float(result.sum(dtype=wide))) and not bool(result.isfinite().all()):
            _refuse_numbers(values, base, tensor, result.dtype, edited=values is not base)
        return result


def _same(first: Mapping[str, Delta], second: Mapping[str, Delta]) -> bool:
    """Whether both hold the very same deltas, untouched by any step."""
    return first.keys() == second.keys() and all(first[name] is second[name] for name in first)


def _refuse_numbers(values: Tensor, base: Tensor, tensor: str, dtype: torch.dtype, *, edited: bool) -> None:
    """Say what is not finite: what `into` holds (its business where no delta comes), or what came of the rounding."""
    if not bool(torch.isfinite(base).all()):
        if edited:
            raise InputError(
                f"reading {tensor!r} of `into`: it holds NaN or infinity, expected finite weights; "
                "repair or replace the checkpoint (`vecsurgery check --weights` names every such tensor)"
            )
        return
    largest = float(values.abs().max())
    raise InputError(
        f"writing {tensor!r}: values up to {largest:.3g} do not fit {str(dtype).removeprefix('torch.')}; choose a "
        "wider `output: {dtype: …}`, or smaller weights and scales"
    )
