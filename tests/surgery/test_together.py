"""Small tensors computed together: the bits of one after the other, for every tensor that may be, and for no other."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.results import same_bits, tensors_of, write_adapter
from torch import Tensor

import vecsurgery
from vecsurgery.editing import together
from vecsurgery.editing.edited import Edited
from vecsurgery.editing.together import edit_together, runs
from vecsurgery.errors import InputError

SIZE = 1 << 21
NORM = "model.layers.1.input_layernorm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`into`, with negative zeros; `all`, changed everywhere; `some`, in attention alone; `half`, in another type."""
    folder = tmp_path_factory.mktemp("together")
    models.checkpoint(folder / "into", seed=1, dtype=torch.bfloat16)
    tensors = load_file(folder / "into" / "model.safetensors")
    for values in tensors.values():
        values.reshape(-1)[::7] = -0.0
    save_file(tensors, folder / "into" / "model.safetensors", {"format": "pt"})
    models.perturbed(folder / "into", folder / "all", seed=2, size=0.05)
    models.perturbed(folder / "into", folder / "some", seed=3, size=0.05, only="self_attn")
    models.checkpoint(folder / "half", seed=4, dtype=torch.float16)
    models.checkpoint(folder / "sharded", seed=5, dtype=torch.bfloat16, shard_size="20KB")
    return folder


GRADIENT: dict[str, Any] = {"scale": [0.0, 1.0]}
CASES: dict[str, dict[str, Any]] = {
    "one number": {"deltas": ["all"], "steps": [{"scale": 0.5}]},
    "no step": {"deltas": ["all", "some"], "steps": []},
    "a number for each block": {"deltas": ["all"], "steps": [GRADIENT]},
    "some roles, some deltas": {
        "deltas": ["all", "some"],
        "steps": [
            {"scale": 0.5, "modules": ["q", "down"], "deltas": ["all"]},
            {"id": "more", "scale": -1.5, "layers": "1-2"},
        ],
    },
    "a projector": {"deltas": ["all", "some"], "steps": [{"project": "trim", "density": 0.5, "modules": ["down"]}]},
    "means of the rest": {"deltas": ["all", "some"], "steps": [{"project": "spectral", "preset": "sift"}]},
    "another type": {"deltas": ["half", "some"], "steps": [{"scale": 0.3}]},
    "float32": {"deltas": ["all"], "steps": [{"scale": 0.3}], "dtype": "float32"},
    "another base": {"deltas": {"x": ["all", "sharded"]}, "steps": [{"scale": 0.3}]},
}


def _edited(root: Path, case: dict[str, Any]) -> Edited:
    named = case["deltas"]
    pairs = named.items() if isinstance(named, dict) else ((name, [name]) for name in named)
    deltas = {name: tuple(root / each for each in pair) for name, pair in pairs}
    sources = {name: pair if len(pair) > 1 else pair[0] for name, pair in deltas.items()}
    return vecsurgery.edit(into=root / "into", deltas=sources, steps=case["steps"], dtype=case.get("dtype", "stored"))


def _runs(edited: Edited, size: int = SIZE) -> list[tuple[str, ...]]:
    return list(runs(edited, edited.layout.order, size))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_gives_what_its_tensors_give_one_by_one(root: Path, case: dict[str, Any]) -> None:
    edited = _edited(root, case)
    found = _runs(edited)
    assert any(len(names) > 1 for names in found)
    for names in found:
        if len(names) == 1:
            continue
        for name, result in zip(names, edit_together(edited, names), strict=True):
            alone = edited.edit(name)
            assert result.tensor.shape == alone.tensor.shape
            assert same_bits(result.tensor, alone.tensor), name
            assert (result.facts, result.changed) == (alone.facts, alone.changed), name


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox", "mixtral"])
def test_runs_of_every_architecture(tmp_path: Path, architecture: str) -> None:
    models.checkpoint(tmp_path / "into", architecture, seed=1)
    models.perturbed(tmp_path / "into", tmp_path / "tuned", seed=2)
    edited = vecsurgery.edit(into=tmp_path / "into", deltas={"x": tmp_path / "tuned"}, steps=[{"scale": 0.5}])
    together = [names for names in _runs(edited) if len(names) > 1]
    assert together
    for names in together:
        for name, result in zip(names, edit_together(edited, names), strict=True):
            assert same_bits(result.tensor, edited.edit(name).tensor), name


def test_runs_keep_the_order_and_what_is_edited_vocabulary_or_outside_the_blocks_stays_alone(root: Path) -> None:
    edited = _edited(root, CASES["a projector"])
    found = _runs(edited)
    assert [name for names in found for name in names] == list(edited.layout.order)
    single = {names[0] for names in found if len(names) == 1}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= single
    assert {name for name in edited.layout.order if "down_proj" in name} <= single
    assert QUERY not in single


def test_runs_are_no_larger_than_asked_for_and_no_tensor_above_the_limit_is_in_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = _edited(root, CASES["one number"])
    size = {name: edited.into.read(name).nbytes for name in edited.layout.order}
    for names in _runs(edited, 6000):
        assert len(names) == 1 or sum(size[name] for name in names) <= 6000
    monkeypatch.setattr(together, "LARGEST", 2000)
    joined = {name for names in _runs(edited) if len(names) > 1 for name in names}
    assert joined
    assert all(size[name] <= 2000 for name in joined)


def test_a_number_for_each_block_keeps_blocks_apart(root: Path) -> None:
    found = _runs(_edited(root, CASES["a number for each block"]))
    layers = [{name.split(".")[2] for name in names} for names in found if len(names) > 1]
    assert layers == [{"0"}, {"1"}, {"2"}]


def test_tensors_that_a_delta_changes_are_not_with_others(root: Path) -> None:
    edited = _edited(root, {"deltas": ["some"], "steps": [{"scale": 0.5}]})
    for names in _runs(edited):
        assert len({"self_attn" in name for name in names}) == 1
    assert any(first[0] != second[0] for first, second in pairwise(_runs(edited)))


def _run(root: Path, out: Path, tuned: Path, **keys: Any) -> tuple[dict[str, Tensor], Any]:
    recipe = out.with_suffix(".yaml")
    content = {"into": str(root / "into"), "deltas": {"x": {"tuned": str(tuned)}}, "steps": [{"scale": 0.5}]}
    recipe.write_text(json.dumps({**content, "gates": [], **keys}))
    record = vecsurgery.run(recipe, out)
    return tensors_of(out), record


def test_a_run_of_the_program_writes_and_reports_the_same(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, record = _run(root, tmp_path / "together", root / "all")
    monkeypatch.setattr(together, "LARGEST", 0)
    alone, expected = _run(root, tmp_path / "alone", root / "all")
    assert all(same_bits(once[name], alone[name]) for name in alone)
    for key in ("matrices", "inputs", "others"):
        assert record[key] == expected[key]
    assert set(record["inputs"]) >= {f"into: {QUERY}", f"deltas.x.tuned: {QUERY}"}


def test_signs_of_zeros_do_not_depend_on_the_neighbours(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("into", -0.0), ("base", 0.0), ("tuned", -0.0)):
        models.perturbed(root / "into", tmp_path / name, seed=len(name), size=0.02 if name == "tuned" else 0.0)
        tensors = load_file(tmp_path / name / "model.safetensors")
        tensors[QUERY][:] = value
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    delta = {"x": {"tuned": str(tmp_path / "tuned"), "base": str(tmp_path / "base")}}
    once, _ = _run(tmp_path, tmp_path / "together", tmp_path / "tuned", deltas=delta)
    monkeypatch.setattr(together, "LARGEST", 0)
    alone, _ = _run(tmp_path, tmp_path / "alone", tmp_path / "tuned", deltas=delta)
    assert all(same_bits(once[name], alone[name]) for name in alone)


def test_a_number_that_is_none_is_refused_with_the_name_of_its_tensor(root: Path, tmp_path: Path) -> None:
    models.perturbed(root / "into", tmp_path / "broken", seed=6)
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors[NORM][3] = float("nan")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=NORM.replace(".", r"\.") + ".*NaN"):
        _run(root, tmp_path / "out", tmp_path / "broken")
    assert not (tmp_path / "out").exists()


def test_adapters_are_never_read_in_runs(root: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {QUERY.removesuffix(".weight"): 32})
    edited = vecsurgery.edit(
        into=root / "into", deltas={"a": {"adapter": tmp_path / "adapter"}, "x": root / "all"}, steps=[{"scale": 0.5}]
    )
    assert all(len(names) == 1 for names in _runs(edited))
