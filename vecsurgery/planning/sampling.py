"""Rows of a recipe as samples: rendered with the tokenizer of the model that will read them, with answers if needed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vecsurgery.calibration import (
    OtherAnswers,
    Prompt,
    Sample,
    Samples,
    asking_rows,
    has_alternatives,
    other_answers,
    prepare,
    prompts,
    rows_of,
    spanned,
)
from vecsurgery.checkpoint.types import Weights
from vecsurgery.errors import InputError
from vecsurgery.planning.tokenizers import Tokenizers
from vecsurgery.recipe.types import DataSpec, GateSpec, GeometrySpec

_NAMED = 3


def calibration_samples(name: str, spec: GeometrySpec, model: Weights, tokenizers: Tokenizers) -> Samples:
    """Samples of a geometry that is measured, under its token rule. Errors: InputError."""
    assert spec.data is not None
    what = f"geometry {name!r}"
    folder, context = _reader(what, model)
    try:
        return prepare(spec.data, tokenizers[folder], rule=spec.tokens, skip_first=spec.skip_first, context=context)
    except InputError as error:
        raise type(error)(f"{what}: {error}") from error


def measured_samples(what: str, data: DataSpec, model: Weights, tokenizers: Tokenizers, *, answers: bool) -> Samples:
    """Samples on which losses are measured: `positions` are all tokens that another one predicts.

    `what`: who asks, for messages. `answers`: every row must have a response, of which some tokens are fed.
    Errors: InputError.
    """
    folder, context = _reader(what, model)
    try:
        samples = prepare(data, tokenizers[folder], rule="all", skip_first=1, context=context)
    except InputError as error:
        raise type(error)(f"{what}: {error}") from error
    lacking = [sample.where for sample in samples.samples if not sample.answer]
    if answers and lacking:
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        raise InputError(
            f"{what}: {len(lacking)} of {len(samples.samples)} rows have no answer to measure: "
            f"{', '.join(lacking[:_NAMED])}{more}; expected rows with question and answer, prompt and response, or "
            "messages, whose answer begins within `max_length`"
        )
    return samples


def attention_samples(what: str, data: DataSpec, model: Weights, tokenizers: Tokenizers) -> Samples:
    """Samples of attention data, with the tokens that their spans name. Errors: InputError."""
    folder, context = _reader(what, model)
    try:
        return spanned(data, tokenizers[folder], context=context)
    except InputError as error:
        raise type(error)(f"{what}: {error}") from error


def measured_answers(data: DataSpec, samples: Samples, model: Weights, tokenizers: Tokenizers) -> list[OtherAnswers]:
    """The paraphrased and wrong answers of each row of `measured_samples`, for truth ratios; empty where no row has
    wrong ones. Errors: InputError.
    """
    rows = rows_of(data, samples)
    if not any(has_alternatives(row) for row in rows):
        return []
    folder, context = _reader("evaluation", model)
    return other_answers(rows, data, tokenizers[folder], context=context)


def asked_prompts(what: str, gate: GateSpec, model: Weights, tokenizers: Tokenizers) -> list[Prompt]:
    """What a model is asked for a gate that looks at generations. Errors: InputError."""
    assert gate.data is not None  # the grammar: such a gate has data
    assert gate.writing is not None
    folder, context = _reader(what, model)
    try:
        found = prompts(asking_rows(gate.data), gate.data, tokenizers[folder], gate.writing.tags)
    except InputError as error:
        raise type(error)(f"{what}: {error}") from error
    for prompt in found:
        if context is not None and len(prompt.ids) >= context:
            raise InputError(
                f"{what}: {prompt.row.where}: a prompt of {len(prompt.ids)} tokens fills the model's context of "
                f"{context}; leave out long rows (`rows`)"
            )
    return found


def as_samples(asked: Sequence[Prompt]) -> Samples:
    """Prompts as samples without an answer, to be counted and told apart like other rows."""
    samples = tuple(Sample(prompt.ids, (), (), prompt.row.identity, prompt.row.where) for prompt in asked)
    digest = hashlib.sha256(repr([sample.ids for sample in samples]).encode()).hexdigest()
    tokens = sum(len(sample.ids) for sample in samples)
    return Samples(samples, {"rows": len(samples), "samples": len(samples), "tokens": tokens}, digest)


def _reader(what: str, model: Weights) -> tuple[Path, int | None]:
    """The folder whose tokenizer feeds a model, and the longest input that the model reads."""
    folder: Path | None = getattr(model, "folder", None)
    if folder is None:
        raise InputError(f"{what}: its model has no folder with a tokenizer; name a stored checkpoint")
    return folder, getattr(model.config.get_text_config(), "max_position_embeddings", None)
