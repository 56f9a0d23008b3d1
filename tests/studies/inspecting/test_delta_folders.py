"""Delta folders in inspections: the figures of the models that they were made from, beside everything else."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from support.results import tensors_of

import vecsurgery
from vecsurgery.cli import main
from vecsurgery.errors import InputError

NAMES = ("dense.delta", "skill.delta")


@pytest.fixture(scope="module", autouse=True)
def deltas(root: Path) -> Path:
    """Beside the models: the delta of `first` in float32, and that of the adapter, which stays factored."""
    vecsurgery.extract(root / "base", root / "first", root / "dense.delta", dtype="float32")
    recipe = {"into": "base", "deltas": {"x": {"adapter": "./adapter"}}, "gates": [], "output": {"format": "delta"}}
    (root / "skill.yaml").write_text(json.dumps(recipe))
    vecsurgery.run(root / "skill.yaml", root / "skill.delta")
    return root


def test_a_delta_folder_has_the_figures_of_what_it_was_made_from(root: Path) -> None:
    pairs = {"dense.delta": "first", "skill.delta": "adapter"}
    chosen = {"base": root / "base", "geometry": [root / "retain.safetensors"], "top": 4}
    given = [root / name for both in pairs.items() for name in both]
    found = vecsurgery.inspect(given, **chosen)  # type: ignore[arg-type]
    for name, origin in pairs.items():
        for ours, theirs in zip(found.of_delta(name), found.of_delta(origin), strict=True):
            assert dataclasses.replace(ours, delta=origin) == theirs
        assert found.total_pair((name, origin)).cosine == pytest.approx(1.0)
    assert found.names["dense.delta"] == f"delta {root / 'dense.delta'} of {root / 'base'}"
    assert {each.factored for each in found.of_delta("skill.delta") if each.squared_norm} == {True}


def test_entries_that_round_back_do_not_count_as_changed(root: Path, tmp_path: Path) -> None:
    recipe = {"into": str(root / "base"), "deltas": {"x": {"tuned": str(root / "first")}}, "weights": {"x": 0.05}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "gates": [], "output": {"format": "delta"}}))
    vecsurgery.run(tmp_path / "recipe.yaml", tmp_path / "small")
    vecsurgery.apply(root / "base", tmp_path / "small", tmp_path / "applied")
    before, after = tensors_of(root / "base"), tensors_of(tmp_path / "applied")
    found = vecsurgery.inspect(tmp_path / "small", base=root / "base")
    changed = sum(int(torch.count_nonzero(after[name] != before[name])) for name in before)
    assert sum(each.changed or 0 for each in found.changes) == pytest.approx(changed, rel=1e-2)
    assert changed < 0.9 * sum(before[each.tensor].numel() for each in found.changes if each.squared_norm)


def test_the_command_takes_deltas_alone_and_beside_others(here: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(main, ["inspect", "dense.delta", "--base", "base", "--modules", "q"])
    assert shown.exit_code == 0, shown.output
    assert "delta dense.delta: delta dense.delta of base\n" in shown.stdout
    several = ["a=dense.delta/delta.json", "skill.delta", "second", "adapter"]
    content = runner.invoke(main, ["inspect", *several, "--base", "base", "--limit", "1", "--modules", "q", "--json"])
    assert list(json.loads(content.stdout)["deltas"]) == ["a", "skill.delta", "second", "adapter"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dense.delta"], "this is a delta, not a model; give --base with what it was made from, base"),
        (["dense.delta", "--base", "second"], "dense.delta was made from base (fingerprint"),
        (["dense.delta", "--base", "second"], "give that model as --base\n"),
        (["dense.delta", "x/dense.delta", "--base", "base"], "inspecting: two models are called 'dense.delta'"),
    ],
)
def test_a_delta_without_its_base_or_with_another_is_refused(here: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["inspect", *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_damaged_delta_is_refused_by_its_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "delta.json").write_bytes((root / "dense.delta" / "delta.json").read_bytes())
    with pytest.raises(InputError, match=r"delta\.safetensors should have"):
        vecsurgery.inspect(tmp_path / "broken", base=root / "base")
