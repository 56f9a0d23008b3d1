"""What each step does with each tensor, decided from layouts alone, before any data is read.

A changed tensor is edited, scaled, left out by the user's selection, governed by `others`, or refused by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from vecsurgery.checkpoint.types import Layout, Matrix, TensorInfo
from vecsurgery.errors import InputError
from vecsurgery.recipe.selection import lacking, selects
from vecsurgery.recipe.types import Step

Effect = Literal["edit", "scale", "fit", "merge", "left out", "source", "drop", "mean"]
Treatment = Literal["source", "drop", "mean"]
"""What a projector's `others` makes of a tensor that is no block matrix."""
Rows = tuple[tuple[int, int], ...]
"""Output rows as half-open intervals."""


@dataclass(frozen=True)
class Touch:
    """What one step does with one tensor.

    `rows`: output rows that are edited, where the step selects only parts of a fused matrix;
    None for all of them.
    """

    step: Step
    effect: Effect
    rows: Rows | None = None


def geometry_names(step: Step) -> tuple[str, ...]:
    """The geometries that a step's options name."""
    if step.options is None:
        return ()
    names = []
    for key, entry in type(step.options).model_fields.items():
        extra = entry.json_schema_extra
        if isinstance(extra, dict) and extra.get("reference") == "geometry":
            value = getattr(step.options, key)
            if value is not None:
                names.append(value)
    return tuple(names)


def is_block_matrix(info: TensorInfo) -> bool:
    """A 2-D weight inside a block: a linear map with a site, or one without."""
    return info.matrix is not None


def touches(steps: Sequence[Step], layout: Layout) -> dict[str, tuple[Touch, ...]]:
    """For every stored tensor, the steps that concern it, in order.

    Errors: InputError where a step's selection, or one of its globs, matches nothing, its `layers` name a block that is
    not there, or its `where` names only tensors that have no site.
    """
    table: dict[str, list[Touch]] = {name: [] for name in layout.order}
    for step in steps:
        lacked = lacking(step.selection.layers, layout.blocks)
        if lacked is not None:
            raise InputError(f"step {step.id!r}{_line(step)}: its layers name blocks that are not there: {lacked}")
        _refuse_idle_globs(step, layout)
        if step.verb == "project":
            _refuse_siteless(step, layout)
        matched = 0
        for name, info in layout.tensors.items():
            touch = _touch(step, info, table[name])
            if touch is not None:
                table[name].append(touch)
                matched += touch.effect in ("edit", "scale", "fit", "merge")
        if not matched:
            raise InputError(
                f"step {step.id!r}{_line(step)}: its selection (modules, layers, where, except) matches no "
                f"{'tensor' if step.verb == 'scale' else 'block matrix'} of {layout.architecture!r} with "
                f"{layout.blocks} blocks; widen it, or remove the step"
            )
    return {name: tuple(entries) for name, entries in table.items()}


def _roles(matrix: Matrix | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.role for part in matrix.parts)) if matrix else ()


def _selected(step: Step, info: TensorInfo) -> bool:
    return selects(step.selection, name=info.name, layer=info.layer, roles=_roles(info.matrix))


def _touch(step: Step, info: TensorInfo, above: Sequence[Touch]) -> Touch | None:
    if step.verb == "project":
        return _project(step, info)
    if step.verb == "merge":
        return Touch(step, "merge")  # of every tensor: its deltas are gone behind it
    return _scale(step, info) if step.verb == "scale" else _fit(step, info, above)


def _fit(step: Step, info: TensorInfo, above: Sequence[Touch]) -> Touch | None:
    """A fit takes the matrices, and the rows of fused ones, of the nearest projector above on its delta; where there is
    none, every block matrix."""
    if not is_block_matrix(info):
        return None
    (delta,) = step.selection.deltas
    projected = [touch for touch in above if touch.step.verb == "project" and delta in touch.step.selection.deltas]
    if projected and projected[-1].effect != "edit":
        return None
    if not _selected(step, info):
        return Touch(step, "left out")
    if not projected:
        return Touch(step, "fit", _partial_rows(step, info.matrix))
    rows = _common_rows(projected[-1].rows, _partial_rows(step, info.matrix))
    return None if rows == () else Touch(step, "fit", rows)


def _common_rows(first: Rows | None, second: Rows | None) -> Rows | None:
    """Rows that lie in both; None stands for all of them."""
    if first is None or second is None:
        return second if first is None else first
    shared = ((max(a, c), min(b, d)) for a, b in first for c, d in second)
    return tuple((start, stop) for start, stop in shared if start < stop)


def _scale(step: Step, info: TensorInfo) -> Touch | None:
    if not _selected(step, info):
        return None
    return Touch(step, "scale", _partial_rows(step, info.matrix))


def _project(step: Step, info: TensorInfo) -> Touch:
    if not is_block_matrix(info):
        return Touch(step, _others(step))
    if not _selected(step, info):
        return Touch(step, "left out")
    return Touch(step, "edit", _partial_rows(step, info.matrix))


def _others(step: Step) -> Effect:
    treatment: Treatment = getattr(step.options, "others", "source")
    return treatment


def _partial_rows(step: Step, matrix: Matrix | None) -> Rows | None:
    """Rows of the selected parts where a selection by `modules` takes only some parts of a fused matrix."""
    modules = step.selection.modules
    if matrix is None or modules is None or set(_roles(matrix)) <= set(modules):
        return None
    rows = [interval for part in matrix.parts if part.role in modules for interval in part.rows]
    return tuple(sorted(rows))


def _refuse_idle_globs(step: Step, layout: Layout) -> None:
    """Refuse a glob that matches no tensor at all: beside others that do, a typing error in it would go unseen.

    A tied tensor that the files leave out (`lm_head.weight`) counts as there.
    """
    names = [*layout.order, *layout.tied]
    globs = [("where", glob) for glob in step.selection.where] + [("except", glob) for glob in step.selection.exclude]
    for key, glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            wider = f"*{glob.strip('*')}*"
            found = next((name for name in names if fnmatchcase(name, wider)), None)
            hint = f"did you mean {wider!r}, which matches {found!r}?" if found else f"one is {layout.order[-1]!r}"
            raise InputError(
                f"step {step.id!r}{_line(step)}: {key} {glob!r} matches no tensor of {layout.architecture!r}; a glob "
                f"must match a full tensor name: {hint}"
            )


def _line(step: Step) -> str:
    """Where the step stands, for those that come from a file."""
    return f" (line {step.line})" if step.line else ""


def _refuse_siteless(step: Step, layout: Layout) -> None:
    """Refuse a `where` glob that names only tensors without a site (routers, fused experts, norms)."""
    for glob in step.selection.where:
        names = [name for name in layout.order if fnmatchcase(name, glob)]
        if names and not any(is_block_matrix(layout.tensors[name]) for name in names):
            raise InputError(
                f"step {step.id!r}{_line(step)}: where {glob!r} names {names[0]!r}"
                f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}, which is no linear map with a measured "
                "input (a router, fused experts, a norm or an embedding); such tensors follow `others`"
            )
