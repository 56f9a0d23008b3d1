"""Curves known at points: the first crossing, values between, and damage at equal forgetting."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.fits import at_equal, first_crossing, log_spaced, value_between

_VALUES = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def test_log_spaced_values_have_equal_ratios_and_exact_ends() -> None:
    values = log_spaced(0.3, 7.7, 5)
    assert (values[0], values[-1]) == (0.3, 7.7)
    assert [high / low for low, high in itertools.pairwise(values)] == pytest.approx([(7.7 / 0.3) ** 0.25] * 4)


def test_the_crossing_is_interpolated_in_the_logarithm() -> None:
    assert first_crossing((1.0, 2.0, 4.0), (0.0, 1.0, 0.5), 0.5) == pytest.approx(math.sqrt(2))
    assert first_crossing((1.0, 2.0, 4.0), (0.0, 1.0, 0.5), 1.0) == 2.0
    assert first_crossing((1.0, 2.0), (3.0, 4.0), 2.0) == 1.0
    assert first_crossing((1.0, 2.0), (3.0, 4.0), 5.0) is None


@settings(max_examples=100, deadline=None)
@given(_VALUES, st.floats(-10, 10))
def test_the_curve_is_below_the_target_before_its_first_crossing(ys: list[float], target: float) -> None:
    xs = log_spaced(1.0, 8.0, len(ys))
    crossing = first_crossing(xs, ys, target)
    if crossing is None:
        assert max(ys) < target
        return
    assert value_between(xs, ys, crossing) == pytest.approx(max(target, ys[0]), abs=1e-6)
    assert all(y < target for x, y in zip(xs, ys, strict=True) if x < crossing)


def test_beyond_an_end_a_curve_holds_its_last_value() -> None:
    assert value_between((1.0, 2.0), (3.0, 4.0), 0.5) == 3.0
    assert value_between((1.0, 2.0), (3.0, 4.0), 5.0) == 4.0
    assert value_between((1.0, 4.0), (3.0, 4.0), 2.0) == pytest.approx(3.5)


def test_damage_is_compared_where_forgetting_is_equal() -> None:
    assert at_equal((0.0, 1.0, 3.0), (0.0, 0.4, 1.0), 2.0) == pytest.approx(0.7)
    assert at_equal((0.0, 1.0), (0.2, 0.4), 1.0) == pytest.approx(0.4)
    assert at_equal((0.5, 1.0), (0.2, 0.4), 0.1) == 0.2
    assert at_equal((0.0, 1.0), (0.2, 0.4), 1.1) is None
    assert at_equal((0.0, 2.0, 1.0, 2.0), (0.0, 1.0, 5.0, 9.0), 1.5) == pytest.approx(0.75)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 5), st.floats(0.0, 1.0))
def test_equal_forgetting_does_not_depend_on_how_factors_are_counted(slope: float, level: float) -> None:
    forgetting = [index / 10 for index in range(11)]
    assert at_equal(forgetting, [slope * each for each in forgetting], level) == pytest.approx(slope * level, abs=1e-9)
