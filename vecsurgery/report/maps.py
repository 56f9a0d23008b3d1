"""Maps of a figure over blocks and roles, and lines over the number of a direction: panels of pictures on white."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTHING = "#e4e6e8"
"""The grey of a cell without a figure."""
_TICKS = 16
"""Block numbers that stand below a map, at most."""


def heat(
    drawing: "Figure",
    axes: "Axes",
    cells: Mapping[tuple[int, str], float | None],
    title: str,
    *,
    roles: Sequence[str],
    blocks: Sequence[int] | None = None,
    span: tuple[float, float] | None = None,
) -> None:
    """One map: blocks across, roles down; grey where there is no figure.

    blocks: the columns, ascending; from the first to the last of the cells by default.
    span: the ends of a linear scale, diverging where it is symmetric; None for a logarithmic one over what is there.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    if blocks is None:
        blocks = range(min(layer for layer, _ in cells), max(layer for layer, _ in cells) + 1)
    values = [[_number(cells.get((layer, role))) for layer in blocks] for role in roles]
    shown = [value for line in values for value in line if not math.isnan(value)]
    diverging = span is not None and span[0] < 0
    colours = colormaps["RdBu" if diverging else "viridis"].with_extremes(bad=NOTHING)
    norm = Normalize(*span) if span is not None else None
    if span is None and shown:
        norm = LogNorm(min(shown), max(shown)) if max(shown) > min(shown) else Normalize(0.0, max(shown))
    edges = (-0.5, len(blocks) - 0.5, len(roles) - 0.5, -0.5)
    image = axes.imshow(values, aspect="auto", cmap=colours, norm=norm, extent=edges, interpolation="nearest")
    axes.set_yticks(range(len(roles)), roles, fontsize=8)
    ticks = range(0, len(blocks), -(-len(blocks) // _TICKS))
    axes.set_xticks(ticks, [str(blocks[place]) for place in ticks])
    axes.set_xlabel("block", fontsize=8)
    axes.tick_params(length=0, labelsize=8)
    axes.set_title(title, loc="left", fontsize=9)
    if shown:
        drawing.colorbar(image, ax=axes, pad=0.01).ax.tick_params(which="both", labelsize=7)


def lines(axes: "Axes", curves: Mapping[str, Sequence[float]], title: str, *, level: float | None = None) -> None:
    """One falling curve a role over the number of a direction, both logarithmic; `level`: a dotted line across."""
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter

    colours = colormaps["tab10"]
    for place, (name, values) in enumerate(curves.items()):
        positive = [value for value in values if value > 0.0]
        axes.plot(
            range(1, len(positive) + 1),
            positive,
            label=name,
            color=colours(place % 10),
            linewidth=1.3,
            marker=".",
            markersize=3,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    if level is not None:
        axes.axhline(level, color="#202124", linewidth=0.8, linestyle=":")
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel("direction", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.15, linewidth=0.6)
    if curves:
        axes.legend(frameon=False, fontsize=7, ncols=2)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
