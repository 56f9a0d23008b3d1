"""Zeros of both signs survive apply and undo, where D leaves a row, a tensor or an entry as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.results import same_bits, tensors_of

import vecsurgery

UP = "model.layers.0.mlp.up_proj.weight"


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def _with(folder: Path, *changes: tuple[Any, float]) -> Path:
    """A checkpoint with entries of `UP` set."""
    tensors = load_file(folder / "model.safetensors")
    for place, value in changes:
        tensors[UP][place] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _there_and_back(root: Path, base: str) -> None:
    vecsurgery.apply(root / base, root / "delta", root / "applied")
    vecsurgery.undo(root / "applied", root / "delta", root / "back")
    assert weights_of(root / "back") == weights_of(root / base)


@pytest.mark.parametrize(
    ("ours", "theirs", "only"),
    [
        ([(5, 0.0)], [(5, 0.0), ((5, 3), -0.0)], None),
        ([((0, 0), -0.0)], [((0, 0), 0.0)], "q_proj"),
        ([((0, 0), 0.0)], [((0, 0), -0.0)], "q_proj"),
        ([(5, -0.0)], [(5, -0.0)], None),
    ],
    ids=["a row of zeros", "a negative zero alone", "a positive zero alone", "a row of negative zeros that stays"],
)
def test_signs_of_zeros_come_back_where_no_number_of_a_row_or_tensor_changes(
    tmp_path: Path, ours: list[Any], theirs: list[Any], only: str | None
) -> None:
    base = models.checkpoint(tmp_path / "base", seed=1, dtype=torch.bfloat16, num_hidden_layers=1)
    _with(base, *ours)
    _with(models.perturbed(base, tmp_path / "tuned", seed=2, only=only), *theirs)
    vecsurgery.extract(base, tmp_path / "tuned", tmp_path / "delta")
    _there_and_back(tmp_path, "base")
    assert weights_of(tmp_path / "applied") == weights_of(tmp_path / "tuned")


@pytest.mark.parametrize(
    "steps",
    [[{"scale": [0, 1]}], [{"scale": 0.0, "layers": 0}], [{"project": "trim", "density": 0.02}]],
    ids=["a gradient from zero", "zero in one block", "few entries are left"],
)
def test_negative_zeros_of_into_come_back_where_steps_leave_nothing_of_a_delta(
    tmp_path: Path, steps: list[dict[str, Any]]
) -> None:
    into = models.checkpoint(tmp_path / "into", seed=1, dtype=torch.bfloat16, num_hidden_layers=2)
    _with(into, *(((row, row), -0.0) for row in range(32)))
    models.perturbed(into, tmp_path / "tuned", seed=2)
    recipe = {"into": "into", "deltas": {"a": {"tuned": "tuned"}}, "steps": steps, "gates": []}
    for name, form in (("delta", "delta"), ("whole", "checkpoint")):
        (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "output": {"format": form}}))
        vecsurgery.run(tmp_path / "recipe.yaml", tmp_path / name)
    _there_and_back(tmp_path, "into")
    applied, whole = tensors_of(tmp_path / "applied"), tensors_of(tmp_path / "whole")
    assert all(same_bits(applied[name], whole[name]) for name in whole)
