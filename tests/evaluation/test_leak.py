"""leak@k: the exact vector, pass@k for 0 and 1, the expectation over subsets, and its ends."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.errors import InputError
from vecsurgery.evaluation import leak_at_k

_SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=7)


def test_the_vector_of_the_method() -> None:
    assert leak_at_k([0.0, 0.0, 1.0], 2) == pytest.approx(2 / 3, abs=1e-15)


@given(_SCORES, st.data())
@settings(max_examples=60, deadline=None)
def test_it_is_the_mean_of_the_best_over_all_subsets_of_k(scores, data) -> None:
    k = data.draw(st.integers(1, len(scores)))
    best = [max(chosen) for chosen in itertools.combinations(scores, k)]
    assert leak_at_k(scores, k) == pytest.approx(math.fsum(best) / len(best), abs=1e-12)


@given(st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_for_scores_zero_and_one_it_is_pass_at_k(count, data) -> None:
    right, k = data.draw(st.integers(0, count)), data.draw(st.integers(1, count))
    expected = 1 - math.comb(count - right, k) / math.comb(count, k)
    scores = data.draw(st.permutations([1.0] * right + [0.0] * (count - right)))
    assert leak_at_k(scores, k) == pytest.approx(expected, abs=1e-12)


def test_one_draw_is_the_mean_and_all_draws_are_the_best() -> None:
    scores = [0.3, 0.9, 0.1, 0.2]
    assert leak_at_k(scores, 1) == pytest.approx(0.375)
    assert leak_at_k(scores, 4) == 0.9


@pytest.mark.parametrize(("scores", "k"), [([0.5], 0), ([0.5], 2), ([], 1), ([0.5, math.nan], 1), ([math.inf], 1)])
def test_what_has_no_answer_is_refused(scores, k) -> None:
    with pytest.raises(InputError, match="leak@"):
        leak_at_k(scores, k)
