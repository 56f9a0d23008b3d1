"""The plan: every tensor, cost and file of a run, before anything heavy starts.

Costs follow from shapes and sample lengths; ranks are not known yet, so products with a geometry are upper bounds.
"""

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

import vecsurgery
from vecsurgery.calibration import Samples
from vecsurgery.checkpoint import ShardPlan, file_sha256
from vecsurgery.checkpoint.types import Weights
from vecsurgery.editing.merging import reaches
from vecsurgery.editing.touches import Touch, Treatment, geometry_names
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.forward import Compute
from vecsurgery.linalg import require_width
from vecsurgery.planning.alike import alike
from vecsurgery.planning.calls import require_possible
from vecsurgery.planning.costs import (
    ACTIONS,
    PlannedFit,
    PlannedGeometry,
    PlannedJudging,
    PlannedTensor,
    fit_cost,
    geometry_cost,
    judging_cost,
    tensor_cost,
)
from vecsurgery.planning.factors import require_factors
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.outputs import planned_files, require_held
from vecsurgery.planning.plantext import plan_text
from vecsurgery.planning.room import Room, output_room
from vecsurgery.progress import Progress, silent

SIDE_FILES = 64 * 2**20
"""Bytes set aside for tokenizer, card, record and report."""


@dataclass(frozen=True)
class Plan:
    """A resolved recipe with every tensor, cost and file."""

    inputs: Inputs
    tensors: Mapping[str, PlannedTensor]
    geometry: Mapping[str, PlannedGeometry]
    fits: Mapping[str, PlannedFit]
    judging: PlannedJudging | None
    """`evaluate` and gates; None where the recipe has neither."""
    shards: tuple[ShardPlan, ...]
    changed: Mapping[str, frozenset[str]]
    """Delta name → parameters that differ; of a merged one, those that its merge reaches."""
    compute: Compute

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that determines the result: a partial output belongs to one such hash."""
        content = {
            "versions": {
                "vecsurgery": vecsurgery.__version__,
                "torch": torch.__version__,
                "transformers": importlib.metadata.version("transformers"),
                **({"mergekit": importlib.metadata.version("mergekit")} if self.inputs.merges else {}),
            },
            "recipe": self.inputs.recipe.text,
            "compute": self.compute,
            "into": self.inputs.into.fingerprint,
            "deltas": {name: source.fingerprint for name, source in self.inputs.deltas.items()},
            "samples": {name: samples.fingerprint for name, samples in self._samples().items()},
            "answers": {name: _answers(samples) for name, samples in self._samples().items()},
            "models": {name: model.fingerprint for name, model in self._models().items()},
            "files": {name: file_sha256(geometry.path) for name, geometry in self.inputs.files.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _samples(self) -> dict[str, Samples]:
        """Everything that is fed to a model, by what it is for."""
        inputs = self.inputs
        return {
            **inputs.samples,
            **{f"fit {name}": samples for name, samples in inputs.fit_samples.items()},
            **{f"evaluate {name}": samples for name, samples in inputs.evaluation.items()},
            **{f"gate {index}": samples for index, samples in inputs.gate_samples.items()},
        }

    def _models(self) -> dict[str, Weights]:
        """Models beside `into` and those of the deltas, by what they are for."""
        named = {
            f"{step} {key}": model for step, found in self.inputs.fit_models.items() for key, model in found.items()
        }
        return {**self.inputs.models, **named}

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What the recipe alone makes doubtful; `vecsurgery check` compares more."""
        return tuple(alike(self.inputs))

    @property
    def written(self) -> int:
        """Bytes of all tensors of the output; of a delta their values, of an adapter its factors at most."""
        return sum(item.writes for item in self.tensors.values())

    @cached_property
    def room(self) -> Room:
        """What the output's files may take beside these."""
        return output_room(self.inputs, self.tensors)

    @property
    def disk(self) -> int:
        """Bytes that the output folder takes at most, finished or not: tensors, what a delta or an adapter takes beside
        them, geometry files, a little for side files.
        """
        return self.written + self.room.total + self.geometry_bytes + SIDE_FILES

    @property
    def geometry_bytes(self) -> int:
        """Bytes of geometry files at most: those that are measured, and copies of those that the recipe names."""
        copied = sum(geometry.path.stat().st_size for geometry in self.inputs.files.values())
        return copied + sum(plan.bytes for plan in self.geometry.values())

    @property
    def phase_memory(self) -> dict[str, int]:
        """Anonymous bytes at the peak of each phase."""
        return {
            "measuring": max((plan.memory for plan in self.geometry.values()), default=0),
            "fitting": max((plan.memory for plan in self.fits.values()), default=0),
            "writing": max((item.memory for item in self.tensors.values()), default=0),
            "evaluating": self.judging.memory if self.judging else 0,
        }

    @property
    def memory(self) -> int:
        """Anonymous bytes at the peak: the largest of all phases."""
        return max(self.phase_memory.values())

    def left_out(self) -> list[tuple[str, str, str]]:
        """(tensor, step id, delta) of every changed matrix that a step's selection passes by, whole or in part."""
        return [
            (name, touch.step.id, delta)
            for name, entries in self.inputs.touches.items()
            for touch in entries
            if touch.effect == "left out" or (touch.effect == "edit" and touch.rows is not None)
            for delta in touch.step.selection.deltas
            if self._changes(delta, name)
        ]

    def others(self) -> dict[tuple[str, str, Treatment], list[str]]:
        """(delta, step id, treatment) → the changed tensors that are no block matrix."""
        table: dict[tuple[str, str, Treatment], list[str]] = {}
        for name, entries in self.inputs.touches.items():
            for touch in entries:
                if touch.effect != "source" and touch.effect != "drop" and touch.effect != "mean":
                    continue
                for delta in touch.step.selection.deltas:
                    if self._changes(delta, name):
                        table.setdefault((delta, touch.step.id, touch.effect), []).append(name)
        return table

    def _changes(self, delta: str, tensor: str) -> bool:
        return self.inputs.into.layout.tensors[tensor].parameter in self.changed[delta]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "plan": self.hash,
            "into": str(self.inputs.into.folder),
            "warnings": [*self.warnings],
            "tensors": [asdict(item) for item in self.tensors.values()],
            "geometry": [asdict(item) for item in self.geometry.values()],
            "fits": [asdict(item) for item in self.fits.values()],
            "judging": asdict(self.judging) if self.judging else None,
            "left_out": [{"tensor": name, "step": step, "delta": delta} for name, step, delta in self.left_out()],
            "others": [
                {"delta": delta, "step": step, "treatment": treatment, "tensors": names}
                for (delta, step, treatment), names in self.others().items()
            ],
            "shards": [{"file": shard.file, "bytes": shard.nbytes} for shard in self.shards],
            "totals": self.totals(),
        }

    def text(self) -> str:
        """The plan as a page of text: geometries, work by block, what is skipped, sums."""
        return plan_text(self)

    def totals(self) -> dict[str, int]:
        """Sums over the run: tensors by action, bytes read and written, peak memory, disk, flops."""
        actions = Counter(item.action for item in self.tensors.values())
        passes: list[PlannedGeometry | PlannedFit | PlannedJudging] = [*self.geometry.values(), *self.fits.values()]
        passes += [self.judging] if self.judging else []
        return {
            **{f"tensors_{action}": actions[action] for action in ACTIONS},
            "reads": sum(item.reads for item in self.tensors.values()) + sum(item.reads for item in passes),
            "writes": self.written,
            "memory": self.memory,
            "disk": self.disk,
            "flops": sum(item.flops for item in self.tensors.values()) + sum(item.flops for item in passes),
        }


def make_plan(inputs: Inputs, *, compute: Compute = "float32", progress: Progress = silent) -> Plan:
    """Decide what happens to every tensor.

    Compares the tensors of each pair until the first difference, so a tensor that did not change is read once.
    Errors: InputError where no delta changes anything that is written, an option does not fit a matrix, or a geometry
    would have nothing to measure.
    """
    changed = _changed(inputs, progress)
    require_possible(inputs, changed)
    layout = inputs.into.layout
    tensors = {info.name: tensor_cost(inputs, info, changed) for info in layout.tensors.values()}
    sites = {name: _sites(inputs, name, changed) for name in inputs.recipe.geometry}
    for name, found in sites.items():
        _require_sites(inputs, name, found)
    geometry = {name: geometry_cost(inputs, name, found) for name, found in sites.items()}
    require_held(inputs, tensors)
    require_factors(inputs, tensors)
    shards = planned_files(inputs, tensors)
    fits = {step.id: fit_cost(inputs, step, tensors) for step in inputs.recipe.steps if step.verb == "fit"}
    return Plan(inputs, tensors, geometry, fits, judging_cost(inputs, tensors), shards, changed, compute)


def _answers(samples: Samples) -> str:
    """SHA-256 of where answers stand: fits, evaluation and gates score these tokens, and a fingerprint lacks them."""
    return hashlib.sha256(repr([(sample.answer, sample.answers) for sample in samples.samples]).encode()).hexdigest()


def _changed(inputs: Inputs, progress: Progress) -> dict[str, frozenset[str]]:
    parameters = [info.parameter for info in inputs.into.layout.tensors.values()]
    total = len(parameters) * len(inputs.deltas)
    changed = {}
    for index, name in enumerate(inputs.deltas):
        found = set()
        for number, parameter in enumerate(parameters):
            if inputs.changes(name, parameter):
                found.add(parameter)
            progress("comparing checkpoints", index * len(parameters) + number + 1, total, "tensors")
        if not found:
            raise InputError(
                f"deltas.{name}: tuned and base are equal in every tensor, so there is nothing to edit; "
                "name a checkpoint that training changed"
            )
        changed[name] = frozenset(found)
    for step in inputs.recipe.merges:
        assert step.result is not None  # the grammar: a merge has a result
        infos, merge = inputs.into.layout.tensors.values(), inputs.merges[step.method]
        more = (info.parameter for info in infos if reaches(merge, step, info, ()))
        changed[step.result] = frozenset(more).union(*(changed[name] for name in step.selection.deltas))
    return changed


def _sites(inputs: Inputs, geometry: str, changed: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Sites with a changed matrix that a step edits with this geometry: no other is measured."""
    found: dict[str, None] = {}
    for name, entries in inputs.touches.items():
        info = inputs.into.layout.tensors[name]
        if info.matrix is not None and any(_uses(touch, geometry, info.parameter, changed) for touch in entries):
            found[info.matrix.site] = None
    return tuple(found)


def _require_sites(inputs: Inputs, name: str, sites: tuple[str, ...]) -> None:
    """Refuse a geometry whose model or file has other inputs than `into` where a step needs them, or too wide ones."""
    ours = inputs.into.layout.sites
    if inputs.recipe.geometry[name].file is not None:
        facts = inputs.files[name].facts
        origin, widths = f"file {inputs.files[name].path}", {site: facts[site]["width"] for site in facts}
    else:
        layout = inputs.models[name].layout
        origin, widths = f"model ({layout.architecture!r})", {key: site.width for key, site in layout.sites.items()}
    for site in sites:
        if widths.get(site) != ours[site].width:
            came = f"is {widths[site]} wide" if site in widths else "does not exist"
            raise InputError(
                f"geometry {name!r}: site {site!r} {came} in its {origin}, `into` reads {ours[site].width} numbers "
                "there; measure it on a model of the same architecture and size, with every matrix that the steps edit"
            )
        if name in inputs.samples:
            try:
                require_width(ours[site].width, inputs.samples[name].positions)
            except UnsupportedError as error:
                raise UnsupportedError(f"geometry {name!r}: site {site!r}: {error}") from error


def _uses(touch: Touch, geometry: str, parameter: str, changed: Mapping[str, frozenset[str]]) -> bool:
    if touch.effect != "edit" or geometry not in geometry_names(touch.step):
        return False
    return any(parameter in changed[delta] for delta in touch.step.selection.deltas)
