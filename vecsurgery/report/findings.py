"""What the figures of an inspection say in words: only where they say something that should change a plan."""

import math
from collections.abc import Iterator

from vecsurgery.report.inspection import Change, Inspection, Pair, grouped, total, total_pair
from vecsurgery.report.numbers import counted, percent

LITTLE_SIGNAL = 0.5
"""Share of the energy above the noise floor below which a delta is mostly rounding."""
LOST = 0.5
"""Share of the entries below which adding an adapter changes too few of them."""
PARALLEL = 0.9
"""|cosine| from which two deltas are one."""
INSIDE = 0.9
"""Share in a geometry's directions from which a projection leaves little."""
_BY_CHANCE = 2.0
"""So many times the share of a delta without preference has to be exceeded before it means anything."""
_CONCENTRATED = 0.9
"""Share of a site's energy in one direction that tells of an attention sink."""


def findings(inspection: Inspection) -> tuple[str, ...]:
    """Sentences for the reader, each about one delta, pair of deltas, or geometry."""
    if inspection.kind == "geometry":
        return tuple(_sites(inspection))
    if inspection.kind == "weights":
        return ()
    found: list[str] = []
    for name in inspection.names:
        changes = inspection.of_delta(name)
        found += [*_unchanged(name, changes), *_noise(name, changes), *_lost(name, changes), *_inside(name, changes)]
    return (*found, *_parallel(inspection))


def _unchanged(name: str, changes: tuple[Change, ...]) -> Iterator[str]:
    if changes and not any(each.squared_norm for each in changes):
        yield f"delta {name!r} changes nothing in what was looked at"


def _noise(name: str, changes: tuple[Change, ...]) -> Iterator[str]:
    known = [each for each in changes if each.spectrum is not None and each.spectrum.rank_known]
    above = total(known).above
    if above is None or above >= LITTLE_SIGNAL:
        return
    silent = sum(each.spectrum is not None and each.spectrum.rank == 0 for each in known)
    none = f"; {counted(silent, 'matrix')} of {len(known)} {'has' if silent == 1 else 'have'} none above it"
    types = ", ".join(dict.fromkeys(each.dtype for each in known))
    yield (
        f"delta {name!r}: only {percent(above)} of its energy lies in singular values above the noise floor of {types}"
        f"{none if silent else ''}: most of it cannot be told from rounding. Use checkpoints in a wider type if there "
        "are any, and expect little from projecting or cutting what is below the floor"
    )


def _lost(name: str, changes: tuple[Change, ...]) -> Iterator[str]:
    live = [each for each in changes if each.factored and each.squared_norm]
    share = total(live).changed
    if live and share is not None and share < LOST:
        yield (
            f"delta {name!r}: adding it changes only {percent(share)} of the entries of the matrices that it is for, "
            f"because the others round back in {live[0].dtype}; write the result in a wider type (output.dtype)"
        )


def _inside(name: str, changes: tuple[Change, ...]) -> Iterator[str]:
    for geometry, within in total(changes).within.items():
        if within.share > INSIDE and within.share > _BY_CHANCE * within.chance:
            yield (
                f"delta {name!r} lies almost wholly inside geometry {geometry!r}: {percent(within.share)} of its "
                f"energy in {percent(within.chance)} of the directions. Removing what acts on that text "
                "leaves little of it"
            )


def _parallel(inspection: Inspection) -> Iterator[str]:
    for names in inspection.pair_names():
        pairs = [each for each in inspection.pairs if each.names == names]
        cosine = total_pair(pairs).cosine
        if cosine is None:
            continue
        first, second = names
        if cosine >= PARALLEL:
            yield (
                f"deltas {first!r} and {second!r} are nearly parallel (cosine {cosine:.3f}): their sum is little else "
                "than one of them twice; lower the weights, or leave one out"
            )
        elif cosine <= -PARALLEL:
            yield f"deltas {first!r} and {second!r} are nearly opposite (cosine {cosine:.3f}): their sum cancels"
        else:
            yield from _parallel_roles(names, pairs)


def _parallel_roles(names: tuple[str, str], pairs: list[Pair]) -> Iterator[str]:
    """Roles in which the two agree although they do not as wholes."""
    cosines = {role: total_pair(found).cosine for role, found in grouped(pairs, lambda each: each.role).items()}
    strong = {role: value for role, value in cosines.items() if value is not None and abs(value) >= PARALLEL}
    if strong:
        told = ", ".join(f"{role} {value:.2f}" for role, value in strong.items())
        yield f"deltas {names[0]!r} and {names[1]!r} are nearly parallel or opposite in some roles: cosine {told}"


def _sites(inspection: Inspection) -> Iterator[str]:
    single = [each for each in inspection.sites if each.total > 0.0 and each.energies[0] > _CONCENTRATED * each.total]
    if single:
        yield (
            f"{counted(len(single), 'site')} of {len(inspection.sites)}: one direction holds more than "
            f"{_CONCENTRATED:.0%} of the energy, which is what an attention sink does; see skip_first"
        )
    few = [each for each in inspection.sites if each.count < each.width]
    if few:
        least = min(few, key=lambda each: each.count / each.width)
        yield (
            f"{counted(len(few), 'site')} of {len(inspection.sites)} {'has' if len(few) == 1 else 'have'} fewer "
            f"positions than inputs (at worst {least.count:,} for {least.width:,}): directions that the text did not "
            "reach are not known"
        )
    empty = [each for each in inspection.sites if not math.isfinite(each.total) or each.total == 0.0]
    if empty:
        yield f"{counted(len(empty), 'site')} of {len(inspection.sites)} without any energy"
