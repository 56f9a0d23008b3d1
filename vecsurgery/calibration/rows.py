"""Rows: what one entry of a data file says, whatever shape it was written in."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from vecsurgery.calibration.files import Entry, read_entries
from vecsurgery.errors import InputError

_FORMS: tuple[tuple[str, ...], ...] = (("text",), ("prompt", "response"), ("messages",), ("question", "answer"))
_EXPECTED = "{text}, {prompt, response}, {prompt, reasoning, response}, {messages} or {question, answer}"
ALTERNATIVES = ("paraphrased_answer", "perturbed_answer")
"""TOFU's fields for the same answer in other words, and for wrong answers in the same words."""
CHECKS = ("check", "instruction_check", "instruction_id_list", "kwargs")
"""Fields that say how a generated answer is judged (see `evaluation.row_checks`)."""
_RAIN_MARK = "related_prompt_list"
_RAIN_SPANS = {"instruction": "prompt_spans", "related": "response_spans"}


@dataclass(frozen=True)
class Spans:
    """Parts of a row that attention data names: those of the prompt that instruct, and those of the response that
    follow an instruction or have nothing to do with one.
    """

    instruction: tuple[str, ...]
    related: tuple[str, ...]
    unrelated: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One row: either running `text`, or `turns` that ask and a `response` that answers, with optional `reasoning`.

    `turns`: (role, content) pairs before the response. `asked`: the row came as question and answer (TOFU's fields).
    `where`: "file:line" for messages. `alternatives`: TOFU's other answers to the question, as the file has them (see
    `other_answers`); `checks`: the fields of `CHECKS`, likewise. `spans`: of attention data. None of these is a part of
    the row's identity.
    """

    where: str
    text: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    reasoning: str | None = None
    response: str = ""
    asked: bool = False
    alternatives: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    spans: Spans | None = field(default=None, compare=False, repr=False)
    checks: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the row's fields with white space normalised; equal content has equal identity in every form."""
        turns = [[role, _normal(content)] for role, content in self.turns]
        fields = [_normal(self.text or ""), turns, _normal(self.reasoning or ""), _normal(self.response)]
        return hashlib.sha256(json.dumps(fields, ensure_ascii=True).encode("ascii")).hexdigest()


def read_rows(files: Sequence[Path], rows: tuple[int, int] | None = None, *, answered: bool = True) -> list[Row]:
    """All rows of the files, one file after the other, repeats included.

    `rows`: first and last row to use, 0-based and inclusive, counted over all files together. `answered`: every row
    that asks must have a response; else it may be left out and is then empty, and running text is refused.
    Fields that no row form uses (identifiers, sources) are passed over; TOFU's paraphrased and perturbed answers, and
    what judges an answer, are kept as they are and looked at by whoever asks for them.
    Raises InputError with file and line for data that cannot be read, lacks a field or has one of the wrong type.
    """
    names = ", ".join(str(path) for path in files)
    entries = [entry for path in files for entry in read_entries(path)]
    if not entries:
        raise InputError(f"reading rows of {names}: no row found; expected at least one")
    if rows is not None:
        first, last = rows
        if not 0 <= first <= last < len(entries):
            raise InputError(
                f"reading rows {first}-{last} of {names}: there are {len(entries)} rows, numbered from 0 to "
                f"{len(entries) - 1}; correct `rows`"
            )
        entries = entries[first : last + 1]
    return [_row(entry) if answered else _asking(entry) for entry in entries]


def _normal(text: str) -> str:
    return " ".join(text.split())


def _row(entry: Entry) -> Row:
    """The row that an entry of a file stands for."""
    where, value = entry.where, entry.value
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: a row is {_kind(value)}; expected an object with the fields {_EXPECTED}")
    fields = {name: content for name, content in value.items() if content is not None}
    forms = [form for form in _FORMS if all(name in fields for name in form)]
    if len(forms) != 1:
        raise InputError(_form_message(where, fields, forms))
    form = forms[0]
    if form == ("text",):
        return Row(where, text=_string(fields, "text", where))
    if form == ("messages",):
        return replace(_conversation(fields, where), spans=_spans(fields, where))
    ask, reply = form
    return Row(
        where,
        turns=(("user", _string(fields, ask, where)),),
        reasoning=_reasoning(fields, where),
        response=_string(fields, reply, where),
        asked=ask == "question",
        alternatives={name: fields[name] for name in ALTERNATIVES if name in fields},
        spans=_spans(fields, where),
        checks=_checks(fields),
    )


def _spans(fields: Mapping[str, object], where: str) -> Spans | None:
    """The spans of a row under our names, or under those of RAIN's published rows; None where it has none."""
    own = {kind: f"{kind}_spans" for kind in ("instruction", "related", "unrelated")}
    if any(name in fields for name in own.values()):
        return Spans(**{kind: _texts(fields.get(name, []), name, where) for kind, name in own.items()})
    if _RAIN_MARK not in fields:
        return None
    entries = fields[_RAIN_MARK]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"{where}: `{_RAIN_MARK}` is {_kind(entries)}; expected a list of objects with spans")
    found = {
        kind: tuple(span for entry in entries for span in _texts(entry.get(name, []), f"{_RAIN_MARK}.{name}", where))
        for kind, name in _RAIN_SPANS.items()
    }
    name = "unrelated_response_spans"
    return Spans(**found, unrelated=_texts(fields.get(name, []), name, where))


def _texts(value: object, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InputError(f"{where}: `{name}` is {_kind(value)}; expected a list of texts")
    return tuple(each for each in value if each.strip())


def _asking(entry: Entry) -> Row:
    """The row that an entry stands for, whose response may be missing."""
    where, value = entry.where, entry.value
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: a row is {_kind(value)}; expected an object with prompt, question or messages")
    fields = {name: content for name, content in value.items() if content is not None}
    asks = [name for name in ("prompt", "question", "messages") if name in fields]
    if len(asks) != 1 or "text" in fields:
        came = ", ".join(fields) or "none"
        raise InputError(
            f"{where}: expected a row that asks, with one of prompt, question and messages; its fields: {came}"
        )
    (ask,) = asks
    if ask == "messages" and not _answered(fields["messages"]):
        turns = [_turn(message, index, where) for index, message in enumerate(_messages(fields["messages"], where))]
        if not turns:
            raise InputError(f"{where}: `messages` is empty; expected one at least")
        return Row(where, turns=tuple(turns), checks=_checks(fields))
    reply = {"prompt": "response", "question": "answer"}.get(ask)
    if reply is None or reply in fields:
        return _row(entry)
    return Row(where, turns=(("user", _string(fields, ask, where)),), asked=ask == "question", checks=_checks(fields))


def _checks(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: fields[name] for name in CHECKS if name in fields}


def _answered(messages: object) -> bool:
    """Whether a conversation ends with the assistant's turn."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def _form_message(where: str, fields: Mapping[str, object], forms: Sequence[tuple[str, ...]]) -> str:
    if forms:
        found = " and ".join("{" + ", ".join(form) + "}" for form in forms)
        return f"{where}: the row can be read as {found}; leave only the fields of one form"
    for form in _FORMS:
        present, missing = [name for name in form if name in fields], [name for name in form if name not in fields]
        if present:
            return f"{where}: the row has `{present[0]}` but no `{missing[0]}`; expected {_EXPECTED}"
    came = ", ".join(fields) or "none"
    return f"{where}: the row has no field that is known (its fields: {came}); expected {_EXPECTED}"


def _reasoning(fields: Mapping[str, object], where: str) -> str | None:
    """The thinking text of a row; RAIN's instruction rows, told by their span lists, call it `reason`."""
    name = "reason" if _RAIN_MARK in fields and "reasoning" not in fields else "reasoning"
    return _optional(fields, name, where)


def _optional(fields: Mapping[str, object], name: str, where: str) -> str | None:
    """A text field that may be absent; blank text says the same as no field."""
    value = fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _string(fields, name, where)


def _string(fields: Mapping[str, object], name: str, where: str, label: str | None = None) -> str:
    label = label or name
    value = fields.get(name)
    if not isinstance(value, str):
        raise InputError(f"{where}: `{label}` is {_kind(value)}; expected text")
    if not value.strip():
        raise InputError(f"{where}: `{label}` is empty; expected text, or no row at all")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: `{label}` holds half of a surrogate pair, which is no character") from error
    return value


def _messages(messages: object, where: str) -> list[Mapping[str, object]]:
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise InputError(f"{where}: `messages` is {_kind(messages)}; expected a list of objects with role and content")
    return messages


def _conversation(fields: Mapping[str, object], where: str) -> Row:
    """A row of chat messages: the last one, by the assistant, is the response, the others ask."""
    messages = _messages(fields["messages"], where)
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        raise InputError(f"{where}: `messages` must hold a prompt and end with a message of the role assistant")
    turns = [_turn(message, index, where) for index, message in enumerate(messages)]
    last = messages[-1]
    thought = "reasoning_content" if last.get("reasoning_content") is not None else "reasoning"
    reasoning = _optional(last, thought, where)
    return Row(where, turns=tuple(turns[:-1]), reasoning=reasoning, response=turns[-1][1], checks=_checks(fields))


def _turn(message: Mapping[str, object], index: int, where: str) -> tuple[str, str]:
    label = f"messages[{index}]"
    if message.get("tool_calls"):
        raise InputError(f"{where}: {label} calls tools; expected messages of text only")
    role = _string(message, "role", where, f"{label}.role")
    return role, _string(message, "content", where, f"{label}.content")


def _kind(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")
