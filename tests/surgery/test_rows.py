"""Tensors written in pieces of rows: the bits are those of the whole tensor, however it is cut."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.results import same_bits, tensors_of
from torch import Tensor

import vecsurgery

EMBEDDING = "model.embed_tokens.weight"
MATRIX = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`into`, with negative zeros; `all`, changed everywhere; `some`, changed in the first rows of every matrix."""
    folder = tmp_path_factory.mktemp("rows")
    models.checkpoint(folder / "into", seed=1, dtype=torch.bfloat16, num_hidden_layers=2)
    tensors = load_file(folder / "into" / "model.safetensors")
    for values in tensors.values():
        values.reshape(-1)[::7] = -0.0
    save_file(tensors, folder / "into" / "model.safetensors", {"format": "pt"})
    models.perturbed(folder / "into", folder / "all", seed=2, size=0.05)
    models.perturbed(folder / "into", folder / "some", seed=3, size=0.05)
    changed = load_file(folder / "some" / "model.safetensors")
    for name, values in changed.items():
        values[4:] = tensors[name][4:]
    save_file(changed, folder / "some" / "model.safetensors", {"format": "pt"})
    return folder


def _written(root: Path, out: Path, **keys: Any) -> tuple[dict[str, Tensor], Any]:
    deltas = {name: {"tuned": str(root / name)} for name in ("all", "some")}
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps({"into": str(root / "into"), "deltas": deltas, "gates": [], **keys}))
    record = vecsurgery.run(recipe, out)
    return tensors_of(out), record


RECIPES: dict[str, dict[str, Any]] = {
    "numbers": {
        "steps": [{"scale": 0.5, "layers": "0"}, {"id": "more", "scale": -2.0, "deltas": ["some"]}],
        "weights": {"all": 0.3},
    },
    "mean": {"steps": [{"project": "spectral", "preset": "sift", "others": "mean", "layers": "0"}]},
    "float32": {"steps": [{"scale": 0.5}], "output": {"dtype": "float32"}},
    "delta": {"steps": [{"scale": 0.5, "layers": "1"}], "output": {"format": "delta"}},
}


@pytest.mark.parametrize("keys", RECIPES.values(), ids=RECIPES)
def test_the_size_of_pieces_does_not_show_in_what_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    whole, record = _written(root, tmp_path / "whole", **keys)
    monkeypatch.setattr("vecsurgery.surgery.writing.ROW_CHUNK", 400)
    pieces, again = _written(root, tmp_path / "pieces", **keys)
    assert whole.keys() == pieces.keys()
    assert all(same_bits(whole[name], pieces[name]) for name in whole)
    assert again["matrices"] == record["matrices"]
    assert again["inputs"] == record["inputs"]


def test_a_mean_is_over_the_deltas_that_change_the_tensor_not_these_rows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecsurgery.surgery.writing.ROW_CHUNK", 400)
    written, _ = _written(root, tmp_path / "out", **RECIPES["mean"])
    into, tuned, other = (tensors_of(root / name)[EMBEDDING].double() for name in ("into", "all", "some"))
    expected = into + ((tuned - into) + (other - into)) / 2
    torch.testing.assert_close(written[EMBEDDING].double(), expected, rtol=2**-8, atol=1e-6)


def test_rows_of_an_edited_tensor_are_rows_of_the_whole(root: Path) -> None:
    edited = vecsurgery.edit(
        into=root / "into",
        deltas={"all": root / "all", "some": root / "some"},
        steps=[{"scale": 0.5}, {"project": "trim", "density": 0.5, "modules": ["down"]}],
    )
    assert edited.by_rows(EMBEDDING)
    assert edited.by_rows(MATRIX)
    assert not edited.by_rows(MATRIX.replace("up_proj", "down_proj"))
    for name in edited.layout.order:
        whole = edited.read(name)
        for rows in (slice(3, 9), torch.tensor([5, 2])):
            assert same_bits(edited.read(name, rows), whole[rows])


@pytest.mark.parametrize("way", ["apply", "undo"])
def test_a_delta_is_applied_and_undone_by_rows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("vecsurgery.surgery.writing.ROW_CHUNK", 400)
    vecsurgery.extract(root / "into", root / "some", tmp_path / "delta")
    vecsurgery.apply(root / "into", tmp_path / "delta", tmp_path / "applied")
    expected = root / "some"
    if way == "undo":
        vecsurgery.undo(tmp_path / "applied", tmp_path / "delta", tmp_path / "undone")
        expected = root / "into"
    found, wanted = tensors_of(tmp_path / ("applied" if way == "apply" else "undone")), tensors_of(expected)
    assert all(same_bits(found[name], wanted[name]) for name in wanted)
