"""Tensors written in pieces of rows: the bits are those of the whole tensor, however it is cut."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.results import same_bits, tensors_of, write_adapter
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


def _changed(root: Path, name: str, change: Any) -> Path:
    """A copy of `wide` with its tensors changed in place by `change`."""
    folder = root / name
    shutil.copytree(root / "wide", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_what_one_delta_leaves_as_it_is_does_not_round_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    models.checkpoint(tmp_path / "wide", seed=1, dtype=torch.float64, num_hidden_layers=1)
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = {"a": slice(0, 4), "b": slice(90, 94)}
    deltas = {
        name: {"tuned": str(_changed(tmp_path, name, lambda each, name=name: each[EMBEDDING][rows[name]].add_(noise)))}
        for name in order
    }
    monkeypatch.setattr("vecsurgery.surgery.writing.ROW_CHUNK", 1024)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"into": str(tmp_path / "wide"), "deltas": deltas, "gates": []}))
    vecsurgery.run(recipe, tmp_path / "out")
    out = tensors_of(tmp_path / "out")[EMBEDDING]
    for name in order:
        assert same_bits(out[rows[name]], tensors_of(tmp_path / name)[EMBEDDING][rows[name]])


def test_a_delta_of_signs_alone_counts_whole_as_it_does_by_rows(tmp_path: Path) -> None:
    models.checkpoint(tmp_path / "wide", seed=1, num_hidden_layers=1)
    base = _changed(tmp_path, "base", lambda each: each[EMBEDDING][5].zero_())

    def turned(each: dict[str, Tensor]) -> None:
        each[EMBEDDING][5] = -0.0
        each["model.norm.weight"] += 1.0

    shutil.rmtree(tmp_path / "wide")
    base.rename(tmp_path / "wide")
    sign = _changed(tmp_path, "sign", turned)
    more = _changed(tmp_path, "more", lambda each: [values.add_(1.0) for values in each.values()])
    steps = [{"project": "spectral", "preset": "sift", "others": "mean"}]
    edited = vecsurgery.edit(into=tmp_path / "wide", deltas={"sign": sign, "more": more}, steps=steps)
    whole = edited.read(EMBEDDING)
    assert same_bits(edited.read(EMBEDDING, slice(0, 3)), whole[:3])
    torch.testing.assert_close(whole - tensors_of(tmp_path / "wide")[EMBEDDING], torch.full_like(whole, 0.5))


def test_an_adapter_on_tuned_is_never_multiplied_row_by_row(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": 32})
    pair = {"tuned": f"{root / 'all'}+{tmp_path / 'adapter'}", "base": str(root / "some")}
    deltas = {"x": pair, "all": {"tuned": str(root / "all")}}
    keys = {"deltas": deltas, "output": {"dtype": "float32"}}
    whole, _ = _written(root, tmp_path / "whole", **keys)
    monkeypatch.setattr("vecsurgery.surgery.writing.ROW_CHUNK", 64)
    pieces, _ = _written(root, tmp_path / "pieces", **keys)
    assert all(same_bits(whole[name], pieces[name]) for name in whole)


def test_an_adapter_and_a_difference_are_added_in_the_wider_type_in_any_order(tmp_path: Path) -> None:
    models.checkpoint(tmp_path / "wide", seed=1, dtype=torch.float64, num_hidden_layers=1)
    tuned = _changed(tmp_path, "tuned", lambda each: [values.mul_(1.001) for values in each.values()])
    write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": 32})
    deltas = {"adapter": {"adapter": tmp_path / "adapter"}, "tuned": tuned}
    name = "model.layers.0.self_attn.q_proj.weight"
    first, second = (
        vecsurgery.edit(into=tmp_path / "wide", deltas={key: deltas[key] for key in order}).read(name)
        for order in (["adapter", "tuned"], ["tuned", "adapter"])
    )
    assert same_bits(first, second)
