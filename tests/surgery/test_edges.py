"""Faults that a run or a notebook must refuse, and figures that must be right where models are unusual."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.workspace import Workspace

import vecsurgery
from vecsurgery.checkpoint import file_sha256
from vecsurgery.checkpoint.hashes import tensor_sha256
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.planning import checking
from vecsurgery.planning.checking import require_disk

SCALE: list[dict[str, Any]] = [{"scale": 1.0}]


def _save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _files(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_geometry_measured_on_a_model_of_another_width_is_refused_before_the_run(workspace: Workspace) -> None:
    models.checkpoint(workspace.root / "wide", seed=5, hidden_size=64)
    workspace.recipe["geometry"]["retain"]["model"] = "wide"
    with pytest.raises(InputError, match="is 64 wide in its model"):
        vecsurgery.plan(workspace.write())


def test_a_geometry_file_without_a_site_that_a_step_edits_is_refused_before_the_run(workspace: Workspace) -> None:
    workspace.recipe["steps"][0]["layers"] = 0
    vecsurgery.run(workspace.write(), workspace.root / "first")
    del workspace.recipe["steps"][0]["layers"]
    workspace.recipe["geometry"] = {"retain": {"file": "first/surgery/retain.safetensors"}}
    with pytest.raises(InputError, match=r"model\.layers\.1\..* does not exist in its file"):
        vecsurgery.plan(workspace.write())


def test_another_geometry_file_under_the_same_name_is_another_plan(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.root / "first")
    named = workspace.root / "named.safetensors"
    shutil.copyfile(workspace.root / "first/surgery/retain.safetensors", named)
    workspace.recipe["geometry"]["retain"]["limit"] = 3
    vecsurgery.run(workspace.write(), workspace.root / "second")
    workspace.recipe["geometry"] = {"retain": {"file": "named.safetensors"}}
    before = vecsurgery.plan(workspace.write()).hash
    shutil.copyfile(workspace.root / "second/surgery/retain.safetensors", named)
    assert vecsurgery.plan(workspace.write()).hash != before


def test_values_that_the_output_type_cannot_hold_are_refused(workspace: Workspace) -> None:
    tensors = _files(workspace.root / "tuned")
    tensors["model.norm.weight"] *= 1e6
    _save(workspace.root / "tuned", tensors)
    workspace.recipe |= {"steps": SCALE, "output": {"dtype": "float16"}}
    del workspace.recipe["geometry"]
    with pytest.raises(InputError, match=r"model\.norm\.weight.*do not fit float16"):
        vecsurgery.run(workspace.write(), workspace.out)
    assert not workspace.out.exists()


def test_an_unprojected_delta_at_weight_one_gives_the_tuned_model_bit_for_bit(tmp_path: Path) -> None:
    into = models.checkpoint(tmp_path / "into", seed=1)
    tuned = models.checkpoint(tmp_path / "tuned", seed=2)
    edited = vecsurgery.edit(into=into, deltas={"x": tuned}, steps=SCALE)
    expected = _files(tuned)
    assert all(torch.equal(edited.read(name), expected[name]) for name in edited.layout.order)


def test_input_hashes_are_right_where_files_hold_a_tied_tensor_twice(tmp_path: Path) -> None:
    into = models.checkpoint(tmp_path / "into", seed=1, tie_word_embeddings=True)
    tuned = models.perturbed(into, tmp_path / "tuned", seed=2)
    for folder in (into, tuned):
        tensors = _files(folder)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        _save(folder, tensors)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{into: into, deltas: {x: {tuned: tuned}}, steps: [{scale: 0.5}]}")
    record = vecsurgery.run(recipe, tmp_path / "out")
    held = {"into": _files(into), "deltas.x.tuned": _files(tuned)}
    for key, digest in record["inputs"].items():
        role, name = key.split(": ")
        assert digest == tensor_sha256(held[role][name]), key


def test_the_record_holds_the_hash_of_the_configuration(workspace: Workspace) -> None:
    record = vecsurgery.run(workspace.write(), workspace.out)
    assert record["files"]["config.json"] == file_sha256(workspace.out / "config.json")


def test_a_notebook_edit_refuses_an_untied_delta_on_a_tied_model(tmp_path: Path) -> None:
    into = models.checkpoint(tmp_path / "into", seed=1, tie_word_embeddings=True)
    tuned = models.perturbed(into, tmp_path / "tuned", seed=2)
    tensors = _files(tuned)
    _save(tuned, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1.0})
    with pytest.raises(InputError, match="ties"):
        vecsurgery.edit(into=into, deltas={"x": tuned}, steps=SCALE)


def test_edited_weights_of_different_geometry_have_different_fingerprints(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.root / "first")
    workspace.recipe["geometry"]["retain"]["limit"] = 3
    vecsurgery.run(workspace.write(), workspace.root / "second")
    steps = [{"project": "retain_energy", "geometry": "g", "keep": 0.1}]
    prints = {
        vecsurgery.edit(
            into=workspace.root / "into",
            deltas={"x": workspace.root / "tuned"},
            steps=steps,
            geometry={"g": workspace.root / name / "surgery/retain.safetensors"},
        ).fingerprint
        for name in ("first", "second")
    }
    assert len(prints) == 2


def test_a_notebook_write_with_another_shard_size_does_not_go_on_in_the_old_shards(workspace: Workspace) -> None:
    edited = vecsurgery.edit(
        into=workspace.root / "into", deltas={"x": workspace.root / "tuned"}, steps=[{"scale": 0.5}]
    )

    def stop(stage: str, done: float, total: float, unit: str) -> None:
        raise KeyboardInterrupt(f"{stage} {done}/{total} {unit}")

    with pytest.raises(KeyboardInterrupt):
        vecsurgery.write(edited, workspace.out, shard_size=20_000, progress=stop)
    with pytest.raises(InputError, match="another plan"):
        vecsurgery.write(edited, workspace.out, shard_size=50_000)


def test_rows_of_a_fused_matrix_that_a_step_passes_by_are_listed(tmp_path: Path) -> None:
    into = models.checkpoint(tmp_path / "into", "phi3", seed=1)
    models.perturbed(into, tmp_path / "tuned", seed=2)
    models.write_texts(tmp_path / "retain.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{into: into, deltas: {x: {tuned: tuned}}, geometry: {g: {data: retain.jsonl}}, "
        "steps: [{project: null_space, geometry: g, modules: [q, o, gate, up, down]}]}"
    )
    left = {tensor for tensor, _, _ in vecsurgery.plan(recipe).left_out()}
    assert left == {f"model.layers.{layer}.self_attn.qkv_proj.weight" for layer in range(3)}


def test_a_resumed_run_needs_room_only_for_what_is_missing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = vecsurgery.plan(workspace.write())
    needed: list[int] = []
    monkeypatch.setattr(checking, "require_space", lambda _folder, size, _what: needed.append(size))
    require_disk(plan, workspace.out)
    partial = workspace.out.with_name("out.partial")
    partial.mkdir()
    (partial / "model-00001-of-00002.safetensors").write_bytes(bytes(1000))
    require_disk(plan, workspace.out)
    assert needed == [plan.disk, plan.disk - 1000]


def test_a_long_vocabulary_is_planned_by_row_chunks(workspace: Workspace) -> None:
    plan = vecsurgery.plan(workspace.write())
    info = plan.inputs.into.layout.tensors["lm_head.weight"]
    from vecsurgery.planning.costs import ROW_CHUNK, tensor_memory

    vast = dataclasses.replace(info, shape=(256_000, 8_192))
    assert tensor_memory(plan.inputs, vast, 1) == 5 * 4 * ROW_CHUNK // 2


def test_a_notebook_reference_with_an_adapter_takes_the_adapter(tmp_path: Path) -> None:
    into = models.checkpoint(tmp_path / "into", seed=1)
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    left, right = torch.ones(32, 2), torch.full((2, 32), 0.5)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{prefix}.lora_A.weight": right, f"{prefix}.lora_B.weight": left}
    save_file(factors, adapter / "adapter_model.safetensors")
    edited = vecsurgery.edit(into=into, deltas={"x": f"{into}+{adapter}"}, steps=SCALE)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(edited.read(name), _files(into)[name] + 2.0 * left @ right)
    with pytest.raises(UnsupportedError, match="cannot carry an adapter"):
        vecsurgery.edit(into=f"{into}+{adapter}", deltas={"x": into}, steps=SCALE)


def test_a_notebook_measures_only_the_blocks_that_its_steps_edit(workspace: Workspace) -> None:
    from vecsurgery.calibration import load_tokenizer, prepare
    from vecsurgery.recipe.types import DataSpec

    samples = prepare(DataSpec((workspace.root / "retain.jsonl",)), load_tokenizer(workspace.root / "into"))
    stages: list[float] = []
    vecsurgery.edit(
        into=workspace.root / "into",
        deltas={"x": workspace.root / "tuned"},
        steps=[{"project": "null_space", "geometry": "g", "layers": 0}],
        geometry={"g": samples},
        progress=lambda stage, done, total, unit: stages.append(total),
    )
    assert set(stages) == {1}


def test_tokens_that_only_the_tuned_model_has_a_row_for_are_named(workspace: Workspace) -> None:
    tuned = workspace.root / "tuned"
    tensors = _files(tuned)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:8]])
    _save(tuned, tensors)
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "vocab_size": 168}))
    models.write_tokenizer(tuned, size=168)
    warnings = vecsurgery.check(workspace.write())["warnings"]
    assert any("no row for 8 tokens of the tuned model ('w160'" in warning for warning in warnings)


def test_settings_of_a_window_that_no_layer_has_are_no_difference(workspace: Workspace) -> None:
    into = models.checkpoint(workspace.root / "qwen", "qwen2", seed=1)
    tuned = models.perturbed(into, workspace.root / "qwen-tuned", seed=2)
    config = json.loads((tuned / "config.json").read_text())
    changed = {**config, "use_sliding_window": False, "max_window_layers": 21, "sliding_window": 131072}
    (tuned / "config.json").write_text(json.dumps(changed))
    workspace.recipe |= {"into": "qwen", "deltas": {"change": {"tuned": "qwen-tuned"}}}
    assert not any("sliding window" in warning for warning in vecsurgery.check(workspace.write())["warnings"])
