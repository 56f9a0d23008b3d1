"""Prompts: what a model is given when it is asked to write, up to the tag that its template opens."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vecsurgery.calibration.positions import encode, opening_ids
from vecsurgery.calibration.preparing import longest, sample_maker
from vecsurgery.calibration.render import renderer
from vecsurgery.calibration.rows import Row, read_rows
from vecsurgery.calibration.types import Sample
from vecsurgery.recipe.types import Between, DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Prompt:
    """One row as a model is asked.

    `ids`: the token ids of the rendered prompt, BOS included; `text`: what they stand for; `row`: where it comes from.
    """

    ids: tuple[int, ...]
    text: str
    row: Row


def asking_rows(spec: DataSpec) -> list[Row]:
    """Rows that ask, with or without a response: each once, at most `limit` of them, drawn by `seed`, else in order.

    Rows of equal fields that are judged in different ways are different rows. Raises InputError as `read_rows` does.
    """
    unique: dict[str, Row] = {}
    for row in read_rows(spec.data, spec.rows, answered=False):
        unique.setdefault(row.identity + json.dumps(row.checks, sort_keys=True), row)
    rows = list(unique.values())
    if spec.limit is None or len(rows) <= spec.limit:
        return rows
    random.Random(spec.seed).shuffle(rows)
    return rows[: spec.limit]


def prompts(
    rows: Sequence[Row], spec: DataSpec, tokenizer: "PreTrainedTokenizerFast", tags: tuple[str, str]
) -> list[Prompt]:
    """Rows as a model with this tokenizer is asked them: the template's generation prompt included, nothing behind it.

    `tags`: opening and closing tag of a thought, which a template may write at the end of a prompt.
    Raises InputError for rows that the template cannot render.
    """
    render = renderer(tokenizer, spec.template, tags)
    opening = opening_ids(tokenizer)
    found = []
    for row in rows:
        rendered = render(replace(row, reasoning=None, response=row.response or "-"))
        text = rendered.text[: rendered.prompt_end]
        found.append(Prompt(encode(tokenizer, text, opening).ids, text, row))
    return found


def thoughts(
    rows: Sequence[Row],
    spec: DataSpec,
    tokenizer: "PreTrainedTokenizerFast",
    tags: tuple[str, str],
    *,
    context: int | None = None,
) -> list[Sample]:
    """The rows that have `reasoning`, rendered whole; `positions`: from the opening to the closing tag, both included.

    Rows of which `max_length` cuts the closing tag off are left out. Raises InputError naming a row in which a tag does
    not stand exactly once.
    """
    make = sample_maker(spec, tokenizer, Between(*tags), 1, longest(spec, context))
    made = [make(row).sample for row in rows if row.reasoning is not None and row.response]
    return [sample for sample in made if sample is not None]
