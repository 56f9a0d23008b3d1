"""What a model writes by its own generation config: drawn as that says, by a seed of each row, tags kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from transformers import AutoModelForCausalLM, GenerationConfig

from vecsurgery.calibration import load_tokenizer
from vecsurgery.evaluation import Writer
from vecsurgery.evaluation.generation import _seed

_PROMPTS = [(1, 20, 21, 22), (1, 30, 31), (1, 40, 41, 42)]
_ROWS = ["first", "second", "third"]


def _folder(path: Path, **config: Any) -> Path:
    models.checkpoint(path, seed=3)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **config}))
    return path


def _writer(folder: Path, longest: int = 8) -> Writer:
    return Writer(folder, load_tokenizer(folder), longest=longest)


def test_draws_are_those_of_transformers_under_the_models_own_config(tmp_path: Path) -> None:
    own = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 12, "repetition_penalty": 1.3}
    folder = _folder(tmp_path / "model", **own)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = _writer(folder).own(_PROMPTS, _ROWS, count=3, seed=5)
    for prompt, row, drawn in zip(_PROMPTS, _ROWS, found, strict=True):
        torch.manual_seed(_seed(5, row))
        config = GenerationConfig(**own, eos_token_id=2, pad_token_id=2, max_new_tokens=8)
        ids = torch.tensor([prompt] * 3)
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        for each, wanted in zip(drawn, expected[:, len(prompt) :].tolist(), strict=True):
            end = wanted.index(2) if 2 in wanted else len(wanted)
            assert each.ids == tuple(wanted[:end])
            assert each.ended == (2 in wanted)


def test_draws_follow_from_seed_and_row_and_leave_the_random_state(tmp_path: Path) -> None:
    writer = _writer(_folder(tmp_path / "model", do_sample=True))
    state = torch.get_rng_state()
    found = writer.own(_PROMPTS, _ROWS, count=4, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert writer.own(_PROMPTS[1:], _ROWS[1:], count=4, seed=1) == found[1:]
    assert writer.own(_PROMPTS, _ROWS, count=4, seed=2) != found
    assert len({each.ids for each in found[0]}) > 1


def test_what_a_config_says_of_numbers_and_forms_of_results_is_not_followed(tmp_path: Path) -> None:
    plain = _writer(_folder(tmp_path / "plain", do_sample=True)).own(_PROMPTS, _ROWS, count=2)
    odd = {"num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True, "max_time": 0.0}
    assert _writer(_folder(tmp_path / "odd", do_sample=True, **odd)).own(_PROMPTS, _ROWS, count=2) == plain


def test_a_model_that_does_not_draw_writes_its_one_greedy_text(tmp_path: Path) -> None:
    writer = _writer(_folder(tmp_path / "model"))
    assert not writer.draws
    found = writer.own(_PROMPTS, _ROWS, count=5)
    assert [len(row) for row in found] == [1, 1, 1]
    assert found == writer.own(_PROMPTS, _ROWS, count=5, seed=9)


def test_the_limit_is_ours_and_ends_what_no_end_token_ends(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", max_length=5, max_new_tokens=3, eos_token_id=5000)
    (written,) = _writer(folder, 6).own(_PROMPTS[:1], _ROWS[:1])[0]
    assert (len(written.ids), written.ended) == (6, False)
    (ended,) = _writer(_folder(tmp_path / "ends", eos_token_id=list(written.ids[2:3])), 6).own(_PROMPTS[:1], ["x"])[0]
    assert ended.ended
    assert ended.ids == written.ids[: written.ids.index(written.ids[2])]


@pytest.mark.parametrize("special", [True, False])
def test_tags_stay_in_the_text_even_as_special_tokens_and_others_do_not(special: bool, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    if special:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        tags = ["<think>", "</think>"]
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "additional_special_tokens": tags}))
    writer = _writer(folder)
    text = writer.text([3, 20, 4, 1, 21], keep=("<think>", "</think>"))
    assert text == "<think>w20</think>w21"
    assert (writer.text([3, 20, 4]) == "w20") == special
