"""The demo's models: the same bytes each time, ordinary folders, damaged in the block matrices only."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vecsurgery.demo.unlearning.cache import Prepared, prepare
from vecsurgery.demo.unlearning.settings import Settings
from vecsurgery.demo.unlearning.tokenizer import encode_questions
from vecsurgery.demo.unlearning.world import make_world

MICRO = Settings(
    people=6, forgotten=2, proxy=2, sentences=8, sentences_test=2, vocabulary=400, hidden=32, intermediate=48, layers=2,
    train_steps=12, train_batch=8, train_warm_up=4, unlearn_steps=6, unlearn_batch=4, unlearn_rate=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(0, MICRO, cache=tmp_path_factory.mktemp("cache"))


def _bytes(prepared: Prepared) -> dict[str, bytes]:
    root = prepared.data.parent
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_training_again_gives_the_same_bytes_and_leaves_torch_as_it_was(prepared: Prepared, tmp_path: Path) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = prepare(0, MICRO, cache=tmp_path)
    assert _bytes(again) == _bytes(prepared)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert {path.name for path in again.data.parent.parent.iterdir()} == {"seed-0"}


def test_second_call_finds_the_models_and_trains_nothing(prepared: Prepared) -> None:
    stages: list[str] = []

    def progress(stage: str, done: float, total: float, unit: str) -> None:
        stages.append(f"{stage} {done} {total} {unit}")

    assert prepare(0, MICRO, cache=prepared.data.parents[2], progress=progress) == prepared
    assert stages == []


def test_other_settings_and_other_seeds_have_their_own_entries(tmp_path: Path) -> None:
    short = replace(MICRO, train_steps=1, unlearn_steps=1)
    folders = {prepare(seed, settings, cache=tmp_path).data for seed in (0, 1) for settings in (short, MICRO)}
    assert len(folders) == 4


def test_failed_training_leaves_nothing_behind(tmp_path: Path) -> None:
    def progress(stage: str, done: float, total: float, unit: str) -> None:
        raise KeyboardInterrupt(f"{stage} {done} {total} {unit}")

    with pytest.raises(KeyboardInterrupt):
        prepare(0, MICRO, cache=tmp_path, progress=progress)
    assert [path for path in tmp_path.rglob("*") if "seed-" in path.name] == []


def test_unlearning_moves_block_matrices_and_nothing_else(prepared: Prepared) -> None:
    original = load_file(prepared.original / "model.safetensors")
    unlearned = load_file(prepared.unlearned / "model.safetensors")
    moved = {name for name in original if not torch.equal(original[name], unlearned[name])}
    assert moved == {name for name, weight in original.items() if ".layers." in name and weight.dim() == 2}


def test_folders_load_as_ordinary_models_and_unlearning_raised_the_loss_of_the_forgotten(prepared: Prepared) -> None:
    assert _forget_loss(prepared.unlearned) > _forget_loss(prepared.original)


def _forget_loss(folder: Path) -> float:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    total = 0.0
    for row in encode_questions(tokenizer.backend_tokenizer, make_world(0, MICRO).forget):
        labels = torch.full((1, len(row.ids)), -100)
        labels[0, list(row.answer)] = torch.tensor([row.ids[index] for index in row.answer])
        with torch.no_grad():
            total += model(input_ids=torch.tensor([row.ids]), labels=labels).loss.item()
    return total
