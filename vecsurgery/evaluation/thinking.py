"""Thoughts: whether a generated text keeps the think format, how long it thinks, and where its answer begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from vecsurgery.evaluation.loops import looping
from vecsurgery.evaluation.types import Figure

THINK = ("<think>", "</think>")
_Z = 1.959963984540054
"""Quantile 0.975 of the normal distribution."""

Decode = Callable[[Sequence[int]], str]
"""From token ids to the text that they stand for; tags stay in it, even where they are special tokens."""


@dataclass(frozen=True)
class Written:
    """What a model wrote behind one prompt.

    `ids`: the new token ids, without the end token; `text`: what they stand for, tags included; `ended`: an end token
    closed it (else the limit of tokens did).
    """

    ids: tuple[int, ...]
    text: str
    ended: bool


@dataclass(frozen=True)
class Thought:
    """One generated text, taken apart.

    `well_formed`: it keeps the think format (see `thought`). `length`: tokens between opening and closing tag, up to
    the end where it is not closed; None where nothing was opened. `closed`: nothing that was opened is still open.
    `answer`: the text behind the last closing tag, without white space around it; the whole text where there is no tag
    at all; None where there is none: the thought is still open at the end. `ended`: by an end token. `loops`: it ends
    in a cycle.
    """

    well_formed: bool
    length: int | None
    closed: bool
    answer: str | None
    ended: bool
    loops: bool


def thought(written: Written, decode: Decode, *, prompt: str = "", tags: tuple[str, str] = THINK) -> Thought:
    """Take a generated text apart.

    It keeps the think format where it has exactly one opening and one closing tag, in this order, an answer that is not
    blank behind them, and no loop at its end. A tag with which the prompt ends counts: templates of reasoning models
    write the opening tag themselves, and those that switch thinking off write both. Text in front of the opening tag
    and an empty thought are allowed. A text that the limit cut off before the closing tag has no answer.

    Args:
        written: the generation.
        decode: turns ids into text in the way that `written.text` was made.
        prompt: the text in front of it.
        tags: opening and closing tag; each may be one token or several.
    """
    opening, closing = tags
    lead = _lead(prompt, tags)
    text = lead + written.text
    opened, shut = text.count(opening), text.count(closing)
    in_order = text.find(opening) < text.find(closing)
    is_open = text.rfind(opening) > text.rfind(closing)
    loops = not written.ended and looping(written.ids)
    answer = None if is_open else text.rpartition(closing)[2].strip()
    well_formed = opened == shut == 1 and in_order and bool(answer) and not loops
    length = _length(written.ids, decode, lead, tags) if opened else None
    return Thought(well_formed, length, not is_open, answer, written.ended, loops)


def _lead(prompt: str, tags: tuple[str, str]) -> str:
    """The tags with which a prompt ends: none, the opening one, or both."""
    opening, closing = tags
    end = prompt.rstrip()
    if end.endswith(closing) and end.removesuffix(closing).rstrip().endswith(opening):
        return opening + closing
    return opening if end.endswith(opening) else ""


def _length(ids: Sequence[int], decode: Decode, lead: str, tags: tuple[str, str]) -> int:
    """Tokens of the first thought."""
    opening, closing = tags
    if closing in lead:
        return 0
    first = 0
    if not lead:
        _, first = _place(ids, decode, opening)
    behind = ids[first:]
    end, _ = _place(behind, decode, closing)
    return end


def _place(ids: Sequence[int], decode: Decode, tag: str) -> tuple[int, int]:
    """First and one-past-last of the ids that make a tag where it first occurs; the end twice where it does not."""
    if tag not in decode(ids):
        return len(ids), len(ids)
    low, high = 0, len(ids)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tag in decode(ids[:middle]) else (middle, high)
    first = high - 1
    while tag not in decode(ids[first:high]):
        first -= 1
    return first, high


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a rate, at 95 %, for `hits` of `count` independent tries; `count` at least 1.

        (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n),   p = hits/n, z = 1.96

    Unlike p ± z·√(p(1 − p)/n) it has a width where every try hits, and stays within 0 and 1.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22. Example:

    >>> tuple(round(end, 4) for end in wilson(10, 10))
    (0.7225, 1.0)
    """
    share, square = hits / count, _Z * _Z
    middle = share + square / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    scale = 1 + square / count
    low = 0.0 if hits == 0 else (middle - half) / scale
    high = 1.0 if hits == count else (middle + half) / scale
    return low, high


def rate(drawn: Sequence[Sequence[bool] | None]) -> Figure:
    """The share of generations of which something holds, with its interval; `drawn`: for each row, its generations.

    Every generation counts once. A row that is None does not count. Draws of one prompt are not independent of each
    other: the interval is about other draws of these prompts, not about other prompts.
    """
    kept = {str(index): list(row) for index, row in enumerate(drawn) if row is not None}
    hits = [hit for row in kept.values() for hit in row]
    entries = {
        index: {"score": sum(row) / len(row), "samples": [float(hit) for hit in row]} for index, row in kept.items()
    }
    if not hits:
        return Figure(None)
    return Figure(sum(hits) / len(hits), entries, interval=wilson(sum(hits), len(hits)))


def think_figures(drawn: Sequence[Sequence[Thought]]) -> dict[str, Figure]:
    """Figures of the form of what a model wrote; `drawn`: for each prompt, its generations, one at least.

    Lengths are of all generations in which a thought was opened, one that was cut off with the tokens that it has:
    None where there is none.
    """
    lengths = [[each.length for each in row if each.length is not None] for row in drawn]
    every = [length for row in lengths for length in row]
    entries = {str(index): {"score": list(map(float, row))} for index, row in enumerate(lengths) if row}
    return {
        "think_format": rate([[each.well_formed for each in row] for row in drawn]),
        "thinking_mean": Figure(math.fsum(every) / len(every) if every else None, entries),
        "thinking_median": Figure(float(median(every)) if every else None),
        "unclosed_rate": rate([[not each.closed for each in row] for row in drawn]),
        "stop_rate": rate([[each.ended for each in row] for row in drawn]),
        "loop_rate": rate([[each.loops for each in row] for row in drawn]),
    }
