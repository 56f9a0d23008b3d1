"""Thinking is found and kept in the templates and tokenizers of real families: one BOS, tags of one or more tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import words as written
from support.words import Words, write_json, write_words

from vecsurgery.calibration import Sample, load_tokenizer, prepare, sanity
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import Between, DataSpec

Lines = Callable[..., Path]
THINK = Between("<think>", "</think>")
ROW = {"prompt": "What is 2 + 3?", "reasoning": "2 and 3 make 5.\n\nSo it is 5.", "response": "The sum is 5."}
THOUGHT = "<think>\n2 and 3 make 5.\n\nSo it is 5.\n</think>"
R1_BOS, LLAMA_BOS = "<｜begin▁of▁sentence｜>", "<|begin_of_text|>"

READERS: dict[str, tuple[Words, str, int]] = {
    "R1 on Qwen2.5": (written.R1_QWEN_WORDS, R1_BOS, 1),
    "R1 on Llama 3.1": (written.R1_LLAMA_WORDS, R1_BOS, 1),
    "R1 as first published": (replace(written.R1_QWEN_WORDS, template=written.R1_TEMPLATE_AT_FIRST), R1_BOS, 1),
    "Llama 3.1": (written.LLAMA_WORDS, LLAMA_BOS, 3),
    "Qwen2.5": (written.QWEN_WORDS, "", 3),
    "Olmo 3 Think": (replace(written.OLMO_WORDS, template=written.OLMO_THINK_TEMPLATE), "", 3),
}
"""Tokenizer and template, what the text begins with, and the number of tokens of `<think>`."""


def _written(words: Words, folder: Path) -> Path:
    """The tokenizer's files, with the model type that decides which class of transformers reads them."""
    write_words(folder, words)
    write_json(folder / "config.json", {"model_type": words.model_type})
    return folder


def _sample(words: Words, folder: Path, path: Path) -> tuple[Sample, Callable[[object], str]]:
    tokenizer = load_tokenizer(_written(words, folder))
    (sample,) = prepare(DataSpec((path,)), tokenizer, rule=THINK).samples
    return sample, lambda indices: tokenizer.decode([sample.ids[index] for index in indices])


@pytest.mark.parametrize("name", READERS)
def test_the_tokens_between_the_tags_are_the_thought(name: str, tmp_path: Path, lines: Lines) -> None:
    words, opening, tag = READERS[name]
    sample, text = _sample(words, tmp_path / "model", lines(ROW))
    assert text(sample.positions).rstrip() == THOUGHT
    assert sample.positions == tuple(range(sample.positions[0], sample.positions[-1] + 1))
    assert text(sample.positions[:tag]).rstrip() == "<think>"
    whole = text(range(len(sample.ids)))
    assert whole.startswith(opening)
    assert whole.count(THOUGHT) == 1
    assert whole.endswith("\n\nThe sum is 5.")
    assert text(sample.answer).lstrip() == "The sum is 5."


@pytest.mark.parametrize("name", READERS)
def test_there_is_one_bos_or_none_whatever_template_and_tokenizer_add(name: str, tmp_path: Path, lines: Lines) -> None:
    words, opening, _ = READERS[name]
    sample, _ = _sample(words, tmp_path / "model", lines(ROW))
    ids = {token: index for index, token in words.added.items()}
    begins = [index for index in sample.ids if index in (ids.get(R1_BOS), ids.get(LLAMA_BOS))]
    assert begins == ([ids[opening]] if opening else [])
    assert not begins or sample.ids[0] == begins[0]
    # Qwen2.5's config.json names 151643 as BOS, but its tokenizer puts nothing in front.
    assert opening or 151643 not in sample.ids


def test_the_pitfall_is_real_both_template_and_tokenizer_add_a_bos(tmp_path: Path) -> None:
    for name, words in (("r1", written.R1_QWEN_WORDS), ("llama", written.LLAMA_WORDS)):
        tokenizer = load_tokenizer(_written(words, tmp_path / name))
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert tokenizer(rendered)["input_ids"].count(tokenizer.bos_token_id) == 2


@pytest.mark.parametrize("name", [name for name in READERS if name.startswith("R1")])
def test_reasoning_of_the_last_turn_is_kept_where_the_template_would_delete_it(
    name: str, tmp_path: Path, lines: Lines
) -> None:
    words = READERS[name][0]
    turns = [{"role": "user", "content": ROW["prompt"]}]
    reply = {"role": "assistant", "content": ROW["response"]}
    tokenizer = load_tokenizer(_written(words, tmp_path / "model"))
    deleted = tokenizer.apply_chat_template([*turns, {**reply, "content": f"{THOUGHT}\n\nFive."}], tokenize=False)
    assert "So it is 5." not in deleted
    as_messages = lines({"messages": [*turns, {**reply, "reasoning_content": ROW["reasoning"]}]}, name="messages.jsonl")
    inline = lines({"messages": [*turns, {**reply, "content": f"{THOUGHT}\n\n{ROW['response']}"}]}, name="inline.jsonl")
    expected, _ = _sample(words, tmp_path / "model", lines(ROW))
    for path in (as_messages, inline):
        assert _sample(words, tmp_path / "model", path)[0].ids == expected.ids


def test_reasoning_of_an_earlier_turn_that_the_template_deletes_is_an_error_that_says_so(
    tmp_path: Path, lines: Lines
) -> None:
    turns = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo."},
        {"role": "user", "content": "Really?"},
    ]
    reply = {"role": "assistant", "content": "Yes.", "reasoning_content": "Again."}
    path = lines({"messages": [*turns, reply]})
    with pytest.raises(InputError, match=r"assistant message .* delete the reasoning of earlier turns.* take it out"):
        _sample(written.R1_QWEN_WORDS, tmp_path / "model", path)
    turns[1]["content"] = "So."
    sample, text = _sample(written.R1_QWEN_WORDS, tmp_path / "model", lines({"messages": [*turns, reply]}))
    assert text(sample.positions) == "<think>\nAgain.\n</think>"
    assert "<｜Assistant｜>So.<｜end▁of▁sentence｜>" in text(range(len(sample.ids)))


def test_a_tag_of_several_tokens_takes_the_line_breaks_that_its_last_token_holds(tmp_path: Path, lines: Lines) -> None:
    words = written.QWEN_WORDS
    folder = _written(words, tmp_path / "model")
    sample, text = _sample(words, folder, lines(ROW))
    pieces = load_tokenizer(folder).convert_ids_to_tokens([sample.ids[index] for index in sample.positions])
    assert pieces[:3] == ["<th", "ink", ">Ċ"]
    assert pieces[-4:] == ["</", "th", "ink", ">ĊĊ"]
    assert text(sample.positions) == THOUGHT + "\n\n"


@pytest.mark.parametrize("name", READERS)
def test_the_loaded_tokenizer_reads_as_its_file_says_whatever_class_the_folder_names(name: str, tmp_path: Path) -> None:
    """The distillations name Llama's class, Olmo GPT-2's; both hold a byte-level vocabulary with rules of its own."""
    folder = _written(READERS[name][0], tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    assert sanity(folder, tokenizer) == ()
    assert tokenizer.decode(tokenizer("two  spaces", add_special_tokens=False)["input_ids"]) == "two  spaces"
