"""A comparison of two checkpoints as plain text, and as a picture of where they differ."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from vecsurgery.errors import InputError
from vecsurgery.report.comparison import Cell, Comparison, TensorComparison, Total, relative, total, verdict
from vecsurgery.report.maps import heat
from vecsurgery.report.numbers import counted, percent
from vecsurgery.report.pictures import ON_WHITE, require_picture, save
from vecsurgery.report.plain import figure, table

_NAMED = 8
"""Tensors that only one of the two has, by name."""


def comparison_text(comparison: Comparison, *, worst: int = 10) -> str:
    """Weights in total, by role and by layer, the `worst` tensors, then what the two records say."""
    blocks = [
        [f"A: {comparison.a}", f"B: {comparison.b}"],
        _weights(comparison),
        *([] if comparison.same else _tables(comparison, worst)),
        _only("A", comparison.only_a),
        _only("B", comparison.only_b),
        *_records(comparison),
        [f"Warnings ({len(comparison.warnings)})", *(f"- {line}" for line in comparison.warnings)]
        if comparison.warnings
        else [],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _weights(comparison: Comparison) -> list[str]:
    everything = comparison.total()
    if comparison.same:
        return [f"The weights are the same byte for byte: {counted(everything.tensors, 'tensor')}."]
    lines = [
        f"{everything.same:,} of {counted(everything.tensors, 'tensor')} that both have are the same byte for byte.",
        f"‖A − B‖/‖B‖ is {figure(everything.relative)}; {percent(everything.changed)} of the entries differ.",
    ]
    types = Counter(each.types for each in comparison.tensors if each.types[0] != each.types[1])
    lines += [f"{counted(count, 'tensor')}: {a} in A, {b} in B." for (a, b), count in types.items()]
    if everything.cosine is not None:
        lines.append(
            f"A − into and B − into have cosine {figure(everything.cosine)} over the tensors that both changed "
            f"(into: {comparison.into})."
        )
    return lines


def _tables(comparison: Comparison, worst: int) -> list[list[str]]:
    cosines = comparison.total().cosine is not None
    layers = {str(layer): each for layer, each in comparison.by_layer().items()}
    different = [each for each in comparison.tensors if not each.same]
    different.sort(key=lambda each: -_distance(each))
    rows = {each.tensor: total([each]) for each in different[:worst]}
    return [
        _table("role", comparison.by_role(), cosines),
        _table("layer", layers, cosines) if len(layers) > 1 else [],
        ["Tensors that differ most", *_table("tensor", rows, cosines, counts=False)] if len(rows) > 1 else [],
    ]


def _distance(each: TensorComparison) -> float:
    """What tensors are sorted by: those without a number come first."""
    value = relative(each.squared_difference, each.squared_norm)
    return math.inf if value is None else value


def _table(title: str, rows: Mapping[str, Total], cosines: bool, *, counts: bool = True) -> list[str]:
    header = [title, *(["tensors", "same"] if counts else []), "‖A−B‖/‖B‖", "entries changed"]
    lines = []
    for name, each in rows.items():
        counted_cells = [f"{each.tensors:,}", f"{each.same:,}"] if counts else []
        cells = [name, *counted_cells, figure(each.relative), percent(each.changed)]
        lines.append([*cells, *([figure(each.cosine)] if cosines else [])])
    return table([*header, *(["cosine"] if cosines else [])], lines) if lines else []


def _only(label: str, names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return [f"Only {label} has {counted(len(names), 'tensor')}: {', '.join(names[:_NAMED])}{more}"]


def _records(comparison: Comparison) -> list[list[str]]:
    missing = [label for label, record in zip("AB", comparison.records, strict=True) if record is None]
    if len(missing) == 2:
        return [["Neither A nor B has a record (surgery.json): there is no more to compare."]]
    verdicts = [
        f"{label}: {text}"
        for label, record in zip("AB", comparison.records, strict=True)
        if (text := verdict(record)) is not None
    ]
    rows = [[name, _cell(first), _cell(second)] for name, (first, second) in comparison.measures().items()]
    return [
        ["Verdicts", *verdicts] if verdicts else [],
        ["What the records measured", *table(["", "A", "B"], rows)] if rows else [],
        [f"{missing[0]} has no record (surgery.json): recipes cannot be compared."]
        if missing
        else _recipes(comparison),
    ]


def _recipes(comparison: Comparison) -> list[str]:
    changes = comparison.recipe_changes()
    return ["Recipes, keys that differ (− A, + B)", *changes] if changes else ["The recipes are the same."]


def _cell(value: Cell) -> str:
    return value if isinstance(value, str) else figure(value)


def comparison_picture(comparison: Comparison, path: Path) -> None:
    """Draw ‖A−B‖/‖B‖ over blocks and roles, and the cosines where they are known, into an .svg or .png file.

    Raises InputError for another ending, or where no tensor of a block was compared; RunError where the file cannot be
    written.
    """
    require_picture(path)
    cells = comparison.by_layer_and_role()
    if not cells:
        raise InputError(f"drawing into {path}: the two share no tensor of a block")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    roles = list(dict.fromkeys(role for _, role in cells))
    panels = 2 if any(each.cosine is not None for each in cells.values()) else 1
    with rc_context(ON_WHITE):
        drawing = Figure(figsize=(9.0, panels * (1.1 + 0.26 * len(roles))), layout="constrained")
        axes = drawing.subplots(panels, 1, squeeze=False)
        values = {key: _value(each, cosines=False) for key, each in cells.items()}
        heat(drawing, axes[0][0], values, "‖A − B‖/‖B‖ (grey: the same)", roles=roles)
        if panels == 2:
            known = [role for role in roles if any(cells[key].cosine is not None for key in cells if key[1] == role)]
            values = {key: _value(each, cosines=True) for key, each in cells.items()}
            heat(drawing, axes[1][0], values, "cosine of A − into and B − into", roles=known, span=(-1.0, 1.0))
        axes[-1][0].set_xlabel(_outside(comparison), fontsize=8)
        save(drawing, path)


def _value(each: Total, *, cosines: bool) -> float | None:
    value = each.cosine if cosines else each.relative
    return None if value == 0 and not cosines else value


def _outside(comparison: Comparison) -> str:
    """The line below the picture: what the map cannot show."""
    inside = {role for _, role in comparison.by_layer_and_role()}
    rest = {role: each for role, each in comparison.by_role().items() if role not in inside}
    told = [f"{role} {'the same' if each.relative == 0 else figure(each.relative)}" for role, each in rest.items()]
    return "block" + (f"   ({', '.join(told)})" if told else "")
