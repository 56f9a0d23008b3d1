"""A plan as text: what is measured, what each block costs, what is skipped, and the sums."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vecsurgery.checkpoint import readable
from vecsurgery.editing.touches import geometry_names
from vecsurgery.planning.costs import ACTIONS
from vecsurgery.recipe.numbers import plain_number
from vecsurgery.report.wording import counts, kinds, settings

if TYPE_CHECKING:
    from vecsurgery.planning.costs import PlannedTensor
    from vecsurgery.planning.plans import Plan
    from vecsurgery.recipe.types import Selection, Step

_LISTED = 8


def plan_text(plan: "Plan") -> str:
    """Render a plan for people; `Plan.to_dict` has every tensor."""
    parts = [_head(plan), _geometry(plan), _fits(plan), _judging(plan), _blocks(plan), _skipped(plan), _totals(plan)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(plan: "Plan") -> str:
    into = plan.inputs.into
    lines = [f"into  {into.folder}  ({into.layout.architecture}, {into.layout.blocks} blocks)"]
    for name, changed in plan.changed.items():
        lines.append(f"delta {name}: {len(changed)} of {len(into.layout.tensors)} tensors changed")
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join([*lines, *(_step(step, several=len(plan.changed) > 1) for step in plan.inputs.recipe.steps)])


def _step(step: "Step", *, several: bool) -> str:
    """What a step does to which deltas with which geometry, on what, and its settings. `several`: name its deltas."""
    method = str(plain_number(step.number)) if step.verb == "scale" else step.method
    into = f" into {step.result}" if step.result is not None else ""
    of = f" of {' and '.join(step.selection.deltas)}{into}" if several or into else ""
    used = geometry_names(step)
    parts = [f"geometry {' and '.join(used)}"] if used else []
    parts += _selected(step.selection)
    parts += [settings(step.options.model_dump(by_alias=True))] if step.options is not None else []
    return ", ".join([f"step  {step.id}: {step.verb} {method}{of}", *(part for part in parts if part)])


def _selected(selection: "Selection") -> list[str]:
    """The restrictions of a selection, by the recipe's keys."""
    named = {
        "modules": selection.modules,
        "layers": None if selection.layers is None else _ranges(selection.layers),
        "where": selection.where,
        "except": selection.exclude,
    }
    return [f"{key} {' '.join(found)}" for key, found in named.items() if found]


def _ranges(layers: Sequence[int]) -> list[str]:
    """Sorted block numbers, runs of them as `first-last`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    return ["-".join(str(end) for end in run) for run in runs]


def _geometry(plan: "Plan") -> str:
    lines = []
    for entry in plan.geometry.values():
        if entry.file:
            lines.append(f"geometry {entry.name}: read from a file, {len(entry.sites)} sites")
            continue
        lines.append(
            f"geometry {entry.name}: {len(entry.sites)} sites in {entry.blocks} blocks, {entry.positions:,} positions "
            f"in {entry.samples:,} samples ({entry.tokens:,} tokens fed); reads {readable(entry.reads)}, memory "
            f"{readable(entry.memory)}, {_flops(entry.flops)}, file at most {readable(entry.bytes)}"
        )
        lines.append(f"  {counts(entry.counts)}")
    return "\n".join(lines)


def _fits(plan: "Plan") -> str:
    return "\n".join(
        f"fit {entry.step} ({entry.method} of {entry.delta}): {entry.tensors} matrices, at most {entry.passes} passes "
        f"for {entry.models} models of {entry.tokens:,} tokens in {entry.samples:,} samples; reads "
        f"{readable(entry.reads)}, memory {readable(entry.memory)}, {_flops(entry.flops)}"
        for entry in plan.fits.values()
    )


def _judging(plan: "Plan") -> str:
    entry = plan.judging
    if entry is None:
        return ""
    return (
        f"evaluate and gates: {entry.models} models of {entry.tokens:,} tokens in {entry.samples:,} samples, "
        f"{entry.passes} pass{'es' if entry.passes != 1 else ''}; reads {readable(entry.reads)}, memory "
        f"{readable(entry.memory)}, {_flops(entry.flops)}"
        + (f"; think_format writes at most {entry.generated:,} tokens" if entry.generated else "")
    )


def _blocks(plan: "Plan") -> str:
    groups: dict[int | None, list[PlannedTensor]] = {}
    for name, item in plan.tensors.items():
        groups.setdefault(plan.inputs.into.layout.tensors[name].layer, []).append(item)
    columns = " ".join(f"{action:>5}" for action in ACTIONS)
    lines = [f"{'block':>8}  {columns}  {'reads':>10} {'writes':>10} {'memory':>10}  flops"]
    for layer, items in groups.items():
        actions = Counter(item.action for item in items)
        counts = " ".join(f"{actions[action]:>5}" for action in ACTIONS)
        reads, writes = sum(item.reads for item in items), sum(item.writes for item in items)
        memory = max(item.memory for item in items)
        label = "outside" if layer is None else str(layer)
        lines.append(
            f"{label:>8}  {counts}  {readable(reads):>10} {readable(writes):>10} {readable(memory):>10}  "
            f"{_flops(sum(item.flops for item in items))}"
        )
    return "\n".join(lines)


def _skipped(plan: "Plan") -> str:
    lines = []
    for (delta, step, treatment), names in plan.others().items():
        what = {"source": "added as they are", "mean": "averaged", "drop": "dropped"}[treatment]
        lines.append(f"{step}: {len(names)} tensors of {delta} that are no block matrix are {what}: {kinds(names)}")
    left: dict[tuple[str, str], list[str]] = {}
    for tensor, step, delta in plan.left_out():
        left.setdefault((step, delta), []).append(tensor)
    for (step, delta), names in left.items():
        lines.append(f"{step}: {len(names)} changed matrices of {delta} are left out by the selection: {_some(names)}")
    return "\n".join(lines)


def _totals(plan: "Plan") -> str:
    totals = plan.totals()
    files = f"{len(plan.shards)} file{'s' if len(plan.shards) != 1 else ''}"
    unknown = "; how many directions a site has is known after measuring" if plan.inputs.samples else ""
    lines = [
        ("reads", f"{readable(totals['reads'])} from the checkpoints, all passes together"),
        ("writes", f"{readable(totals['writes'])} of {_contents(plan)} in {files}"),
        ("disk", f"at most {readable(totals['disk'])}: {disk_text(plan)}"),
        ("memory", f"about {readable(totals['memory'])} at its peak: {_memory(plan)}"),
        ("compute", f"at most {_flops(totals['flops'])}{unknown}"),
    ]
    return "\n".join(["in sum", *(f"  {name:<8}{what}" for name, what in lines)])


def disk_text(plan: "Plan") -> str:
    """What the bound on disk is made of."""
    geometry, room = plan.geometry_bytes, plan.room
    parts = [f"{readable(plan.written + room.forms)} of {_contents(plan)}"]
    if room.patches:
        parts.append(f"{readable(room.patches)} of patches (an upper bound, as if every entry needed one)")
    if room.passing:
        parts.append(f"{readable(room.passing)} that is gone at the end")
    if geometry:
        kept = "" if plan.inputs.recipe.output.keep_geometry else ", deleted at the end"
        parts.append(f"{readable(geometry)} of geometry (an upper bound, less where sites have fewer directions{kept})")
    parts.append(
        f"{readable(plan.disk - plan.written - room.total - geometry)} set aside for tokenizer, card and report"
    )
    return ", ".join(parts)


def _contents(plan: "Plan") -> str:
    """What the tensors of the output are."""
    return {"checkpoint": "tensors", "delta": "values", "adapter": "factors"}[plan.inputs.recipe.output.format]


def _memory(plan: "Plan") -> str:
    """Which phase the peak belongs to, and what the others take."""
    phases = plan.phase_memory
    peak = max(phases, key=lambda name: phases[name])
    others = [f"{name} {readable(count)}" for name, count in phases.items() if name != peak and count]
    return f"{peak} takes it" + (f" ({', '.join(others)})" if others else "") + "; torch and Python come on top"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _flops(count: int) -> str:
    size = float(count)
    for unit in ("flop", "kflop", "Mflop", "Gflop", "Tflop"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} Pflop"
