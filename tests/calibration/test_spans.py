"""Which tokens the spans of attention data stand for, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import models

from vecsurgery.calibration import Samples, load_tokenizer, read_rows, spanned
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import DataSpec

ROW: dict[str, Any] = {
    "prompt": "w10 w11 w12 w10 w11 ",
    "reasoning": "w20 w21 w22",
    "response": "w20 w21 w30 w31 w20 w21 w40",
    "instruction_spans": ["w10 w11"],
    "related_spans": ["w20 w21"],
    "unrelated_spans": ["w31", "w30 w31 w20"],
}


def _prepared(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Samples:
    models.write_tokenizer(folder)
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return spanned(DataSpec((path,), template="none", **options), load_tokenizer(folder))


def _words(sample: Any, indices: tuple[int, ...]) -> str:
    names = {1: "<s>", 3: "<think>", 4: "</think>"}
    return " ".join(names.get(sample.ids[index], f"w{sample.ids[index]}") for index in indices)


def test_a_span_stands_for_all_its_occurrences_on_its_side_of_the_reasoning(tmp_path: Path) -> None:
    (sample,) = _prepared(tmp_path, [ROW]).samples
    assert _words(sample, sample.instruction) == "w10 w11 w10 w11"
    assert _words(sample, sample.related) == "w20 w21 w20 w21"
    assert min(sample.related) > sample.ids.index(4)  # those of the reasoning are not meant
    assert _words(sample, sample.unrelated) == "w30 w31"  # the token of both is related


def test_without_reasoning_the_response_begins_behind_the_prompt(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "reasoning"} | {"related_spans": ["w30"]}
    (sample,) = _prepared(tmp_path, [row]).samples
    assert _words(sample, sample.related) == "w30"
    assert _words(sample, sample.unrelated) == "w31 w20"


def test_published_rows_are_read_under_their_own_names(tmp_path: Path) -> None:
    row = {
        "prompt": ROW["prompt"],
        "reason": ROW["reasoning"],
        "response": ROW["response"],
        "related_prompt_list": [
            {"prompt_spans": ["w10 w11"], "response_spans": ["w20"]},
            {"prompt_spans": [], "response_spans": ["w21"]},
        ],
        "unrelated_response_spans": ["w31", "w30 w31 w20"],
    }
    own, theirs = (_prepared(tmp_path, [each]).samples[0] for each in (ROW, row))
    assert own == theirs.__class__(**{**vars(theirs), "where": own.where})


def test_what_does_not_occur_is_counted_and_much_of_it_refused(tmp_path: Path) -> None:
    missing = ROW | {"related_spans": ["w20 w21", "w99"]}
    found = _prepared(tmp_path, [missing, *({**ROW, "prompt": f"w10 w11 w{50 + number} "} for number in range(9))])
    assert found.counts["spans"] == 41
    assert found.counts["missing"] == 1
    assert "1 of 41 spans do not occur in their rows" in found.warnings[0]
    with pytest.raises(InputError, match=r"1 of 5 spans do not occur .* related span 'w99'"):
        _prepared(tmp_path, [missing])


def test_an_instruction_of_the_response_is_none_of_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instruction span 'w30'"):
        _prepared(tmp_path, [ROW | {"instruction_spans": ["w30"]}])


def test_no_unrelated_text_is_warned_of(tmp_path: Path) -> None:
    found = _prepared(tmp_path, [ROW | {"unrelated_spans": []}])
    assert any("the mean of u is 0" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"related_spans": "w20"}, {}, "`related_spans` is text; expected a list of texts"),
        ({"related_spans": [], "instruction_spans": []}, {}, "no row has a token that instructs and one that follows"),
        ({}, {"max_length": 4}, "no row has a token that instructs and one that follows"),
        ({}, {"max_tokens": 5}, "no positions for `max_tokens`"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _prepared(tmp_path, [ROW | change], **options)


def test_rows_without_spans_are_refused_by_line(tmp_path: Path) -> None:
    bare = {name: value for name, value in ROW.items() if not name.endswith("spans")} | {"prompt": "w50 "}
    with pytest.raises(InputError, match=r"rows\.jsonl:2: the row has no spans"):
        _prepared(tmp_path, [ROW, bare])
    assert read_rows([tmp_path / "rows.jsonl"])[1].spans is None


def test_a_limit_that_binds_takes_rows_in_seeded_order(tmp_path: Path) -> None:
    rows = [{**ROW, "prompt": f"w10 w11 w{50 + number} "} for number in range(6)]
    whole, few = _prepared(tmp_path, rows), _prepared(tmp_path, rows, limit=3, seed=1)
    assert [sample.where for sample in whole.samples] != [sample.where for sample in few.samples]
    assert {sample.row for sample in few.samples} < {sample.row for sample in whole.samples}
    assert few.fingerprint == _prepared(tmp_path, rows, limit=3, seed=1).fingerprint != whole.fingerprint
