"""The recipes for real pairs, under their names on the hub, against small checkpoints of the same layout."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.families import FAMILIES, KINDS, write_thoughts
from support.hub import cache_model, go_offline
from support.results import record_of

import vecsurgery
from vecsurgery.cli import main
from vecsurgery.errors import UnsupportedError
from vecsurgery.recipe import shipped

PAIRS = {f"rain-{family.lower()}": family for family in FAMILIES}
WARNINGS = {
    "qwen-1.5B": ("RoPE base", "tying", "ends texts with", "vocabulary rows"),
    "qwen-7B": ("RoPE base", "ends texts with", "vocabulary rows"),
    "qwen-14B": ("normalisation epsilon", "ends texts with", "vocabulary rows"),
    "qwen-32B": ("normalisation epsilon", "ends texts with", "vocabulary rows"),
    "llama-8B": ("ends texts with", "vocabulary rows"),
    "olmo-7B": ("ends texts with",),
}
MANY = [(f"Question {number}?", f"Thought number {number} of many.", "Yes.") for number in range(40)]
"""Rows with more than 1024 positions between their tags."""


@pytest.fixture
def hub(
    written_families: Callable[[str], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Puts a family into a cache under the names of its repositories, on a machine without network."""
    go_offline(monkeypatch, tmp_path / "hub")

    def cache(family: str) -> None:
        for number, (kind, folder) in enumerate(written_families(family).items()):
            cache_model(tmp_path / "hub", FAMILIES[family][kind].hub, folder, f"{number + 1:040x}")

    return cache


def _new(name: str, folder: Path) -> Path:
    path = shipped.copy(name, folder)
    write_thoughts(folder / "reasoning.jsonl")
    return path


def test_there_is_a_recipe_for_each_family() -> None:
    assert {name for name in shipped.names() if name.startswith("rain-")} == set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_a_recipe_of_a_real_pair_passes_check_under_the_names_of_the_hub(
    name: str, hub: Callable[[str], None], tmp_path: Path
) -> None:
    hub(PAIRS[name])
    result = CliRunner().invoke(main, ["check", str(_new(name, tmp_path)), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    base, instruct, reasoner = (FAMILIES[PAIRS[name]][kind].hub for kind in KINDS)
    assert found["facts"]["models"] == {"into": reasoner}
    assert found["facts"]["deltas"] == {"instruct": f"{instruct} − {base}"}
    assert len(found["warnings"]) == len(WARNINGS[PAIRS[name]])
    assert all(word in text for word, text in zip(WARNINGS[PAIRS[name]], found["warnings"], strict=True))


def test_a_run_of_a_shipped_pair_names_the_models_and_their_commits(hub: Callable[[str], None], tmp_path: Path) -> None:
    hub("qwen-7B")
    vecsurgery.run(_new("rain-qwen-7b", tmp_path), tmp_path / "out", overrides=["gates=[]"])
    record = record_of(tmp_path / "out")
    assert record["into"]["reference"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert record["into"]["revision"] == f"{3:040x}"
    assert record["deltas"]["instruct"]["base"]["revision"] == f"{1:040x}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(member.hub in card for member in FAMILIES["qwen-7B"].values())


def test_the_wide_inputs_of_the_largest_pair_are_refused_early_and_its_recipe_measures_fewer_positions_there(
    hub: Callable[[str], None], tmp_path: Path
) -> None:
    hub("qwen-32B")
    path = _new("rain-qwen-32b", tmp_path)
    write_thoughts(tmp_path / "reasoning.jsonl", MANY)
    plan = vecsurgery.plan(path)
    assert plan.geometry["thinking"].positions > 1024
    assert plan.geometry["tags"].positions <= 1024
    assert {site.rpartition(".")[2] for site in plan.geometry["tags"].sites} == {"down_proj"}
    assert {site.rpartition(".")[2] for site in plan.geometry["thinking"].sites} == {"q_proj", "o_proj", "gate_proj"}
    one_step = ["steps=[{project: null_space, geometry: thinking}]"]
    with pytest.raises(UnsupportedError, match=r"geometry 'thinking': site .*down_proj.* 27648 wide and \d+ positions"):
        vecsurgery.check(path, overrides=one_step)
    vecsurgery.run(path, tmp_path / "out", overrides=["gates=[]"])
    record = record_of(tmp_path / "out")
    assert len(record["left_out"]) == 14
    assert not any(item["unprotected"] for item in record["left_out"])
