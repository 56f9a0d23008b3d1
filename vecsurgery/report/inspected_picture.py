"""An inspection as a picture: where a delta is, how its singular values fall, and where two of them overlap."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import InputError
from vecsurgery.report.inspected import numbered
from vecsurgery.report.inspection import Change, Inspection, Pair, Total, grouped, total, total_pair
from vecsurgery.report.maps import heat, lines
from vecsurgery.report.pictures import ON_WHITE, require_picture, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panel = Callable[[Figure, Axes], None]

_PAIRS = 6
"""Pairs of deltas that a picture holds at most; the table has all of them."""


def inspection_picture(inspection: Inspection, path: Path) -> None:
    """Draw an inspection into an .svg or .png file: a row of panels for each delta, each geometry, each two deltas.

    Raises InputError for another ending, or where no matrix of a block was looked at; RunError where the file cannot
    be written.
    """
    require_picture(path)
    rows = _sites(inspection) if inspection.kind == "geometry" else _deltas(inspection)
    if not rows:
        raise InputError(f"drawing into {path}: no changed matrix of a block was looked at")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(ON_WHITE):
        drawing = Figure(figsize=(11.0, 2.9 * len(rows)), layout="constrained")
        axes = drawing.subplots(len(rows), 2, squeeze=False)
        for place, row in enumerate(rows):
            for side, draw in enumerate(row):
                draw(drawing, axes[place][side])
        if inspection.kind != "geometry":
            drawing.supxlabel(_told(inspection), fontsize=8)
        save(drawing, path)


def _told(inspection: Inspection) -> str:
    """What the maps show, and what they do not."""
    return f"Matrices of blocks alone, {numbered(inspection)}; grey: no change, or no figure"


def _deltas(inspection: Inspection) -> list[tuple["Panel", "Panel"]]:
    rows: list[tuple[Panel, Panel]] = []
    for name in inspection.names:
        changes = [each for each in inspection.of_delta(name) if each.spectrum is not None and each.layer is not None]
        if changes:
            rows.append(_delta(name, changes, inspection.kind == "deltas", inspection.layers))
            rows += [_within(name, geometry, changes, inspection.layers) for geometry in total(changes).within]
    drawn = {change.tensor for change in inspection.changes if change.spectrum is not None and change.layer is not None}
    matrices = grouped((each for each in inspection.pairs if each.tensor in drawn), lambda each: each.names)
    found = [names for names in inspection.pair_names() if names in matrices]
    return rows + [_pair(names, matrices[names], inspection.layers) for names in found[:_PAIRS]]


def _delta(name: str, changes: Sequence[Change], relative: bool, blocks: Sequence[int]) -> tuple["Panel", "Panel"]:
    size = _figure_of(changes, lambda each: (each.relative if relative else each.norm) or None)
    curves = {role: _over_floor(found) for role, found in grouped(changes, lambda each: each.role).items()}
    return (
        _map(size, f"{name}: ‖D‖/‖W‖" if relative else f"{name}: ‖W‖", blocks),
        lambda _, axes: lines(axes, curves, f"{name}: singular values over the noise floor (dotted)", level=1.0),
    )


def _within(name: str, geometry: str, changes: Sequence[Change], blocks: Sequence[int]) -> tuple["Panel", "Panel"]:
    measured = [each for each in changes if geometry in each.within]
    inside = _figure_of(measured, lambda each: each.within[geometry].share)
    chance = _figure_of(measured, lambda each: each.within[geometry].relative)
    return (
        _map(inside, f"{name}: share inside {geometry}", blocks, span=(0.0, 1.0)),
        _map(chance, f"{name}: outputs moved on {geometry}, relative", blocks),
    )


def _pair(names: tuple[str, str], pairs: Sequence[Pair], blocks: Sequence[int]) -> tuple["Panel", "Panel"]:
    cells = grouped(pairs, lambda each: (each.layer, each.role))
    totals = {key: total_pair(found) for key, found in cells.items()}
    cosines = {key: each.cosine for key, each in totals.items()}
    overlaps = {key: each.input_overlap for key, each in totals.items()}
    title = " · ".join(names)
    return (
        _map(cosines, f"{title}: cosine", blocks, span=(-1.0, 1.0)),
        _map(overlaps, f"{title}: input overlap", blocks, span=(0.0, 1.0)),
    )


def _figure_of(changes: Sequence[Change], take: Callable[[Total], float | None]) -> dict[tuple[int, str], float | None]:
    """A figure of the matrices of each block and role."""
    return {key: take(total(found)) for key, found in grouped(changes, lambda each: (each.layer, each.role)).items()}


def _over_floor(changes: Sequence[Change]) -> list[float]:
    """Median over the blocks of σ_i over the noise floor, as far as all of them go."""
    spectra = [each.spectrum for each in changes if each.spectrum is not None and each.spectrum.floor > 0.0]
    shortest = min((len(found.values) for found in spectra), default=0)
    return [median(found.values[place] / found.floor for found in spectra) for place in range(shortest)]


def _map(
    cells: Mapping[tuple[int, str], float | None],
    title: str,
    blocks: Sequence[int] | None = None,
    *,
    span: tuple[float, float] | None = None,
) -> "Panel":
    """A map of the blocks that were looked at; without them, of all from the first to the last cell."""
    roles = list(dict.fromkeys(role for _, role in cells))
    return lambda drawing, axes: heat(drawing, axes, cells, title, roles=roles, blocks=blocks, span=span)


def _sites(inspection: Inspection) -> list[tuple["Panel", "Panel"]]:
    if not inspection.sites:
        return []
    found = grouped(inspection.sites, lambda each: (each.layer, each.role))
    needed: dict[Any, float | None] = {
        key: median(each.needed for each in sites) or None for key, sites in found.items()
    }
    curves = {}
    for role, sites in grouped(inspection.sites, lambda each: each.role).items():
        shortest = min(len(each.energies) for each in sites)
        known = [each for each in sites if each.total > 0.0]
        curves[role] = [median(each.energies[place] / each.total for each in known) for place in range(shortest)]
    return [
        (
            _map(needed, f"directions that hold {inspection.energy:.0%} of the energy"),
            lambda _, axes: lines(axes, curves, "share of the energy in each direction"),
        )
    ]
