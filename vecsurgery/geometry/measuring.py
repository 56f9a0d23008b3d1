"""Measuring a geometry: one streaming pass over a model, statistics of one block at a time, straight into a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from vecsurgery import linalg
from vecsurgery.calibration.types import Samples
from vecsurgery.checkpoint.types import Layout, Site, Weights
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.forward import Compute, replay
from vecsurgery.linalg import Subspace
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import TokenRule

from .container import clear_journal
from .file import Geometry, Record, Shapes, SiteWriter, writing
from .info import GeometryInfo, site_facts


def measure(
    weights: Weights,
    samples: Samples,
    path: str | Path,
    *,
    sites: Collection[str] | None = None,
    model: str = "",
    tokens: TokenRule = "all",
    skip_first: int = 1,
    max_directions: int = 1024,
    compute: Compute = "float32",
    stage: str = "measuring",
    progress: Progress = silent,
) -> Geometry:
    """Measure the second moment of the inputs of each site and store its spectral form (docs/methods.md, Activations).

    One pass reads each stored tensor at most once; statistics of one block are in memory. An interrupted call is taken
    up where it stopped: finished layers are kept, and the file has the bytes of an uninterrupted one. A complete file
    of the same measurement is opened as it is.

    Args:
        weights: the model whose activations are measured.
        samples: token ids and the positions that count.
        path: the geometry file to be written.
        sites: names of the sites that are wanted; all unless told.
        model, tokens, skip_first: how the user named the model and chose the positions: kept in the file.
        max_directions: directions kept for each site at most; the energy of the rest is kept as one number.
        compute: arithmetic of the forward.

    Raises:
        InputError: the path holds something else, or activations are not finite.
        UnsupportedError: an architecture that cannot be streamed, or a site that is too wide.
    """
    path = Path(path)
    info = GeometryInfo.of(
        weights,
        samples,
        kind="subspaces",
        model=model,
        tokens=tokens,
        skip_first=skip_first,
        max_directions=max_directions,
        compute=compute,
    )
    chosen = chosen_sites(weights.layout, sites)
    if path.exists():
        return existing(path, info, [site.name for site in chosen])

    shapes = {site.name: subspace_shapes(site.width, max_directions) for site in chosen}
    facts = {site.name: site_facts(weights.layout, site) for site in chosen}
    with writing(path, info, facts, shapes) as writer:
        accumulate(
            weights,
            samples,
            chosen,
            writer,
            start=lambda site: linalg.accumulator(site.width, samples.positions),
            record=lambda kept: subspace_record(kept.subspace(max_directions)),
            stage=stage,
            progress=progress,
        )
        writer.finish()
    return Geometry.open(path)


def accumulate(
    weights: Weights,
    samples: Samples,
    chosen: Sequence[Site],
    writer: SiteWriter,
    *,
    start: Callable[[Site], Any],
    record: Callable[[Any], Record],
    stage: str,
    progress: Progress,
) -> None:
    """Feed a statistic of each site and hand what `record` makes of it to `writer`, one finished block at a time.

    `start(site)` gives an object with `add(rows)`; blocks that `writer` has already are run, not measured.
    """
    todo = [site for site in chosen if site.layer not in writer.finished]
    statistics = {site.name: _started(site, start) for site in todo}

    def finished(layer: int) -> None:
        done = [site.name for site in todo if site.layer == layer]
        if done:
            writer.add(layer, {name: record(statistics.pop(name)) for name in done})

    replay(
        weights,
        samples,
        observe=lambda site, rows: statistics[site].add(rows),
        sites=list(statistics),
        finished=finished,
        compute=writer.info.compute,
        stage=stage,
        progress=progress,
    )
    # Without a single position nothing was run: every site is then known to have no direction at all.
    for layer in sorted({site.layer for site in todo if site.name in statistics}):
        finished(layer)


def chosen_sites(layout: Layout, names: Collection[str] | None) -> list[Site]:
    """These sites of a layout (all for None) in walking order."""
    unknown = sorted(set(names or ()) - set(layout.sites))
    if unknown:
        raise InputError(f"measuring site {unknown[0]!r}: the layout of {layout.architecture!r} has no such site.")
    return [site for name, site in layout.sites.items() if names is None or name in names]


def existing(path: Path, info: GeometryInfo, sites: Collection[str]) -> Geometry:
    """The complete geometry at `path`, if it is the one that `info` and the sites describe."""
    geometry = Geometry.open(path)
    if geometry.info != info or set(geometry.sites) != set(sites):
        differing = geometry.info.differences(**{name: getattr(info, name) for name in info.to_json()})
        raise InputError(
            f"writing geometry {path}: another one stands there ({'; '.join(differing) or 'its sites differ'}). Choose "
            "another path, or move it away."
        )
    clear_journal(path)
    return geometry


def subspace_shapes(width: int, max_directions: int) -> Shapes:
    """Type and largest shape of what a geometry keeps of a site."""
    rank = min(width, max_directions)
    # Energies first: eight-byte numbers stay aligned.
    return {"energies": (torch.float64, (rank,)), "directions": (torch.float32, (width, rank))}


def subspace_record(subspace: Subspace) -> Record:
    """What a geometry keeps of a site with this subspace."""
    tensors = {"energies": subspace.energies.double(), "directions": subspace.directions.float().contiguous()}
    return tensors, {"count": subspace.count, "rest": float(subspace.rest)}


def _started(site: Site, start: Callable[[Site], Any]) -> Any:
    try:
        return start(site)
    except UnsupportedError as refusal:
        raise UnsupportedError(f"measuring site {site.name!r}: {refusal}") from refusal
