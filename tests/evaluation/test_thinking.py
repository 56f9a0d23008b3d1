"""Generated thoughts: every figure of them is what one counts by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecsurgery.evaluation import Thought, Written, rate, think_figures, thought, wilson

_WORDS = ["<think>", "</think>", "<", "think", ">", "/", "a", "b", "c", " ", "\n"]


def decode(ids) -> str:
    return "".join(_WORDS[index] for index in ids)


def written(*words: str, ended: bool = True) -> Written:
    ids = tuple(_WORDS.index(word) for word in words)
    return Written(ids, decode(ids), ended)


def taken(*words: str, ended: bool = True, prompt: str = "") -> Thought:
    return thought(written(*words, ended=ended), decode, prompt=prompt)


def test_a_thought_with_an_answer_behind_it_is_well_formed() -> None:
    found = taken("<think>", "a", "b", "</think>", "\n", "c", " ")
    assert found == Thought(True, 2, True, "c", ended=True, loops=False)


def test_a_tag_that_the_prompt_ends_with_counts_as_opened() -> None:
    assert taken("a", "</think>", "c", prompt="Q <think>\n") == Thought(True, 1, True, "c", True, False)
    assert not taken("<think>", "a", "</think>", "c", prompt="Q <think>\n").well_formed
    assert not taken("a", "</think>", "c", prompt="about <think> tags").well_formed


def test_a_template_that_switches_thinking_off_writes_both_tags() -> None:
    found = taken("c", prompt="Q<think>\n\n</think>\n\n")
    assert found == Thought(True, 0, True, "c", True, False)


@pytest.mark.parametrize(
    "words",
    [
        ("a",),
        ("<think>", "a", "</think>"),
        ("<think>", "a", "</think>", " ", "\n"),
        ("</think>", "a", "<think>", "b"),
        ("a", "</think>", "c"),
        ("<think>", "<think>", "a", "</think>", "c"),
        ("<think>", "a", "</think>", "b", "</think>", "c"),
        ("<think>", "a", "</think>", "<think>", "b", "</think>", "c"),
    ],
)
def test_anything_else_is_malformed(words: tuple[str, ...]) -> None:
    assert not taken(*words).well_formed


def test_an_answer_is_what_stands_behind_the_last_closing_tag() -> None:
    assert taken("<think>", "a", "</think>", "b", "</think>", " ", "c").answer == "c"
    assert taken("a", "</think>", "c").answer == "c"
    assert taken("a", " ", "b").answer == "a b"
    assert taken("<think>", "a", "</think>").answer == ""


@pytest.mark.parametrize("ended", [True, False])
def test_a_thought_that_is_still_open_has_no_answer(ended: bool) -> None:
    found = taken("<think>", "a", "b", "c", ended=ended)
    assert found == Thought(False, 3, False, None, ended, False)
    again = taken("<think>", "a", "</think>", "b", "<think>", "c", ended=ended)
    assert (again.answer, again.closed, again.length) == (None, False, 1)


def test_a_loop_at_the_end_breaks_the_format_unless_an_end_token_closes_it() -> None:
    words = ("<think>", "a", "</think>", *["b", "c"] * 20)
    assert taken(*words, ended=False) == Thought(False, 1, True, "bc" * 20, False, True)
    assert taken(*words).well_formed
    cut = taken("<think>", "a", "</think>", "b", ended=False)
    assert (cut.well_formed, cut.ended, cut.loops) == (True, False, False)


def test_tags_of_several_tokens_are_no_part_of_the_length() -> None:
    opening, closing = ("<", "think", ">"), ("<", "/", "think", ">")
    assert taken("a", *opening, "b", "c", " ", *closing, "a").length == 3
    assert taken("b", *closing, "a", prompt="<think>").length == 1
    assert taken(*opening, *closing, "a") == Thought(True, 0, True, "a", True, False)
    assert taken("<think>", "b", "c").length == 2
    assert taken("a").length is None


def test_other_tags_take_the_place_of_the_usual_ones() -> None:
    tags = ("<", ">")
    found = thought(written("<", "a", "b", ">", "c"), decode, tags=tags)
    assert (found.well_formed, found.length, found.answer) == (True, 2, "c")


def test_wilsons_interval_is_that_of_the_formula() -> None:
    # 8 of 10: (0.8 + 0.19208) ± 1.96 √(0.016 + 0.0096040), over 1.38416
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)


@given(st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_an_interval_holds_its_rate_and_mirrors_with_it(case: tuple[int, int]) -> None:
    hits, count = case
    low, high = wilson(hits, count)
    assert 0.0 <= low <= hits / count <= high <= 1.0
    assert low < high
    mirrored = wilson(count - hits, count)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider = wilson(2 * hits, 2 * count)
    assert wider[1] - wider[0] < high - low


def test_rates_count_generations_and_keep_those_of_each_row() -> None:
    figure = rate([[True, False], None, [True, True]])
    assert figure.value == 0.75
    assert figure.interval == wilson(3, 4)
    assert figure.by_index["0"] == {"score": 0.5, "samples": [1.0, 0.0]}
    assert list(figure.by_index) == ["0", "2"]
    assert figure.to_dict()["interval"] == list(wilson(3, 4))
    empty = rate([None])
    assert (empty.value, empty.interval) == (None, None)


def test_figures_of_generations_are_those_counted_by_hand() -> None:
    good, cut = Thought(True, 4, True, "a", True, False), Thought(False, 9, False, None, False, True)
    plain = Thought(False, None, True, "a", True, False)
    found = think_figures([[good, good], [cut, plain]])
    assert {name: figure.value for name, figure in found.items()} == {
        "think_format": 0.5,
        "thinking_mean": pytest.approx(17 / 3),
        "thinking_median": 4.0,
        "unclosed_rate": 0.25,
        "stop_rate": 0.75,
        "loop_rate": 0.25,
    }
    assert found["thinking_mean"].by_index == {"0": {"score": [4.0, 4.0]}, "1": {"score": [9.0]}}
    assert found["thinking_mean"].per_row == (4.0, 9.0)
    assert think_figures([[plain]])["thinking_mean"].value is None
    assert math.isclose(found["think_format"].interval[0], wilson(2, 4)[0])  # type: ignore[index]
