"""What a step touches."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.recipe import Selection, selects
from vecsurgery.recipe.selection import lacking, parse_layers, plain_layers

NAME = "model.layers.3.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("value", "layers"),
    [(3, (3,)), ("0-2", (0, 1, 2)), ("4", (4,)), ([0, "2-3", 2], (0, 2, 3)), ([7, 1], (1, 7))],
)
def test_layers_are_numbers_and_inclusive_ranges(value: object, layers: tuple[int, ...]) -> None:
    assert parse_layers(value) == layers


@pytest.mark.parametrize("value", [-1, "3-1", "a", True, 1.5, [], [None], "0-999999999", "1-2-3"])
def test_other_layers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_layers(value)


def _lacked(value: object, blocks: int) -> str | None:
    return lacking(parse_layers(value), blocks)


def test_block_numbers_beyond_the_last_are_told_with_those_that_there_are() -> None:
    assert lacking(None, 5) is None
    assert _lacked("0-4", 5) is None
    assert _lacked("0-99", 5) == "the model has 5 blocks, 0 to 4; leave out 5-99"
    assert _lacked([1, 5, "8-9"], 5) == "the model has 5 blocks, 0 to 4; leave out 5, 8-9"
    assert _lacked(1, 1) == "the model has 1 block, 0 to 0; leave out 1"


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1))
def test_layers_survive_their_plain_form(layers: set[int]) -> None:
    assert parse_layers(plain_layers(tuple(sorted(layers)))) == tuple(sorted(layers))


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(("d",)), True),
        (Selection(("d",), modules=("q", "v")), True),
        (Selection(("d",), modules=("o",)), False),
        (Selection(("d",), layers=(2, 3)), True),
        (Selection(("d",), layers=(2,)), False),
        (Selection(("d",), where=("*.mlp.*", "model.*.q_proj.*")), True),
        (Selection(("d",), where=("q_proj",)), False),
        (Selection(("d",), exclude=("*.self_attn.*",)), False),
        (Selection(("d",), where=("*",), exclude=("*mlp*",)), True),
        (Selection(("d",), modules=("q",), layers=(2,)), False),
    ],
)
def test_every_restriction_must_hold(selection: Selection, expected: bool) -> None:
    assert selects(selection, name=NAME, layer=3, roles=("q",)) is expected


def test_a_fused_matrix_is_touched_by_any_of_its_roles() -> None:
    assert selects(Selection(("d",), modules=("v",)), name=NAME, layer=3, roles=("q", "k", "v"))


def test_a_tensor_outside_the_blocks_is_in_no_layer() -> None:
    assert not selects(Selection(("d",), layers=(0,)), name="lm_head.weight", layer=None, roles=())
    assert selects(Selection(("d",)), name="lm_head.weight", layer=None, roles=())
