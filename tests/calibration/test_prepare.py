"""Samples are the same for the same data, limits are kept, and nothing is lost without being counted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calibration.tiny import byte_tokenizer, word_level, wrapped
from vecsurgery.calibration import prepare
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import Around, Between, DataSpec

Lines = Callable[..., Path]
THINK = Between("<think>", "</think>")
TEN = [{"text": f"sample number {'x ' * index}{index}"} for index in range(10)]


def test_positions_answer_and_counts_of_a_question(lines: Lines) -> None:
    tokenizer = byte_tokenizer(bos=True)
    path = lines({"question": "Who?", "answer": "Ada wrote."})
    samples = prepare(DataSpec((path,)), tokenizer, rule="response", context=None)
    (sample,) = samples.samples
    assert tokenizer.decode(sample.ids) == "<s>Question: Who?\nAnswer: Ada wrote."
    assert tokenizer.decode([sample.ids[index] for index in sample.answer]).strip() == "Ada wrote."
    assert sample.positions == sample.answer
    assert sample.where == f"{path}:1"
    assert samples.counts["tokens"] == len(sample.ids)
    assert samples.counts["positions"] == samples.positions == len(sample.positions)


def test_the_answer_is_the_response_field_without_reasoning(lines: Lines) -> None:
    tokenizer = byte_tokenizer()
    path = lines({"prompt": "Why?", "reasoning": "Hm.", "response": "Because."})
    (sample,) = prepare(DataSpec((path,)), tokenizer, rule="response").samples
    assert tokenizer.decode([sample.ids[index] for index in sample.positions]) == "<think>\nHm.\n</think>\n\nBecause."
    assert tokenizer.decode([sample.ids[index] for index in sample.answer]).strip() == "Because."


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_the_first_fed_ids_are_left_out_bos_included(lines: Lines, skip: int) -> None:
    (sample,) = prepare(DataSpec((lines(TEN[5]),)), byte_tokenizer(bos=True), skip_first=skip).samples
    assert sample.positions == tuple(range(skip, len(sample.ids)))


def test_repeats_are_used_once_and_counted(lines: Lines) -> None:
    spec = DataSpec((lines(*TEN[:3], {"text": "sample  number 0 "}, name="a.jsonl"), lines(TEN[1], name="b.jsonl")))
    samples = prepare(spec, byte_tokenizer())
    assert [samples.counts[name] for name in ("rows", "repeats", "samples")] == [5, 2, 3]
    once = prepare(DataSpec((lines(*TEN[:3], name="c.jsonl"),)), byte_tokenizer())
    assert once.fingerprint == samples.fingerprint


def test_long_samples_are_cut_on_the_right_and_counted(lines: Lines) -> None:
    whole = prepare(DataSpec((lines(*TEN),)), byte_tokenizer())
    samples = prepare(DataSpec((lines(*TEN),), max_length=12), byte_tokenizer())
    assert [sample.ids for sample in samples.samples] == [sample.ids[:12] for sample in whole.samples]
    assert samples.counts["cut"] == sum(len(sample.ids) > 12 for sample in whole.samples) > 0
    assert any("cut at `max_length`" in warning for warning in samples.warnings)


def test_the_context_of_the_model_bounds_the_length(lines: Lines) -> None:
    path = lines({"text": "word " * 3000})
    assert len(prepare(DataSpec((path,)), byte_tokenizer()).samples[0].ids) == 2048
    assert len(prepare(DataSpec((path,)), byte_tokenizer(), context=100).samples[0].ids) == 100
    with pytest.raises(InputError, match="`max_length` is 101, but the model reads at most 100"):
        prepare(DataSpec((path,), max_length=101), byte_tokenizer(), context=100)


@pytest.mark.parametrize("rule", [THINK, Around(("<think>", "</think>"))])
def test_a_sample_that_would_lose_its_closing_tag_is_dropped_and_counted(lines: Lines, rule: Between | Around) -> None:
    tokenizer = byte_tokenizer(tags=("<think>", "</think>"))
    rows = [{"prompt": "Why?", "reasoning": "Hm. " * times, "response": "So."} for times in (1, 40)]
    closing = (
        prepare(DataSpec((lines(rows[0]),)), tokenizer, rule=rule)
        .samples[0]
        .ids.index(tokenizer.convert_tokens_to_ids("</think>"))
    )
    kept = prepare(DataSpec((lines(*rows),), max_length=closing + 1), tokenizer, rule=rule)
    assert [kept.counts[name] for name in ("samples", "cut", "dropped")] == [1, 1, 1]
    assert closing in kept.samples[0].positions
    with pytest.raises(InputError, match=r"no usable sample among 2 rows: in 2 of them `max_length` cut off"):
        prepare(DataSpec((lines(*rows),), max_length=closing), tokenizer, rule=rule)


def test_a_sample_without_tags_stops_the_preparation_by_name(lines: Lines) -> None:
    path = lines({"prompt": "p", "reasoning": "a", "response": "r"}, {"prompt": "p", "response": "r"})
    with pytest.raises(InputError, match=r"rows\.jsonl:2: the rendered sample holds the tag '<think>' 0 times"):
        prepare(DataSpec((path,)), byte_tokenizer(), rule=THINK)


def test_reasoning_stands_between_the_tags_of_the_rule(lines: Lines) -> None:
    tokenizer = byte_tokenizer(tags=("[T]", "[/T]"))
    (sample,) = prepare(
        DataSpec((lines({"prompt": "p", "reasoning": "a", "response": "r"}),)), tokenizer, rule=Between("[T]", "[/T]")
    ).samples
    assert tokenizer.decode([sample.ids[index] for index in sample.positions]) == "[T]\na\n[/T]"


def test_file_order_holds_where_no_limit_binds(lines: Lines) -> None:
    path = lines(*TEN)
    plain = prepare(DataSpec((path,)), byte_tokenizer())
    loose = prepare(DataSpec((path,), limit=10, max_tokens=10_000, seed=3), byte_tokenizer())
    assert plain.fingerprint == loose.fingerprint
    assert [sample.where for sample in plain.samples] == [f"{path}:{line}" for line in range(1, 11)]


def test_a_binding_limit_takes_rows_in_an_order_of_the_seed(lines: Lines) -> None:
    path = lines(*TEN)

    def chosen(seed: int, limit: int = 4) -> list[str]:
        samples = prepare(DataSpec((path,), limit=limit, seed=seed), byte_tokenizer())
        assert samples.counts["unused"] == 10 - limit
        return [sample.where for sample in samples.samples]

    assert chosen(0) == chosen(0)
    assert len(set(chosen(0))) == 4
    assert chosen(0, 6)[:4] == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(5)}) > 1


@settings(max_examples=20, deadline=None)
@given(most=st.integers(min_value=12, max_value=400), seed=st.integers(min_value=0, max_value=5))
def test_max_tokens_is_never_exceeded_and_nearly_reached(
    tmp_path_factory: pytest.TempPathFactory, most: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"a {'b ' * (9 + index % 2)}{index}"}) + "\n" for index in range(10)))
    whole = prepare(DataSpec((path,)), _BYTES)
    longest = max(len(sample.positions) for sample in whole.samples)
    if most < longest:
        return
    samples = prepare(DataSpec((path,), max_tokens=most, seed=seed), _BYTES)
    assert samples.positions <= most
    if most >= whole.positions:
        assert samples.fingerprint == whole.fingerprint
    else:
        assert samples.positions > most - longest


def test_max_tokens_below_the_first_sample_says_so(lines: Lines) -> None:
    with pytest.raises(InputError, match=r"more positions than `max_tokens` \(2\) allows"):
        prepare(DataSpec((lines(*TEN),), max_tokens=2), byte_tokenizer())


def test_nothing_behind_the_skipped_ids_says_so(lines: Lines) -> None:
    with pytest.raises(InputError, match="or `skip_first` left none"):
        prepare(DataSpec((lines({"text": "a"}),)), byte_tokenizer())


def test_the_fingerprint_changes_with_the_positions(lines: Lines) -> None:
    spec = DataSpec((lines({"prompt": "one two", "response": " three"}),))
    prints = {prepare(spec, byte_tokenizer(), rule=rule).fingerprint for rule in ("all", "response")}
    assert len(prints) == 2


def test_much_unknown_text_warns(lines: Lines) -> None:
    tokenizer = wrapped(word_level(["known"]), unk_token="[UNK]")
    samples = prepare(DataSpec((lines({"text": "known strange known"}),)), tokenizer)
    assert any("1 of 3 tokens are unknown to the tokenizer" in warning for warning in samples.warnings)


def test_the_room_is_imported_without_torch_or_transformers() -> None:
    program = "import sys, vecsurgery.calibration as c; c.prepare; c.compare_vocabularies; c.load_tokenizer; \
assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


_BYTES = byte_tokenizer()
