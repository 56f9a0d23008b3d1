"""The family's models: the same bytes each time, ordinary folders, and the shipped ones are what the code makes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.reasoning.kin import kin
from vecsurgery.calibration import asking_rows, load_tokenizer, prompts, thoughts
from vecsurgery.demo.reasoning.family import Family
from vecsurgery.demo.reasoning.models import CONFIGURATIONS, Trained, make_tokenizer, train_family, write_data
from vecsurgery.demo.reasoning.settings import Settings
from vecsurgery.demo.reasoning.shipping import SHIPPED_SEED, made_of, shipped_models
from vecsurgery.demo.reasoning.sums import sums
from vecsurgery.demo.training import Course
from vecsurgery.recipe.types import DataSpec

SHORT = Course(steps=3, batch=4, rate=1e-3, warm_up=1, other_weight=0.1)
MICRO = Settings(hidden=32, intermediate=48, layers=2, times=1, base=SHORT, reasoning=SHORT, instruct=SHORT)
TAGS = ("<think>", "</think>")


@pytest.fixture(scope="module")
def related(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_family(kin, 1, MICRO, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_family(sums, 1, MICRO, cache=tmp_path_factory.mktemp("cache"))


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_training_again_gives_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    again = train_family(sums, 1, MICRO, cache=tmp_path)
    assert _bytes(again.base.parent) == _bytes(trained.base.parent)


def test_members_load_as_transformers_loads_and_differ(trained: Trained) -> None:
    for folder in (trained.base, trained.reasoning, trained.instruct):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.dtype == torch.float16
    weights = [
        load_file(folder / "model.safetensors") for folder in (trained.base, trained.reasoning, trained.instruct)
    ]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert any(not torch.equal(weights[first][name], weights[second][name]) for name in weights[0])


@pytest.mark.parametrize("make", [sums, kin])
def test_a_prompt_ends_where_the_training_text_goes_on(
    make: Callable[[int], Family], trained: Trained, related: Trained
) -> None:
    family, trained = make(1), trained if make is sums else related
    tokenizer = load_tokenizer(trained.reasoning)
    spec = DataSpec((trained.data / "test-plain.jsonl",))
    rows = asking_rows(spec)
    asked = prompts(rows, spec, tokenizer, TAGS)[0]
    problem = family.problems.test[0]
    whole = tokenizer(family.prompt(problem.question) + family.thought(problem) + problem.answer)["input_ids"]
    assert list(asked.ids) == whole[: len(asked.ids)]
    sample = thoughts(rows, spec, tokenizer, TAGS)[0]
    assert list(sample.ids) == whole
    text = tokenizer.decode([sample.ids[place] for place in sample.positions])
    assert text.startswith("<think>\n")
    assert text.endswith("\n</think>")


def test_the_shipped_models_are_of_these_settings_rows_and_tokenizer(tmp_path: Path) -> None:
    shipped, family = shipped_models(), sums(SHIPPED_SEED)
    assert json.loads((shipped.base.parent / "made-of.json").read_text()) == made_of()
    write_data(family, tmp_path / "data")
    assert _bytes(tmp_path / "data") == _bytes(shipped.data)
    tokenizer = make_tokenizer(family, Settings().vocabulary)
    config = CONFIGURATIONS["llama"](Settings(), tokenizer.get_vocab_size())
    for name in ("base", "reasoning", "instruct"):
        folder: Path = getattr(shipped, name)
        assert (folder / "tokenizer.json").read_text(encoding="utf-8") == tokenizer.to_str(pretty=True)
        assert json.loads((folder / "config.json").read_text()) == config
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["chat_template"] == family.template(thinks=name == "reasoning")
