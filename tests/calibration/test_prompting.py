"""Prompts: what a model is asked, with the tags that its template writes; rows need no response for that."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import models

from vecsurgery.calibration import asking_rows, load_tokenizer, prompts, read_rows, thoughts
from vecsurgery.errors import InputError
from vecsurgery.recipe import DataSpec

_TAGS = ("<think>", "</think>")
_TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<think> {% endif %}"


def _spec(path: Path, rows: list[dict[str, Any]], **options: Any) -> DataSpec:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSpec((path,), **options)


def test_rows_that_ask_need_no_response(tmp_path: Path) -> None:
    spec = _spec(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "w10", "check": {"exact": "w11"}},
            {"question": "w12", "answer": "w13"},
            {"messages": [{"role": "system", "content": "w14"}, {"role": "user", "content": "w15"}]},
            {"messages": [{"role": "user", "content": "w16"}, {"role": "assistant", "content": "w17"}]},
        ],
    )
    rows = asking_rows(spec)
    assert [row.turns[-1][1] for row in rows] == ["w10", "w12", "w15", "w16"]
    assert [row.response for row in rows] == ["", "w13", "", "w17"]
    assert rows[0].checks == {"check": {"exact": "w11"}}
    with pytest.raises(InputError, match=r"rows\.jsonl:1: the row has `prompt` but no `response`"):
        read_rows(spec.data)


@pytest.mark.parametrize("row", [{"text": "w10"}, {"prompt": "w1", "question": "w2"}, {"messages": []}, {}, ["w1"]])
def test_rows_that_do_not_ask_are_refused_with_their_line(row: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:1"):
        asking_rows(_spec(tmp_path / "rows.jsonl", [row]))


def test_equal_rows_are_asked_once_unless_they_are_judged_differently(tmp_path: Path) -> None:
    rows = [{"prompt": "w10", "check": {"exact": "a"}}] * 2 + [{"prompt": "w10", "check": {"exact": "b"}}]
    assert len(asking_rows(_spec(tmp_path / "rows.jsonl", rows))) == 2


def test_a_limit_draws_rows_by_the_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"w{number}"} for number in range(10, 30)]
    some = asking_rows(_spec(tmp_path / "rows.jsonl", rows, limit=5))
    assert len(some) == 5
    assert some == asking_rows(_spec(tmp_path / "rows.jsonl", rows, limit=5))
    assert some != asking_rows(_spec(tmp_path / "rows.jsonl", rows, limit=5, seed=1))


def test_a_prompt_ends_with_what_the_template_writes(tmp_path: Path) -> None:
    models.write_tokenizer(tmp_path, template=_TEMPLATE)
    tokenizer = load_tokenizer(tmp_path)
    spec = _spec(tmp_path / "rows.jsonl", [{"prompt": "w10", "reasoning": "w11", "response": "w12"}])
    (found,) = prompts(asking_rows(spec), spec, tokenizer, _TAGS)
    assert found.text == "w10 <think> "
    assert tokenizer.convert_ids_to_tokens(list(found.ids)) == ["w10", "<think>"]


def test_thoughts_are_the_rows_with_reasoning_and_its_positions(tmp_path: Path) -> None:
    models.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    rows = [{"prompt": "w10 ", "reasoning": " w11 w12 ", "response": "w13"}, {"prompt": "w20", "response": "w21"}]
    spec = _spec(tmp_path / "rows.jsonl", rows)
    (found,) = thoughts(asking_rows(spec), spec, tokenizer, _TAGS)
    chosen = tokenizer.convert_ids_to_tokens([found.ids[index] for index in found.positions])
    assert chosen[0].startswith("<think>")
    assert [found.ids[index] for index in found.answer] == [tokenizer.convert_tokens_to_ids("w13")]
