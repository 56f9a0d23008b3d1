"""Partial moments: parts of the data measured apart (other rows, another machine), united exactly."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from vecsurgery.calibration.types import Samples
from vecsurgery.checkpoint.types import Site, Weights
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.forward import Compute
from vecsurgery.linalg.moments import WIDTH_LIMIT, Moment
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import TokenRule

from .file import Geometry, Record, Shapes, SiteFile, writing
from .info import GeometryInfo, site_facts
from .measuring import accumulate, chosen_sites, existing, subspace_record, subspace_shapes

_SAME = ("model_fingerprint", "architecture", "tokens", "skip_first", "max_directions", "compute")
_FACTS = ("layer", "width", "tensors")


def measure_moments(
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
) -> Path:
    """Measure XᵀX (float64) of each site and keep it whole, to be united with other parts by `union`.

    Arguments, resuming and errors are those of `measure`; the file takes 8·in² bytes a site.
    """
    path = Path(path)
    info = GeometryInfo.of(
        weights,
        samples,
        kind="moments",
        model=model,
        tokens=tokens,
        skip_first=skip_first,
        max_directions=max_directions,
        compute=compute,
    )
    if path.exists():
        raise InputError(f"writing moments {path}: the file exists. Choose another path, or move it away.")
    chosen = chosen_sites(weights.layout, sites)
    shapes: dict[str, Shapes] = {site.name: {"moment": (torch.float64, (site.width, site.width))} for site in chosen}
    facts = {site.name: site_facts(weights.layout, site) for site in chosen}
    with writing(path, info, facts, shapes) as writer:
        accumulate(weights, samples, chosen, writer, start=_moment, record=_record, stage=stage, progress=progress)
        writer.finish()
    return path


def union(parts: Sequence[str | Path], path: str | Path, *, progress: Progress = silent) -> Geometry:
    """The geometry of all data behind some moments files: the same as if they had been measured at once.

    The order of the parts does not matter. One site is in memory at a time.

    Raises:
        InputError: parts of different models, rules or sites, or parts that share rows; the message names them.
    """
    files = sorted((SiteFile(Path(part), "moments") for part in parts), key=lambda file: file.info.data_fingerprint)
    if not files:
        raise InputError("uniting moments: no file was given.")
    for file in files[1:]:
        _require_same(files[0], file)
    _require_disjoint(files)
    info, path = _united(files), Path(path)
    facts = {site: {key: known[key] for key in _FACTS} for site, known in files[0].facts.items()}
    if path.exists():
        return existing(path, info, facts)
    layers: dict[int, list[str]] = defaultdict(list)
    for site, known in facts.items():
        layers[known["layer"]].append(site)
    shapes = {site: subspace_shapes(known["width"], info.max_directions) for site, known in facts.items()}
    with writing(path, info, facts, shapes) as writer:
        for number, (layer, names) in enumerate(layers.items()):
            if layer not in writer.finished:
                writer.add(layer, {name: _sum(files, name, info.max_directions) for name in names})
            progress("uniting moments", number + 1, len(layers), "blocks")
        writer.finish()
    return Geometry.open(path)


def _moment(site: Site) -> Moment:
    if site.width > WIDTH_LIMIT:
        raise UnsupportedError(f"its input is {site.width} wide, moments are kept up to {WIDTH_LIMIT}.")
    return Moment(site.width)


def _record(moment: Moment) -> Record:
    state = moment.state()
    return {"moment": state["moment"]}, {"count": int(state["count"])}


def _sum(files: Sequence[SiteFile], site: str, max_directions: int) -> Record:
    total = _part(files[0], site)
    for file in files[1:]:
        total.merge(_part(file, site))
    return subspace_record(total.subspace(max_directions))


def _part(file: SiteFile, site: str) -> Moment:
    facts = file.facts[site]
    moment = file.tensor(site, "moment", (facts["width"], facts["width"]))
    return Moment.from_state({"moment": moment, "count": torch.tensor(facts["count"])})


def _united(files: Sequence[SiteFile]) -> GeometryInfo:
    """The info of all parts together."""
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(file.info.counts)
    return dataclasses.replace(
        files[0].info,
        kind="subspaces",
        counts=dict(counts),
        data_fingerprint=hashlib.sha256("".join(file.info.data_fingerprint for file in files).encode()).hexdigest(),
        rows=tuple(sorted(row for file in files for row in file.info.rows)),
    )


def _require_same(first: SiteFile, other: SiteFile) -> None:
    differences = other.info.differences(**{name: getattr(first.info, name) for name in _SAME})
    if first.sites != other.sites:
        differences.append("the sites differ")
    if differences:
        raise InputError(f"uniting moments: {other.path} does not go with {first.path}: {'; '.join(differences)}.")


def _require_disjoint(files: Sequence[SiteFile]) -> None:
    owner: dict[str, SiteFile] = {}
    for file in files:
        shared = [row for row in file.info.rows if row in owner]
        if shared:
            raise InputError(
                f"uniting moments: {file.path} and {owner[shared[0]].path} share {len(shared)} rows (the first: "
                f"{shared[0]}); they would count twice. Measure disjoint rows."
            )
        owner.update(dict.fromkeys(file.info.rows, file))
