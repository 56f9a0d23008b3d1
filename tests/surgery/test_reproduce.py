"""`reproduce`: the same bytes again, and a clear answer where an input has changed since."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support import models
from support.results import QUERY, contents, tensors_of
from support.workspace import Workspace

import vecsurgery
from vecsurgery.cli import main
from vecsurgery.errors import InputError


def _again(workspace: Workspace) -> Path:
    return workspace.root / "again"


def test_a_record_run_again_gives_identical_files(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    found = vecsurgery.reproduce(workspace.out / "surgery.json", _again(workspace))
    assert found["identical"]
    assert set(found["files"].values()) == {"same"}
    assert found["inputs"] == {}
    assert contents(_again(workspace)) == contents(workspace.out)
    assert set(found["files"]) >= {"model.safetensors", "surgery/retain.safetensors", "tokenizer.json", "README.md"}


def test_a_record_is_enough_from_any_folder(workspace: Workspace, tmp_path: Path) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    (workspace.root / "recipe.yaml").unlink()
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes((workspace.out / "surgery.json").read_bytes())
    assert vecsurgery.reproduce(moved, _again(workspace))["identical"]


def test_a_changed_tensor_is_named(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    tensors = tensors_of(workspace.root / "tuned")
    tensors[QUERY][0, 0] += 0.25
    save_file(tensors, workspace.root / "tuned" / "model.safetensors", metadata={"format": "pt"})
    found = vecsurgery.reproduce(workspace.out, _again(workspace))
    assert not found["identical"]
    assert found["inputs"] == {f"deltas.change.tuned: {QUERY}": "differs"}
    assert {name for name, state in found["files"].items() if state != "same"} == {"model.safetensors"}


def test_changed_data_change_the_geometry_and_the_command_fails_with_code_1(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    models.write_texts(workspace.root / "retain.jsonl", seed=9)
    result = CliRunner().invoke(main, ["reproduce", str(workspace.out / "surgery.json"), str(_again(workspace))])
    assert result.exit_code == 1
    assert "differs    surgery/retain.safetensors" in result.stdout
    assert f"differs    {workspace.root / 'retain.jsonl'} (read)" in result.stdout
    assert "Not every file is the same." in result.stdout


def test_an_input_that_is_gone_is_an_error_that_names_it(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    (workspace.root / "tuned").rename(workspace.root / "elsewhere")
    with pytest.raises(InputError, match="tuned"):
        vecsurgery.reproduce(workspace.out, _again(workspace))
    assert not _again(workspace).exists()


def test_verify_names_a_file_that_was_touched(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    assert set(vecsurgery.verify(workspace.out).values()) == {"same"}
    (workspace.out / "tokenizer.json").write_text("{}")
    (workspace.out / "recipe.yaml").unlink()
    states = {name: state for name, state in vecsurgery.verify(workspace.out).items() if state != "same"}
    assert states == {"tokenizer.json": "differs", "recipe.yaml": "missing"}


def test_two_runs_of_one_recipe_write_the_same_bytes(workspace: Workspace) -> None:
    torch.manual_seed(1)
    vecsurgery.run(workspace.write(), workspace.out)
    torch.manual_seed(2)
    (workspace.root / "second").mkdir()
    vecsurgery.run(workspace.write(), workspace.root / "second" / "out")
    assert contents(workspace.root / "second" / "out") == contents(workspace.out)
