"""Attention data: rows whose spans say which tokens instruct, which follow an instruction, and which do not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecsurgery.calibration.positions import Fed, encode, opening_ids
from vecsurgery.calibration.preparing import fingerprint, first_of_each, in_order_of_use, longest, names
from vecsurgery.calibration.render import Rendered, renderer
from vecsurgery.calibration.rows import Row, read_rows
from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_THINK = ("<think>", "</think>")
_MUCH_MISSING = 0.05
"""Share of the spans that may be missing from their rows."""


@dataclass(frozen=True)
class SpannedSample(Sample):
    """One rendered row of attention data; its `positions` are those of related and unrelated tokens together.

    `instruction`: indices into `ids` of tokens of the prompt that instruct. `related`, `unrelated`: of tokens of the
    response that follow an instruction, and that have nothing to do with one; a token of both counts as related.
    Ascending.
    """

    instruction: tuple[int, ...] = ()
    related: tuple[int, ...] = ()
    unrelated: tuple[int, ...] = ()


def spanned(
    spec: DataSpec, tokenizer: "PreTrainedTokenizerFast", *, context: int | None = None, think: tuple[str, str] = _THINK
) -> Samples:
    """Samples of attention data, each a `SpannedSample`: rendered as any row, with the tokens that its spans name.

    A span stands for all its occurrences: those of the instruction in the rendered prompt, the others behind the
    closing tag of the reasoning (behind the prompt where there is no reasoning). A span that does not occur is left
    out and counted. `limit` is the most samples, in an order shuffled by `seed` where it binds. Samples longer than
    `max_length` are cut on the right.

    Raises InputError for rows without spans, for a source of which more than 5 % of the spans do not occur, for
    `max_tokens`, and where no sample has a token that instructs and one that follows it.
    """
    if spec.max_tokens is not None:
        raise InputError(f"preparing {names(spec)}: attention data has no positions for `max_tokens`; use `limit`")
    rows = read_rows(spec.data, spec.rows)
    unique = first_of_each(rows)
    lacking = [row.where for row in unique if row.spans is None]
    if lacking:
        raise InputError(
            f"{lacking[0]}: the row has no spans; expected `instruction_spans`, `related_spans` and `unrelated_spans`, "
            "lists of texts, beside prompt and response"
        )
    chosen = in_order_of_use(unique, spec)
    render, opening = renderer(tokenizer, spec.template, think), opening_ids(tokenizer)
    length, found, given, missing, cut = longest(spec, context), list[SpannedSample](), 0, list[str](), 0
    for row in chosen:
        rendered = render(row)
        fed = encode(tokenizer, rendered.text, opening)
        sample, absent = _sample(row, rendered, fed, think[1], length)
        assert row.spans is not None
        given += len(row.spans.instruction) + len(row.spans.related) + len(row.spans.unrelated)
        missing += absent
        cut += len(fed.ids) > length
        found.append(sample)
    if len(missing) > _MUCH_MISSING * given:
        raise InputError(
            f"preparing {names(spec)}: {len(missing)} of {given} spans do not occur in their rows, the first is "
            f"{missing[0]}; spans are exact substrings of prompt (instructions) and response (the others)"
        )
    if not any(sample.instruction and sample.related for sample in found):
        raise InputError(
            f"preparing {names(spec)}: no row has a token that instructs and one that follows it within `max_length`"
        )
    counts = {
        "rows": len(rows),
        "repeats": len(rows) - len(unique),
        "unused": len(unique) - len(found),
        "samples": len(found),
        "spans": given,
        "missing": len(missing),
        "cut": cut,
        "dropped": 0,
        "tokens": sum(len(sample.ids) for sample in found),
        "positions": sum(len(sample.positions) for sample in found),
        **{kind: sum(len(getattr(sample, kind)) for sample in found) for kind in _KINDS},
    }
    return Samples(tuple(found), counts, _fingerprint(found), tuple(_warnings(spec, counts, missing)))


_KINDS = ("instruction", "related", "unrelated")


def _sample(row: Row, rendered: Rendered, fed: Fed, closing: str, length: int) -> tuple[SpannedSample, list[str]]:
    """The sample, and the spans that do not occur, each with its place."""
    assert row.spans is not None
    text, end = rendered.text, rendered.prompt_end
    closed = text.find(closing, end)
    begin = closed + len(closing) if closed >= 0 else end
    places = {
        "instruction": (row.spans.instruction, 0, end),
        "related": (row.spans.related, begin, len(text)),
        "unrelated": (row.spans.unrelated, begin, len(text)),
    }
    tokens: dict[str, set[int]] = {}
    missing = []
    for kind, (spans, first, last) in places.items():
        tokens[kind] = set()
        for span in spans:
            found = list(_occurrences(text, span, first, last))
            missing += [] if found else [f"{row.where}, {kind} span {span[:60]!r}"]
            tokens[kind].update(index for place in found for index in fed.inside(place, place + len(span)))
    tokens["unrelated"] -= tokens["related"]
    kept = {kind: tuple(sorted(index for index in found if index < length)) for kind, found in tokens.items()}
    assert rendered.response is not None  # a row with spans has a response
    answer = tuple(index for index in fed.inside(*rendered.response) if index < length)
    positions = tuple(sorted({*kept["related"], *kept["unrelated"]}))
    return SpannedSample(fed.ids[:length], positions, answer, row.identity, row.where, True, **kept), missing


def _occurrences(text: str, span: str, first: int, last: int) -> Iterable[int]:
    place = text.find(span, first, last)
    while place >= 0:
        yield place
        place = text.find(span, place + 1, last)


def _fingerprint(samples: Sequence[SpannedSample]) -> str:
    return fingerprint(
        f"{list(each.ids)}{list(each.instruction)}{list(each.related)}{list(each.unrelated)}" for each in samples
    )


def _warnings(spec: DataSpec, counts: dict[str, int], missing: Sequence[str]) -> Iterable[str]:
    if missing:
        yield f"{names(spec)}: {len(missing)} of {counts['spans']} spans do not occur in their rows: {missing[0]}"
    if counts["cut"]:
        yield f"{names(spec)}: {counts['cut']} of {counts['samples']} samples were cut at `max_length`"
    if not counts["unrelated"]:
        yield f"{names(spec)}: no row names unrelated text, so nothing is subtracted: the mean of u is 0"
