"""The plan: every tensor, cost and file of a run, before anything heavy starts.

Costs follow from shapes and sample lengths; ranks are not known yet, so products with a geometry are upper bounds.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

import torch

import vecsurgery
from vecsurgery.checkpoint import ShardPlan, file_sha256, plan_shards
from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.errors import InputError
from vecsurgery.forward import Compute
from vecsurgery.progress import Progress, silent
from vecsurgery.surgery.inputs import Inputs
from vecsurgery.surgery.plantext import plan_text
from vecsurgery.surgery.touches import Touch, geometry_names

Action = Literal["edit", "scale", "add", "copy"]
ROW_CHUNK = 1 << 26
"""Bytes of a row chunk: tensors that no projector touches pass through memory in such pieces."""
ITEM_SIZES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
"""Bytes of one element; every other type that checkpoints hold has one byte."""


@dataclass(frozen=True)
class PlannedTensor:
    """What happens to one tensor.

    `action`: edit (a projector runs), scale (only numbers), add (its delta is added as it is), copy (bytes of `into`).
    `steps`: (step id, effect) of the steps that meet a delta here. `reads`, `writes`, `memory` in bytes, `flops`: of
    the products with the geometry (an upper bound: 4·out·in·r to project, as much again to measure the result).
    """

    tensor: str
    shape: tuple[int, ...]
    action: Action
    deltas: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]
    reads: int
    writes: int
    memory: int
    flops: int


@dataclass(frozen=True)
class PlannedGeometry:
    """What measuring one geometry takes; `file` True where it is read instead."""

    name: str
    file: bool
    blocks: int
    sites: tuple[str, ...]
    samples: int
    tokens: int
    positions: int
    counts: Mapping[str, int]
    reads: int
    memory: int
    flops: int
    bytes: int
    """Upper bound of the geometry file's size."""


@dataclass(frozen=True)
class Plan:
    """A resolved recipe with every tensor, cost and file."""

    inputs: Inputs
    tensors: Mapping[str, PlannedTensor]
    geometry: Mapping[str, PlannedGeometry]
    shards: tuple[ShardPlan, ...]
    changed: Mapping[str, frozenset[str]]
    """Delta name → parameters that differ."""
    compute: Compute

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that determines the result: a partial output belongs to one such hash."""
        content = {
            "versions": {"vecsurgery": vecsurgery.__version__, "torch": torch.__version__},
            "recipe": self.inputs.recipe.text,
            "compute": self.compute,
            "into": self.inputs.into.fingerprint,
            "deltas": {name: source.fingerprint for name, source in self.inputs.deltas.items()},
            "samples": {name: samples.fingerprint for name, samples in self.inputs.samples.items()},
            "models": {name: model.fingerprint for name, model in self.inputs.models.items()},
            "files": {name: file_sha256(geometry.path) for name, geometry in self.inputs.files.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def written(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(item.writes for item in self.tensors.values())

    @property
    def disk(self) -> int:
        """Bytes that the output folder takes at most: tensors, geometry files, a little for side files."""
        copied = sum(geometry.path.stat().st_size for geometry in self.inputs.files.values())
        return self.written + copied + sum(plan.bytes for plan in self.geometry.values()) + 64 * 2**20

    @property
    def memory(self) -> int:
        """Anonymous bytes at the peak: the larger of measuring and writing."""
        measuring = max((plan.memory for plan in self.geometry.values()), default=0)
        writing = max((item.memory for item in self.tensors.values()), default=0)
        return max(measuring, writing)

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

    def others(self) -> dict[tuple[str, str, Literal["source", "drop"]], list[str]]:
        """(delta, step id, treatment) → the changed tensors that are no block matrix."""
        table: dict[tuple[str, str, Literal["source", "drop"]], list[str]] = {}
        for name, entries in self.inputs.touches.items():
            for touch in entries:
                if touch.effect != "source" and touch.effect != "drop":
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
            "tensors": [asdict(item) for item in self.tensors.values()],
            "geometry": [asdict(item) for item in self.geometry.values()],
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
        return {
            **{f"tensors_{action}": actions[action] for action in ("edit", "scale", "add", "copy")},
            "reads": sum(item.reads for item in self.tensors.values()) + sum(g.reads for g in self.geometry.values()),
            "writes": self.written,
            "memory": self.memory,
            "disk": self.disk,
            "flops": sum(item.flops for item in self.tensors.values()) + sum(g.flops for g in self.geometry.values()),
        }


def make_plan(inputs: Inputs, *, compute: Compute = "float32", progress: Progress = silent) -> Plan:
    """Decide what happens to every tensor.

    Compares the tensors of each pair until the first difference, so a tensor that did not change is read once.
    Errors: InputError where no delta changes anything that is written, or a geometry would have nothing to measure.
    """
    changed = _changed(inputs, progress)
    layout = inputs.into.layout
    tensors = {info.name: _tensor_plan(inputs, info, changed) for info in layout.tensors.values()}
    sites = {name: _sites(inputs, name, changed) for name in inputs.recipe.geometry}
    for name, found in sites.items():
        _require_sites(inputs, name, found)
    geometry = {name: _geometry_plan(inputs, name, found) for name, found in sites.items()}
    dtype = inputs.recipe.output.dtype
    shards = plan_shards(
        [(info.name, output_type(info, dtype), info.shape) for info in layout.tensors.values()],
        inputs.recipe.output.shard_size,
    )
    return Plan(inputs, tensors, geometry, tuple(shards), changed, compute)


def _changed(inputs: Inputs, progress: Progress) -> dict[str, frozenset[str]]:
    parameters = [info.parameter for info in inputs.into.layout.tensors.values()]
    total = len(parameters) * len(inputs.deltas)
    changed = {}
    for index, (name, source) in enumerate(inputs.deltas.items()):
        found = set()
        for number, parameter in enumerate(parameters):
            if source.changed(parameter):
                found.add(parameter)
            progress("comparing checkpoints", index * len(parameters) + number + 1, total, "tensors")
        if not found:
            raise InputError(
                f"deltas.{name}: tuned and base are equal in every tensor, so there is nothing to edit; "
                "name a checkpoint that training changed"
            )
        changed[name] = frozenset(found)
    return changed


def _tensor_plan(inputs: Inputs, info: TensorInfo, changed: Mapping[str, frozenset[str]]) -> PlannedTensor:
    present = [name for name in inputs.deltas if info.parameter in changed[name]]
    steps = []
    action: Action = "add" if present else "copy"
    live = set(present)
    for touch in inputs.touches[info.name]:
        concerned = [name for name in touch.step.selection.deltas if name in live]
        if not concerned:
            continue
        steps.append((touch.step.id, touch.effect))
        if touch.effect == "drop":
            live -= set(concerned)
        elif touch.effect == "edit" or (touch.effect == "scale" and action != "edit"):
            action = touch.effect
    size = prod(info.shape)
    return PlannedTensor(
        tensor=info.name,
        shape=info.shape,
        action=action if live else "copy",
        deltas=tuple(present),
        steps=tuple(steps),
        reads=_tensor_reads(inputs, info, present),
        writes=size * item_size(output_type(info, inputs.recipe.output.dtype)),
        memory=_tensor_memory(inputs, info, len(present)),
        flops=_tensor_flops(inputs, info, present),
    )


def _tensor_reads(inputs: Inputs, info: TensorInfo, present: list[str]) -> int:
    """Bytes read for one tensor: those of `into`, and of what the deltas come from; what several share counts once."""
    tensors = {(id(inputs.into), info.name): prod(info.shape) * item_size(info.dtype)}
    adapters = 0
    for name in present:
        source = inputs.deltas[name]
        stored = {}
        for weights, tensor in source.stored(info.parameter):
            entry = weights.layout.tensors[tensor]
            stored[id(weights), tensor] = prod(entry.shape) * item_size(entry.dtype)
        adapters += source.reads(info.parameter) - sum(stored.values())
        tensors |= stored
    return sum(tensors.values()) + adapters


def _tensor_memory(inputs: Inputs, info: TensorInfo, deltas: int) -> int:
    """float32 copies of W, of each delta before and after, of their sum and of the stored change, plus the geometry."""
    if not deltas:
        return 0
    size = prod(info.shape) * 4
    directions = 0
    if info.matrix is None and len(info.shape) > 1:
        # Written by rows: never more than a chunk of it is in memory.
        size = min(size, ROW_CHUNK * 4 // item_size(info.dtype))
    if info.matrix is not None:
        width = inputs.into.layout.sites[info.matrix.site].width
        names = {name for touch in inputs.touches[info.name] for name in geometry_names(touch.step)}
        directions = sum(width * _rank_bound(inputs, name, width) * 8 for name in names)
    return size * (3 + 2 * deltas) + directions


def _tensor_flops(inputs: Inputs, info: TensorInfo, present: list[str]) -> int:
    if info.matrix is None:
        return 0
    flops = 0
    width = inputs.into.layout.sites[info.matrix.site].width
    for touch in inputs.touches[info.name]:
        if touch.effect != "edit":
            continue
        live = [name for name in touch.step.selection.deltas if name in present]
        for geometry in geometry_names(touch.step):
            rank = _rank_bound(inputs, geometry, width)
            flops += (4 * len(live) + 6) * prod(info.shape) * rank
    return flops


def _rank_bound(inputs: Inputs, geometry: str, width: int) -> int:
    spec = inputs.recipe.geometry[geometry]
    if spec.file is not None:
        return min(width, inputs.files[geometry].info.max_directions)
    return min(width, spec.max_directions, inputs.samples[geometry].positions)


def _sites(inputs: Inputs, geometry: str, changed: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Sites with a changed matrix that a step edits with this geometry: no other is measured."""
    found: dict[str, None] = {}
    for name, entries in inputs.touches.items():
        info = inputs.into.layout.tensors[name]
        if info.matrix is not None and any(_uses(touch, geometry, info.parameter, changed) for touch in entries):
            found[info.matrix.site] = None
    return tuple(found)


def _require_sites(inputs: Inputs, name: str, sites: tuple[str, ...]) -> None:
    """Refuse a geometry whose model or file has other inputs than `into` where a step needs them."""
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


def _uses(touch: Touch, geometry: str, parameter: str, changed: Mapping[str, frozenset[str]]) -> bool:
    if touch.effect != "edit" or geometry not in geometry_names(touch.step):
        return False
    return any(parameter in changed[delta] for delta in touch.step.selection.deltas)


def _geometry_plan(inputs: Inputs, name: str, sites: tuple[str, ...]) -> PlannedGeometry:
    layout = inputs.into.layout
    widths = [layout.sites[site].width for site in sites]
    last = max((layout.sites[site].layer for site in sites), default=-1)
    if inputs.recipe.geometry[name].file is not None:
        return PlannedGeometry(name, True, 0, sites, 0, 0, 0, {}, 0, 0, 0, 0)
    samples = inputs.samples[name]
    tokens = sum(len(sample.ids) for sample in samples.samples)
    blocks = [info for info in layout.tensors.values() if info.layer is not None and info.layer <= last]
    parameters = sum(prod(info.shape) for info in blocks)
    sizes: Counter[int | None] = Counter()
    for info in blocks:
        sizes[info.layer] += prod(info.shape)
    moments = sum(
        2 * samples.positions * width * (width if samples.positions > min(width, 1024) else 0) for width in widths
    )
    states = tokens * layout.hidden * 4
    geometry_block = max((layout.sites[s].width ** 2 * 8 for s in sites if samples.positions > 1024), default=0)
    return PlannedGeometry(
        name=name,
        file=False,
        blocks=last + 1,
        sites=sites,
        samples=len(samples.samples),
        tokens=tokens,
        positions=samples.positions,
        counts=samples.counts,
        reads=sum(prod(info.shape) * item_size(info.dtype) for info in blocks),
        memory=2 * max(sizes.values(), default=0) * 4 + 2 * states + geometry_block,
        flops=2 * tokens * parameters + moments,
        bytes=sum(width * _rank_bound(inputs, name, width) * 4 + 8192 for width in widths),
    )


def item_size(dtype: str) -> int:
    """Bytes of one element of a stored type."""
    return ITEM_SIZES.get(dtype, 1)


def output_type(info: TensorInfo, dtype: str) -> str:
    """The type a tensor is written in: floating ones follow the recipe's `output.dtype`."""
    floating = info.dtype in ("float64", "float32", "float16", "bfloat16")
    return dtype if dtype != "stored" and floating else info.dtype
