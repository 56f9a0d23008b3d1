"""Checkpoint to checkpoint: deltas made orthogonal equal an independent float64 computation with decompositions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from support.results import write_adapter
from torch import Tensor

import vecsurgery
from tests.blackbox import reference, spectral_reference
from vecsurgery.projectors.spectral import PROJECTOR
from vecsurgery.report.record import Record

RECIPE = """
into: {into}
deltas:
  a: {{tuned: {a}}}
  b: {{tuned: {b}}}
  c: {{tuned: {c}}}
steps: [{{project: spectral{options}}}]
weights: {{b: 0.5}}
gates: []
"""
WEIGHTS = {"a": 1.0, "b": 0.5, "c": 1.0}


def _folders(root: Path, architecture: str, dtype: torch.dtype, *, only: str, size: float = 0.02) -> dict[str, Path]:
    """Three fine-tunes; the third changes only some tensors."""
    into = models.checkpoint(root / "into", architecture, seed=1, dtype=dtype)
    folders = {"into": into}
    for number, name in enumerate("abc"):
        kept = only if name == "c" else None
        folders[name] = models.perturbed(into, root / name, seed=2 + number, size=size, only=kept)
    return folders


def _run(root: Path, folders: dict[str, Path], options: str = "") -> tuple[Record, dict[str, dict[str, Tensor]]]:
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(options=options, **folders))
    out = root / "out"
    record = vecsurgery.run(recipe, out)
    return record, {name: reference.tensors_of(folder) for name, folder in (folders | {"out": out}).items()}


def _require_stored(stored: Tensor, weight: Tensor, change: Tensor) -> None:
    """Within one unit in the last place of W + Σ w D′, and float32's rounding of the decompositions."""
    exact = weight.double() + change
    place = reference.ulp(torch.maximum(exact.abs(), weight.double().abs()), stored.dtype)
    assert bool(((stored.double() - exact).abs() <= place + 1e-4 * change.square().mean().sqrt()).all())


def _changes(tensors: dict[str, dict[str, Tensor]], name: str, *, transposed: bool) -> dict[str, Tensor]:
    """The deltas that reach a tensor."""
    found = {
        each: reference.delta(tensors[each][name], tensors["into"][name], transposed=transposed) for each in WEIGHTS
    }
    return {each: change for each, change in found.items() if change.any()}


def _weighted(changes: dict[str, Tensor]) -> Tensor:
    return sum(WEIGHTS[name] * change for name, change in changes.items())  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("architecture", "dtype", "only", "size", "rtol"),
    [
        ("llama", torch.float32, "q_proj", 0.02, 0.3),
        ("gpt2", torch.bfloat16, "c_fc", 0.0006, 0.3),
        ("phi3", torch.float32, "qkv_proj", 0.02, 1e-6),
    ],
    ids=["llama", "gpt2", "phi3"],
)
def test_a_run_equals_the_float64_reference(
    tmp_path: Path, architecture: str, dtype: torch.dtype, only: str, size: float, rtol: float
) -> None:
    """With a delta that reaches few tensors, matrices stored turned round, fused ones, and rounding noise."""
    folders = _folders(tmp_path, architecture, dtype, only=only, size=size)
    record, tensors = _run(tmp_path, folders, f", rtol: {rtol}")
    facts = {
        matrix["tensor"]: {step["delta"]: step["facts"] for step in matrix["steps"]} for matrix in record["matrices"]
    }
    assert any(len(found) == 3 for found in facts.values())
    assert any(len(found) == 2 for found in facts.values())
    limited = False
    for name, weight in tensors["into"].items():
        transposed = architecture == "gpt2" and name in facts
        changes = _changes(tensors, name, transposed=transposed)
        if name in facts:
            assert list(facts[name]) == list(changes)
            floors = [spectral_reference.noise_floor(weight)] * len(changes)
            found = spectral_reference.spectral(changes, rtol=rtol, floors=floors)
            for each, slot in found.items():
                figures, change = facts[name][each], changes[each]
                assert figures["norm_ratio"] == pytest.approx(float(slot.norm() / change.norm()), rel=1e-3)
                limit = min(weight.shape) // len(changes)
                assert figures["rank"] <= limit
                limited |= figures["rank"] < limit
            changes = found
        else:
            changes = {each: change / len(changes) for each, change in changes.items()}
        total = _weighted(changes) if changes else torch.zeros(())
        _require_stored(tensors["out"][name], weight, total.T if transposed else total)
    assert limited == (dtype == torch.bfloat16)


@pytest.mark.parametrize(("others", "word"), [("mean", "averaged"), ("source", "added")])
def test_other_tensors_are_averaged_over_the_deltas_that_change_them_or_added(
    tmp_path: Path, others: str, word: str
) -> None:
    folders = _folders(tmp_path, "llama", torch.float32, only="norm")
    record, tensors = _run(tmp_path, folders, f", others: {others}")
    counts = set()
    for name, weight in tensors["into"].items():
        if name.endswith("proj.weight"):
            continue
        changes = _changes(tensors, name, transposed=False)
        counts.add(len(changes))
        share = 1.0 / len(changes) if others == "mean" else 1.0
        _require_stored(tensors["out"][name], weight, share * _weighted(changes))
    assert counts == {2, 3}
    assert {item["treatment"] for item in record["others"]} == {others}
    assert word in record["verdict"]
    assert word in vecsurgery.plan(tmp_path / "recipe.yaml").text()


def test_the_query_rows_of_a_fused_matrix_can_be_projected_alone(tmp_path: Path) -> None:
    folders = _folders(tmp_path, "phi3", torch.float32, only="qkv_proj")
    record, tensors = _run(tmp_path, folders, ", preset: tsv_m, modules: [q], deltas: [a, c], rank: 6")
    name = "model.layers.0.self_attn.qkv_proj.weight"
    changes = _changes(tensors, name, transposed=False)
    query = spectral_reference.spectral({each: changes[each][:32] for each in "ac"}, rtol=1e-6, rank=6)
    expected = _weighted(changes)
    expected[:32] = WEIGHTS["b"] * changes["b"][:32] + query["a"] + query["c"]
    _require_stored(tensors["out"][name], tensors["into"][name], expected)
    assert [matrix["tensor"] for matrix in record["matrices"]] == [name.replace("0", str(layer)) for layer in range(3)]


def test_adapters_are_made_orthogonal_without_ever_being_multiplied_out(tmp_path: Path) -> None:
    into = models.checkpoint(tmp_path / "into", "llama", seed=1)
    modules = {f"model.layers.{layer}.self_attn.q_proj": 32 for layer in range(3)}
    recipe: dict[str, Any] = {"into": str(into), "deltas": {}, "steps": [{"project": "spectral"}], "gates": []}
    products = {}
    for number, name in enumerate("ab"):
        folder = tmp_path / name
        write_adapter(folder, modules, seed=number)
        recipe["deltas"][name] = {"adapter": str(folder)}
        tensors = reference.tensors_of(folder)
        for module in modules:
            key = f"base_model.model.{module}"
            product = 2 * tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()
            products.setdefault(f"{module}.weight", {})[name] = product
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert vecsurgery.check(path)["facts"]["geometry"] == {}
    planned = vecsurgery.plan(path)
    costs = {name: item.flops for name, item in planned.tensors.items()}
    assert {name for name, flops in costs.items() if flops} == set(products)
    assert PROJECTOR.cost is not None
    assert set(costs.values()) == {0, PROJECTOR.cost((32, 32), [4, 4], PROJECTOR.options()).flops}
    assert "project spectral of a and b, preset sift" in planned.text()
    record = vecsurgery.run(path, tmp_path / "out")
    before, after = (reference.tensors_of(tmp_path / name) for name in ("into", "out"))
    for name, pair in products.items():
        slots = spectral_reference.spectral(pair, rtol=0.3)
        _require_stored(after[name], before[name], slots["a"] + slots["b"])
    assert [step["facts"]["rank"] for step in record["matrices"][0]["steps"]] == [4.0, 4.0]
