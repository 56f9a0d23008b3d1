"""Rows of every accepted shape are understood, and what is wrong with a row is said by file, line and field."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.calibration import Row, read_rows
from vecsurgery.errors import InputError

Lines = Callable[..., Path]


def test_text_rows(lines: Lines) -> None:
    (row,) = read_rows([lines({"text": "some text", "source": "book"})])
    assert (row.text, row.turns, row.response) == ("some text", (), "")


def test_prompt_rows_with_and_without_reasoning(lines: Lines) -> None:
    rows = read_rows(
        [
            lines(
                {"prompt": "p", "response": "r"},
                {"prompt": "p", "reasoning": "because", "response": "r"},
                {"prompt": "p", "reasoning": None, "response": "r"},
                {"prompt": "p", "reasoning": " ", "response": "r"},
            )
        ]
    )
    assert [row.reasoning for row in rows] == [None, "because", None, None]
    assert all(row.turns == (("user", "p"),) and row.response == "r" for row in rows)


def test_messages_end_with_the_response(lines: Lines) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": "r", "reasoning_content": "because"},
    ]
    (row,) = read_rows([lines({"messages": messages, "prompt": "p"})])
    assert row.turns == (("system", "be brief"), ("user", "p"))
    assert (row.reasoning, row.response) == ("because", "r")


def test_tofu_rows_with_their_paraphrased_and_perturbed_fields(lines: Lines) -> None:
    extra = {"paraphrased_question": "x", "paraphrased_answer": "y", "perturbed_answer": ["u", "v"]}
    first, second = read_rows([lines({"question": "q", "answer": "a"}, {"question": "q", "answer": "a", **extra})])
    assert first.asked
    assert first.turns == (("user", "q"),)
    assert first.response == "a"
    assert first.identity == second.identity


def test_rain_instruction_rows_call_their_reasoning_reason(lines: Lines) -> None:
    row = {"prompt": "p", "response": "r", "reason": "because"}
    plain, rain = read_rows([lines(row, {**row, "related_prompt_list": [], "meta": {}})])
    assert plain.reasoning is None
    assert rain.reasoning == "because"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "has `prompt` but no `response`"),
        ({"answer": "a", "id": 1}, "has `answer` but no `question`"),
        ({"body": "x"}, r"no field that is known \(its fields: body\)"),
        ({"text": "t", "prompt": "p", "response": "r"}, "leave only the fields of one form"),
        ({"text": 3}, "`text` is a number; expected text"),
        ({"prompt": ["p"], "response": "r"}, "`prompt` is a list"),
        ({"prompt": "p", "response": " \n"}, "`response` is empty"),
        ({"prompt": "p", "reasoning": 1, "response": "r"}, "`reasoning` is a number"),
        ({"text": "\ud800"}, "surrogate"),
        (["text"], "a row is a list"),
        ({"messages": "hello"}, "`messages` is text"),
        ({"messages": [{"role": "user", "content": "p"}]}, "end with a message of the role assistant"),
        (
            {"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "r"}]},
            r"messages\[0\]\.content",
        ),
        (
            {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r", "tool_calls": [1]}]},
            r"messages\[1\] calls tools",
        ),
    ],
)
def test_a_wrong_row_is_named_by_file_line_and_field(lines: Lines, row: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_rows([lines({"text": "fine"}, row)])
    assert "rows.jsonl:2: " in str(caught.value)


def test_no_row_at_all_is_an_error(lines: Lines) -> None:
    with pytest.raises(InputError, match="no row found"):
        read_rows([lines()])


def test_the_range_counts_over_all_files_together(lines: Lines) -> None:
    files = [lines({"text": "a"}, {"text": "b"}, name="x.jsonl"), lines({"text": "c"}, {"bad": 1}, name="y.jsonl")]
    assert [row.text for row in read_rows(files, (1, 2))] == ["b", "c"]
    with pytest.raises(InputError, match="there are 4 rows, numbered from 0 to 3"):
        read_rows(files, (1, 4))


_WORDS = st.lists(st.sampled_from(["a", "b", "cd"]), min_size=1, max_size=4)
_BLANKS = st.sampled_from([" ", "\n", "  ", "\t "])


@settings(max_examples=40, deadline=None)
@given(words=_WORDS, first=_BLANKS, second=_BLANKS)
def test_white_space_does_not_change_the_identity(words: list[str], first: str, second: str) -> None:
    assert Row("x:1", text=first.join(words)).identity == Row("y:2", text=second.join(words) + second).identity


def test_the_identity_tells_the_fields_apart(lines: Lines) -> None:
    rows = read_rows(
        [
            lines(
                {"text": "a b"},
                {"prompt": "a", "response": "b"},
                {"prompt": "a b", "response": "b"},
                {"prompt": "a", "reasoning": "b", "response": "b"},
                {"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]},
            )
        ]
    )
    assert len({row.identity for row in rows}) == 5


def test_the_same_content_in_another_form_is_the_same_row(lines: Lines) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = read_rows([lines({"prompt": "a", "response": "b"}, {"question": "a", "answer": "b"}, {"messages": chat})])
    assert len({row.identity for row in rows}) == 1
