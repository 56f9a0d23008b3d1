"""Data files: JSON Lines, a JSON list or plain text, read into entries that know their line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vecsurgery.errors import InputError

_TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})
_JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_BLANK = " \t\n\r"


@dataclass(frozen=True)
class Entry:
    """One entry of a data file. `where`: "file:line" of its first line. A block of plain text is {"text": block}."""

    where: str
    value: object


def read_entries(path: Path) -> list[Entry]:
    """The entries of one data file, in file order.

    Names that end in .txt, .text or .md hold plain text: one entry per block of lines between blank lines (blank =
    only white space). Names that end in .json, .jsonl or .ndjson hold a JSON list or JSON Lines, told apart by the
    first character. Any other name is JSON Lines where the text begins with a brace, else plain text.
    Raises InputError naming file and line for a file that is missing, not UTF-8 or not valid JSON.
    """
    text = _read_text(path)
    first = text.lstrip(_BLANK)[:1]
    suffix = path.suffix.lower()
    if suffix in _JSON_SUFFIXES or (suffix not in _TEXT_SUFFIXES and first == "{"):
        return list(_list_items(path, text) if first == "[" else _lines(path, text))
    return list(_blocks(path, text))


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"reading data file {path}: {error.strerror or error}; give an existing file") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text; expected JSON Lines, a JSON list or plain text") from error


def _parsed(path: Path, line: int, error: json.JSONDecodeError) -> InputError:
    return InputError(
        f"{path}:{line}: not valid JSON ({error.msg} at column {error.colno}); expected one row an object"
    )


def _lines(path: Path, text: str) -> Iterator[Entry]:
    # Not splitlines(): U+2028 and its like are ordinary characters inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip(_BLANK):
            continue
        try:
            yield Entry(f"{path}:{number}", json.loads(line))
        except json.JSONDecodeError as error:
            raise _parsed(path, number, error) from error


def _list_items(path: Path, text: str) -> Iterator[Entry]:
    """Items of a JSON list, decoded one at a time so that each knows its line."""
    decoder = json.JSONDecoder()
    position, counted, line = text.index("[") + 1, 0, 1
    try:
        while True:
            position = _skip_blank(text, position)
            if text[position : position + 1] == "]":
                break
            line += text.count("\n", counted, position)
            counted = position
            value, position = decoder.raw_decode(text, position)
            yield Entry(f"{path}:{line}", value)
            position = _skip_blank(text, position)
            if text[position : position + 1] == "]":
                break
            if text[position : position + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
            position += 1
        if text[position + 1 :].strip(_BLANK):
            raise json.JSONDecodeError("Extra data", text, _skip_blank(text, position + 1))
    except json.JSONDecodeError as error:
        raise _parsed(path, error.lineno, error) from error


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _blocks(path: Path, text: str) -> Iterator[Entry]:
    block: list[str] = []
    start = 0
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], start=1):
        if line.strip():
            start = start if block else number
            block.append(line)
        elif block:
            yield Entry(f"{path}:{start}", {"text": "\n".join(block)})
            block = []
