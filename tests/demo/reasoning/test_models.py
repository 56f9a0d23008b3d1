"""The family's models: the same bytes each time, ordinary folders, and the shipped ones are what the code makes."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from vecsurgery.calibration import asking_rows, load_tokenizer, prompts, thoughts
from vecsurgery.demo.reasoning.family import Family
from vecsurgery.demo.reasoning.models import Trained, make_tokenizer, train_family, write_data
from vecsurgery.demo.reasoning.settings import Settings
from vecsurgery.demo.reasoning.shipping import SHIPPED_SEED, shipped_models
from vecsurgery.demo.reasoning.sums import sums
from vecsurgery.demo.training import Course
from vecsurgery.recipe.types import DataSpec

SHORT = Course(steps=3, batch=4, rate=1e-3, warm_up=1, other_weight=0.1)
MICRO = Settings(hidden=32, intermediate=48, layers=2, times=1, base=SHORT, reasoning=SHORT, instruct=SHORT)
TAGS = ("<think>", "</think>")


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


def test_a_prompt_ends_where_the_training_text_goes_on(trained: Trained) -> None:
    family: Family = sums(1)
    tokenizer = load_tokenizer(trained.reasoning)
    spec = DataSpec((trained.data / "test-plain.jsonl",))
    rows = asking_rows(spec)
    asked = prompts(rows, spec, tokenizer, TAGS)[0]
    problem = family.problems.test[0]
    whole = tokenizer(family.prompt(problem.question) + family.thought(problem) + problem.answer)["input_ids"]
    assert list(asked.ids) == whole[: len(asked.ids)]
    sample = thoughts(rows, spec, tokenizer, TAGS)[0]
    assert list(sample.ids) == whole
    assert tokenizer.decode([sample.ids[sample.positions[0]], sample.ids[sample.positions[-1]]]) == "<think></think>"


def test_the_shipped_models_are_of_these_settings_rows_and_tokenizer(tmp_path: Path) -> None:
    shipped, family = shipped_models(), sums(SHIPPED_SEED)
    made = json.loads((shipped.base.parent / "settings.json").read_text())
    assert made == asdict(Settings())
    write_data(family, tmp_path / "data")
    assert _bytes(tmp_path / "data") == _bytes(shipped.data)
    tokenizer = make_tokenizer(family, Settings().vocabulary).to_str(pretty=True)
    for folder in (shipped.base, shipped.reasoning, shipped.instruct):
        assert (folder / "tokenizer.json").read_text(encoding="utf-8") == tokenizer
