"""Equal forgetting: the coefficient at which a line of models forgets as much as is asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Match:
    """A point of a line. `met` False: no point near the target was found, and this is the one that comes closest."""

    coefficient: float
    value: float
    met: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def first_crossing(coefficients: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Where the line first reaches `target` from below, between ascending coefficients, linear in their logarithm.

    None where it never does; the first coefficient where the line starts above.
    """
    if values[0] >= target:
        return coefficients[0]
    for (low, below), (high, above) in pairwise(zip(coefficients, values, strict=True)):
        if above >= target:
            share = (target - below) / (above - below)
            return math.exp(math.log(low) + share * math.log(high / low))
    return None


def match(
    ask: Callable[[float], float],
    coefficients: Sequence[float],
    target: float,
    *,
    tolerance: float,
    refinements: int,
    limit: float = 0.0,
) -> Match:
    """The first coefficient at which `ask` reaches `target`, asked for at `coefficients`, then inside the bracket.

    Where none of them reaches it, the last one is doubled while it is at most `limit`.

    Refines until within `tolerance` of the target, `refinements` times at most: by interpolation and by halving the
    bracket in turn, so that neither a steep line nor a flat one keeps it from arriving.
    """
    known = {coefficient: ask(coefficient) for coefficient in sorted(coefficients)}
    while max(known.values()) < target and 2.0 * max(known) <= limit:
        known[2.0 * max(known)] = ask(2.0 * max(known))
    for turn in range(refinements):
        ordered = sorted(known)
        found = first_crossing(ordered, [known[coefficient] for coefficient in ordered], target)
        if found is None or any(abs(known[near] - target) <= tolerance for near in _around(ordered, found)):
            break
        if found in known:  # the line starts above the target
            break
        low, high = _around(ordered, found)
        known_at = math.sqrt(low * high) if turn % 2 else found
        known[known_at] = ask(known_at)
    ordered = sorted(known)
    crossing = first_crossing(ordered, [known[coefficient] for coefficient in ordered], target)
    if crossing is None:
        best = min(known, key=lambda coefficient: abs(known[coefficient] - target))
    else:
        best = min(_around(ordered, crossing), key=lambda coefficient: abs(known[coefficient] - target))
    return Match(best, known[best], near(known[best], target, tolerance))


def near(value: float, target: float, tolerance: float) -> bool:
    """Whether a point forgets equally: within four times the tolerance that is aimed at."""
    return abs(value - target) <= 4 * tolerance


def _around(ordered: Sequence[float], crossing: float) -> list[float]:
    """The coefficients on both sides of a crossing."""
    below = [coefficient for coefficient in ordered if coefficient <= crossing]
    above = [coefficient for coefficient in ordered if coefficient >= crossing]
    return below[-1:] + above[:1]


def interpolated(coefficients: Sequence[float], values: Sequence[float], at: float) -> float:
    """The value of a line at a coefficient, linear in the logarithm; beyond the ends that of the end."""
    if at <= coefficients[0]:
        return values[0]
    for (low, left), (high, right) in pairwise(zip(coefficients, values, strict=True)):
        if at <= high:
            return left + (right - left) * math.log(at / low) / math.log(high / low)
    return values[-1]
