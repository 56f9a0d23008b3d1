"""Curves that are known at a few points: where one first reaches a level, and what another holds there."""

import math
from bisect import bisect_left
from collections.abc import Sequence


def log_spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` ≥ 2 values from `low` to `high`, both exact, at equal ratios; 0 < low < high."""
    step = math.log(high / low) / (count - 1)
    return (low, *(low * math.exp(step * index) for index in range(1, count - 1)), high)


def first_reached(ys: Sequence[float], target: float) -> int | None:
    """The index of the first value that is at least `target`; None where none is. A falling curve: negate both."""
    return next((index for index, y in enumerate(ys) if y >= target), None)


def first_crossing(xs: Sequence[float], ys: Sequence[float], target: float) -> float | None:
    """The least x at which the curve through the points reaches `target` from below, straight lines in (log x, y).

    xs: above 0, ascending. ys: finite, of any shape: what happens behind the first crossing does not matter. A curve
    that starts at or above the target gives xs[0], one that never reaches it None. A falling curve: negate ys and
    target. Example:

        first_crossing((1.0, 2.0, 4.0), (0.0, 1.0, 0.5), 0.5)  # √2
    """
    index = first_reached(ys, target)
    if not index:
        return None if index is None else xs[0]
    part = (target - ys[index - 1]) / (ys[index] - ys[index - 1])
    low, high = math.log(xs[index - 1]), math.log(xs[index])
    return min(math.exp(low + part * (high - low)), xs[index])


def value_between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """y at x on the curve through the points, straight lines in (log x, y); the end's value beyond an end.

    xs: above 0, ascending.
    """
    index = bisect_left(xs, x)
    if index in (0, len(xs)):
        return ys[min(index, len(xs) - 1)]
    low, high = math.log(xs[index - 1]), math.log(xs[index])
    part = (math.log(x) - low) / (high - low)
    return ys[index - 1] + part * (ys[index] - ys[index - 1])


def at_equal(forgetting: Sequence[float], damage: Sequence[float], level: float) -> float | None:
    """Damage where forgetting first reaches `level`, along a curve of models, straight lines between the points.

    The points come in the order in which an edit grows stronger; the first holds the least edited model. A curve that
    starts at or above the level gives its first damage, one that never reaches it None: there is then no comparison
    at that level. What lets two ways of forgetting be compared, whatever their factors mean.
    """
    index = first_reached(forgetting, level)
    if not index:
        return None if index is None else damage[0]
    part = (level - forgetting[index - 1]) / (forgetting[index] - forgetting[index - 1])
    return damage[index - 1] + part * (damage[index] - damage[index - 1])
