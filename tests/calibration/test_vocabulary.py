"""Rows of two vocabularies are the same only where their strings are."""

import json
from pathlib import Path

import pytest
from support.words import R1_QWEN_WORDS, write_json, write_words

from tests.calibration.tiny import byte_tokenizer, word_level, wrapped
from vecsurgery.calibration import (
    compare_end_tokens,
    compare_vocabularies,
    end_tokens,
    load_tokenizer,
    vocabulary_rows,
)
from vecsurgery.errors import InputError


def test_rows_without_a_token_are_none() -> None:
    tokenizer = wrapped(word_level(["a", "b"]), unk_token="[UNK]")
    assert vocabulary_rows(tokenizer, 5) == ["[UNK]", "a", "b", None, None]
    assert vocabulary_rows(tokenizer, 2) == ["[UNK]", "a"]


def test_added_tokens_are_part_of_the_vocabulary() -> None:
    tokenizer = byte_tokenizer(tags=("<think>",))
    assert "<think>" in vocabulary_rows(tokenizer, len(tokenizer))


def test_equal_vocabularies_agree_in_every_row() -> None:
    rows = ["a", "b", None]
    match = compare_vocabularies(rows, rows, rows)
    assert match.agrees
    assert match.mask.tolist() == [True, True, True]


def test_rows_that_differ_or_are_missing_take_no_delta() -> None:
    match = compare_vocabularies(["a", "b", "c", None, "e"], ["a", "x", "c", None], ["a", "b", "y", "z", "e"])
    assert match.mask.tolist() == [True, False, False, False, False]
    assert match.differing == ((1, "b", "x", "b"), (2, "c", "c", "y"), (3, None, None, "z"), (4, "e", None, "e"))
    assert not match.agrees


def test_a_pair_with_more_rows_than_into_is_compared_over_the_rows_of_into() -> None:
    assert compare_vocabularies(["a"], ["a", "b"], ["a", "b", "c"]).agrees


def test_end_tokens_come_from_tokenizer_and_both_configs(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tags=("<stop>",))
    assert end_tokens(tmp_path, tokenizer) == {"</s>"}
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    stop = tokenizer.convert_tokens_to_ids("<stop>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, stop]}))
    assert end_tokens(tmp_path, tokenizer) == {"<s>", "</s>", "<stop>"}


def test_a_damaged_config_is_an_error_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"config\.json: not a JSON object"):
        end_tokens(tmp_path, byte_tokenizer())


def test_an_end_token_of_the_tuned_model_alone_warns() -> None:
    (warning,) = compare_end_tokens(frozenset({"</s>"}), frozenset({"</s>", "<|im_end|>"}), "instruct")
    assert "deltas.instruct" in warning
    assert "'<|im_end|>'" in warning
    assert compare_end_tokens(frozenset({"</s>", "<eot>"}), frozenset({"</s>"}), "instruct") == ()


def test_several_end_tokens_are_one_warning() -> None:
    (warning,) = compare_end_tokens(frozenset({"</s>"}), frozenset({"<|eot_id|>", "<|eom_id|>"}), "instruct")
    assert "'<|eom_id|>' and '<|eot_id|>', which are no end tokens" in warning


def test_a_token_that_only_the_class_of_the_tokenizer_knows_names_no_row(tmp_path: Path) -> None:
    folder = write_words(tmp_path / "model", R1_QWEN_WORDS)
    write_json(folder / "config.json", {"model_type": "qwen2"})
    tokenizer = load_tokenizer(folder)
    assert "<|endoftext|>" in vocabulary_rows(tokenizer, 152064)  # what Qwen 2's class takes for an unknown token
    rows = vocabulary_rows(tokenizer, 152064, folder=folder)
    assert "<|endoftext|>" not in rows
    assert rows[151643:151646] == ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
