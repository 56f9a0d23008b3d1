"""An evaluation as plain text and as a picture: measures down, models across, one block for each data source."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from vecsurgery.errors import InputError
from vecsurgery.evaluation.catalogue import FORGET, measure, order
from vecsurgery.evaluation.types import Evaluation, Figure
from vecsurgery.report import judged
from vecsurgery.report.numbers import counted
from vecsurgery.report.pictures import ON_WHITE, require_picture, save
from vecsurgery.report.plain import figure, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#2f7fd0", "#e8912d", "#4c9f70", "#b0539c", "#9aa0a6", "#c44536", "#6c5bb5", "#7a6a53")
_PANELS = 4
"""Beside each other."""


def evaluation_text(evaluation: Evaluation) -> str:
    """Aligned tables, one for each data source: a measure a line, with its unit, and a model a column.

    Rates of generations have their interval beside them. Data with a role have a last column that says where a good
    model stands.
    """
    labels = [model.label for model in evaluation.models]
    blocks = []
    for data in _sources(evaluation):
        names = _shown(evaluation, data)
        ends = [judged.good(data, name) for name in names]
        rows = []
        for name in names:
            described = measure(name)
            figures = [evaluation.figure(label, data, name) for label in labels]
            rows.append([described.title, described.unit, *(_cell_of(found) for found in figures)])
        if rows and any(ends):
            rows = [[*row, end] for row, end in zip(rows, ends, strict=True)]
        if rows:
            header = ["measure", "unit", *labels, *(["good is"] if any(ends) else [])]
            blocks.append([_title(evaluation, data), *table(header, rows, left=2)])
    warnings = [f"- {line}" for line in evaluation.warnings]
    blocks.append([f"Warnings ({len(warnings)})", *warnings] if warnings else [])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def evaluation_picture(evaluation: Evaluation, path: Path) -> None:
    """Draw a bar for each model in a panel for each measure of each data source, into an .svg or .png file.

    The same evaluation gives the same bytes of SVG. Raises InputError for another ending, or where there is nothing to
    draw; RunError where the file cannot be written.
    """
    require_picture(path)
    panels = _panels(evaluation)
    if not panels:
        raise InputError(f"drawing into {path}: there is no figure to draw")
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing

    across = max(len(line) for line in panels)
    height = max(1.2, 0.7 + 0.24 * len(evaluation.models))
    with rc_context(ON_WHITE):
        drawing = Drawing(figsize=(2.9 * across, height * len(panels)), layout="constrained")
        for row, line in zip(drawing.subplots(len(panels), across, squeeze=False), panels, strict=True):
            for axes, panel in zip(row, line, strict=False):
                _bars(axes, evaluation, *panel)
            for axes in row[len(line) :]:
                axes.set_visible(False)
        save(drawing, path)


def _panels(evaluation: Evaluation) -> list[list[tuple[str, str]]]:
    """(data source, measure) of every panel, by lines; each data source begins a line."""
    lines = []
    for data in _sources(evaluation):
        own = [(data, name) for name in _shown(evaluation, data)]
        lines += [own[start : start + _PANELS] for start in range(0, len(own), _PANELS)]
    return lines


def _bars(axes: "Axes", evaluation: Evaluation, data: str, name: str) -> None:
    described = measure(name)
    for place, model in enumerate(evaluation.models):
        found = evaluation.figure(model.label, data, name)
        value = found.value if found is not None else None
        length = value if value is not None and math.isfinite(value) else 0.0
        axes.barh(place, length, color=_COLOURS[place % len(_COLOURS)], height=0.72)
        end = length
        if found is not None and found.interval is not None:
            low, end = found.interval
            axes.hlines(place, low, end, color="#333333", linewidth=1)
        axes.annotate(f" {_cell(value)}", (end, place), va="center", fontsize=7)
    axes.set_yticks(range(len(evaluation.models)), [model.label for model in evaluation.models], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0.0)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="x", labelsize=7)
    unit = f" ({described.unit})" if described.unit else ""
    axes.set_title(f"{data}: {described.title}{unit}", loc="left", fontsize=8)


def _sources(evaluation: Evaluation) -> list[str]:
    """Data sources in the order in which they were named, then those that only files have."""
    found = dict.fromkeys(evaluation.data)
    for model in evaluation.models:
        found |= dict.fromkeys(model.data)
    return list(found)


def _shown(evaluation: Evaluation, data: str) -> list[str]:
    """Measures of a data source that tables show: those that some model has."""
    names = {name for model in evaluation.models if data in model.data for name in model.data[data].figures}
    return [name for name in order(names) if measure(name).shown]


def _title(evaluation: Evaluation, data: str) -> str:
    measured = [model.data[data] for model in evaluation.models if data in model.data]
    rows = sorted({each.rows for each in measured if each.rows})
    count = (
        "" if not rows else f": {counted(rows[0], 'row')}" if len(rows) == 1 else f": {rows[0]:,} to {rows[-1]:,} rows"
    )
    return f"{data}{count}" + (" (should be forgotten)" if data == FORGET else "")


def _cell_of(found: Figure | None) -> str:
    """A figure, with the interval of a rate."""
    if found is None or found.interval is None:
        return _cell(found.value if found is not None else None)
    low, high = found.interval
    return f"{_cell(found.value)} [{low:.2f}, {high:.2f}]"


def _cell(value: float | None) -> str:
    """As in a report; ∞ for a perplexity beyond all numbers."""
    return "∞" if value == float("inf") else figure(value)
