"""Rows are used once: what calibrates or fits does not judge, and what fits does not calibrate."""

from collections.abc import Mapping
from dataclasses import dataclass

from vecsurgery.calibration import Samples
from vecsurgery.errors import InputError
from vecsurgery.planning.inputs import Inputs

_NAMED = 3
"""Shared rows that a message names for each pair of uses."""


@dataclass(frozen=True)
class _Use:
    """Rows in one use. `rows`: identity → "file:line", or the geometry file that lists it without its place."""

    name: str
    rows: Mapping[str, str]


def require_disjoint(inputs: Inputs) -> None:
    """Refuse a recipe in which a row of a geometry or fit occurs in `evaluate` or `gates`, or a row of a fit in a
    geometry.

    Geometries may share rows, and so may evaluation and gates. Rows are the same where their fields are, white space
    aside; only rows that are used count. Errors: InputError naming shared rows of every such pair.
    """
    geometries = _geometries(inputs)
    fits = [_use(f"step {step!r}", samples) for step, samples in inputs.fit_samples.items()]
    judges = _judges(inputs)
    pairs = [(first, second) for first in [*geometries, *fits] for second in judges]
    pairs += [(fit, geometry) for fit in fits for geometry in geometries]
    shared = [text for first, second in pairs if (text := _shared(first, second))]
    if shared:
        listed = "\n  ".join(shared)
        raise InputError(
            "rows are used twice, so that the figures would flatter the result; expected other rows for every use "
            f"(the key rows takes a part of a file):\n  {listed}"
        )


def _geometries(inputs: Inputs) -> list[_Use]:
    measured = [_use(f"geometry {name!r}", samples) for name, samples in inputs.samples.items()]
    read = [
        _Use(f"geometry {name!r}", dict.fromkeys(file.info.rows, file.path.name)) for name, file in inputs.files.items()
    ]
    return measured + read


def _judges(inputs: Inputs) -> list[_Use]:
    evaluated = [_use(f"evaluate.{name}", samples) for name, samples in inputs.evaluation.items()]
    gates = [
        _use(f"gates[{index}] ({gate.measure})", inputs.gate_samples[index])
        for index, gate in enumerate(inputs.recipe.gates)
        if gate.data is not None
    ]
    return evaluated + gates


def _use(name: str, samples: Samples) -> _Use:
    return _Use(name, {sample.row: sample.where for sample in samples.samples})


def _shared(first: _Use, second: _Use) -> str:
    """What two uses share, in words; empty where they share nothing."""
    both = [row for row in second.rows if row in first.rows]
    if not both:
        return ""
    places = [_places(first.rows[row], second.rows[row]) for row in both[:_NAMED]]
    more = f" and {len(both) - _NAMED} more" if len(both) > _NAMED else ""
    count = f"{len(both)} row{'s' if len(both) > 1 else ''}"
    return f"{first.name} and {second.name} share {count}: {', '.join(places)}{more}"


def _places(first: str, second: str) -> str:
    return first if first == second else f"{first} = {second}"
