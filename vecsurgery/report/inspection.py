"""What an inspection found: figures of every tensor of a change, of every two changes, and their sums."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, TypeVar

from vecsurgery.report.sites import SiteEnergies

Key = TypeVar("Key", bound=Hashable)
Subject = Literal["deltas", "weights", "geometry"]


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix."""

    values: tuple[float, ...]
    """The largest, descending."""
    full: int
    """How many there are: min(out, in)."""
    effective_rank: float | None
    """exp of the entropy of σ/Σσ; None where not all singular values were computed."""
    rank: int
    """Numerical rank: singular values above the noise floor."""
    rank_known: bool
    """False where all computed ones lie above the floor and there are more: the rank is at least `rank`."""
    floor: float
    """The noise floor of the stored type."""
    energy_above: float
    """Σσ² of those above the floor; of those computed, where the rank is not known."""


@dataclass(frozen=True)
class Within:
    """One change against one geometry."""

    share: float
    """‖D V_r‖²/‖D‖² in the leading directions V_r that hold the wanted share of the geometry's energy."""
    directions: int
    """r."""
    width: int
    """in: the share of a change without preference is r/in."""
    bias: float
    """RAB = tr(D C Dᵀ): the mean squared output that the change adds on the geometry's text."""
    weight_bias: float | None
    """The same of the weight that the change is relative to."""


@dataclass(frozen=True)
class Change:
    """One tensor of one change (or of the weights, where a lone model was inspected)."""

    delta: str
    tensor: str
    role: str
    layer: int | None
    """None outside the blocks."""
    shape: tuple[int, ...]
    """(out, in) of a matrix."""
    dtype: str
    """The stored type whose rounding counts."""
    factored: bool
    squared_norm: float
    squared_base: float | None
    """‖W‖² of the base; None where the weights themselves are inspected."""
    changed: int | None
    """Entries whose values differ; of an adapter or a delta folder, those that adding it would change in the stored
    type.
    """
    spectrum: Spectrum | None = None
    """None for what is no matrix of a block, and for what did not change."""
    within: Mapping[str, Within] = field(default_factory=dict)
    """By geometry."""


@dataclass(frozen=True)
class Pair:
    """Two changes of one tensor."""

    names: tuple[str, str]
    tensor: str
    role: str
    layer: int | None
    product: float
    """⟨D_a, D_b⟩."""
    squared: tuple[float, float]
    output_angles: tuple[float, ...] = ()
    """Principal angles of the leading left singular subspaces, ascending, in radians; () without a direction, and of
    what is no matrix of a block.
    """
    input_angles: tuple[float, ...] = ()
    """Of the right ones."""
    chance: tuple[float, float] = (0.0, 0.0)
    """The overlap that random subspaces of these sizes would have, of outputs and of inputs."""


@dataclass(frozen=True)
class Conflict:
    """Singular task interference of all changes of one matrix."""

    tensor: str
    role: str
    layer: int | None
    value: float


@dataclass(frozen=True)
class Total:
    """Several tensors of one change together."""

    tensors: int
    norm: float
    relative: float | None
    """‖D‖/‖W‖; None where the base is zero or there is none."""
    changed: float | None
    """Share of the entries that differ."""
    matrices: int
    """Those with a spectrum. The figures below are over these."""
    largest: float | None
    """The largest singular value of all."""
    stable_rank: float | None
    """‖D‖²/σ_1², median."""
    effective_rank: float | None
    """Median of those that are known."""
    rank: float | None
    """Numerical rank, median."""
    rank_known: bool
    """False where of some matrix only the leading singular values were computed and all lie above the noise floor:
    `rank` and `above` are then lower bounds."""
    full: float | None
    """min(out, in), median."""
    above: float | None
    """Share of the energy in singular values above the noise floor."""
    leading: float | None
    """Share of the energy in the leading singular values that are listed."""
    within: Mapping[str, "TotalWithin"] = field(default_factory=dict)


@dataclass(frozen=True)
class TotalWithin:
    """Several matrices of one change against a geometry."""

    matrices: int
    share: float
    """Of the energy of the change in the leading directions."""
    chance: float
    """What it would be without preference."""
    directions: float
    """Median."""
    bias: float
    relative: float | None
    """√(RAB of D / RAB of W)."""


@dataclass(frozen=True)
class TotalPair:
    """Several tensors of two changes together. Overlaps are means over the matrices of blocks among them."""

    tensors: int
    """Those that both change."""
    cosine: float | None
    """Σ⟨D_a, D_b⟩/(‖D_a‖·‖D_b‖) over these."""
    output_overlap: float | None
    """Mean cos² of the principal angles between the leading left singular subspaces: 1 the same, 0 orthogonal."""
    input_overlap: float | None
    output_chance: float | None
    input_chance: float | None
    smallest: float | None
    """The smallest principal angle of all, in degrees."""


@dataclass(frozen=True)
class Inspection:
    """What `vecsurgery.inspect` found.

    `kind`: what was inspected. `names`: the deltas, or the one model, with what the caller called them. `top`: how many
    singular values and directions of a matrix were looked at; `energy`: the share of a geometry's energy whose
    directions count. `looked`: tensors that were selected, `of`: tensors that there are; `blocks`: blocks likewise.
    """

    kind: Subject
    names: Mapping[str, str]
    top: int = 0
    energy: float = 0.0
    looked: int = 0
    of: int = 0
    blocks: int = 0
    changes: tuple[Change, ...] = ()
    pairs: tuple[Pair, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    sites: tuple[SiteEnergies, ...] = ()
    """Of a geometry file."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    warnings: tuple[str, ...] = ()

    def of_delta(self, delta: str) -> tuple[Change, ...]:
        """The tensors of one change, in walking order."""
        return tuple(each for each in self.changes if each.delta == delta)

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that were looked at, ascending."""
        return tuple(sorted({each.layer for each in self.changes if each.layer is not None}))

    def total(self, delta: str) -> Total:
        """All tensors of one change together."""
        return total(self.of_delta(delta))

    def by_role(self, delta: str) -> dict[str, Total]:
        """Role → total, in walking order."""
        return {role: total(found) for role, found in grouped(self.of_delta(delta), lambda each: each.role).items()}

    def by_layer(self, delta: str) -> dict[int, Total]:
        """Block → total, ascending; what is outside the blocks is left out."""
        inside = [each for each in self.of_delta(delta) if each.layer is not None]
        found = grouped(inside, lambda each: each.layer or 0)
        return {layer: total(found[layer]) for layer in sorted(found)}

    def pair_names(self) -> list[tuple[str, str]]:
        """Every two changes that share a tensor."""
        found = {each.names for each in self.pairs}
        return [pair for pair in itertools.combinations(self.names, 2) if pair in found]

    def total_pair(self, names: tuple[str, str]) -> TotalPair:
        """All tensors that two changes share, together."""
        return total_pair([each for each in self.pairs if each.names == names])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is undefined is null."""
        from vecsurgery.report.inspected import inspection_json

        return inspection_json(self)

    def text(self, *, worst: int = 10) -> str:
        """Aligned tables, as the command prints them; `worst`: how many of the most changed tensors are named."""
        from vecsurgery.report.inspected import inspection_text

        return inspection_text(self, worst=worst)


def grouped(items: Iterable[Any], key: Callable[[Any], Key]) -> dict[Key, list[Any]]:
    """Items by key, in the order in which keys come first."""
    groups: dict[Key, list[Any]] = {}
    for each in items:
        groups.setdefault(key(each), []).append(each)
    return groups


def total(changes: Iterable[Change]) -> Total:
    """Several tensors of one change together: norms as roots of sums of squares, ranks as medians."""
    items = list(changes)
    known = [(each, each.spectrum) for each in items if each.spectrum is not None]
    energy = math.fsum(each.squared_norm for each, _ in known)
    effective = [found.effective_rank for _, found in known if found.effective_rank is not None]
    return Total(
        tensors=len(items),
        norm=math.sqrt(math.fsum(each.squared_norm for each in items)),
        relative=_relative(items),
        changed=_changed(items),
        matrices=len(known),
        largest=max((found.values[0] for _, found in known), default=None),
        stable_rank=_median([each.squared_norm / found.values[0] ** 2 for each, found in known]),
        effective_rank=_median(effective),
        rank=_median([found.rank for _, found in known]),
        rank_known=all(found.rank_known for _, found in known),
        full=_median([found.full for _, found in known]),
        above=_share([found.energy_above for _, found in known], energy),
        leading=_share([value**2 for _, found in known for value in found.values], energy),
        within={name: _total_within(name, items) for name in dict.fromkeys(n for each in items for n in each.within)},
    )


def total_pair(pairs: Iterable[Pair]) -> TotalPair:
    """Several tensors of two changes together."""
    items = list(pairs)
    angled = [each for each in items if each.output_angles and each.input_angles]
    norms = [math.sqrt(math.fsum(each.squared[place] for each in items)) for place in (0, 1)]
    product = math.fsum(each.product for each in items)
    smallest = [min(each.output_angles[0], each.input_angles[0]) for each in angled]
    return TotalPair(
        tensors=len(items),
        cosine=max(-1.0, min(1.0, product / (norms[0] * norms[1]))) if all(norms) else None,
        output_overlap=_mean([overlap(each.output_angles) for each in angled]),
        input_overlap=_mean([overlap(each.input_angles) for each in angled]),
        output_chance=_mean([each.chance[0] for each in angled]),
        input_chance=_mean([each.chance[1] for each in angled]),
        smallest=math.degrees(min(smallest)) if smallest else None,
    )


def overlap(angles: Iterable[float]) -> float:
    """Mean cos² of principal angles."""
    cosines = [math.cos(angle) ** 2 for angle in angles]
    return math.fsum(cosines) / len(cosines)


def _total_within(name: str, changes: list[Change]) -> TotalWithin:
    found = [(each.squared_norm, each.within[name]) for each in changes if name in each.within]
    energy = math.fsum(squared for squared, _ in found)
    bias = math.fsum(within.bias for _, within in found)
    weight = math.fsum(within.weight_bias or 0.0 for _, within in found)
    return TotalWithin(
        matrices=len(found),
        share=math.fsum(squared * within.share for squared, within in found) / energy if energy else 0.0,
        chance=math.fsum(sq * within.directions / within.width for sq, within in found) / energy if energy else 0.0,
        directions=median(within.directions for _, within in found),
        bias=bias,
        relative=math.sqrt(bias / weight) if weight > 0.0 else None,
    )


def _relative(changes: list[Change]) -> float | None:
    bases = [each.squared_base for each in changes]
    known = [value for value in bases if value is not None]
    if len(known) < len(bases) or not math.fsum(known) > 0.0:
        return None
    return math.sqrt(math.fsum(each.squared_norm for each in changes) / math.fsum(known))


def _changed(changes: list[Change]) -> float | None:
    counts = [each.changed for each in changes if each.changed is not None]
    entries = sum(math.prod(each.shape) for each in changes)
    return sum(counts) / entries if len(counts) == len(changes) and entries else None


def _median(values: list[Any]) -> float | None:
    return float(median(values)) if values else None


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _share(parts: list[float], energy: float) -> float | None:
    return min(1.0, math.fsum(parts) / energy) if energy > 0.0 else None
