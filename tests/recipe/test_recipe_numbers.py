"""Numbers over a model: scalars, gradients over the blocks, filters."""

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.errors import InputError
from vecsurgery.recipe import FilteredNumber, parse_number, value_at
from vecsurgery.recipe.numbers import plain_number

NAME = "model.layers.1.self_attn.q_proj.weight"
Position = Literal["before", "block", "after"]


@pytest.mark.parametrize("value", [0, -1.5, [0, 0.5, 1], [{"filter": "mlp", "value": [1, 2]}, {"value": 3}]])
def test_parsing_is_undone_by_the_plain_form(value: Any) -> None:
    assert plain_number(parse_number(value)) == value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, "got true"),
        ("1", "got '1'"),
        (None, "got nothing"),
        (float("inf"), "finite"),
        ([], "empty"),
        ([1, True], "expected a number; got true"),
        ([1, {"value": 2}], "throughout the list"),
        ([{"filter": "a"}], "throughout the list"),
        ([{"value": 1, "filtr": "a"}], "throughout the list"),
        ([{"filter": 3, "value": 1}], "dotted components"),
        ([{"value": [{"value": 1}]}], "cannot be nested"),
        ([{"value": 1}, {"filter": "a", "value": 2}], "must be the last"),
        ({"filter": "a", "value": 1}, "expected a number, a list"),
    ],
)
def test_anything_else_is_refused(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_number(value)


@pytest.mark.parametrize(
    ("layer", "position", "expected"),
    [
        (None, "before", 0.0),
        (0, "block", 0.0),
        (1, "block", 0.25),
        (2, "block", 0.5),
        (4, "block", 1.0),
        (None, "after", 1.0),
    ],
)
def test_a_gradient_runs_linearly_over_the_blocks(layer: int | None, position: Position, expected: float) -> None:
    assert value_at(parse_number([0, 0.5, 1]), NAME, layer, 5, position) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.integers(1, 12), st.data())
def test_a_gradient_is_linear_interpolation_at_the_relative_depth(
    values: list[float], blocks: int, data: st.DataObject
) -> None:
    layer = data.draw(st.integers(0, blocks - 1))
    depth = layer / max(blocks - 1, 1)
    plain = np.interp(depth * (len(values) - 1), np.arange(len(values)), values)
    assert value_at(parse_number(values), NAME, layer, blocks, "block") == pytest.approx(float(plain), abs=1e-12)


def test_a_filter_matches_whole_components_and_the_first_match_decides() -> None:
    number = parse_number(
        [{"filter": "layers.1", "value": 1}, {"filter": "self_attn", "value": 2}, {"filter": "*", "value": 3}]
    )
    assert isinstance(number, tuple)
    assert number[-1] == FilteredNumber(None, 3.0)
    assert value_at(number, NAME, 1, 12, "block") == 1.0
    assert value_at(number, NAME.replace(".1.", ".11."), 11, 12, "block") == 2.0
    assert value_at(number, "model.layers.11.cross_self_attn.weight", 11, 12, "block") == 3.0


def test_a_filtered_value_may_be_a_gradient() -> None:
    number = parse_number([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}])
    assert value_at(number, "layers.2.mlp.up.weight", 2, 3, "block") == 1.0
    assert value_at(number, "norm.weight", None, 3, "after") == 0.5


def test_a_tensor_that_no_filter_matches_is_an_error_that_names_it() -> None:
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight: none of the filters mlp"):
        value_at(parse_number([{"filter": "mlp", "value": 1}]), NAME, 1, 2, "block")
