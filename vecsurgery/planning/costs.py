"""What a run costs: bytes and flops of each tensor, geometry and fit, from shapes and sample lengths alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.editing.merging import merged_whole, reaches
from vecsurgery.editing.touches import Touch, geometry_names
from vecsurgery.evaluation.generation import WRITTEN_TOGETHER
from vecsurgery.forward import share_a_pass
from vecsurgery.forward.generation import HELD_BYTES
from vecsurgery.linalg import Cost, CostFunction
from vecsurgery.planning.calls import calls, sources
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.judged import CONTINUATIONS, CONTINUED, judged_models, smoke_samples
from vecsurgery.planning.sizes import item_size, number_size, output_type
from vecsurgery.recipe.types import Step

Action = Literal["edit", "merge", "scale", "add", "copy"]
ACTIONS: tuple[Action, ...] = get_args(Action)
ROW_CHUNK = 1 << 21
"""Bytes of a row chunk: tensors that no projector touches pass through memory in such pieces."""
MERGE_COPIES = 4
"""float32 copies of a tensor that a merge holds for each of its deltas, and for itself: measured on mergekit's methods
with one, two and four deltas, the dearest of which (`ram`, `della`) take a little more.
"""
_FIT_MODELS = {"losses": (11, 9), "attention": (1, 3)}
"""Candidate models that a fit asks about at most, first and then."""


@dataclass(frozen=True)
class PlannedTensor:
    """What happens to one tensor.

    `action`: edit (a projector runs), merge (deltas become one), scale (only numbers), add (its delta is added as it
    is), copy (bytes of `into`). `steps`: (step id, effect) of the steps that meet a delta here. `reads`, `writes`,
    `memory` in bytes, `flops`: of the products with the geometry (an upper bound: 4·out·in·r to project, as much again
    to measure the result), and of what projectors without geometry and merges say they need.
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
class PlannedFit:
    """What one fit takes at most. `tensors`: matrices that it multiplies; `tokens`: fed for each of `models` candidate
    models, asked about in two rounds of `passes` passes together. `reads`, `memory` in bytes, `flops`: of all passes.
    """

    step: str
    method: str
    delta: str
    tensors: int
    samples: int
    tokens: int
    models: int
    passes: int
    reads: int
    memory: int
    flops: int


@dataclass(frozen=True)
class PlannedJudging:
    """What `evaluate` and gates take at most: `models` models of `tokens` tokens in `passes` passes, the continuations
    of `smoke`, and `generated` tokens of `think_format`. `reads`, `memory` in bytes, `flops`: of all.
    """

    models: int
    samples: int
    tokens: int
    passes: int
    reads: int
    memory: int
    flops: int
    generated: int = 0


def tensor_cost(inputs: Inputs, info: TensorInfo, changed: Mapping[str, frozenset[str]]) -> PlannedTensor:
    """What happens to one tensor. `changed`: delta name → parameters that differ."""
    present = [name for name in inputs.deltas if info.parameter in changed[name]]
    steps = []
    action: Action = "add" if present else "copy"
    live = set(present)
    for touch in inputs.touches[info.name]:
        concerned = [name for name in touch.step.selection.deltas if name in live]
        if not concerned and not _merges(inputs, touch, info, concerned):
            continue
        steps.append((touch.step.id, touch.effect))
        if touch.step.result is not None:
            live = (live - set(concerned)) | {touch.step.result}
            action = action if action == "edit" else "merge"
        elif touch.effect == "drop":
            live -= set(concerned)
        elif touch.effect == "edit":
            action = "edit"
        elif touch.effect in ("scale", "fit", "mean") and action not in ("edit", "merge"):
            action = "scale"
    own = _own_costs(inputs, info, present)
    return PlannedTensor(
        tensor=info.name,
        shape=info.shape,
        action=action if live else "copy",
        deltas=tuple(present),
        steps=tuple(steps),
        reads=_tensor_reads(inputs, info, present),
        writes=_written(inputs, info, present, copied=not live or action == "copy"),
        memory=tensor_memory(inputs, info, len(present)) + max((cost.memory for cost in own), default=0),
        flops=_tensor_flops(inputs, info, present) + sum(cost.flops for cost in own),
    )


def _own_costs(inputs: Inputs, info: TensorInfo, present: Sequence[str]) -> list[Cost]:
    """What the projectors and merges of one matrix need beside products with a geometry, as they say themselves."""
    own = [(_cost(inputs, call.step), call) for call in calls(inputs, info, present)]
    return [cost(call.shape, [*call.ranks.values()], call.step.options) for cost, call in own if cost is not None]


def _cost(inputs: Inputs, step: Step) -> CostFunction | None:
    if step.verb == "merge":
        return inputs.merges[step.method].cost
    return inputs.projectors[step.method].cost


def _merges(inputs: Inputs, touch: Touch, info: TensorInfo, present: Sequence[str]) -> bool:
    """Whether a step merges something of this tensor. `present`: those of its deltas that change it."""
    return touch.effect == "merge" and reaches(inputs.merges[touch.step.method], touch.step, info, present)


def _written(inputs: Inputs, info: TensorInfo, present: Sequence[str], *, copied: bool) -> int:
    """Bytes of one tensor in the output: of a delta its values alone, of an adapter its factors at most."""
    output = inputs.recipe.output
    whole = prod(info.shape) * item_size(output_type(info, output.dtype))
    if output.format == "checkpoint":
        return whole
    if copied:
        return 0
    if output.format == "delta":
        return whole
    if info.matrix is None and info.kind != "head":
        return 0
    ranks = [inputs.deltas[name].rank(info.parameter) for name in present]
    known = sum(rank or 0 for rank in ranks) if ranks and None not in ranks else None
    limits = [rank for rank in (output.rank, known) if rank is not None]
    return min(limits, default=min(info.shape)) * sum(info.shape) * number_size(output.dtype)


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


def tensor_memory(inputs: Inputs, info: TensorInfo, deltas: int) -> int:
    """float32 copies of W, of each delta before and after, of their sum and of the stored change, plus the geometry.

    A merge holds several more of each of its deltas (masks, order of magnitudes), and of the tensor as a whole where it
    cannot go by rows.
    """
    merging = [touch for touch in inputs.touches[info.name] if _merges(inputs, touch, info, ("any",) * deltas)]
    if not deltas and not merging:
        return 0
    size = prod(info.shape) * 4
    directions = 0
    if info.matrix is None and len(info.shape) > 1 and not merged_whole(inputs.touches[info.name], inputs.merges, info):
        # Written by rows: never more than a chunk of it is in memory.
        size = min(size, ROW_CHUNK * 4 // item_size(info.dtype))
    if info.matrix is not None:
        width = inputs.into.layout.sites[info.matrix.site].width
        names = {name for touch in inputs.touches[info.name] for name in geometry_names(touch.step)}
        directions = sum(width * _rank_bound(inputs, name, width) * 8 for name in names)
    copies = max((MERGE_COPIES * (len(touch.step.selection.deltas) + 1) for touch in merging), default=0)
    return size * (3 + 2 * deltas + copies) + directions


def _tensor_flops(inputs: Inputs, info: TensorInfo, present: list[str]) -> int:
    if info.matrix is None:
        return 0
    flops = 0
    width = inputs.into.layout.sites[info.matrix.site].width
    for touch in inputs.touches[info.name]:
        if touch.effect != "edit":
            continue
        live = sources(inputs, touch.step.selection.deltas, present)
        for geometry in geometry_names(touch.step):
            rank = _rank_bound(inputs, geometry, width)
            flops += (4 * len(live) + 6) * prod(info.shape) * rank
    return flops


def _rank_bound(inputs: Inputs, geometry: str, width: int) -> int:
    spec = inputs.recipe.geometry[geometry]
    if spec.file is not None:
        return min(width, inputs.files[geometry].info.max_directions)
    return min(width, spec.max_directions, inputs.samples[geometry].positions)


def geometry_cost(inputs: Inputs, name: str, sites: tuple[str, ...]) -> PlannedGeometry:
    """What measuring these sites takes."""
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


def fit_cost(inputs: Inputs, step: Step, tensors: Mapping[str, PlannedTensor]) -> PlannedFit:
    """Two rounds of models, each in one pass, or in several where the hidden states of many tokens allow no more.

    Of losses: 9 factors, `into` and the raw delta first, 9 factors more then. Of attention: the model that it is
    measured on, then the edited model without, with and with permuted coefficients.
    """
    layout = inputs.into.layout
    samples = [sample for sample in inputs.fit_samples[step.id].samples if sample.answer]
    tokens = sum(len(sample.ids) for sample in samples)
    blocks: Counter[int] = Counter()
    for info in layout.tensors.values():
        if info.layer is not None:
            blocks[info.layer] += prod(info.shape)
    parameters = sum(prod(info.shape) for info in layout.tensors.values() if len(info.shape) > 1)
    projecting = sum(item.flops for item in tensors.values())
    (delta,) = step.selection.deltas
    fitted = [name for name, touched in inputs.touches.items() if any(t.step is step for t in touched)]
    together = share_a_pass(tokens, layout.hidden)
    rounds = _FIT_MODELS[inputs.fits[step.method].asks]
    passes = sum(-(-models // together) for models in rounds)
    states = (min(together, max(rounds)) + 1) * tokens * layout.hidden * 4
    # Of one block: W, the delta as loaded and as the steps left it, one candidate; hidden states of a pass.
    return PlannedFit(
        step=step.id,
        method=step.method,
        delta=delta,
        tensors=len(fitted),
        samples=len(samples),
        tokens=tokens,
        models=sum(rounds),
        passes=passes,
        reads=passes * sum(item.reads for item in tensors.values()),
        memory=4 * max(blocks.values(), default=0) * 4 + states,
        flops=sum(rounds) * 2 * tokens * parameters + passes * projecting,
    )


def judging_cost(inputs: Inputs, tensors: Mapping[str, PlannedTensor]) -> PlannedJudging | None:
    """The passes behind the writing; None where nothing is asked for.

    Models that are not held are read once for each token of a continuation, and twice for its checks.
    """
    gates = inputs.recipe.gates
    sources = [*inputs.evaluation.values()]
    scored = {index: samples for index, samples in inputs.gate_samples.items() if gates[index].writing is None}
    sources += [samples for index, samples in scored.items() if gates[index].data is not None]
    smoke = any(gate.measure == "smoke" for gate in gates)
    sources += [smoke_samples(inputs)] if smoke else []
    if not sources:
        return None
    layout, models = inputs.into.layout, judged_models(inputs)
    lengths = [len(sample.ids) for samples in sources for sample in samples.samples]
    stored = {name: prod(info.shape) * item_size(info.dtype) for name, info in layout.tensors.items()}
    written = sum(item.writes for item in tensors.values())
    blocks: Counter[int] = Counter()
    for name, info in layout.tensors.items():
        if info.layer is not None:
            # into, raw and edited as they are stored, and one of them in float32
            blocks[info.layer] += stored[name] * 2 + tensors[name].writes + prod(info.shape) * 4
    together = share_a_pass(sum(lengths), layout.hidden)
    parameters = sum(prod(info.shape) for info in layout.tensors.values() if len(info.shape) > 1)
    raw = sum(item.reads for item in tensors.values()) if "raw" in models else 0
    alone = sum(stored.values()) if together < len(models) or not raw else 0
    held = sum(prod(info.shape) for info in layout.tensors.values()) * 4 < HELD_BYTES
    continued = (1 if held else CONTINUED + 2) * written if smoke else 0
    generated, loaded = _generation_cost(inputs)
    memory = max(blocks.values(), default=0) + (min(together, len(models)) + 1) * sum(lengths) * layout.hidden * 4
    return PlannedJudging(
        models=len(models),
        samples=len(lengths),
        tokens=sum(lengths),
        passes=-(-len(models) // together),
        reads=raw + alone + written + continued + written * len(inputs.gate_prompts),
        memory=max(memory, loaded),
        flops=2 * parameters * (len(models) * sum(lengths) + generated + (CONTINUATIONS * CONTINUED if smoke else 0)),
        generated=generated,
    )


def _generation_cost(inputs: Inputs) -> tuple[int, int]:
    """Tokens that the result writes for gates at most, and the bytes of the loaded model with its caches in float32.

    A cache is counted as if keys and values were as wide as the hidden states.
    """
    layout, generated, memory = inputs.into.layout, 0, 0
    whole = sum(prod(info.shape) for info in layout.tensors.values()) * 4
    blocks = len({info.layer for info in layout.tensors.values() if info.layer is not None})
    for index, asked in inputs.gate_prompts.items():
        writing = inputs.recipe.gates[index].writing
        assert writing is not None  # only such gates have prompts
        generated += len(asked) * writing.samples * writing.longest
        longest = max(len(prompt.ids) for prompt in asked) + writing.longest
        cache = 2 * blocks * layout.hidden * 4 * longest * min(writing.samples, WRITTEN_TOGETHER)
        memory = max(memory, whole + cache)
    return generated, memory
