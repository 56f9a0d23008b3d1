"""The recipe's `output`: geometry kept or not, types, shards; and the numbers of `weights` by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from support.results import QUERY, contents, in_float32, record_of, same_bits, tensors_of
from support.workspace import Workspace
from torch import Tensor
from transformers import AutoModelForCausalLM

import vecsurgery
from tests.blackbox import reference

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def test_geometry_is_kept_unless_the_recipe_says_otherwise(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    workspace.recipe["output"] = {"keep_geometry": False}
    vecsurgery.run(workspace.write(), workspace.root / "without")
    kept, without = contents(workspace.out), contents(workspace.root / "without")
    assert set(kept) - set(without) == {"surgery/retain.safetensors"}
    assert kept["model.safetensors"] == without["model.safetensors"]
    record = record_of(workspace.root / "without")
    assert "file" not in record["geometry"]["retain"]
    assert not [name for name in record["files"] if name.startswith("surgery/")]
    assert "the model card says `license: other`" in record["notes"][0]
    assert not any("licences" in line for line in record["warnings"])
    assert set(vecsurgery.verify(workspace.root / "without").values()) == {"same"}


@pytest.mark.parametrize("dtype", TYPES)
def test_the_output_type_is_rounded_to_once_and_stands_in_the_configuration(workspace: Workspace, dtype: str) -> None:
    in_float32(workspace)
    workspace.recipe |= {"steps": [{"scale": 0.5}], "geometry": {}, "output": {"dtype": dtype}}
    vecsurgery.run(workspace.write(), workspace.out)
    into, tuned, written = (tensors_of(workspace.root / name) for name in ("into", "tuned", "out"))
    assert {tensor.dtype for tensor in written.values()} == {TYPES[dtype]}
    for name, tensor in written.items():
        exact = into[name].double() + 0.5 * (tuned[name].double() - into[name].double())
        place = reference.ulp(torch.maximum(exact.abs(), into[name].double().abs()), tensor.dtype)
        assert bool(((tensor.double() - exact).abs() <= place).all()), name
    assert json.loads((workspace.out / "config.json").read_text())["dtype"] == dtype
    assert AutoModelForCausalLM.from_pretrained(workspace.out, dtype="auto").dtype == TYPES[dtype]


def test_the_stored_type_is_that_of_each_tensor_of_into(workspace: Workspace) -> None:
    mixed = tensors_of(workspace.root / "into")
    mixed["model.norm.weight"] = mixed["model.norm.weight"].float()
    models.save_file(mixed, workspace.root / "into" / "model.safetensors", metadata={"format": "pt"})
    workspace.recipe |= {"steps": [{"scale": 0.5}], "geometry": {}}
    vecsurgery.run(workspace.write(), workspace.out)
    written = tensors_of(workspace.out)
    assert {name for name, tensor in written.items() if tensor.dtype == torch.float32} == {"model.norm.weight"}
    assert (workspace.out / "config.json").read_bytes() == (workspace.root / "into" / "config.json").read_bytes()


def test_shards_hold_the_same_tensors_in_walking_order_below_the_size(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    workspace.recipe["output"] = {"shard_size": "20KB"}
    vecsurgery.run(workspace.write(), workspace.root / "cut")
    whole, cut = tensors_of(workspace.out), tensors_of(workspace.root / "cut")
    assert all(same_bits(whole[name], cut[name]) for name in whole)
    index = json.loads((workspace.root / "cut" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert set(index["weight_map"]) == set(whole)
    assert len(files) == 4
    assert [path.name for path in sorted((workspace.root / "cut").glob("*.safetensors"))] == files
    sizes = dict.fromkeys(files, 0)
    for name, file in index["weight_map"].items():
        sizes[file] += whole[name].nbytes
    assert max(sizes.values()) <= 20_000
    assert index["metadata"]["total_size"] == sum(sizes.values())
    AutoModelForCausalLM.from_pretrained(workspace.root / "cut")


def _with_weights(root: Path, architecture: str, weights: Any, **changes: Any) -> tuple[dict[str, Tensor], ...]:
    into = models.checkpoint(root / "into", architecture, seed=1, **changes)
    models.perturbed(into, root / "tuned", seed=2)
    recipe = {"into": "into", "deltas": {"change": {"tuned": "tuned"}}, "steps": [{"scale": 1.0}]}
    work = Workspace(root, {**recipe, "weights": {"change": weights}})
    vecsurgery.run(work.write(), work.out)
    return tensors_of(root / "into"), tensors_of(root / "tuned"), tensors_of(root / "out")


def _require_shares(
    into: dict[str, Tensor], tuned: dict[str, Tensor], written: dict[str, Tensor], shares: dict[str, float]
) -> None:
    """written = into + share·(tuned − into), with the share of the first key that occurs in the name."""
    for name, tensor in written.items():
        share = next(value for part, value in shares.items() if part in name)
        expected = into[name].double() + share * (tuned[name].double() - into[name].double())
        assert torch.allclose(tensor.double(), expected, rtol=0.0, atol=1e-6), name
        if share == 0.0:
            assert same_bits(tensor, into[name]), name


def test_a_gradient_runs_over_the_blocks_and_holds_its_ends_outside_them(tmp_path: Path) -> None:
    shares = {".layers.0.": 0.0, ".layers.1.": 0.5, ".layers.2.": 1.0, "embed_tokens": 0.0, "norm": 1.0, "lm_head": 1.0}
    _require_shares(*_with_weights(tmp_path, "llama", [0, 0.5, 1]), shares)


def test_a_gradient_is_interpolated_between_its_values(tmp_path: Path) -> None:
    shares = {f".layers.{layer}.": value for layer, value in enumerate((0.2, 0.6, 1.0, 0.6, 0.2))}
    shares |= {"embed_tokens": 0.2, "norm": 0.2, "lm_head": 0.2}
    _require_shares(*_with_weights(tmp_path, "llama", [0.2, 1.0, 0.2], num_hidden_layers=5), shares)


def test_position_embeddings_take_the_first_value_and_the_final_norm_the_last(tmp_path: Path) -> None:
    shares = {"wte": 0.25, "wpe": 0.25, ".h.0.": 0.25, ".h.1.": 0.5, ".h.2.": 0.75, "ln_f": 0.75}
    into, tuned, written = _with_weights(tmp_path, "gpt2", [0.25, 0.75])
    assert any("wpe" in name for name in written)
    _require_shares(into, tuned, written, shares)


def test_filters_match_whole_components_and_the_first_match_decides(tmp_path: Path) -> None:
    weights = [
        {"filter": "layers.1.self_attn", "value": 0.0},
        {"filter": "self_attn", "value": [0.2, 0.4]},
        {"filter": "layers.1", "value": 0.9},
        {"value": 0.5},
    ]
    shares = {
        "layers.1.self_attn.": 0.0,
        "layers.0.self_attn.": 0.2,
        "layers.10.self_attn.": 0.4,
        ".layers.1.": 0.9,
        **{f"layers.{layer}.self_attn.": 0.2 + 0.02 * layer for layer in range(2, 10)},
        "": 0.5,
    }
    _require_shares(*_with_weights(tmp_path, "llama", weights, num_hidden_layers=11), shares)


def test_a_negative_weight_takes_the_delta_away(workspace: Workspace) -> None:
    in_float32(workspace)
    workspace.recipe |= {"steps": [{"scale": 1.0}], "geometry": {}, "weights": {"change": -1.0}}
    vecsurgery.run(workspace.write(), workspace.out)
    into, tuned, written = (tensors_of(workspace.root / name)[QUERY].double() for name in ("into", "tuned", "out"))
    assert torch.allclose(written, 2 * into - tuned, rtol=0.0, atol=1e-6)
