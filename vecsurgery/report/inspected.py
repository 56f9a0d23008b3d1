"""An inspection as plain text and as JSON."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from vecsurgery.recipe.selection import plain_layers
from vecsurgery.report.inspection import (
    Change,
    Inspection,
    Pair,
    Total,
    TotalPair,
    TotalWithin,
    grouped,
    overlap,
    total,
    total_pair,
)
from vecsurgery.report.numbers import counted, number, percent
from vecsurgery.report.plain import figure, optional, table
from vecsurgery.report.sites import SiteEnergies

_WIDTH = 120
_SPECTRA = (
    "largest: σ_1; stable rank: norm²/σ_1²; effective rank: exp of the entropy of σ/Σσ; rank: singular values "
    "above the noise floor of the stored type; above noise: their share of the energy; in top: that of the "
)
BETWEEN = "Between deltas, over the tensors that both change (overlaps and angles: matrices of blocks alone)"


def inspection_text(inspection: Inspection, *, worst: int = 10) -> str:
    """The deltas in total, by role and by layer, the `worst` tensors, every two deltas, geometries, findings."""
    if inspection.kind == "geometry":
        blocks = [_head(inspection), *_sites(inspection)]
    else:
        blocks = [
            _head(inspection),
            _table("delta" if inspection.kind == "deltas" else "model", _totals(inspection)),
            *(block for name in inspection.names for block in _delta(inspection, name, worst)),
            *_pairs(inspection),
            *_geometries(inspection),
            _terms(inspection),
        ]
    blocks.append([f"Note: {line}" for line in inspection.notes])
    if inspection.warnings:
        blocks.append([f"Warnings ({len(inspection.warnings)})", *(f"- {line}" for line in inspection.warnings)])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _head(inspection: Inspection) -> list[str]:
    lines = [
        f"{'delta ' if inspection.kind == 'deltas' else ''}{name}: {told}" for name, told in inspection.names.items()
    ]
    if inspection.kind != "geometry":
        blocks = numbered(inspection)
        lines.append(f"{inspection.looked:,} of {counted(inspection.of, 'tensor')} looked at, {blocks}.")
    return lines


def numbered(inspection: Inspection) -> str:
    """Which blocks were looked at: `all 28 blocks`, or `4 of 28 blocks: 0, 9, 18, 27`.

    >>> numbered(Inspection("deltas", {}, blocks=3))
    '0 of 3 blocks'
    """
    found = inspection.layers
    if len(found) == inspection.blocks:
        return f"all {inspection.blocks} blocks" if inspection.blocks > 1 else counted(inspection.blocks, "block")
    runs = "".join(f", {each}" for each in plain_layers(tuple(found)))
    return f"{len(found)} of {counted(inspection.blocks, 'block')}{runs.replace(',', ':', 1)}"


def _totals(inspection: Inspection) -> dict[str, Total]:
    return {name: inspection.total(name) for name in inspection.names}


def _delta(inspection: Inspection, name: str, worst: int) -> list[list[str]]:
    changes = inspection.of_delta(name)
    layers = {str(layer): each for layer, each in inspection.by_layer(name).items()}
    most = sorted((each for each in changes if each.squared_norm), key=lambda each: -_size(each))[:worst]
    rows = {each.tensor: total([each]) for each in most}
    title = f"{name}: " if len(inspection.names) > 1 else ""
    named = "Tensors that change most" if inspection.kind == "deltas" else "Largest tensors"
    return [
        _table(f"{title}role", inspection.by_role(name)),
        _table(f"{title}layer", layers) if len(layers) > 1 else [],
        [f"{title}{named}", *_table("tensor", rows, counts=False)] if len(rows) > 1 else [],
    ]


def _size(change: Change) -> float:
    """What tensors are sorted by: ‖D‖/‖W‖, or ‖W‖ of a lone model; against a base of zeros a change comes first."""
    if change.squared_base is None:
        return change.squared_norm
    return change.squared_norm / change.squared_base if change.squared_base > 0.0 else math.inf


def _table(title: str, rows: Mapping[str, Total], *, counts: bool = True) -> list[str]:
    relative = any(each.relative is not None or each.changed is not None for each in rows.values())
    spectra = any(each.matrices for each in rows.values())
    header = [title, *(["tensors"] if counts else []), "norm", *(["relative", "changed"] if relative else [])]
    header += ["largest", "stable rank", "effective rank", "rank", "of", "above noise", "in top"] if spectra else []
    lines = []
    for name, each in rows.items():
        cells = [name, *([f"{each.tensors:,}"] if counts else []), figure(each.norm)]
        cells += [figure(each.relative), optional(each.changed)] if relative else []
        ranks = [figure(each.largest), figure(each.stable_rank), figure(each.effective_rank)]
        bound = "" if each.rank_known else "≥ "
        ranks += [bound + number(each.rank), number(each.full), bound + optional(each.above), optional(each.leading)]
        lines.append([*cells, *(ranks if spectra else [])])
    return table(header, lines) if lines else []


def _pairs(inspection: Inspection) -> list[list[str]]:
    blocks = []
    names = inspection.pair_names()
    if names:
        rows = {" · ".join(pair): inspection.total_pair(pair) for pair in names}
        blocks.append([BETWEEN, *_pair_table("pair", rows)])
    for pair in names:
        found = [each for each in inspection.pairs if each.names == pair]
        roles = {role: total_pair(items) for role, items in grouped(found, lambda each: each.role).items()}
        if len(roles) > 1:
            blocks.append(_pair_table(f"{' · '.join(pair)}: role", roles))
    conflicts = grouped(inspection.conflicts, lambda each: each.role)
    if conflicts:
        means = {role: math.fsum(each.value for each in found) / len(found) for role, found in conflicts.items()}
        lines = [[role, str(len(conflicts[role])), figure(value)] for role, value in means.items()]
        blocks.append(table(["role", "matrices", "interference (STI), mean"], lines))
    return blocks


def _pair_table(title: str, rows: Mapping[str, TotalPair]) -> list[str]:
    header = [title, "tensors", "cosine", "output overlap", "by chance", "input overlap", "by chance", "least angle"]
    lines = []
    for name, each in rows.items():
        overlaps = [each.output_overlap, each.output_chance, each.input_overlap, each.input_chance]
        angle = "–" if each.smallest is None else f"{each.smallest:.3g}°"
        lines.append([name, f"{each.tensors:,}", figure(each.cosine), *(optional(value) for value in overlaps), angle])
    return table(header, lines)


def _geometries(inspection: Inspection) -> list[list[str]]:
    blocks = []
    for name in inspection.names:
        for geometry, found in inspection.total(name).within.items():
            rows = {"all": found}
            for role, each in inspection.by_role(name).items():
                rows |= {role: each.within[geometry]} if geometry in each.within else {}
            title = f"{name} in geometry {geometry}: role"
            blocks.append(_within_table(title, rows))
    return blocks


def _within_table(title: str, rows: Mapping[str, TotalWithin]) -> list[str]:
    header = [title, "matrices", "share inside", "by chance", "directions", "bias", "relative"]
    lines = [
        [
            name,
            f"{each.matrices:,}",
            optional(each.share),
            optional(each.chance),
            number(each.directions),
            figure(each.bias),
            figure(each.relative),
        ]
        for name, each in rows.items()
    ]
    return table(header, lines)


def _terms(inspection: Inspection) -> list[str]:
    """The columns, told once."""
    terms = ["norm: ‖W‖."]
    if inspection.kind == "deltas":
        terms = [
            "norm: ‖D‖; relative: ‖D‖/‖W‖ of the base; changed: share of the entries that differ (of an adapter: that "
            "it changes in the stored type)."
        ]
    if any(each.spectrum is not None for each in inspection.changes):
        terms.append(_SPECTRA + f"{inspection.top} largest. Of several matrices: medians of ranks, sums of energies.")
    if not all(inspection.total(name).rank_known for name in inspection.names):
        terms.append(
            f"≥: of large matrices only the {inspection.top} largest singular values were computed; "
            "--exact computes all, which effective rank needs."
        )
    if any(each.output_angles for each in inspection.pairs):
        terms.append(
            "overlap: mean cos² of the principal angles between the leading singular subspaces (at most "
            f"{inspection.top} directions above the floor)."
        )
    if any(each.within for each in inspection.changes):
        terms.append(
            f"share inside: of ‖D‖² in the directions that hold {percent(inspection.energy)} of the geometry's energy; "
            "bias: mean squared output that the change adds on its text; relative: the root of its ratio to that of "
            "the base."
        )
    return [line for term in terms for line in textwrap.wrap(term, _WIDTH)]


def _sites(inspection: Inspection) -> list[list[str]]:
    roles = grouped(inspection.sites, lambda each: each.role)
    layers = grouped(inspection.sites, lambda each: each.layer)
    each = {site.site: [site] for site in inspection.sites}
    needed = (
        f"needed: the fewest directions that hold {percent(inspection.energy)} of the energy; effective rank: exp of "
        "the entropy of the energies' shares. Of several sites: medians, and the mean of the energy."
    )
    return [
        _site_table("read by", roles),
        _site_table("layer", {str(layer): found for layer, found in sorted(layers.items())}) if len(layers) > 1 else [],
        _site_table("site", each),
        textwrap.wrap(needed, _WIDTH),
    ]


def _site_table(title: str, rows: Mapping[str, list[SiteEnergies]]) -> list[str]:
    header = [
        title,
        "sites",
        "width",
        "positions",
        "stored",
        "energy",
        "in first",
        "not stored",
        "effective rank",
        "needed",
    ]
    lines = []
    for name, found in rows.items():
        energy = math.fsum(each.total for each in found)
        first = math.fsum(each.energies[0] for each in found if each.energies)
        rest = math.fsum(each.rest for each in found)
        lines.append(
            [
                name,
                str(len(found)),
                _middle([each.width for each in found]),
                _middle([each.count for each in found]),
                _middle([each.stored for each in found]),
                figure(energy / len(found)),
                optional(first / energy if energy else None),
                optional(rest / energy if energy else None),
                _middle([each.effective_rank for each in found]),
                _middle([each.needed for each in found]),
            ]
        )
    return table(header, lines)


def _middle(values: list[Any]) -> str:
    return number(float(median(values)))


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """Plain JSON values; angles in degrees."""
    content: dict[str, Any] = {
        "kind": inspection.kind,
        "names": dict(inspection.names),
        "top": inspection.top,
        "energy": inspection.energy,
    }
    if inspection.kind == "geometry":
        content["sites"] = {each.site: {**asdict(each), "energies": list(each.energies)} for each in inspection.sites}
    else:
        content |= {
            "blocks": inspection.blocks,
            "layers": list(inspection.layers),
            "looked": inspection.looked,
            "of": inspection.of,
            "deltas": {name: _delta_json(inspection, name) for name in inspection.names},
            "pairs": [_pair_json(inspection, names) for names in inspection.pair_names()],
            "interference": {each.tensor: each.value for each in inspection.conflicts},
        }
    return content | {"notes": list(inspection.notes), "warnings": list(inspection.warnings)}


def _delta_json(inspection: Inspection, name: str) -> dict[str, Any]:
    return {
        "total": asdict(inspection.total(name)),
        "roles": {role: asdict(each) for role, each in inspection.by_role(name).items()},
        "layers": {str(layer): asdict(each) for layer, each in inspection.by_layer(name).items()},
        "tensors": {each.tensor: _change_json(each) for each in inspection.of_delta(name)},
    }


def _change_json(change: Change) -> dict[str, Any]:
    """A tensor's own figures: those of a total of it alone, and what only one tensor has."""
    figures = asdict(total([change]))
    spectrum = change.spectrum
    described = {
        "role": change.role,
        "layer": change.layer,
        "shape": list(change.shape),
        "type": change.dtype,
        "factored": change.factored,
        **{key: figures[key] for key in ("norm", "relative", "changed")},
    }
    if spectrum is None:
        return described
    keys = ("stable_rank", "effective_rank", "above", "leading", "within")
    return described | {
        "singular_values": list(spectrum.values),
        "rank": spectrum.rank,
        "rank_known": spectrum.rank_known,
        "full": spectrum.full,
        "floor": spectrum.floor,
        **{key: figures[key] for key in keys},
    }


def _pair_json(inspection: Inspection, names: tuple[str, str]) -> dict[str, Any]:
    found = [each for each in inspection.pairs if each.names == names]
    roles = grouped(found, lambda each: each.role)
    return {
        "deltas": list(names),
        "total": asdict(total_pair(found)),
        "roles": {role: asdict(total_pair(items)) for role, items in roles.items()},
        "tensors": {each.tensor: _pair_tensor(each) for each in found},
    }


def _pair_tensor(pair: Pair) -> dict[str, Any]:
    told: dict[str, Any] = {"cosine": total_pair([pair]).cosine}
    sides = (("output", pair.output_angles, pair.chance[0]), ("input", pair.input_angles, pair.chance[1]))
    for side, angles, chance in sides:
        told[f"{side}_angles"] = [math.degrees(angle) for angle in angles]
        told[f"{side}_overlap"] = overlap(angles) if angles else None
        told[f"{side}_chance"] = chance if angles else None
    return told
