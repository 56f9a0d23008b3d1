"""Looking at deltas before any surgery: the call behind `vecsurgery inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.delta import reading
from vecsurgery.editing.sites import SiteReader
from vecsurgery.errors import InputError
from vecsurgery.geometry import Geometry
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe import selects
from vecsurgery.recipe.selection import lacking, parse_layers, plain_layers
from vecsurgery.recipe.types import Selection
from vecsurgery.report.findings import findings
from vecsurgery.report.inspection import Inspection
from vecsurgery.studies import figures, subjects
from vecsurgery.studies.energies import site_energies

if TYPE_CHECKING:
    from vecsurgery.checkpoint.types import Layout, TensorInfo
    from vecsurgery.report.inspection import Change, Conflict, Pair
    from vecsurgery.studies.subjects import Opened
    from vecsurgery.surgery.calls import Model

_DOING = "inspecting"
_MODULES = ("q", "k", "v", "o", "gate", "up", "down", "other")


def inspect(
    what: Model | Sequence[str | Path] | Mapping[str, Model],
    *,
    base: Model | None = None,
    geometry: Mapping[str, Geometry | str | Path] | Sequence[str | Path] = (),
    layers: str | int | Sequence[str | int] | None = None,
    modules: Sequence[str] | None = None,
    limit: int | None = None,
    top: int = 16,
    energy: float = 0.9,
    exact: bool = False,
    overrides: Sequence[str] = (),
    progress: Progress = silent,
) -> Inspection:
    """Look at one delta or several before any surgery; or at the weights of a lone model; or at a geometry file.

    Tensors are read one after the other, each once. For each tensor of each delta: ‖D‖, ‖D‖/‖W‖, the share of entries
    that differ. For each matrix of a block also its largest singular values, stable and effective rank, and the
    numerical rank, which counts the singular values above the noise floor of the stored type. Between deltas: the
    cosine, and for each matrix principal angles of the leading singular subspaces, and singular task interference of
    all of them.
    Against a geometry: the share of a delta that lies in its leading directions, and the activation bias that the
    delta causes on its text. An adapter stays factored, and its figures are those of B A.

    Args:
        what: a recipe (its deltas, and those of its geometries that are files); folders or hub ids of models,
            adapters or deltas (what `extract` writes), or a mapping name → one of these, to be compared with `base`;
            one model alone; or a geometry file.
        base: what the models were trained from, and deltas were made from. Without it one model alone is looked at: its
            weights, or for `base+adapter` the adapter.
        geometry: more geometry files, as "NAME=FILE" or FILE, or name → file or opened `Geometry`.
        layers: block numbers as in a recipe: "0-7", 3, or a list of these.
        modules: of q k v o gate up down other; by default all, and with neither this nor `layers` nor `limit` also
            what is no matrix of a block, of which only norms and cosines are told.
        limit: look at this many blocks, spread evenly.
        top: how many singular values and directions of a matrix are looked at.
        energy: the directions of a geometry that count are the fewest that hold this share of its energy, in (0, 1).
        exact: compute all singular values of matrices above 1024 too, in place of the `top` largest: half a minute
            for one of 4096 × 4096, without it a third of a second.
        overrides: `--set` assignments to a recipe.
        progress: called as work proceeds.

    Raises: InputError where something cannot be opened, does not fit, or nothing is selected.

    Example:
        found = vecsurgery.inspect(["unlearned"], base="original", limit=4)
        print(found.text())
        found.by_role("unlearned")["down"].effective_rank
    """
    _require_numbers(limit, top, energy)
    file = _file(what)
    if file is not None and file.suffix == ".safetensors":
        return _of_geometry(file, base, top, energy)
    if file is not None:
        if base is not None:
            raise InputError(f"{_DOING} {file}: a recipe names its bases itself; leave out --base")
        opened = subjects.recipe_subjects(file, overrides)
    elif overrides:
        raise InputError(f"{_DOING}: --set changes a recipe, and none was given")
    else:
        opened = subjects.model_subjects(what, base)
    opened = subjects.with_geometries(opened, geometry)
    chosen = _chosen(opened.layout, layers, modules, limit)
    _require_sites(opened, chosen)
    return _walked(opened, chosen, figures.Looking(top, energy, exact), progress)


def _walked(opened: Opened, chosen: list[TensorInfo], looking: figures.Looking, progress: Progress) -> Inspection:
    subspaces = SiteReader(opened.geometries, opened.layout)
    changes: list[Change] = []
    pairs: list[Pair] = []
    conflicts: list[Conflict] = []
    for done, info in enumerate(chosen):
        progress(_DOING, done, len(chosen), "tensors")
        if info.matrix is None:
            plain, products = figures.plain_changes(opened.subjects, info)
            changes += plain
            pairs += products
            continue
        site = info.matrix.site
        geometry = {name: subspaces(name, info.name) for name, each in opened.geometries.items() if site in each.facts}
        seen = [figures.matrix_change(subject, info, geometry, looking) for subject in opened.subjects]
        changes += [each.change for each in seen]
        pairs += figures.pairs(seen)
        found = figures.conflict(seen)
        conflicts += [found] if found is not None else []
    progress(_DOING, len(chosen), len(chosen), "tensors")
    inspection = Inspection(
        kind="weights" if all(subject.source is None for subject in opened.subjects) else "deltas",
        names={subject.name: subject.described for subject in opened.subjects},
        top=looking.top,
        energy=looking.energy,
        looked=len(chosen),
        of=len(opened.layout.tensors),
        blocks=opened.layout.blocks,
        changes=tuple(changes),
        pairs=tuple(pairs),
        conflicts=tuple(conflicts),
        notes=opened.notes,
    )
    return replace(inspection, warnings=(*opened.warnings, *findings(inspection)))


def _of_geometry(file: Path, base: Any, top: int, energy: float) -> Inspection:
    if base is not None:
        raise InputError(f"{_DOING} {file}: a geometry has no base; to set a delta against it, give --geometry {file}")
    opened = Geometry.open(file)
    sites = tuple(site_energies(opened, site, top, energy) for site in opened.sites)
    inspection = Inspection(
        kind="geometry",
        names={file.stem: str(file)},
        top=top,
        energy=energy,
        looked=len(sites),
        of=len(sites),
        sites=sites,
        notes=(f"measured on {opened.info.model}, tokens: {opened.info.tokens}",),
    )
    return replace(inspection, warnings=findings(inspection))


def _file(what: Any) -> Path | None:
    """The one recipe or geometry file, by its ending; None where models are named."""
    items = [what] if isinstance(what, str | Path) else list(what) if isinstance(what, Sequence) else []
    files = [Path(each) for each in items if isinstance(each, str | Path)]
    files = [each for each in files if each.suffix in (".yaml", ".yml", ".safetensors") and not each.is_dir()]
    if files and len(items) > 1:
        raise InputError(
            f"{_DOING} {files[0]}: a recipe or a geometry file is looked at alone; got {len(items)} names. "
            "Geometries beside models are given with --geometry"
        )
    return files[0] if files else None


def _require_numbers(limit: int | None, top: int, energy: float) -> None:
    if top < 1 or (limit is not None and limit < 1):
        raise InputError(f"{_DOING}: top and limit are numbers from 1; got top {top} and limit {limit}")
    if not 0.0 < energy < 1.0:
        raise InputError(f"{_DOING}: energy {energy:g} is no share between 0 and 1")


def _chosen(layout: Layout, layers: Any, modules: Sequence[str] | None, limit: int | None) -> list[TensorInfo]:
    """The tensors to look at, in walking order. Raises InputError where there is none."""
    selection = Selection(deltas=(), modules=_modules(modules), layers=_layers(layers))
    lacked = lacking(selection.layers, layout.blocks)
    if lacked is not None:
        asked = ", ".join(map(str, plain_layers(selection.layers or ())))
        raise InputError(f"{_DOING}: layers {asked}: {lacked}")
    chosen = [
        info
        for info in layout.tensors.values()
        if reading.is_float(info)
        and info.parameter not in layout.tied
        and selects(selection, name=info.name, layer=info.layer, roles=_roles(info))
    ]
    if limit is not None:
        blocks = sorted({info.layer for info in chosen if info.layer is not None})
        kept = _spread(blocks, limit)
        chosen = [info for info in chosen if info.layer in kept]
    if not chosen:
        raise InputError(
            f"{_DOING}: layers {layers}, modules {modules} select nothing of {layout.architecture!r} with "
            f"{layout.blocks} blocks, numbered from 0; widen them"
        )
    return chosen


def _layers(layers: Any) -> tuple[int, ...] | None:
    if layers is None:
        return None
    try:
        return parse_layers(list(layers) if isinstance(layers, tuple) else layers)
    except ValueError as error:
        raise InputError(f"{_DOING}: layers: {error}") from error


def _modules(modules: Sequence[str] | None) -> tuple[str, ...] | None:
    if not modules:
        return None
    unknown = [name for name in modules if name not in _MODULES]
    if unknown:
        raise InputError(f"{_DOING}: modules: {unknown[0]!r} is none; expected some of {', '.join(_MODULES)}")
    return tuple(modules)


def _spread(blocks: Sequence[int], count: int) -> set[int]:
    """`count` blocks, the first and the last among them, evenly between."""
    if count >= len(blocks):
        return set(blocks)
    if count == 1:
        return {blocks[len(blocks) // 2]}
    return {blocks[round(place * (len(blocks) - 1) / (count - 1))] for place in range(count)}


def _roles(info: TensorInfo) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.role for part in info.matrix.parts)) if info.matrix else ()


def _require_sites(opened: Opened, chosen: Sequence[TensorInfo]) -> None:
    """Refuse a geometry of other inputs, or of none that is looked at."""
    sites = {info.matrix.site: opened.layout.sites[info.matrix.site] for info in chosen if info.matrix is not None}
    for name, geometry in opened.geometries.items():
        shared = [site for site in sites if site in geometry.facts]
        if not shared:
            raise InputError(
                f"geometry {name!r} ({geometry.path}) has none of the sites of the matrices that are looked at; "
                "expected a geometry of the same architecture, measured at these blocks"
            )
        for site in shared:
            if geometry.facts[site]["width"] != sites[site].width:
                raise InputError(
                    f"geometry {name!r} ({geometry.path}): site {site!r} is {geometry.facts[site]['width']} wide "
                    f"there and {sites[site].width} here; expected a geometry of a model of the same size"
                )
