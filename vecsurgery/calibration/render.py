"""Rendering: one row becomes the text that is fed to the model, with the place of its response."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from vecsurgery.calibration.rows import Row
from vecsurgery.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Templates that print today's date would give other ids tomorrow. This is the date that Llama 3.2's falls back to, put
# in by a macro that hides the clock which transformers offers under the same name.
_TODAY = datetime(2024, 7, 26)
_DATE_CODES = "aAbBdeHIjmMpSyY"
_CLOCK = "strftime_now"
_STOPPED_CLOCK = (
    f"{{%- macro {_CLOCK}(format) -%}}{{{{ format | replace('%-', '%')"
    + "".join(f" | replace('%{code}', '{_TODAY.strftime('%' + code)}')" for code in _DATE_CODES)
    + " }}{%- endmacro -%}"
)

_ADVICE = "give `template: none` or a template FILE that keeps every message"
_ADVICE_ON_TURNS = (
    "templates of reasoning models delete the reasoning of earlier turns, so the model never reads it: take it out of "
    "the row, or give a template FILE that keeps it"
)


@dataclass(frozen=True)
class Rendered:
    """The text of one row. `prompt_end`: characters of the rendered prompt, 0 for running text.

    `response`: first and one-past-last character of the row's response field; None where the row has none.
    """

    text: str
    prompt_end: int
    response: tuple[int, int] | None


Renderer = Callable[[Row], Rendered]


def renderer(tokenizer: "PreTrainedTokenizerFast", template: str, tags: tuple[str, str]) -> Renderer:
    """The function that renders rows for one tokenizer.

    `template`: `auto` (the tokenizer's chat template if it has one, else `none`), `none`, or the path of a Jinja file.
    `tags`: opening and closing tag around a row's reasoning.
    The prompt is rendered with the generation prompt. Reasoning, tags (unless the template opened one already) and
    response follow as text, never as an assistant turn, because templates of reasoning models delete the reasoning
    there: `<think>\\n{reasoning}\\n</think>\\n\\n{response}`. Where the template opened a tag and the row has no
    reasoning, the tag is closed at once. `none` writes question/answer rows as `Question: {question}\\nAnswer:` and
    ` {answer}`, other rows as prompt and response with nothing between; running text is never wrapped in a template.
    Raises InputError for a template that fails or leaves out a part of the row; the message names the row.
    """
    prompt = _prompt_renderer(tokenizer, template)

    def render(row: Row) -> Rendered:
        if row.text is not None:
            return Rendered(row.text, 0, None)
        asked = prompt(row)
        glue = " " if row.asked and asked == _question(row) else ""
        lead, response = _continuation(asked, row, tags)
        before = asked + glue + lead
        return Rendered(before + response, len(asked), (len(before), len(before) + len(response)))

    return render


def _prompt_renderer(tokenizer: "PreTrainedTokenizerFast", template: str) -> Callable[[Row], str]:
    if template == "none" or (template == "auto" and not tokenizer.chat_template):
        return _plain_prompt
    source = _own_template(tokenizer) if template == "auto" else _read_template(Path(template))
    if _CLOCK in source:
        source = _STOPPED_CLOCK + source
    return lambda row: _chat_prompt(tokenizer, source, row)


def _own_template(tokenizer: "PreTrainedTokenizerFast") -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise InputError(
            f"choosing the tokenizer's chat template: it has several and none is the default ({error}); "
            "give `template: FILE` or `none`"
        ) from error


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"reading chat template {path}: {error}; expected a Jinja file, `auto` or `none`") from error


def _question(row: Row) -> str:
    return f"Question: {row.turns[0][1]}\nAnswer:"


def _plain_prompt(row: Row) -> str:
    if len(row.turns) != 1:
        raise InputError(
            f"{row.where}: rendering {len(row.turns)} messages before the response without a chat template; "
            "give `template: FILE`, or rows with one prompt"
        )
    return _question(row) if row.asked else row.turns[0][1]


def _chat_prompt(tokenizer: "PreTrainedTokenizerFast", source: str, row: Row) -> str:
    messages = [{"role": role, "content": content} for role, content in row.turns]
    try:
        prompt = tokenizer.apply_chat_template(
            messages, chat_template=source, add_generation_prompt=True, tokenize=False
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise InputError(f"{row.where}: the chat template cannot render this row: {error}") from error
    _require_all(str(prompt), row)
    return str(prompt)


def _require_all(prompt: str, row: Row) -> None:
    """Refuse a prompt that lacks something that the row gave, white space aside."""
    flat = " ".join(prompt.split())
    wanted = Counter((" ".join(content.split()), role) for role, content in row.turns)
    for (content, role), times in wanted.items():
        if flat.count(content) < times:
            raise InputError(
                f"{row.where}: the chat template left out a part of the {role} message that begins with "
                f"{content[:60]!r}; {_ADVICE_ON_TURNS if role == 'assistant' else _ADVICE}"
            )


def _continuation(prompt: str, row: Row, tags: tuple[str, str]) -> tuple[str, str]:
    """What follows the prompt: the text before the response field, and the response."""
    opening, closing = tags
    opened = prompt.rstrip().endswith(opening)
    if row.reasoning is not None:
        lead = "" if opened else opening
        lead += "" if (prompt + lead).endswith("\n") or row.reasoning.startswith("\n") else "\n"
        lead += row.reasoning + ("" if row.reasoning.endswith("\n") else "\n") + closing
        return lead + ("" if row.response.startswith("\n") else "\n\n"), row.response
    if not opened:
        return "", row.response
    if row.response.lstrip().startswith(opening):
        # The response brings the tag that the template has written already: one of the two is enough.
        rest = row.response.lstrip().removeprefix(opening)
        return "", rest.removeprefix("\n") if prompt.endswith("\n") else rest
    return ("" if closing in row.response else f"\n{closing}\n\n"), row.response
