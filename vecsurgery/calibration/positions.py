"""Positions: which of the very ids that are fed to the model a token rule selects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecsurgery.calibration.render import Rendered
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.recipe.types import Around, Between, TokenRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_OUTSIDE = (-1, -1)


@dataclass(frozen=True)
class Fed:
    """The ids of one text, and the characters that each of them stands for.

    `extents`: first and one-past-last character of each id; (-1, -1) for ids that the tokenizer puts in front.
    """

    ids: tuple[int, ...]
    extents: tuple[tuple[int, int], ...]

    def inside(self, start: int, end: int) -> list[int]:
        """Indices of the ids that share a character with [start, end), ascending."""
        return [
            index
            for index, (first, last) in enumerate(self.extents)
            if first < end and (last > start or first == last == start)
        ]


def opening_ids(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    """The ids that the tokenizer puts in front of a text by default: its BOS, or none."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    raise UnsupportedError("the tokenizer gives a text other ids when it adds its special tokens; it is not supported")


def encode(tokenizer: "PreTrainedTokenizerFast", text: str, opening: Sequence[int]) -> Fed:
    """The ids of a text with at most one BOS in front and no end token behind.

    `opening`: what `opening_ids` gave; it is left out where the text (a chat template) begins with it already.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    begun = ids[: len(opening)] == list(opening)
    if tokenizer.bos_token is not None and tokenizer.bos_token_id in opening:
        begun = begun or text.lstrip().startswith(tokenizer.bos_token)
    front = () if begun else tuple(opening)
    return Fed((*front, *ids), (*([_OUTSIDE] * len(front)), *_extents(encoded["offset_mapping"])))


def _extents(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Character extents without gaps: byte-level tokenizers trim the space in front of a word from its offsets."""
    extents: list[tuple[int, int]] = []
    reached = 0
    for start, end in offsets:
        extents.append((min(start, reached), max(end, min(start, reached))))
        reached = max(reached, end)
    return extents


@dataclass(frozen=True)
class Choice:
    """What a token rule selects. `needed`: one past the last id without which the sample is of no use (0: none)."""

    positions: tuple[int, ...]
    needed: int


def choose(rule: TokenRule, rendered: Rendered, fed: Fed, where: str) -> Choice:
    """Indices of the ids that a token rule selects, ascending, before anything is cut.

    all: every id. response: every id behind the rendered prompt (all text ids of a row of running text).
    Between: from the opening to the closing tag, both included. Around: every id of each tag, `before` ids in front
    of its first and `after` behind its last. Tags are found by character, so they may be one token or several.
    Raises InputError naming the sample unless each tag occurs exactly once, the opening before the closing one.
    """
    if isinstance(rule, Between):
        start, end = _tag(rendered.text, rule.open, where)[0], _tag(rendered.text, rule.close, where)[1]
        if start + len(rule.open) > end - len(rule.close):
            raise InputError(f"{where}: the tag {rule.close!r} comes before {rule.open!r}; expected it behind")
        chosen = fed.inside(start, end)
        return Choice(tuple(chosen), chosen[-1] + 1)
    if isinstance(rule, Around):
        return _around(rule, rendered, fed, where)
    if rule == "response":
        return Choice(tuple(fed.inside(rendered.prompt_end, len(rendered.text))), 0)
    return Choice(tuple(range(len(fed.ids))), 0)


def _around(rule: Around, rendered: Rendered, fed: Fed, where: str) -> Choice:
    chosen: set[int] = set()
    needed = 0
    for tag in rule.tags:
        inside = fed.inside(*_tag(rendered.text, tag, where))
        needed = max(needed, inside[-1] + 1)
        chosen.update(range(max(0, inside[0] - rule.before), min(len(fed.ids), inside[-1] + 1 + rule.after)))
    return Choice(tuple(sorted(chosen)), needed)


def _tag(text: str, tag: str, where: str) -> tuple[int, int]:
    """First and one-past-last character of the only occurrence of a tag."""
    times = text.count(tag)
    if times != 1:
        raise InputError(
            f"{where}: the rendered sample holds the tag {tag!r} {times} times; the token rule needs exactly one. "
            "Give rows with `reasoning`, or other tags in `tokens`"
        )
    start = text.index(tag)
    return start, start + len(tag)
