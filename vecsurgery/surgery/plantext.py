"""A plan as text: what is measured, what each block costs, what is skipped, and the sums."""

from collections import Counter
from typing import TYPE_CHECKING

from vecsurgery.checkpoint import readable

if TYPE_CHECKING:
    from vecsurgery.surgery.costs import PlannedTensor
    from vecsurgery.surgery.planning import Plan

_LISTED = 8


def plan_text(plan: "Plan") -> str:
    """Render a plan for people; `Plan.to_dict` has every tensor."""
    parts = [_head(plan), _geometry(plan), _fits(plan), _blocks(plan), _skipped(plan), _totals(plan)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(plan: "Plan") -> str:
    into = plan.inputs.into
    lines = [f"into  {into.folder}  ({into.layout.architecture}, {into.layout.blocks} blocks)"]
    for name, changed in plan.changed.items():
        lines.append(f"delta {name}: {len(changed)} of {len(into.layout.tensors)} tensors changed")
    for step in plan.inputs.recipe.steps:
        lines.append(f"step  {step.id}: {step.verb} {step.method if step.verb == 'project' else step.number}")
    return "\n".join(lines)


def _geometry(plan: "Plan") -> str:
    lines = []
    for entry in plan.geometry.values():
        if entry.file:
            lines.append(f"geometry {entry.name}: read from a file, {len(entry.sites)} sites")
            continue
        lines.append(
            f"geometry {entry.name}: {len(entry.sites)} sites in {entry.blocks} blocks, {entry.positions} positions in "
            f"{entry.samples} samples ({entry.tokens} tokens fed); reads {readable(entry.reads)}, memory "
            f"{readable(entry.memory)}, {_flops(entry.flops)}, file at most {readable(entry.bytes)}"
        )
        lines.append("  " + ", ".join(f"{key} {count}" for key, count in entry.counts.items()))
    return "\n".join(lines)


def _fits(plan: "Plan") -> str:
    return "\n".join(
        f"fit {entry.step} ({entry.method} of {entry.delta}): {entry.tensors} matrices, at most {entry.passes} passes "
        f"over {entry.models} models of {entry.tokens} tokens in {entry.samples} samples; reads "
        f"{readable(entry.reads)}, memory {readable(entry.memory)}, {_flops(entry.flops)}"
        for entry in plan.fits.values()
    )


def _blocks(plan: "Plan") -> str:
    groups: dict[int | None, list[PlannedTensor]] = {}
    for name, item in plan.tensors.items():
        groups.setdefault(plan.inputs.into.layout.tensors[name].layer, []).append(item)
    columns = " ".join(f"{action:>5}" for action in ("edit", "scale", "add", "copy"))
    lines = [f"{'block':>8}  {columns}  {'reads':>10} {'writes':>10} {'memory':>10}  flops"]
    for layer, items in groups.items():
        actions = Counter(item.action for item in items)
        counts = " ".join(f"{actions[action]:>5}" for action in ("edit", "scale", "add", "copy"))
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
        what = "added as they are" if treatment == "source" else "dropped"
        lines.append(f"{step}: {len(names)} tensors of {delta} that are no block matrix are {what}: {_some(names)}")
    left: dict[tuple[str, str], list[str]] = {}
    for tensor, step, delta in plan.left_out():
        left.setdefault((step, delta), []).append(tensor)
    for (step, delta), names in left.items():
        lines.append(f"{step}: {len(names)} changed matrices of {delta} are left out by the selection: {_some(names)}")
    return "\n".join(lines)


def _totals(plan: "Plan") -> str:
    totals = plan.totals()
    files = f"{len(plan.shards)} file{'s' if len(plan.shards) != 1 else ''}"
    return (
        f"in sum: reads {readable(totals['reads'])}, writes {readable(totals['writes'])} in {files}, "
        f"disk at most {readable(totals['disk'])}, peak memory about {readable(totals['memory'])}, "
        f"at most {_flops(totals['flops'])}"
    )


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
