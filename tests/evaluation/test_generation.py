"""Generated answers: those of the model alone, whatever is asked beside them; scored by rouge-score."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from rouge_score import rouge_scorer
from support import models
from transformers import AutoModelForCausalLM

from vecsurgery.calibration import load_tokenizer, prepare, rows_of
from vecsurgery.errors import InputError
from vecsurgery.evaluation import (
    Asked,
    Sampling,
    Writer,
    leak_at_k,
    leak_figures,
    questions,
    rouge_figure,
    rouge_recall,
)
from vecsurgery.recipe import DataSpec


@pytest.fixture
def asked(folder, tofu) -> Asked:
    spec = DataSpec((tofu(5),))
    samples = prepare(spec, load_tokenizer(folder))
    return questions(samples, rows_of(spec, samples))


def _writer(folder: Path, **options) -> Writer:
    return Writer(folder, load_tokenizer(folder), **{"longest": 6, **options})


def test_prompts_end_where_the_answer_begins(folder, tofu, asked) -> None:
    tokenizer = load_tokenizer(folder)
    rows = [json.loads(line) for line in tofu(5).read_text().splitlines()]
    assert list(asked.expected) == [row["answer"] for row in rows]
    for prompt, row in zip(asked.prompts, rows, strict=True):
        written = tokenizer(f"Question: {row['question']}\nAnswer:", add_special_tokens=False)["input_ids"]
        assert list(prompt[-len(written) :]) == written


def test_greedy_answers_are_the_argmax_of_each_step(folder, asked) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    expected = []
    for prompt in asked.prompts:
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        expected.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip())
    assert _writer(folder).greedy(asked) == expected


def test_draws_follow_from_the_seed_and_the_row_alone(folder, asked) -> None:
    writer, sampling = _writer(folder), Sampling(3, seed=7)
    state = torch.get_rng_state()
    drawn = writer.sampled(asked, sampling)
    assert torch.equal(torch.get_rng_state(), state)
    last = Asked(asked.prompts[-1:], asked.expected[-1:], asked.ids[-1:], asked.index[-1:])
    assert writer.sampled(last, sampling) == drawn[-1:]
    assert writer.sampled(asked, Sampling(3, seed=8)) != drawn
    assert [len(texts) for texts in drawn] == [3] * 5
    assert any(len(set(texts)) > 1 for texts in drawn)


def test_a_very_low_temperature_draws_the_greedy_answer(folder, asked) -> None:
    writer = _writer(folder)
    drawn = writer.sampled(asked, Sampling(2, temperature=1e-4))
    assert drawn == [[answer, answer] for answer in writer.greedy(asked)]


def test_the_models_own_generation_settings_change_nothing(folder, asked, tmp_path) -> None:
    own = models.checkpoint(tmp_path / "own", seed=3)
    settings = {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 9.0, "max_length": 3}
    (own / "generation_config.json").write_text(json.dumps(settings))
    assert _writer(own).greedy(asked) == _writer(folder).greedy(asked)
    assert _writer(own).sampled(asked, Sampling(2)) == _writer(folder).sampled(asked, Sampling(2))


def test_an_answer_ends_at_the_end_token_and_at_a_stop_text(folder, asked, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        first = [int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in asked.prompts]
    word = load_tokenizer(folder).decode([first[0]])
    assert _writer(folder, stop=["absent", word]).greedy(asked)[0] == ""
    ends = models.checkpoint(tmp_path / "ends", seed=3)
    (ends / "generation_config.json").write_text(json.dumps({"eos_token_id": [5000, first[1]], "pad_token_id": 0}))
    assert Writer(ends, load_tokenizer(ends), longest=6).greedy(asked)[1] == ""


def test_an_answer_ends_with_the_context(folder, asked) -> None:
    long = Asked((tuple((asked.prompts[0] * 9)[:62]),), ("w9",), ("row",), ("0",))
    assert _writer(folder, longest=50).greedy(long) == _writer(folder, longest=2).greedy(long)
    full = Asked((tuple((asked.prompts[0] * 10)[:64]),), ("w9",), ("row",), ("0",))
    with pytest.raises(InputError, match="64 tokens fills the model's context of 64"):
        _writer(folder).greedy(full)


def test_rouge_is_the_recall_of_rouge_score_with_stemming() -> None:
    answers = ["The cats were running home", "nothing alike", ""]
    truth = ["the cat was running to its home", "Ada Lovelace", "Paris"]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(target, given)["rougeL"].recall for target, given in zip(truth, answers, strict=True)]
    assert rouge_recall(answers, truth) == expected
    assert expected[0] == pytest.approx(4 / 7)  # the, cat, running, home of seven words
    assert expected[1:] == [0.0, 0.0]


def test_figures_of_generated_answers_keep_their_texts_and_scores(asked) -> None:
    answers = [asked.expected[0], *["w0 w1"] * 4]
    figure = rouge_figure(asked, answers)
    assert figure.per_row == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert figure.value == pytest.approx(0.2)
    assert figure.by_index["0"]["generation"] == figure.by_index["0"]["ground_truth"] == asked.expected[0]
    drawn = [[truth, "w0", "w1"] for truth in asked.expected]
    leaks = leak_figures(asked, drawn, (1, 2, 3))
    scores = [1.0, 0.0, 0.0]
    assert leaks["leak@2"].value == pytest.approx(leak_at_k(scores, 2)) == pytest.approx(2 / 3)
    assert leaks["leak@1"].value == pytest.approx(1 / 3)
    assert leaks["leak@3"].by_index["4"] == {"score": 1.0, "samples": scores}
    assert math.isclose(leaks["leak@3"].value or 0.0, 1.0)


def test_rows_without_answers_cannot_be_asked(folder, tmp_path) -> None:
    spec = DataSpec((models.write_texts(tmp_path / "texts.jsonl", 2),))
    samples = prepare(spec, load_tokenizer(folder))
    with pytest.raises(InputError, match="none of 2 samples has an answer"):
        questions(samples, rows_of(spec, samples))


def test_weights_that_are_no_safetensors_are_not_loaded(folder, tmp_path) -> None:
    other = models.checkpoint(tmp_path / "pickled", seed=3)
    tensors = AutoModelForCausalLM.from_pretrained(other).state_dict()
    (other / "model.safetensors").unlink()
    torch.save(tensors, other / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        _writer(other)


def test_a_checkpoint_that_lacks_tensors_is_not_asked(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    other = models.checkpoint(tmp_path / "lacking", seed=3)
    tensors = load_file(other / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks tensors.*up_proj"):
        _writer(other)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match=r"pip install rouge-score.*extra `evaluation`"):
        rouge_recall(["a"], ["a"])
