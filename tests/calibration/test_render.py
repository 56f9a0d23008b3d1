"""Rendering keeps everything that a row gives, and opens and closes the thinking tags once."""

from pathlib import Path

import pytest

from tests.calibration.tiny import byte_tokenizer
from vecsurgery.calibration import Row
from vecsurgery.calibration.render import Rendered, renderer
from vecsurgery.errors import InputError

TAGS = ("<think>", "</think>")
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = CHAT.replace("[assistant]", "[assistant]<think>\\n").replace("\\n{% endif", "\n{% endif")
FORGETFUL = CHAT.replace("m.content | trim", "m.content.split('</think>')[-1]")
NO_SYSTEM = CHAT.replace("messages %}", "messages if m.role != 'system' %}")

PLAIN = Row("x:1", turns=(("user", "Why?"),), response="Because.")
REASONED = Row("x:2", turns=(("user", "Why?"),), reasoning="Hm.", response="Because.")
ASKED = Row("x:3", turns=(("user", "Why?"),), response="Because.", asked=True)
DIALOGUE = Row(
    "x:4",
    turns=(("system", "Be brief."), ("user", "Why?"), ("assistant", "<think>old</think>So."), ("user", "Really?")),
    response="Yes.",
)


def _render(row: Row, chat: str | None = None, template: str = "auto") -> Rendered:
    rendered = renderer(byte_tokenizer(chat), template, TAGS)(row)
    if rendered.response is not None:
        start, end = rendered.response
        assert rendered.text[start:end] == row.response
        assert end == len(rendered.text)
    return rendered


def test_without_a_template_prompt_and_response_stand_side_by_side() -> None:
    assert _render(PLAIN).text == "Why?Because."
    assert _render(PLAIN).prompt_end == len("Why?")


def test_without_a_template_questions_and_answers_are_labelled() -> None:
    assert _render(ASKED).text == "Question: Why?\nAnswer: Because."
    assert _render(ASKED).prompt_end == len("Question: Why?\nAnswer:")


def test_running_text_is_fed_as_it_is_even_where_there_is_a_template() -> None:
    assert _render(Row("x:1", text="Once upon"), CHAT) == Rendered("Once upon", 0, None)


def test_auto_takes_the_chat_template_with_the_generation_prompt() -> None:
    assert _render(ASKED, CHAT).text == "<s>[user]Why?\n[assistant]Because."


def test_none_ignores_the_chat_template() -> None:
    assert _render(PLAIN, CHAT, "none").text == "Why?Because."


def test_a_template_file_replaces_the_one_of_the_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("Q {{ messages[0].content }} A ", encoding="utf-8")
    assert _render(PLAIN, CHAT, str(path)).text == "Q Why? A Because."
    with pytest.raises(InputError, match=r"reading chat template .*missing\.jinja"):
        _render(PLAIN, CHAT, str(tmp_path / "missing.jinja"))


def test_reasoning_is_put_between_tags_as_text() -> None:
    assert _render(REASONED, CHAT).text == "<s>[user]Why?\n[assistant]<think>\nHm.\n</think>\n\nBecause."
    assert _render(REASONED).text == "Why?<think>\nHm.\n</think>\n\nBecause."


def test_a_tag_that_the_template_opened_is_not_opened_again() -> None:
    rendered = _render(REASONED, THINKING)
    assert rendered.text == "<s>[user]Why?\n[assistant]<think>\nHm.\n</think>\n\nBecause."
    assert rendered.prompt_end == rendered.text.index("Hm.")


def test_a_tag_that_the_template_opened_is_closed_where_the_row_has_no_reasoning() -> None:
    assert _render(PLAIN, THINKING).text.endswith("[assistant]<think>\n\n</think>\n\nBecause.")


def test_a_response_that_brings_its_own_tags_keeps_them_once() -> None:
    row = Row("x:5", turns=PLAIN.turns, response="<think>\nHm.\n</think>\n\nBecause.")
    assert _render(row, CHAT).text == _render(REASONED, CHAT).text
    opened = renderer(byte_tokenizer(THINKING), "auto", TAGS)(row)
    assert opened.text == _render(REASONED, THINKING).text


def test_a_template_that_deletes_earlier_reasoning_is_refused() -> None:
    assert _render(DIALOGUE, CHAT).text.count("<think>old</think>So.") == 1
    with pytest.raises(
        InputError, match=r"x:4: the chat template left out a part of the assistant message .*<think>old"
    ):
        _render(DIALOGUE, FORGETFUL)


def test_a_template_that_deletes_the_system_prompt_is_refused() -> None:
    with pytest.raises(InputError, match=r"left out a part of the system message that begins with 'Be brief\.'"):
        _render(DIALOGUE, NO_SYSTEM)


def test_a_template_that_writes_a_repeated_message_once_is_refused() -> None:
    row = Row("x:6", turns=(("user", "Go on."), ("assistant", "So."), ("user", "Go on.")), response="Yes.")
    with pytest.raises(InputError, match="left out a part of the user message"):
        _render(row, "{% for m in messages[1:] %}{{ m.content }}{% endfor %}")


@pytest.mark.parametrize("chat", ["{{ raise_exception('no such role') }}", "{% for %}", "{{ messages[0] + 1 }}"])
def test_a_template_that_fails_is_an_error_that_names_the_row(chat: str) -> None:
    with pytest.raises(InputError, match="x:1: the chat template cannot render this row"):
        _render(PLAIN, chat)


def test_several_turns_need_a_template() -> None:
    with pytest.raises(InputError, match="x:4: rendering 4 messages"):
        _render(DIALOGUE)


def test_a_template_that_prints_the_date_prints_the_same_one_every_day() -> None:
    chat = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %} {{ messages[0].content }} "
    assert _render(PLAIN, chat).text == "26 Jul 2024 Why? Because."
    assert _render(PLAIN, chat.replace("%d %b %Y", "%Y-%m-%d, %A")).text == "2024-07-26, Friday Why? Because."


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"tool_use": CHAT, "rag": CHAT}
    with pytest.raises(InputError, match="it has several and none is the default"):
        renderer(tokenizer, "auto", TAGS)
    tokenizer.chat_template = {"default": CHAT, "rag": "other"}
    assert renderer(tokenizer, "auto", TAGS)(PLAIN).text == _render(PLAIN, CHAT).text
