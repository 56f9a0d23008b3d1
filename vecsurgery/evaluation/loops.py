"""Continuations that turn in a circle."""

from __future__ import annotations

from collections.abc import Sequence

_PERIODS = 16
_REPEATS = 4
_TOKENS = 24


def looping(ids: Sequence[int]) -> bool:
    """Whether a continuation ends in a cycle: the same run of tokens again and again up to its end.

    That is: for some period p from 1 to 16, each of the last n = max(4·p, 24) tokens but the first p of them equals the
    token p places before it. So the run stands there four times at least, and the cycle is 24 tokens long at least: a
    row of dashes, or a list of three-word items, is no loop yet. A continuation shorter than n has no cycle of that
    period; one that an end token closes, or any other token behind the cycle, does not loop.
    """
    for period in range(1, _PERIODS + 1):
        tail = ids[-max(_REPEATS * period, _TOKENS) :]
        long_enough = len(tail) == max(_REPEATS * period, _TOKENS)
        if long_enough and all(tail[place] == tail[place - period] for place in range(period, len(tail))):
            return True
    return False
