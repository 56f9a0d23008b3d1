"""Other answers to a row's question: samples beside its own, which change nothing about the row."""

import pytest

from tests.calibration.tiny import byte_tokenizer
from vecsurgery.calibration import has_alternatives, other_answers, prepare, read_rows, rows_of
from vecsurgery.errors import InputError
from vecsurgery.recipe import DataSpec

ROW = {"question": "Who?", "answer": "Ada."}
OTHERS = {"paraphrased_answer": "It was Ada.", "perturbed_answer": ["Bob.", "Cleo."]}


def test_identity_and_fingerprint_do_not_depend_on_other_answers(lines) -> None:
    bare, full = lines(ROW, name="a.jsonl"), lines({**ROW, **OTHERS}, name="b.jsonl")
    assert read_rows([bare])[0].identity == read_rows([full])[0].identity
    tokenizer = byte_tokenizer()
    assert prepare(DataSpec((bare,)), tokenizer).fingerprint == prepare(DataSpec((full,)), tokenizer).fingerprint
    assert [has_alternatives(row) for row in (*read_rows([bare]), *read_rows([full]))] == [False, True]


def test_other_answers_stand_behind_the_rows_own_question(lines) -> None:
    spec, tokenizer = DataSpec((lines({**ROW, **OTHERS}, {**ROW, "answer": "Eve."}),)), byte_tokenizer()
    samples = prepare(spec, tokenizer)
    first, second = other_answers(rows_of(spec, samples), spec, tokenizer)
    texts = []
    for sample in (*first.paraphrased, *first.perturbed):
        assert sample.row == samples.samples[0].row
        texts.append(tokenizer.decode(sample.ids))
        assert tokenizer.decode([sample.ids[index] for index in sample.answer]).strip() in texts[-1]
    assert texts == [f"Question: Who?\nAnswer: {answer}" for answer in ("It was Ada.", "Bob.", "Cleo.")]
    assert (second.paraphrased, second.perturbed) == ((), ())


def test_rows_come_in_the_order_of_the_samples(lines) -> None:
    rows = [{"question": f"Q{number}?", "answer": f"A{number}."} for number in range(9)]
    spec = DataSpec((lines(*rows, rows[0]),), limit=4, seed=3)
    samples = prepare(spec, byte_tokenizer())
    assert [row.identity for row in rows_of(spec, samples)] == [sample.row for sample in samples.samples]


def test_one_wrong_answer_may_be_a_text(lines) -> None:
    spec, tokenizer = DataSpec((lines({**ROW, "perturbed_answer": "Bob."}),)), byte_tokenizer()
    (found,) = other_answers(rows_of(spec, prepare(spec, tokenizer)), spec, tokenizer)
    assert len(found.perturbed) == 1


def test_an_answer_of_which_nothing_is_left_is_left_out(lines) -> None:
    row = {"question": "Who?", "answer": "Ada.", "perturbed_answer": ["Bob."]}
    spec, tokenizer = DataSpec((lines(row),)), byte_tokenizer()
    whole = prepare(spec, tokenizer).samples[0]
    cut = DataSpec(spec.data, max_length=whole.answer[0])
    (found,) = other_answers(rows_of(cut, prepare(cut, tokenizer)), cut, tokenizer)
    assert found.perturbed == ()


@pytest.mark.parametrize("wrong", [3, {"a": "b"}, ["Bob.", 3], ["Bob.", " "]])
def test_other_answers_that_are_no_texts_are_refused_where_they_are_asked_for(lines, wrong) -> None:
    spec, tokenizer = DataSpec((lines({**ROW, "perturbed_answer": wrong}),)), byte_tokenizer()
    samples = prepare(spec, tokenizer)
    with pytest.raises(InputError, match=r"rows\.jsonl:1: `perturbed_answer` is .*expected a text or a list"):
        other_answers(rows_of(spec, samples), spec, tokenizer)


def test_a_file_that_changed_meanwhile_is_told(lines) -> None:
    spec = DataSpec((lines(ROW),))
    samples = prepare(spec, byte_tokenizer())
    lines({**ROW, "answer": "Eve."})
    with pytest.raises(InputError, match=r"rows\.jsonl:1.*changed"):
        rows_of(spec, samples)
