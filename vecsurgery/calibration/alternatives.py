"""Alternatives: other answers to the questions of a data source, as samples beside those of the rows themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vecsurgery.calibration.preparing import longest, sample_maker
from vecsurgery.calibration.rows import ALTERNATIVES, Row, read_rows
from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class OtherAnswers:
    """One row's other answers, each rendered behind the row's own question; all carry the identity of the row.

    `paraphrased`: the right answer in other words (`paraphrased_answer`); `perturbed`: wrong ones (`perturbed_answer`).
    Empty where the row has none, or where nothing of an answer is left within `max_length`.
    """

    paraphrased: tuple[Sample, ...]
    perturbed: tuple[Sample, ...]


def rows_of(spec: DataSpec, samples: Samples) -> list[Row]:
    """The row behind each sample of a data source, in the order of the samples.

    Raises InputError where the files no longer hold a row that a sample was made of.
    """
    rows = {row.identity: row for row in reversed(read_rows(spec.data, spec.rows))}
    for sample in samples.samples:
        if sample.row not in rows:
            raise InputError(f"{sample.where}: the row that was here is gone; the file changed while it was in use")
    return [rows[sample.row] for sample in samples.samples]


def other_answers(
    rows: Sequence[Row], spec: DataSpec, tokenizer: "PreTrainedTokenizerFast", *, context: int | None = None
) -> list[OtherAnswers]:
    """The other answers of each row, in the order of the rows: TOFU's `paraphrased_answer` and `perturbed_answer`.

    `spec`, `tokenizer`, `context`: those that `prepare` made the rows' own samples with.
    Either field may be a text or a list of texts. Raises InputError with file and line where it is anything else.
    """
    make = sample_maker(spec, tokenizer, "all", 1, longest(spec, context))

    def rendered(row: Row, name: str) -> tuple[Sample, ...]:
        made = [make(replace(row, response=text)).sample for text in _texts(row, name)]
        return tuple(replace(sample, row=row.identity) for sample in made if sample is not None and sample.answer)

    right, wrong = ALTERNATIVES
    return [OtherAnswers(rendered(row, right), rendered(row, wrong)) for row in rows]


def has_alternatives(row: Row) -> bool:
    """Whether a truth ratio can be taken of this row: it has wrong answers."""
    return bool(_texts(row, ALTERNATIVES[1]))


def _texts(row: Row, name: str) -> list[str]:
    value = row.alternatives.get(name, [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        kind = "an object" if isinstance(value, Mapping) else "a list with something else in it"
        came = kind if isinstance(value, Mapping | list) else f"{value!r}"
        raise InputError(f"{row.where}: `{name}` is {came}; expected a text or a list of texts, none of them empty")
    return texts
