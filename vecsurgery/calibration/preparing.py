"""Preparation: a data source under one token rule becomes samples of ids with positions."""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecsurgery.calibration.positions import choose, encode, opening_ids
from vecsurgery.calibration.render import renderer
from vecsurgery.calibration.rows import Row, read_rows
from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import Around, Between, DataSpec, TokenRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_THINK = ("<think>", "</think>")
_LONGEST = 2048
_MUCH_UNKNOWN = 0.01


@dataclass(frozen=True)
class _Outcome:
    """What became of a row. `sample` None: dropped, because no wanted position was left within `max_length`."""

    sample: Sample | None
    cut: bool


@dataclass(frozen=True)
class _Taken:
    """Outcomes in the order of use. `full`: rows were left because `limit` or `max_tokens` was reached."""

    outcomes: tuple[_Outcome, ...]
    full: bool


def prepare(
    spec: DataSpec,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    rule: TokenRule = "all",
    skip_first: int = 1,
    context: int | None = None,
) -> Samples:
    """Samples of a data source: read, rendered, tokenized, cut, with the positions that the rule selects.

    `tokenizer`: that of the model that will read the samples (see `load_tokenizer`).
    `rule`: which positions count; measures of the answer use `response`. `skip_first`: how many of the first fed ids,
    BOS included, never count (the first real token is an attention sink, docs/methods.md).
    `context`: longest input of the model in tokens; `max_length` is min(context, 2048) where the spec gives none.
    Longer samples are cut on the right and counted. A sample whose closing tag, or whose every position, is cut away
    is dropped and counted. Equal rows are used once.
    `limit` is the most samples, `max_tokens` the most selected positions: the first sample that would exceed it ends
    the selection and is not used. Where one of them binds, rows come in an order shuffled by `seed`, else in file
    order.
    Raises InputError for data that cannot be used, and where no sample is left; the message says why.
    """
    rows = read_rows(spec.data, spec.rows)
    unique = first_of_each(rows)
    make = sample_maker(spec, tokenizer, rule, skip_first, longest(spec, context))
    in_order = _take(unique, make, spec) if spec.limit is None or len(unique) <= spec.limit else None
    taken = _take(_shuffled(unique, spec.seed), make, spec) if in_order is None or in_order.full else in_order
    samples = tuple(outcome.sample for outcome in taken.outcomes if outcome.sample is not None)
    counts = {
        "rows": len(rows),
        "repeats": len(rows) - len(unique),
        "samples": len(samples),
        "cut": sum(outcome.cut for outcome in taken.outcomes if outcome.sample is not None),
        "dropped": len(taken.outcomes) - len(samples),
        "unused": len(unique) - len(taken.outcomes),
        "tokens": sum(len(sample.ids) for sample in samples),
        "positions": sum(len(sample.positions) for sample in samples),
    }
    if not samples:
        raise InputError(_nothing_left(spec, counts, taken.full))
    warnings = (*_warnings(spec, counts), *_unknown(spec, tokenizer, samples))
    return Samples(
        samples, counts, fingerprint(f"{list(sample.ids)}{list(sample.positions)}" for sample in samples), warnings
    )


def first_of_each(rows: Iterable[Row]) -> list[Row]:
    """The rows in order, repeats left out."""
    unique: dict[str, Row] = {}
    for row in rows:
        unique.setdefault(row.identity, row)
    return list(unique.values())


def longest(spec: DataSpec, context: int | None) -> int:
    """`max_length` of a data source: as the spec says, else min(context, 2048). Raises InputError above the context."""
    if spec.max_length is None:
        return min(context or _LONGEST, _LONGEST)
    if context is not None and spec.max_length > context:
        raise InputError(
            f"preparing {names(spec)}: `max_length` is {spec.max_length}, but the model reads at most {context} tokens"
        )
    return spec.max_length


def sample_maker(
    spec: DataSpec, tokenizer: "PreTrainedTokenizerFast", rule: TokenRule, skip_first: int, max_length: int
) -> Callable[[Row], _Outcome]:
    """The function that makes one sample ; it remembers, because a bound limit walks the rows a second time."""
    render = renderer(tokenizer, spec.template, _tags(rule))
    opening = opening_ids(tokenizer)
    known: dict[str, _Outcome] = {}

    def make(row: Row) -> _Outcome:
        if row.identity in known:
            return known[row.identity]
        rendered = render(row)
        fed = encode(tokenizer, rendered.text, opening)
        choice = choose(rule, rendered, fed, row.where)
        answer = fed.inside(*rendered.response) if rendered.response else []
        positions = tuple(index for index in choice.positions if skip_first <= index < max_length)
        sample = None
        if positions and choice.needed <= max_length:
            within = tuple(index for index in answer if index < max_length)
            has_response = rendered.response is not None
            sample = Sample(fed.ids[:max_length], positions, within, row.identity, row.where, has_response)
        known[row.identity] = _Outcome(sample, len(fed.ids) > max_length)
        return known[row.identity]

    return make


def _tags(rule: TokenRule) -> tuple[str, str]:
    """The tags to write around a row's reasoning: those of the rule where it names a pair, else the usual ones."""
    if isinstance(rule, Between):
        return rule.open, rule.close
    if isinstance(rule, Around) and len(rule.tags) == 2:
        return rule.tags[0], rule.tags[1]
    return _THINK


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order


def _take(rows: Iterable[Row], make: Callable[[Row], _Outcome], spec: DataSpec) -> _Taken:
    """Outcomes of the rows in this order until `limit` samples or `max_tokens` positions are reached."""
    outcomes: list[_Outcome] = []
    samples = positions = 0
    for row in rows:
        if spec.limit is not None and samples >= spec.limit:
            return _Taken(tuple(outcomes), full=True)
        outcome = make(row)
        if outcome.sample is not None:
            positions += len(outcome.sample.positions)
            if spec.max_tokens is not None and positions > spec.max_tokens:
                return _Taken(tuple(outcomes), full=True)
            samples += 1
        outcomes.append(outcome)
    return _Taken(tuple(outcomes), full=False)


def fingerprint(lines: Iterable[str]) -> str:
    """SHA-256 over lines that say of one sample each what it is."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("ascii"))
    return digest.hexdigest()


def in_order_of_use(rows: Sequence[Row], spec: DataSpec) -> list[Row]:
    """At most `limit` rows: in file order where it does not bind, else in an order shuffled by `seed`."""
    return list(rows) if spec.limit is None or len(rows) <= spec.limit else _shuffled(rows, spec.seed)[: spec.limit]


def names(spec: DataSpec) -> str:
    """The files of a source, for messages."""
    return ", ".join(str(path) for path in spec.data)


def _nothing_left(spec: DataSpec, counts: dict[str, int], full: bool) -> str:
    start = f"preparing {names(spec)}: no usable sample among {counts['rows']} rows"
    if full:
        return f"{start}: the first one selects more positions than `max_tokens` ({spec.max_tokens}) allows; raise it"
    return (
        f"{start}: in {counts['dropped']} of them `max_length` cut off the closing tag or every selected position, "
        "or `skip_first` left none; give shorter rows, or raise `max_length` (at most to what the model reads)"
    )


def _warnings(spec: DataSpec, counts: dict[str, int]) -> tuple[str, ...]:
    warnings = []
    if counts["cut"]:
        warnings.append(f"{names(spec)}: {counts['cut']} of {counts['samples']} samples were cut at `max_length`")
    if counts["dropped"]:
        warnings.append(
            f"{names(spec)}: {counts['dropped']} rows were dropped: no closing tag or no selected position was left "
            "within `max_length`"
        )
    return tuple(warnings)


def _unknown(spec: DataSpec, tokenizer: "PreTrainedTokenizerFast", samples: Sequence[Sample]) -> tuple[str, ...]:
    """A warning where much of the text is unknown to the tokenizer, which tells of a wrong one."""
    if tokenizer.unk_token_id is None:
        return ()
    unknown = sum(sample.ids.count(tokenizer.unk_token_id) for sample in samples)
    total = sum(len(sample.ids) for sample in samples)
    if unknown <= _MUCH_UNKNOWN * total:
        return ()
    return (f"{names(spec)}: {unknown} of {total} tokens are unknown to the tokenizer",)
