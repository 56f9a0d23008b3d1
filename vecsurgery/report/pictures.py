"""Pictures of a record as inline SVG, and how pictures become files.

The same bytes for the same record: no date, no outside resource. Text and axes of inline pictures are drawn in
`currentColor`, so that they follow the page into dark mode.
"""

import io
import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from vecsurgery.errors import InputError, RunError
from vecsurgery.report import fitted, summary
from vecsurgery.report.numbers import number
from vecsurgery.report.record import FitRecord, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HIGHEST = 1.5
"""Where bars of the kept norm are cut, as a multiple of their median or of 1; a change of small norm that rounding
multiplied would hide the others."""
_INK = "#010203"
"""A colour nothing else uses; becomes currentColor in the SVG."""
_BEFORE, _INTENDED, _STORED = "#9aa0a6", "#e8912d", "#2f7fd0"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vecsurgery",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
ON_WHITE = STYLE | {name: "#202124" for name, value in STYLE.items() if value == _INK}
"""The same for files, which stand on white."""
_SUFFIXES = (".svg", ".png")


def require_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before anything is measured. Raises InputError."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"drawing into {path}: expected a file name that ends in {' or '.join(_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"drawing into {path}: there is no folder {path.absolute().parent}")


def save(figure: "Figure", path: Path) -> None:
    """Write a figure into an .svg (the same bytes for the same figure) or .png file. Raises RunError."""
    kind = path.suffix.lower()[1:]
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    try:
        figure.savefig(path, format=kind, dpi=150, facecolor="white", metadata=metadata)
    except OSError as error:
        raise RunError(f"drawing into {path}: {error.strerror or error}") from error


def layers(record: Record, geometry: str) -> str:
    """Per layer: bias before, intended and stored (log scale where positive) beside the share of the norm kept.

    Returns one `<svg>` element for inlining, or "" where nothing was measured against `geometry`.
    """
    changes = summary.by_layer(record, geometry)
    if not changes:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _bias(left, changes)
        _norm(right, changes)
        return _svg(figure, prefix=f"layers-{list(record['geometry']).index(geometry)}-")


def _bias(axes: "Axes", changes: dict[int, summary.Change]) -> None:
    numbers = list(changes)
    series = [
        ("before", _BEFORE, [change.before for change in changes.values()]),
        ("intended", _INTENDED, [change.intended for change in changes.values()]),
        ("stored", _STORED, [change.stored for change in changes.values()]),
    ]
    for label, colour, values in series:
        dashed = label == "intended"
        axes.plot(
            numbers,
            values,
            color=colour,
            label=label,
            linewidth=1.6,
            linestyle="--" if dashed else "-",
            marker="o",
            markersize=3.5,
            zorder=3 if dashed else 2,
        )
    if any(value > 0 for _, _, values in series for value in values):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_title("activation bias (RAB)", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0.35, 1.0), borderaxespad=0.1)
    _layer_axis(axes, numbers)


def _norm(axes: "Axes", changes: dict[int, summary.Change]) -> None:
    ratios = [(layer, change.norm_ratio) for layer, change in changes.items() if change.norm_ratio is not None]
    usual = max(1.0, median([ratio for _, ratio in ratios] or [1.0]))
    top = min(_HIGHEST * usual, max([1.0, *(1.05 * ratio for _, ratio in ratios)]))
    axes.set_ylim(0, top)
    for layer, ratio in ratios:
        clipped = ratio > top
        axes.bar([layer], [min(ratio, top)], color=_INTENDED if clipped else _STORED, width=0.72)
        if clipped:
            axes.text(layer, 0.98 * top, f"×{number(ratio)}", ha="center", va="top", fontsize=7, rotation=90)
    axes.axhline(1.0, color=_INK, linewidth=0.6, linestyle=":")
    axes.set_title("norm of the change kept", loc="left", fontsize=9)
    _layer_axis(axes, list(changes))


def curve(fit: FitRecord, *, prefix: str) -> str:
    """Capped answer loss and answer probability over the factor (log scale), with the target and what was chosen.

    `prefix`: of the ids inside, which must differ between the pictures of a page. Returns one `<svg>` element for
    inlining, or "" where the fit has no curve.
    """
    if not fit["curve"]:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    probability = fitted.by_probability(fit)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _against_factor(left, fit, "capped", "capped answer loss (nats)", aimed=not probability)
        _against_factor(right, fit, "probability", "answer probability", aimed=probability)
        return _svg(figure, prefix=prefix)


def _against_factor(
    axes: "Axes", fit: FitRecord, measure: Literal["capped", "probability"], title: str, *, aimed: bool
) -> None:
    """One measure of the edited model; `aimed`: the target, `into` and `raw` are in its unit."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    points = sorted(fit["curve"], key=lambda point: point["factor"])
    factors, values = [point["factor"] for point in points], [point[measure] for point in points]
    axes.plot(factors, values, color=_STORED, linewidth=1.6, marker="o", markersize=3.5)
    facts = fit["facts"]
    levels = [("raw", _BEFORE, ":"), ("into", _BEFORE, "-."), ("target", _INTENDED, "--")] if aimed else []
    for name, colour, line in levels:
        if name in facts:
            axes.axhline(facts[name], color=colour, linestyle=line, linewidth=1.3, zorder=1)
            place = (0.01, facts[name])
            axes.annotate(name, place, xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    if "factor" in facts:
        axes.axvline(facts["factor"], color=_INK, linewidth=0.8, linestyle=":", zorder=1)
        # Beside the line at the end of the curve that is farther away: losses rise with the factor, probabilities fall.
        rising = values[-1] >= values[0]
        place = (facts["factor"], 0.15 if rising else 0.98)
        chosen = f" {fitted.times(fit)}"
        above = "bottom" if rising else "top"
        axes.annotate(chosen, place, xycoords=("data", "axes fraction"), ha="left", va=above, fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlabel("factor")
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)


def _layer_axis(axes: "Axes", numbers: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
    axes.set_xlabel("layer")
    axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)


def _svg(figure: "Figure", *, prefix: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    # An HTML page knows the namespaces of inline SVG; without them no address stands in the report.
    drawn = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", drawn)
    # Several pictures share one page: their ids must differ.
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", drawn)
    drawn = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', drawn, count=1)
    return drawn.replace(_INK, "currentColor").strip()
