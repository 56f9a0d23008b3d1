"""A loop is a run of 1 to 16 tokens that stands at the end four times, and 24 tokens long, at least."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.evaluation import looping

WORDS = list(range(100, 164))
"""64 tokens, all different."""


@pytest.mark.parametrize("period", range(1, 17))
def test_a_cycle_of_each_period_is_a_loop_from_its_least_length_on(period: int) -> None:
    least = max(4 * period, 24)
    cycle = (WORDS[:period] * 24)[:least]
    assert looping(cycle)
    assert looping([*WORDS, *cycle])
    # One token less, and the token before the cycle is none of it.
    assert not looping([7, *cycle[1:]])
    assert not looping(cycle[1:])


def test_a_cycle_of_seventeen_tokens_is_none() -> None:
    assert not looping(WORDS[:17] * 8)


def test_a_token_behind_the_cycle_ends_it() -> None:
    assert looping([5] * 40)
    assert not looping([5] * 40 + [2])


def test_a_cycle_may_end_in_the_middle_of_its_run() -> None:
    assert looping(([1, 2, 3, 4, 5] * 6)[:-2])


@pytest.mark.parametrize("ids", [[], [1], [1, 1, 1, 1], WORDS])
def test_what_is_short_or_never_repeats_is_no_loop(ids: list[int]) -> None:
    assert not looping(ids)


def test_any_sequence_of_ids_will_do() -> None:
    assert looping((3, 4) * 12)


@settings(max_examples=60, deadline=None)
@given(
    beginning=st.lists(st.integers(0, 3), max_size=20),
    run=st.lists(st.integers(0, 3), min_size=1, max_size=16),
    more=st.integers(0, 15),
)
def test_what_stands_before_a_cycle_does_not_matter(beginning: list[int], run: list[int], more: int) -> None:
    repeats = max(4, -(-24 // len(run)))
    assert looping([*beginning, *run * repeats, *run[: more % len(run)]])
